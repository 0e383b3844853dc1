"""Tunix as a worker: its Qwen2, GRPO loss, trainer and sampler."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as model_lib
from tunix.models.qwen2 import params as params_lib
from tunix.rl import algo_core, common, trainer
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout, vanilla_rollout
from tunix.sft import peft_trainer

from benchmarks.peer_workers import protocol


class Numbers:
  """A tokenizer whose text is the numbers of the tokens."""

  def encode(self, text: str, **_) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids, **_) -> str:
    return " ".join(map(str, ids))

  def bos_id(self) -> int:
    return 0  # none

  def eos_id(self) -> int:
    return protocol.EOS

  def pad_id(self) -> int:
    return protocol.PAD


class Tunix(protocol.Worker):
  """What `GRPOLearner` puts together, on one device."""

  def load(self, directory: str) -> None:
    self._start(
      params_lib.create_model_from_safe_tensors(
        directory, model_config(self.shape), dtype=jnp.float32
      )
    )

  def _start(self, model: nnx.Module) -> None:
    self.model = model
    self._step = self._rollout = None
    self._sampled = 0

  def versions(self) -> dict[str, str]:
    return {
      name: importlib.metadata.version(name)
      for name in ("google-tunix", "jax", "flax", "optax", "numpy")
    }

  def logits(self, rows: int) -> np.ndarray:
    prompts, completions = self._tokens()
    tokens, positions, mask, _ = common.process_ids(
      prompts[:rows], completions[:rows], protocol.PAD, protocol.EOS
    )
    logits, _ = self.model(
      tokens, positions=positions, cache=None, attention_mask=mask
    )
    return np.asarray(logits)

  def log_probs(self) -> np.ndarray:
    graphdef, state = nnx.split(self.model)
    prompts, completions = self._tokens()
    size = self.shape.rows // self.parts["forward"]
    found = [
      common.compute_per_token_logps(
        graphdef,
        state,
        prompts[first : first + size],
        completions[first : first + size],
        pad_id=protocol.PAD,
        eos_id=protocol.EOS,
      )
      for first in range(0, self.shape.rows, size)
    ]
    return np.concatenate(jax.device_get(found))

  def forward(self) -> dict[str, float]:
    return {"log_prob": float(self.log_probs().mean())}

  def train(self) -> dict[str, float]:
    if self._step is None:
      self._step = self._make_step()
    found, parts = [], self.parts["train"]
    for part in range(parts):
      loss, aux, norm = self._step(self._example(part))
      found.append((loss, aux["entropy"]))
    jax.block_until_ready((found, nnx.state(self.model)))
    loss, entropy = np.mean(jax.device_get(found), axis=0)
    values = {"loss": float(loss), "entropy": float(entropy)}
    # With several parts it is the norm of one.
    return values | ({"gradient_norm": float(norm)} if parts == 1 else {})

  def _example(self, part: int) -> common.TrainExample:
    prompts, completions = self._tokens()
    rows = slice(part, None, self.parts["train"])
    prompts, completions = prompts[rows], completions[rows]
    return common.TrainExample(
      prompt_ids=prompts,
      prompt_mask=prompts != protocol.PAD,
      completion_ids=completions,
      completion_mask=completions != protocol.PAD,
      advantages=jnp.asarray(self.data["advantages"][rows]),
      ref_per_token_logps=None,
      old_per_token_logps=jnp.asarray(self.data["old_log_probs"][rows]),
    )

  def _make_step(self):
    """The learner's loss in the trainer's jitted step."""
    parts = self.parts["train"]
    config = grpo_learner.GRPOConfig(
      num_generations=self.shape.group_size,
      beta=0.0,
      epsilon=protocol.CLIP,
      loss_agg_mode="token-mean",
    )
    config.temperature = 1.0

    def loss_fn(model, train_example, algo_config):
      return algo_core.grpo_loss_fn(
        model,
        train_example,
        algo_config=algo_config,
        pad_id=protocol.PAD,
        eos_id=protocol.EOS,
      )

    made = trainer.Trainer(
      self.model,
      optax.chain(
        optax.clip_by_global_norm(protocol.CLIP_NORM),
        optax.adamw(protocol.LEARNING_RATE, weight_decay=protocol.WEIGHT_DECAY),
      ),
      peft_trainer.TrainingConfig(
        eval_every_n_steps=1_000_000,
        gradient_accumulation_steps=parts if parts > 1 else None,
      ),
      custom_checkpoint_metadata_fn=dict,
    )
    made.with_loss_fn(loss_fn, has_aux=True)
    made.with_gen_model_input_fn(
      lambda x: {"train_example": x, "algo_config": config}
    )
    step, _ = made.jit_train_and_eval_step()
    return step

  def generate(self) -> dict[str, float]:
    shape = self.shape
    if self._rollout is None:
      self._rollout = vanilla_rollout.VanillaRollout(
        self.model,
        Numbers(),
        base_rollout.CacheConfig(
          cache_size=shape.length,
          num_layers=shape.num_layers,
          num_kv_heads=shape.num_kv_heads,
          head_dim=shape.head_size,
        ),
      )
    prompts, _ = self._tokens()
    self._sampled += 1
    output = self._rollout.generate(
      [Numbers().decode(row) for row in np.asarray(prompts).tolist()],
      base_rollout.RolloutConfig(
        max_tokens_to_generate=shape.new_tokens,
        max_prompt_length=shape.prompt_size,
        temperature=1.0,
        top_p=1.0,
        seed=jax.random.PRNGKey(self._sampled),
      ),
    )
    return {"tokens": sum(len(row) for row in output.tokens)}

  def small_train(self, rows: int, variant: str):
    self.data = protocol.random_batch(self.shape, rows)
    self._start(
      model_lib.Qwen2(model_config(self.shape), rngs=nnx.Rngs(params=0))
    )
    return self.train

  def _tokens(self) -> tuple[jax.Array, jax.Array]:
    tokens, size = self.data["tokens"], self.shape.prompt_size
    return jnp.asarray(tokens[:, :size]), jnp.asarray(tokens[:, size:])


def model_config(shape: protocol.Shape) -> model_lib.ModelConfig:
  return model_lib.ModelConfig(
    num_layers=shape.num_layers,
    vocab_size=shape.vocab_size,
    embed_dim=shape.width,
    hidden_dim=shape.mlp_size,
    num_heads=shape.num_heads,
    head_dim=shape.head_size,
    num_kv_heads=shape.num_kv_heads,
    rope_theta=10_000,
    norm_eps=1e-6,
    use_tied_embedding=True,
  )


if __name__ == "__main__":
  protocol.serve(Tunix())
