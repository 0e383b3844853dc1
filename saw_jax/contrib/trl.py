"""Weightings, advantages and losses inside TRL's GRPO trainer: extra `trl`.

The matrix of rewards and the log-probs `[B, T]` go to JAX, advantages and the
loss's gradient come back. JAX compiles once for each length `T`:
`GRPOConfig(pad_to_multiple_of=64)` keeps those few. TRL's `loss_type`,
`epsilon`, `scale_rewards`, `multi_objective_aggregation`,
`importance_sampling_level` and `use_bias_correction_kl` have no effect, and
what would act beside the method is refused.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from saw_jax import naming
from saw_jax.contrib import hosted as hosted_lib

if TYPE_CHECKING:
  import torch

# Arguments of TRL's that act in the loss which is replaced, or in the sum of
# the rewards, with the value at which they do nothing.
REPLACED = {
  "reward_weights": None,
  "top_entropy_quantile": 1.0,
  "entropy_coef": 0.0,
  "use_adaptive_entropy": False,
  "off_policy_mask_threshold": None,
  "delta": None,
}
# TRL's names of log-probs, and ours.
RECORDED = {
  "old_per_token_logps": "old_log_probs",
  "sampling_per_token_logps": "behave_log_probs",
  "ref_per_token_logps": "ref_log_probs",
}
_COUNT = "saw_jax_count/"
_MISSING = "TRL is missing (install torch first, in your machine's build)"


def to_jax(tensor: "torch.Tensor") -> jax.Array:
  """Shows a tensor to JAX, if possible without a copy; floats as float32."""
  torch = _torch()
  tensor = tensor.detach()
  if tensor.dtype is not torch.bool:
    tensor = tensor.float()
  if tensor.is_cuda and jax.default_backend() != "gpu":
    tensor = tensor.cpu()
  return jax.dlpack.from_dlpack(tensor.contiguous())


def to_torch(array: jax.Array, like: "torch.Tensor") -> "torch.Tensor":
  """Shows an array to torch, on the device and in the float type of `like`."""
  return _torch().from_dlpack(array).to(device=like.device, dtype=like.dtype)


def torch_loss(hosted: hosted_lib.Hosted) -> Callable[..., tuple]:
  """Makes the method's loss a function that torch differentiates, once.

  It takes what `Hosted.terms` takes, as tensors. `counts` by term are what the
  whole batch divides by, where a call has a part of it.
  """
  torch = _torch()

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def value_and_grad(learned, recorded, counts):
    terms, logged = hosted.terms(**learned, **recorded)
    values = hosted_lib.logged_values(terms, logged)
    return hosted_lib.total_loss(terms, counts), values

  class JaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_probs, entropies, recorded, counts):
      learned = {"log_probs": to_jax(log_probs), "entropies": to_jax(entropies)}
      recorded = {name: to_jax(tensor) for name, tensor in recorded.items()}
      (loss, logged), gradient = jax.block_until_ready(
        value_and_grad(learned, recorded, counts)
      )
      slope = to_torch(gradient["log_probs"], log_probs)
      ctx.save_for_backward(slope, to_torch(gradient["entropies"], entropies))
      # A copy: torch may add to a loss in place.
      value = torch.tensor(float(loss), device=log_probs.device)
      return value, {name: float(number) for name, number in logged.items()}

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale, _):
      log_probs, entropies = ctx.saved_tensors
      return scale * log_probs, scale * entropies, None, None

  def loss(
    log_probs, entropies, advantages, completion_mask, *, counts=None, **others
  ):
    recorded = {name: x for name, x in others.items() if x is not None}
    recorded["advantages"] = advantages
    recorded["completion_mask"] = completion_mask.bool()
    return JaxLoss.apply(log_probs, entropies, recorded, counts)

  return loss


def check_arguments(hosted: hosted_lib.Hosted, args: Any) -> None:
  """Refuses what TRL's trainer would do beside the method, or not do for it."""
  for name, value in REPLACED.items():
    given = getattr(args, name)
    if given != value:
      raise ValueError(
        f"GRPOConfig.{name} is {given!r} and acts in TRL's own loss or sum of "
        f"rewards, which the method replaces: leave it at {value!r} and say "
        "what you want in the AlgorithmConfig"
      )
  hosted_lib.check_beta(hosted, args.beta, "TRL")


