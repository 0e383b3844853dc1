"""Tests of saw_jax/contrib/trl.py.

`make adapters` runs all of them, in an environment with the extra `trl`.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import losses
from saw_jax.algorithms import AlgorithmConfig, KLConfig
from saw_jax.contrib import hosted, trl

MINIMA = (0.0, -1.0)
WORDS = "<pad> <eos> a b c d e f g h i j k".split()
B, PROMPT, T = 8, 3, 6
MEANS = "sequence_mean_token_mean"


def make(minima=MINIMA, **options):
  return hosted.make_hosted(AlgorithmConfig(**options), minima=minima)


def needs(package):
  return pytest.importorskip(
    package, reason=f"{package} is not installed: the extra `trl`"
  )


@pytest.fixture(scope="module")
def torch():
  return needs("torch")


@pytest.fixture(scope="module")
def library(torch):
  return needs("trl")


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  x = -rng.uniform(0.1, 3, (4, B, T)).astype(np.float32)
  mask = rng.random((B, T)) < 0.6
  mask[:, 0] = True
  return {
    "log_probs": x[0],
    "entropies": -x[3],
    "advantages": rng.normal(size=B).astype(np.float32),
    "completion_mask": mask,
    "old_log_probs": x[1],
    "ref_log_probs": x[2],
  }


@pytest.mark.parametrize("missing", ["torch", "trl"])
def test_without_the_extra_the_error_names_it(missing, monkeypatch):
  if missing == "trl":
    needs("torch")
  monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(ImportError, match="trl"):
    trl.trainer_class(make())


def arguments(**changed):
  return types.SimpleNamespace(**{"beta": 0.0, **trl.REPLACED, **changed})


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("reward_weights", [1.0, 2.0]),
    ("top_entropy_quantile", 0.2),
    ("entropy_coef", 0.1),
    ("use_adaptive_entropy", True),
    ("off_policy_mask_threshold", 0.1),
    ("delta", 2.0),
    ("beta", 0.1),
  ],
)
def test_arguments_that_act_beside_the_method_are_refused(name, value):
  trl.check_arguments(make(), arguments())
  with pytest.raises(ValueError, match=f"GRPOConfig.{name} is"):
    trl.check_arguments(make(), arguments(**{name: value}))


def test_a_kl_term_needs_the_same_beta():
  method = make(kl=KLConfig("loss", coefficient=0.1))
  trl.check_arguments(method, arguments(beta=0.1))
  with pytest.raises(ValueError, match="beta"):
    trl.check_arguments(method, arguments())


def test_floats_and_masks_are_shown_and_not_copied(torch):
  x = torch.arange(64, dtype=torch.float32).reshape(8, 8)
  array = trl.to_jax(x)
  assert array.unsafe_buffer_pointer() == x.data_ptr()
  back = trl.to_torch(array, x)
  assert back.data_ptr() == x.data_ptr()
  mask = trl.to_jax(x > 5)
  assert mask.dtype == bool and int(mask.sum()) == 58


def test_other_types_and_layouts_arrive(torch):
  x = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
  array = trl.to_jax(x)
  assert array.dtype == jnp.float32
  np.testing.assert_array_equal(array, [[0, 3], [1, 4], [2, 5]])
  assert trl.to_torch(array, x).dtype is torch.bfloat16


def as_tensors(torch, **changed):
  found = {**arrays(), **changed}
  found = {name: torch.from_numpy(value) for name, value in found.items()}
  for name in ("log_probs", "entropies"):
    found[name].requires_grad_()
  return found


@pytest.mark.parametrize(
  "options",
  [
    dict(aggregate=MEANS, entropy_coefficient=0.25),
    dict(kl=KLConfig("loss", coefficient=0.5)),
    dict(loss="asympo", aggregate=MEANS),
    dict(loss="spo", aggregate=MEANS),
    dict(loss="gspo", aggregate=MEANS),
  ],
)
def test_value_and_gradient_are_those_of_jax(torch, options):
  method, x = make(**options), arrays()

  def direct(log_probs, entropies):
    learned = {"log_probs": log_probs, "entropies": entropies}
    return hosted.total_loss(method.terms(**{**x, **learned})[0])

  want, slopes = jax.value_and_grad(direct, argnums=(0, 1))(
    x["log_probs"], x["entropies"]
  )
  tensors = as_tensors(torch)
  loss, logged = trl.torch_loss(method)(**tensors)
  (3 * loss).backward()
  np.testing.assert_allclose(loss.item(), want, rtol=1e-6)
  for name, slope in zip(("log_probs", "entropies"), slopes, strict=True):
    np.testing.assert_allclose(
      tensors[name].grad.numpy(), 3 * slope, rtol=1e-5, atol=1e-7
    )
  assert logged["loss/policy"] != 0


def test_half_precision_gets_a_gradient_of_its_type(torch):
  x = torch.from_numpy(arrays()["log_probs"]).bfloat16().requires_grad_()
  loss, _ = trl.torch_loss(make())(**{**as_tensors(torch), "log_probs": x})
  loss.backward()
  assert x.grad.dtype is torch.bfloat16 and x.grad.abs().sum() > 0


# --- in TRL's trainer ------------------------------------------------------


def letters(completion_ids, **_):
  """The share of the first letters of the alphabet."""
  return [float(np.mean(np.array(ids) < 7)) for ids in completion_ids]


def brevity(completion_ids, **_):
  """-1 for a long completion, and nothing for some."""
  return [
    None if ids[0] == 3 else -float(len(ids) > 4) for ids in completion_ids
  ]


def plain_brevity(completion_ids, **_):
  return [-float(len(ids) > 4) for ids in completion_ids]


class Lab:
  """Trainers of one tiny random model."""

  def __init__(self, torch, library, folder):
    import datasets
    import tokenizers
    import transformers

    self.torch, self.library, self.folder = torch, library, folder
    self.transformers = transformers
    self.start = folder / "start"
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(
      transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
      )
    ).save_pretrained(self.start)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    raw = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(vocabulary, unk_token="k")
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    self.tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>"
    )
    prompts = [{"prompt": " ".join(w)} for w in ["aec", "bfd", "cge", "dhf"]]
    self.data = datasets.Dataset.from_list(prompts)

  def trainer(self, kind, rewards=(letters, brevity), **options):
    # From a folder, as TRL reads the reference from there.
    model = self.transformers.LlamaForCausalLM.from_pretrained(self.start)
    arguments = {
      "output_dir": str(self.folder),
      "per_device_train_batch_size": B,
      "num_generations": 4,
      "max_completion_length": T,
      "max_steps": 3,
      "learning_rate": 0.5,
      "lr_scheduler_type": "constant",
      "optim": "sgd",
      "max_grad_norm": 0.0,
      "bf16": False,
      "use_cpu": True,
      "report_to": [],
      "save_strategy": "no",
      "logging_steps": 1,
      "disable_tqdm": True,
      "gradient_checkpointing": False,
      "disable_dropout": True,
      **options,
    }
    return kind(
      model,
      reward_funcs=list(rewards),
      args=self.library.GRPOConfig(**arguments),
      train_dataset=self.data,
      processing_class=self.tokenizer,
    )

  def weights(self, trainer):
    return {
      name: value.detach().clone().numpy()
      for name, value in trainer.model.named_parameters()
    }


@pytest.fixture(scope="module")
def lab(torch, library, tmp_path_factory):
  return Lab(torch, library, tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def inputs(torch):
  """Two parts of a batch, as TRL's loss gets them."""
  generator = torch.Generator().manual_seed(1)
  x = arrays(seed=2)
  tensors = {
    "prompt_ids": torch.randint(2, 13, (B, PROMPT), generator=generator),
    "prompt_mask": torch.ones(B, PROMPT, dtype=torch.long),
    "completion_ids": torch.randint(2, 13, (B, T), generator=generator),
    # Completions of several lengths.
    "completion_mask": (
      torch.arange(T)[None] < torch.tensor([6, 1, 4, 2, 6, 5, 3, 2])[:, None]
    ).long(),
    "advantages": torch.from_numpy(x["advantages"]),
    # Near those of a policy that knows little, so that some ratios are clipped
    # and others not.
    "old_per_token_logps": torch.from_numpy(-2.6 + x["old_log_probs"] / 3),
    "ref_per_token_logps": torch.from_numpy(-2.6 + x["ref_log_probs"] / 3),
  }
  tokens = tensors["completion_mask"].sum()
  halves = [slice(0, B // 2), slice(B // 2, B)]
  return tensors, tokens, halves


CLIPS = {"clip_low": 0.1, "clip_high": 0.3}
DAPO = dict(aggregate="token_mean")
EPSILONS = dict(epsilon=0.1, epsilon_high=0.3)
# Theirs, ours, in how many parts.
CASES = {
  "grpo": (dict(loss_type="grpo"), dict(aggregate=MEANS), 2),
  "bnpo": (dict(loss_type="bnpo"), DAPO, 1),
  "dapo": (dict(loss_type="dapo"), DAPO, 2),
  "clips": (
    dict(loss_type="dapo", **EPSILONS),
    dict(**DAPO, loss_options=CLIPS),
    2,
  ),
  "dr_grpo": (
    dict(loss_type="dr_grpo"),
    dict(
      aggregate="sequence_mean_token_sum_const", aggregate_options={"length": T}
    ),
    2,
  ),
  "cispo": (
    dict(loss_type="cispo", epsilon_high=1.5),
    dict(**DAPO, loss="cispo", loss_options={"r_max": 1.5}),
    2,
  ),
  "gspo": (
    dict(loss_type="grpo", importance_sampling_level="sequence", **EPSILONS),
    dict(loss="gspo", loss_options=CLIPS, aggregate=MEANS),
    2,
  ),
  "kl": (
    dict(loss_type="grpo", beta=0.3, use_bias_correction_kl=False),
    dict(aggregate=MEANS, kl=KLConfig("loss", coefficient=0.3)),
    2,
  ),
  "entropy": (
    dict(loss_type="bnpo", entropy_coef=0.2),
    dict(**DAPO, entropy_coefficient=0.2),
    1,
  ),
}


def loss_and_gradient(trainer, inputs, parts, counts=None):
  """The loss of all parts, and the gradient that the optimizer sees."""
  tensors, tokens, halves = inputs
  trainer.model.train()
  trainer.current_gradient_accumulation_steps = parts
  total = 0.0
  for rows in halves if parts == 2 else [slice(None)]:
    part = {name: tensor[rows] for name, tensor in tensors.items()}
    part |= {"num_items_in_batch": tokens, **(counts or {})}
    loss = trainer._compute_loss(trainer.model, part)
    loss.backward()
    total += loss.item()
  return total, {
    name: value.grad.numpy() for name, value in trainer.model.named_parameters()
  }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_trls_loss_and_ours_are_equal_through_one_model(lab, inputs, name):
  theirs, options, parts = CASES[name]
  method = make(**options)
  own = {"beta": theirs["beta"]} if "beta" in theirs else {}
  size = dict(
    per_device_train_batch_size=B // parts, gradient_accumulation_steps=parts
  )
  tensors = inputs[0]
  counts = hosted.denominators(
    method, tensors["advantages"].numpy(), tensors["completion_mask"].numpy()
  )
  got, gradient = loss_and_gradient(
    lab.trainer(trl.trainer_class(method), **size, **own),
    inputs,
    parts,
    {trl._COUNT + n: lab.torch.tensor(float(c)) for n, c in counts.items()},
  )
  want, slope = loss_and_gradient(
    lab.trainer(lab.library.GRPOTrainer, **size, **theirs), inputs, parts
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert max(np.abs(value).max() for value in slope.values()) > 1e-3
  for name, value in slope.items():
    np.testing.assert_allclose(
      gradient[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )


@pytest.mark.slow
class TestTraining:
  def run(self, lab, kind, **options):
    trainer = lab.trainer(kind, **options)
    before = lab.weights(trainer)
    lab.torch.manual_seed(7)
    trainer.train()
    return trainer, before, lab.weights(trainer)

  def same_run(self, lab, method, *, rewards=(letters, brevity), **theirs):
    """Three updates by TRL's own code and by ours, from one seed."""
    size = dict(
      rewards=rewards,
      per_device_train_batch_size=4,
      gradient_accumulation_steps=2,
      num_iterations=2,
    )
    _, before, want = self.run(lab, lab.library.GRPOTrainer, **size, **theirs)
    _, _, got = self.run(lab, trl.trainer_class(method), **size)
    moved = max(np.abs(want[name] - before[name]).max() for name in want)
    assert moved > 1e-2
    for name, value in want.items():
      np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)

  def test_grpo_is_trls_run(self, lab):
    method = make(advantage_options={"eps": 1e-4}, aggregate="token_mean")
    # A response that lacks one reward is left out here; TRL takes it for 0.
    rewards = (letters, plain_brevity)
    self.same_run(lab, method, rewards=rewards, loss_type="dapo")

  def test_gdpo_is_trls_run(self, lab):
    method = make(
      advantage="gdpo",
      advantage_options={"eps": 1e-4, "whiten": "sequence"},
      aggregate=MEANS,
    )
    self.same_run(
      lab,
      method,
      loss_type="grpo",
      multi_objective_aggregation="normalize_then_sum",
    )

  @pytest.mark.parametrize("loss", ["clipped_surrogate", "asympo", "spo"])
  def test_saw_weighs_the_components(self, lab, loss):
    method = make(advantage="gdpo", weights="saw", loss=loss, aggregate=MEANS)
    kind = trl.trainer_class(method)
    trainer, before, after = self.run(lab, kind)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3
    for log in logs:
      weights = [log["weights/letters"], log["weights/brevity"]]
      np.testing.assert_allclose(sum(weights), 2, atol=1e-4)
      assert np.isfinite(log["loss"]) and log["entropy"] > 0
    assert any(abs(log["weights/letters"] - 1) > 1e-3 for log in logs)
    assert max(np.abs(after[n] - before[n]).max() for n in after) > 1e-4

  def test_advantages_are_those_of_the_rewards_kept(self, lab):
    method = make(advantage="gdpo", weights="saw")
    trainer = lab.trainer(trl.trainer_class(method))
    trainer.model.train()
    rows = [row for row in lab.data for _ in range(4)][:B]
    output = trainer._generate_and_score_completions(rows)
    rewards = trainer._rewards.numpy()
    assert rewards.shape == (B, 2)
    want, statistics = method.estimate(
      rewards, group_size=4, lengths=output["completion_mask"].sum(-1).numpy()
    )
    np.testing.assert_array_equal(output["advantages"].numpy(), want)
    assert np.abs(want).max() > 0.1
    assert list(trainer._logs["advantages"]) == want.tolist()
    mask = output["completion_mask"].bool().numpy()
    ratio = losses.token_mean(np.zeros(mask.shape), mask)
    assert output[trl._COUNT + "policy"].item() == ratio.denominator

  def test_what_the_trainer_does_not_have_is_refused(self, lab):
    with pytest.raises(ValueError, match="3 minima"):
      lab.trainer(trl.trainer_class(make(minima=(0.0, 0.0, 0.0))))
    with pytest.raises(ValueError, match="use_vllm=True"):
      lab.trainer(trl.trainer_class(make(loss="tis")))
