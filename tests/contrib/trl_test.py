"""Tests of saw_jax/contrib/trl.py.

`make adapters` runs all of them, in an environment with the extra `trl`.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import losses
from saw_jax.algorithms import AlgorithmConfig, KLConfig
from saw_jax.contrib import hosted, trl
from tests import helpers

MINIMA = (0.0, -1.0)
WORDS = "<pad> <eos> a b c d e f g h i j k".split()
B, PROMPT, T = 8, 3, 6
MEANS = "sequence_mean_token_mean"
LEARNED = ("log_probs", "entropies")


def make(minima=MINIMA, **options):
  return hosted.make_hosted(AlgorithmConfig(**options), minima=minima)


def needs(package):
  reason = f"{package} is not installed: the extra `trl`"
  return pytest.importorskip(package, reason=reason)


@pytest.fixture(scope="module")
def torch():
  return needs("torch")


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
def test_without_the_extra_the_error_names_it(missing):
  if missing == "trl":
    needs("torch")
  with helpers.lacking("trl", missing):
    trl.trainer_class(make())


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
  given = types.SimpleNamespace(**trl.REPLACED, beta=0.0)
  trl.check_arguments(make(), given)
  setattr(given, name, value)
  with pytest.raises(ValueError, match=f"GRPOConfig.{name} is"):
    trl.check_arguments(make(), given)


def test_a_kl_term_needs_the_same_beta():
  method = make(kl=KLConfig("loss", coefficient=0.1))
  given = types.SimpleNamespace(**trl.REPLACED, beta=0.1)
  trl.check_arguments(method, given)
  given.beta = 0.0
  with pytest.raises(ValueError, match="beta"):
    trl.check_arguments(method, given)


def test_tensors_are_shown_and_not_copied_unless_they_must(torch):
  x = torch.arange(64, dtype=torch.float32).reshape(8, 8)
  array = trl.to_jax(x)
  assert array.unsafe_buffer_pointer() == x.data_ptr()
  assert trl.to_torch(array, x).data_ptr() == x.data_ptr()
  mask = trl.to_jax(x > 5)
  assert mask.dtype == bool and int(mask.sum()) == 58
  x = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
  array = trl.to_jax(x)
  assert array.dtype == jnp.float32
  np.testing.assert_array_equal(array, [[0, 3], [1, 4], [2, 5]])
  assert trl.to_torch(array, x).dtype is torch.bfloat16


def as_tensors(torch, **changed):
  found = {name: torch.from_numpy(value) for name, value in arrays().items()}
  found |= changed
  for name in LEARNED:
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

  def direct(*learned):
    changed = {**x, **dict(zip(LEARNED, learned, strict=True))}
    return hosted.total_loss(method.terms(**changed)[0])

  grad = jax.value_and_grad(direct, argnums=(0, 1))
  want, slopes = grad(*(x[name] for name in LEARNED))
  tensors = as_tensors(torch)
  loss, logged = trl.torch_loss(method)(**tensors)
  (3 * loss).backward()
  np.testing.assert_allclose(loss.item(), want, rtol=1e-6)
  for name, slope in zip(LEARNED, slopes, strict=True):
    got = tensors[name].grad.numpy()
    np.testing.assert_allclose(got, 3 * slope, rtol=1e-5, atol=1e-7)
  assert logged["loss/policy"] != 0


def test_half_precision_gets_a_gradient_of_its_type(torch):
  x = torch.from_numpy(arrays()["log_probs"]).bfloat16()
  loss, _ = trl.torch_loss(make())(**as_tensors(torch, log_probs=x))
  loss.backward()
  assert x.grad.dtype is torch.bfloat16 and x.grad.abs().sum() > 0


# --- in TRL's trainer ------------------------------------------------------


def letters(completion_ids, **_):
  """The share of the first letters of the alphabet."""
  return [float(np.mean(np.array(ids) < 7)) for ids in completion_ids]


def brevity(completion_ids, **_):
  """-1 for a long completion."""
  return [-float(len(ids) > 4) for ids in completion_ids]


def patchy(completion_ids, **_):
  """As `brevity`, and nothing for some."""
  pairs = zip(completion_ids, brevity(completion_ids), strict=True)
  return [None if ids[0] == 3 else reward for ids, reward in pairs]


class Lab:
  """Trainers of one tiny random model."""

  def __init__(self, torch, folder):
    self.torch, self.library, self.folder = torch, needs("trl"), folder
    import datasets
    import tokenizers
    import transformers

    self.model, self.start = transformers.LlamaForCausalLM, folder / "start"
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    ids = dict(bos_token_id=None, pad_token_id=0, eos_token_id=1)
    config = transformers.LlamaConfig(
      vocab_size=len(WORDS),
      max_position_embeddings=64,
      initializer_range=0.3,
      **(sizes | heads | ids),
    )
    self.model(config).save_pretrained(self.start)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.models.WordLevel(vocabulary, unk_token="k")
    raw = tokenizers.Tokenizer(words)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    self.tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>"
    )
    prompts = [{"prompt": " ".join(w)} for w in ["aec", "bfd", "cge", "dhf"]]
    self.data = datasets.Dataset.from_list(prompts)

  def trainer(self, kind, rewards=(letters, patchy), **options):
    sgd = dict(optim="sgd", learning_rate=0.5, lr_scheduler_type="constant")
    silent = dict(report_to=[], save_strategy="no", disable_tqdm=True)
    plain = dict(bf16=False, use_cpu=True, gradient_checkpointing=False)
    size = dict(num_generations=4, max_completion_length=T, max_steps=3)
    arguments = {
      "output_dir": str(self.folder),
      "per_device_train_batch_size": B,
      "max_grad_norm": 0.0,
      "logging_steps": 1,
      "disable_dropout": True,
      **options,
    }
    return kind(
      # From a folder, as TRL reads the reference from there.
      self.model.from_pretrained(self.start),
      reward_funcs=list(rewards),
      args=self.library.GRPOConfig(
        **sgd, **silent, **plain, **size, **arguments
      ),
      train_dataset=self.data,
      processing_class=self.tokenizer,
    )

  def weights(self, trainer):
    parameters = trainer.model.named_parameters()
    return {name: x.detach().clone().numpy() for name, x in parameters}


@pytest.fixture(scope="module")
def lab(torch, tmp_path_factory):
  return Lab(torch, tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def inputs(torch):
  """A batch as TRL's loss gets it."""
  generator = torch.Generator().manual_seed(1)
  x = {k: torch.from_numpy(v) for k, v in arrays(seed=2).items()}
  lengths = torch.tensor([6, 1, 4, 2, 6, 5, 3, 2])
  return {
    "prompt_ids": torch.randint(2, 13, (B, PROMPT), generator=generator),
    "prompt_mask": torch.ones(B, PROMPT, dtype=torch.long),
    "completion_ids": torch.randint(2, 13, (B, T), generator=generator),
    "completion_mask": (torch.arange(T)[None] < lengths[:, None]).long(),
    "advantages": x["advantages"],
    # Near those of a policy that knows little, so that some ratios are clipped
    # and others not.
    "old_per_token_logps": -2.6 + x["old_log_probs"] / 3,
    "ref_per_token_logps": -2.6 + x["ref_log_probs"] / 3,
  }