@functools.cache
def trainer_class(hosted: hosted_lib.Hosted) -> type:
  """Makes TRL's GRPO trainer one that learns by the method.

  Rewards, of which a `None` was not scored, are weighed and compared over the
  whole generation batch, of all processes; the weights are logged as
  `weights/<reward function>`. What the parts of a generation batch divide by is
  counted over the whole of it, so that the loss does not depend on
  `gradient_accumulation_steps` (where a generation batch serves one update).
  """
  torch = _torch()
  with naming.needs_extra("trl", _MISSING):
    import trl
  loss_of = torch_loss(hosted)

  class HostedGRPOTrainer(trl.GRPOTrainer):
    """TRL's trainer with the method's advantages and loss."""

    def __init__(self, *arguments, **options):
      super().__init__(*arguments, **options)
      check_arguments(hosted, self.args)
      if len(self.reward_funcs) != hosted.num_components:
        raise ValueError(
          f"there are {len(self.reward_funcs)} reward functions and "
          f"{hosted.num_components} minima: give one minimum for each"
        )
      if hosted.needs_behave and not self.use_vllm:
        raise ValueError(
          "the loss needs the sampler's log-probs, which TRL records with "
          "use_vllm=True only: use that, or a loss without them"
        )

    def _calculate_rewards(self, *arguments, **options):
      self._rewards = super()._calculate_rewards(*arguments, **options)
      return self._rewards

    def _generate_and_score_completions(self, inputs):
      output = super()._generate_and_score_completions(inputs)
      mask = _loss_mask(output)
      advantages = self._estimate(self.accelerator.gather(mask.sum(-1)))
      start = self.accelerator.process_index * len(mask)
      own = advantages[start : start + len(mask)].copy()
      output["advantages"] = torch.from_numpy(own).to(mask.device)
      counts = hosted_lib.denominators(hosted, own, mask.bool().cpu().numpy())
      for name, count in counts.items():
        # Gradients of processes are averaged, so each divides by the mean.
        own_count = torch.tensor(float(count), device=mask.device)
        output[_COUNT + name] = self.accelerator.reduce(own_count, "mean")
      return output

    def _estimate(self, lengths):
      """Advantages of the whole generation batch, logged like weights."""
      training = self.model.training
      groups = self.num_generations if training else self.num_generations_eval
      advantages, statistics = hosted.estimate(
        self._rewards.cpu().numpy(),
        group_size=groups,
        lengths=lengths.cpu().numpy(),
      )
      metrics = self._metrics["train" if training else "eval"]
      weights = statistics["weight"]
      for name, weight in zip(self.reward_func_names, weights, strict=True):
        metrics[f"weights/{name}"].append(float(weight))
      # In the log of completions, too, they take the place of TRL's own.
      logged = self._logs["advantages"]
      for _ in range(min(len(advantages), len(logged))):
        logged.pop()
      logged.extend(advantages.tolist())
      return advantages

    def _compute_loss(self, model, inputs):
      mask = _loss_mask(inputs)
      forward = self._get_per_token_logps_and_entropies
      log_probs, entropies, aux_loss = forward(
        model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        mask.shape[1],
        compute_entropy=True,
        compute_aux_loss=self.aux_loss_enabled,
        # Pictures and the like.
        **{x: inputs[x] for x in naming.arguments(forward) if x in inputs},
      )
      training, parts, counts = self.model.training, 1.0, None
      if training:
        # A part of a generation batch divides by its share of the whole.
        parts = self.current_gradient_accumulation_steps
        share = parts / self.args.steps_per_generation
        counts = {
          name.removeprefix(_COUNT): share * float(count)
          for name, count in inputs.items()
          if name.startswith(_COUNT)
        }
      loss, logged = loss_of(
        log_probs,
        entropies,
        inputs["advantages"],
        mask,
        counts=counts,
        **_recorded(inputs, log_probs),
      )
      if self.aux_loss_enabled:
        loss = loss + self.router_aux_loss_coef * aux_loss / parts
        logged["aux_loss"] = float(aux_loss)
      metrics = self._metrics["train" if training else "eval"]
      for name, number in logged.items():
        one = torch.tensor(number, device=mask.device)
        metrics[name].append(self.accelerator.gather(one).nanmean().item())
      return loss

  return HostedGRPOTrainer


def _recorded(
  inputs: Mapping[str, Any], log_probs: "torch.Tensor"
) -> dict[str, "torch.Tensor | None"]:
  """The log-probs that TRL has recorded, or None, by our names."""
  recorded = {ours: inputs.get(theirs) for theirs, ours in RECORDED.items()}
  behave, old = recorded["behave_log_probs"], recorded["old_log_probs"]
  if behave is not None:
    # NaN where vLLM has none: such a token counts as sampled by the policy that
    # the update starts from.
    old = log_probs.detach() if old is None else old
    recorded["behave_log_probs"] = behave.where(~behave.isnan(), old)
  return recorded


def _loss_mask(inputs: Mapping[str, Any]) -> "torch.Tensor":
  """The tokens that the policy chose: not what a tool answered."""
  mask = inputs["completion_mask"]
  return mask if inputs.get("tool_mask") is None else mask * inputs["tool_mask"]


def _torch() -> Any:
  with naming.needs_extra("trl", _MISSING):
    import torch
  return torch
