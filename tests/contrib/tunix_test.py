"""Tests of saw_jax/contrib/tunix.py.

`make adapters` runs all of them, in an environment with the extra `tunix`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.algorithms import AlgorithmConfig, KLConfig
from saw_jax.contrib import hosted, tunix
from tests import helpers

MINIMA = (0.0, -1.0)
B, PROMPT, T, VOCABULARY = 8, 3, 6, 22
MEANS, SUM = "sequence_mean_token_mean", "sequence_mean_token_sum"


def make(minima=MINIMA, **options):
  return hosted.make_hosted(AlgorithmConfig(**options), minima=minima)


@pytest.mark.parametrize(
  "function",
  [
    lambda: tunix.register(make(), "name"),
    lambda: tunix.policy_loss(make()),
    lambda: tunix.learner_class(make()),
  ],
)
def test_without_the_extra_the_error_names_it(function):
  with helpers.lacking("tunix", "tunix"):
    function()


def test_the_estimator_is_the_methods():
  method = make(weights="saw")
  rewards = np.random.default_rng(0).integers(0, 3, (B, 2))
  got = tunix.advantage_estimator(method)(rewards=rewards, num_generations=4)
  want, _ = method.estimate(rewards, group_size=4)
  np.testing.assert_array_equal(got, want)
  assert got.shape == (B,) and np.abs(got).max() > 0.5
  with pytest.raises(ValueError, match="learner_class"):  # for its lengths
    tunix.advantage_estimator(make(advantage="gdpo"))(rewards, 4)


# --- with Tunix ------------------------------------------------------------


def vowels(completions, **_):
  """How many words of a completion have an `o`."""
  return [float(sum("o" in w for w in c.split())) for c in completions]


def brevity(completions, **_):
  return [-float(len(set(c.split())) > 4) for c in completions]


def patchy(completions, **_):
  """As `brevity`, and nothing where a completion begins with an H."""
  return [
    float("nan") if c.lower().startswith("h") else -float(len(c) > 30)
    for c in completions
  ]


class Lab:
  """Models, clusters and learners of one tiny size."""

  def __init__(self):
    import optax
    from flax import nnx
    from tunix.rl import algo_core, rl_cluster
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout
    from tunix.tests import test_common

    self.nnx, self.optax, self.common = nnx, optax, test_common
    self.algo_core, self.cluster_lib = algo_core, rl_cluster
    self.grpo, self.rollout = grpo_learner, base_rollout

  def model(self):
    return self.common.ToyTransformer(
      config=self.common.ModelConfig(num_layers=1, vocab_size=VOCABULARY),
      rngs=self.nnx.Rngs(0),
    )

  def example(self):
    rng = np.random.default_rng(0)
    lengths = np.array([6, 1, 4, 2, 6, 5, 3, 2])
    mask = np.arange(T)[None] < lengths[:, None]
    ids = rng.integers(3, VOCABULARY, (B, T))
    uniform = -3.1 + rng.uniform(-0.5, 0.5, (2, B, T)).astype(np.float32)
    return self.grpo.TrainExample(
      prompt_ids=jnp.array(rng.integers(3, VOCABULARY, (B, PROMPT))),
      prompt_mask=jnp.ones((B, PROMPT), bool),
      completion_ids=jnp.array(np.where(mask, ids, 0)),
      completion_mask=jnp.array(mask),
      advantages=jnp.array(rng.normal(size=B).astype(np.float32)),
      old_per_token_logps=jnp.array(uniform[0]),
      ref_per_token_logps=jnp.array(uniform[1]),
    )

  def config(self, *, high=None, dual=None, **options):
    config = self.grpo.GRPOConfig(**{"beta": 0.0, **options})
    config.temperature, config.epsilon_c = 1.0, dual
    if high is not None:
      config.epsilon_high = high
    return config

  def gradient(self, loss_fn, config, **changed):
    example = self.example().replace(**changed)

    def loss(model):
      return loss_fn(model, example, config, pad_id=0, eos_id=2)

    return self.nnx.value_and_grad(loss, has_aux=True)(self.model())

  def train(self, kind, config, rewards=(vowels, brevity), **options):
    """Three updates; the parameters before and after, and what is logged."""
    lib, model = self.cluster_lib, self.model()
    one = np.array(jax.devices()[:1]).reshape(1, 1)
    mesh = jax.sharding.Mesh(one, ("fsdp", "tp"))
    roles = lib.Role.ACTOR, lib.Role.REFERENCE, lib.Role.ROLLOUT
    cluster = lib.RLCluster(
      actor=model,
      reference=self.model(),
      tokenizer=self.common.MockVocab(),
      cluster_config=lib.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh),
        training_config=lib.RLTrainingConfig(
          actor_optimizer=self.optax.sgd(0.5),
          eval_every_n_steps=100,
          max_steps=3 * config.num_iterations,
        ),
        rollout_config=self.rollout.RolloutConfig(
          max_tokens_to_generate=T,
          max_prompt_length=4,
          kv_cache_size=16,
          temperature=1.0,
          seed=3,  # an array would be donated
        ),
      ),
    )
    logged = []
    cluster.with_external_metrics_logger(
      lambda buffer: logged.append(dict(buffer.metrics))
    )
    before = self.parameters(model)
    made = dict(rl_cluster=cluster, algo_config=config)
    learner = kind(**made, reward_fns=list(rewards), **options)
    prompts = ["hello world", "My name is", "Hello there", "input string"]
    prompts += ["library is", "distributed training"]
    pairs = np.array(prompts).reshape(3, 2)
    learner.train([{"prompts": pair} for pair in pairs])
    return before, self.parameters(cluster.actor_trainer.model), logged

  def parameters(self, model):
    leaves = jax.tree.leaves(self.nnx.state(model, self.nnx.Param))
    return [np.asarray(leaf) for leaf in leaves]


@pytest.fixture(scope="module")
def lab():
  reason = "tunix is not installed: the extra `tunix`"
  pytest.importorskip("tunix", reason=reason)
  # Tunix broadcasts ranks, and its threads do not see a context manager.
  changed = {"jax_numpy_rank_promotion": "allow", "jax_debug_key_reuse": False}
  before = {name: jax.config.values[name] for name in changed}
  for name, value in changed.items():
    jax.config.update(name, value)
  yield Lab()
  for name, value in before.items():
    jax.config.update(name, value)


def clips(low, high, **others):
  return dict(clip_low=low, clip_high=high, **others)


# Theirs and ours.
CASES = {
  "sequences": (dict(), dict(aggregate=MEANS)),
  "tokens": (dict(loss_agg_mode="token-mean"), dict(aggregate="token_mean")),
  "sums": (dict(loss_agg_mode="seq-mean-token-sum"), dict(aggregate=SUM)),
  "constant": (
    dict(loss_agg_mode="sequence-mean-token-scale"),
    dict(aggregate=f"{SUM}_const", aggregate_options={"length": T}),
  ),
  "clips": (
    dict(epsilon=0.1, high=0.3, dual=1.2),
    dict(aggregate=MEANS, loss_options=clips(0.1, 0.3, dual_clip=1.2)),
  ),
  "gspo": (
    dict(loss_algo="gspo-token", epsilon=0.05, high=0.1),
    dict(loss="gspo", aggregate=MEANS, loss_options=clips(0.05, 0.1)),
  ),
  "k3": (
    dict(beta=0.3, kl_loss_mode="low_var_kl"),
    dict(aggregate=MEANS, kl=KLConfig("loss", "k3", 0.3)),
  ),
  "k2": (
    dict(beta=0.3, kl_loss_mode="mse_kl"),
    dict(aggregate=MEANS, kl=KLConfig("loss", "k2", 0.3)),
  ),
}


@pytest.mark.slow
class TestAgainstTunixsLoss:
  """Tunix's own loss and ours, through one model."""

  @pytest.mark.parametrize("name", CASES)
  def test_they_are_equal(self, lab, name):
    theirs, ours = CASES[name]
    config = lab.config(**theirs)
    (want, aux), slope = lab.gradient(lab.algo_core.grpo_loss_fn, config)
    loss_fn = tunix.policy_loss(make(**ours))
    (got, logged), gradient = lab.gradient(loss_fn, config)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    slopes, gradients = jax.tree.leaves(slope), jax.tree.leaves(gradient)
    assert max(float(jnp.abs(leaf).max()) for leaf in slopes) > 1e-3
    for ours, theirs in zip(gradients, slopes, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    if config.beta:
      np.testing.assert_allclose(logged["kl"], aux["kl_loss"], rtol=1e-5)

  def test_what_would_act_beside_the_loss_is_refused(self, lab):
    loss_fn, ones = tunix.policy_loss(make()), jnp.ones((B, T))
    with pytest.raises(ValueError, match="GRPOConfig.beta is 0.2"):
      lab.gradient(loss_fn, lab.config(beta=0.2))
    with pytest.raises(ValueError, match="packed"):
      lab.gradient(loss_fn, lab.config(), segment_ids=ones)
    with pytest.raises(ValueError, match="importance"):
      lab.gradient(loss_fn, lab.config(), sampler_is_weights=ones)

  def test_a_loss_that_needs_the_sampler_is_refused(self, lab):
    with pytest.raises(ValueError, match="does not record"):
      tunix.register(make(loss="tis"), "saw_jax.test")


@pytest.mark.slow
class TestTraining:
  def test_grpo_is_tunixs_run(self, lab):
    """By name from the registries, by the subclass, and Tunix's own."""
    method = make(aggregate=MEANS)
    tunix.register(method, "saw_jax.test")
    size = dict(num_generations=4, num_iterations=2, beta=0.0)
    before, want, _ = lab.train(lab.grpo.GRPOLearner, lab.config(**size))
    moved = [np.abs(x - y).max() for x, y in zip(before, want, strict=True)]
    assert max(moved) > 1e-2
    registries = ("reward_manager", "advantage_estimator", "policy_loss_fn")
    named = dict.fromkeys(registries, "saw_jax.test")
    for kind, config in (
      (lab.grpo.GRPOLearner, lab.config(**size, **named)),
      (tunix.learner_class(method), lab.config(**size)),
    ):
      _, got, _ = lab.train(kind, config)
      for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)

  @pytest.mark.parametrize("loss", ["clipped_surrogate", "asympo", "spo"])
  def test_saw_weighs_the_components(self, lab, loss):
    method = make(advantage="gdpo", weights="saw", loss=loss, aggregate=MEANS)
    seen = []

    def look(prompts, completions, advantages, rewards, **_):
      seen.append((completions, advantages, rewards))
      return {"look/ed": (float(len(completions)), np.mean)}

    before, after, logged = lab.train(
      tunix.learner_class(method),
      lab.config(num_generations=4),
      rewards=(vowels, patchy),
      metric_fns=[look],
    )
    moved = [np.abs(x - y).max() for x, y in zip(before, after, strict=True)]
    assert max(moved) > 1e-4 and all(np.isfinite(x).all() for x in after)
    assert len(seen) == 3
    for completions, advantages, rewards in seen:
      want = np.stack([vowels(completions), patchy(completions)], axis=1)
      np.testing.assert_array_equal(rewards, want.astype(np.float32))
      assert np.abs(advantages).max() > 0.1
    weights = [
      [np.mean(metrics[f"weights/{i}"][0]) for i in range(2)]
      for metrics in logged
      if "weights/0" in metrics
    ]
    np.testing.assert_allclose(np.sum(weights, axis=-1), 2, atol=1e-4)
    assert np.ptp(weights) > 1e-3

  def test_the_advantages_are_in_the_batch(self, lab, monkeypatch):
    method = make(advantage="gdpo", weights="saw")
    kind = tunix.learner_class(method)
    generate, examples, seen = kind._generate_and_compute_advantage, [], []

    def kept(self, *arguments):
      examples.append(generate(self, *arguments))
      return examples[-1]

    def look(rewards, **_):
      seen.append(rewards)
      return {}

    monkeypatch.setattr(kind, "_generate_and_compute_advantage", kept)
    lab.train(kind, lab.config(num_generations=4), metric_fns=[look])
    assert len(examples) == len(seen) == 3
    for example, rewards in zip(examples, seen, strict=True):
      lengths = np.asarray(example.completion_mask).sum(-1)
      want, _ = method.estimate(rewards, group_size=4, lengths=lengths)
      np.testing.assert_array_equal(example.advantages, want)