CLIPS = {"clip_low": 0.1, "clip_high": 0.3}
GRPO, DAPO = dict(loss_type="grpo"), dict(aggregate="token_mean")
EPSILONS = dict(epsilon=0.1, epsilon_high=0.3)
SUM = "sequence_mean_token_sum_const"
# Theirs, ours, in how many parts.
CASES = {
  "grpo": (GRPO, dict(aggregate=MEANS), 2),
  "bnpo": (dict(loss_type="bnpo"), DAPO, 1),
  "dapo": (dict(loss_type="dapo"), DAPO, 2),
  "clips": (
    dict(loss_type="dapo", **EPSILONS),
    DAPO | dict(loss_options=CLIPS),
    2,
  ),
  "dr_grpo": (
    dict(loss_type="dr_grpo"),
    dict(aggregate=SUM, aggregate_options={"length": T}),
    2,
  ),
  "cispo": (
    dict(loss_type="cispo", epsilon_high=1.5),
    DAPO | dict(loss="cispo", loss_options={"r_max": 1.5}),
    2,
  ),
  "gspo": (
    GRPO | EPSILONS | dict(importance_sampling_level="sequence"),
    dict(loss="gspo", loss_options=CLIPS, aggregate=MEANS),
    2,
  ),
  "kl": (
    GRPO | dict(beta=0.3, use_bias_correction_kl=False),
    dict(aggregate=MEANS, kl=KLConfig("loss", coefficient=0.3)),
    2,
  ),
  "entropy": (
    dict(loss_type="bnpo", entropy_coef=0.2),
    DAPO | dict(entropy_coefficient=0.2),
    1,
  ),
}


def loss_and_gradient(trainer, inputs, parts, **counts):
  """The loss of all parts, and the gradient that the optimizer sees."""
  trainer.model.train()
  trainer.current_gradient_accumulation_steps = parts
  counts["num_items_in_batch"] = inputs["completion_mask"].sum()
  total = 0.0
  for start in range(0, B, B // parts):
    part = {name: x[start : start + B // parts] for name, x in inputs.items()}
    loss = trainer._compute_loss(trainer.model, part | counts)
    loss.backward()
    total += loss.item()
  parameters = trainer.model.named_parameters()
  return total, {name: value.grad.numpy() for name, value in parameters}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_trls_loss_and_ours_are_equal_through_one_model(lab, inputs, name):
  theirs, options, parts = CASES[name]
  method = make(**options)
  size = dict(
    per_device_train_batch_size=B // parts, gradient_accumulation_steps=parts
  )
  counts = hosted.denominators(
    method, inputs["advantages"].numpy(), inputs["completion_mask"].numpy()
  )
  counts = {trl._COUNT + n: lab.torch.tensor(float(counts[n])) for n in counts}
  own = size | {"beta": theirs.get("beta", 0.0)}
  ours = lab.trainer(trl.trainer_class(method), **own)
  got, gradient = loss_and_gradient(ours, inputs, parts, **counts)
  theirs = lab.trainer(lab.library.GRPOTrainer, **size, **theirs)
  want, slope = loss_and_gradient(theirs, inputs, parts)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert max(np.abs(value).max() for value in slope.values()) > 1e-3
  for name, value in slope.items():
    np.testing.assert_allclose(gradient[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
class TestTraining:
  def run(self, lab, kind, **options):
    trainer = lab.trainer(kind, **options)
    before = lab.weights(trainer)
    lab.torch.manual_seed(7)
    trainer.train()
    return trainer, before, lab.weights(trainer)

  def same_run(self, lab, method, rewards, **theirs):
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
    self.same_run(lab, method, (letters, brevity), loss_type="dapo")

  def test_gdpo_is_trls_run(self, lab):
    options = {"eps": 1e-4, "whiten": "sequence"}
    method = make(advantage="gdpo", advantage_options=options, aggregate=MEANS)
    theirs = dict(multi_objective_aggregation="normalize_then_sum")
    self.same_run(lab, method, (letters, patchy), loss_type="grpo", **theirs)

  @pytest.mark.parametrize("loss", ["clipped_surrogate", "asympo", "spo"])
  def test_saw_weighs_the_components(self, lab, loss):
    method = make(advantage="gdpo", weights="saw", loss=loss, aggregate=MEANS)
    trainer, before, after = self.run(lab, trl.trainer_class(method))
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3
    for log in logs:
      weights = [log["weights/letters"], log["weights/patchy"]]
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
