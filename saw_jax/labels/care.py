# SPDX-License-Identifier: Apache-2.0
"""CARE: probes choose which labels to buy, and are trained on what they chose.

In every step of a policy's training, for `P` prompts with `G` responses each:

  1. `probes.probe_features` of the current policy, before its update
  2. `care_probabilities`; then `gap.expected_gap` of the counts is what prompts
     are ranked by, and `selection.care_selection` spends the budget
  3. the policy's update, where labels were bought on true rewards
  4. `train_probes` on the bought prompts and some older ones

Functions are pure, for one seed, and have static shapes: they may be compiled
and mapped over seeds. The probes start untrained and choose from the first step
on; ground truth reaches them through bought labels only. Optimizers are
optax's, by their `init` and `update`.

https://arxiv.org/abs/2605.25864, as its released code has it.
"""

import dataclasses
import functools
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import probe_losses, probes, replay
from saw_jax.labels.probes import ProbeFeatures
from saw_jax.labels.replay import ProbeLabels, Replay, Samples
from saw_jax.settings import constant
from saw_jax.types import Array, Key, PyTree

# A batch of one prompt has no variance to normalise by.
_LEAST_BATCH = 2
_CLIP_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class CareSettings:
  """CARE's probes, as the released scripts set them."""

  length_scale: float = probes.LENGTH_SCALE  # tokens
  prompt_width: int = constant(128)
  joint_width: int = constant(256)
  response_hidden_width: int = constant(64)
  response_width: int = constant(512)
  learning_rate: float = constant(1e-4)  # of Adam
  clip_norm: float = constant(1.0)  # of each probe's gradient; inf: none
  train_steps: int = constant(3)  # updates of each probe in a step
  response_weight: float = constant(1.5)  # of the loss of responses
  replay_size: int = constant(2048)  # prompts
  replay_batch: int = constant(16)  # prompts of an update; 0: no replay

  def __post_init__(self):
    for name in ("train_steps", "replay_batch"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} is {getattr(self, name)}, below 0")
    if self.replay_size < 1:
      raise ValueError(
        f"replay_size is {self.replay_size}; without replay, set replay_batch "
        "to 0"
      )
    for name in ("length_scale", "clip_norm"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


@flax.struct.dataclass
class ProbeState:
  """One probe."""

  params: PyTree
  batch_stats: PyTree  # running means and variances
  opt_state: PyTree


@flax.struct.dataclass
class CareState:
  """Everything that CARE carries from step to step."""

  vote: ProbeState
  count: ProbeState
  replay: Replay
  updates: Array  # int32 [], updates of each probe so far


def create_state(
  key: Key,
  group_size: int,
  hidden_size: int,
  *,
  settings: CareSettings,
  optimizer: Any,
) -> CareState:
  """Makes untrained probes and an empty store; consumes the key."""
  features = probes.zero_features(_LEAST_BATCH, group_size, hidden_size)

  def create(probe, key):
    variables = probe.init(key, features)
    params = variables["params"]
    return ProbeState(params, variables["batch_stats"], optimizer.init(params))

  vote_key, count_key = jax.random.split(key)
  vote, count = make_probes(settings)
  return CareState(
    vote=create(vote, vote_key),
    count=create(count, count_key),
    replay=replay.make_replay(settings.replay_size, group_size, hidden_size),
    updates=jnp.zeros((), jnp.int32),
  )


def make_probes(
  settings: CareSettings,
) -> tuple[probes.VoteProbe, probes.CountProbe]:
  """Makes the modules, which hold no parameters."""
  widths = (
    settings.prompt_width,
    settings.joint_width,
    settings.response_hidden_width,
    settings.response_width,
  )
  return probes.VoteProbe(*widths), probes.CountProbe(*widths)


def care_probabilities(
  state: CareState, features: ProbeFeatures, *, settings: CareSettings
) -> tuple[Array, Array]:
  """What the probes think of `P` prompts, with their running statistics.

  The probability that each vote is right, `[P]`, and that of each number of
  correct responses outside it, `[P, G + 1]`, exactly 0 for numbers that cannot
  occur. A prompt's probabilities depend on that prompt alone.
  """
  features = jax.lax.stop_gradient(features)
  vote, count = make_probes(settings)
  logits, _ = vote.apply(_variables(state.vote), features)
  count_logits = count.apply(_variables(state.count), features)
  return (
    probe_losses.class_probabilities(logits)[:, 1],
    probe_losses.class_probabilities(count_logits, features.possible),
  )


def train_probes(
  state: CareState,
  key: Key,
  features: ProbeFeatures,
  labels: ProbeLabels,
  bought: Array,
  *,
  budget: int,
  settings: CareSettings,
  optimizer: Any,
) -> tuple[CareState, dict[str, Array]]:
  """Updates both probes with the labels of a step, then stores these.

  An update is on the bought prompts and up to `replay_batch` older ones, drawn
  anew for each update: uniformly for the first probe, by class for the second.
  Samples of this step are not among the older ones.

  Nothing happens in a step without a bought label. A batch of a single prompt,
  whose variance is 0, updates nothing, but is stored. A prompt with a feature
  that is not finite is left out, as if it had not been bought. Of the mask
  `bought [P]` the first `budget` count; labels of other rows reach nothing,
  whatever they are.

  The metrics are averages over the updates (0 where there was none) of losses,
  training accuracies and gradient norms before clipping, and how many prompts
  were learnt from, were replayed and are stored.
  """
  samples, where = _gather_bought(Samples(features, labels), bought, budget)
  num_bought = jnp.sum(where)
  num_replayed = jnp.minimum(
    min(settings.replay_batch, settings.replay_size), state.replay.pushed
  )
  active = (num_bought > 0) & (num_bought + num_replayed >= _LEAST_BATCH)
  vote, count = make_probes(settings)
  store, draws = state.replay, settings.replay_batch
  classes = labels.correct.shape[-1] + 1

  def batch(places, there):
    both = jax.tree.map(
      lambda a, b: jnp.concatenate([a.astype(b.dtype), b]),
      samples,
      replay.take(store, places),
    )
    return both, jnp.concatenate([where, there])

  def update(both, index):
    vote_key, count_key = jax.random.split(jax.random.fold_in(key, index))
    drawn = replay.draw_uniform(store, vote_key, count=draws)
    vote_state, vote_metrics = _descend(
      both[0],
      functools.partial(
        _vote_loss, vote, *batch(*drawn), settings.response_weight
      ),
      optimizer,
      settings.clip_norm,
    )
    drawn = replay.draw_stratified(
      store, count_key, count=draws, num_classes=classes
    )
    count_state, count_metrics = _descend(
      both[1],
      functools.partial(_count_loss, count, *batch(*drawn)),
      optimizer,
      settings.clip_norm,
    )
    return (vote_state, count_state), {
      f"{name}/{key}": x
      for name, some in (("vote", vote_metrics), ("count", count_metrics))
      for key, x in some.items()
    }

  both = state.vote, state.count
  new, metrics = jax.lax.scan(update, both, jnp.arange(settings.train_steps))
  new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, both)
  metrics = {
    name: jnp.where(active, reductions.all_mean(each), 0)
    for name, each in metrics.items()
  }
  stored = replay.push(store, samples, where)
  metrics |= {
    "num_bought": num_bought,
    "num_replayed": jnp.where(active, num_replayed, 0),
    "num_stored": jnp.minimum(stored.pushed, stored.capacity),
  }
  updates = state.updates + active * settings.train_steps
  return CareState(*new, replay=stored, updates=updates), metrics


def clip_gradient(gradient: PyTree, maximum: float) -> tuple[PyTree, Array]:
  """Scales a gradient to at most a norm, as PyTorch does; and its norm before.

  g · min(1, maximum / (‖g‖₂ + 10⁻⁶))
  """
  squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
  norm = reductions.square_root(sum(squares, start=jnp.zeros(())))
  factor = jnp.minimum(1, maximum / (norm + _CLIP_EPS))
  return jax.tree.map(lambda leaf: leaf * factor, gradient), norm


def _variables(probe: ProbeState) -> dict[str, PyTree]:
  return {"params": probe.params, "batch_stats": probe.batch_stats}


def _gather_bought(
  samples: Samples, bought: Array, budget: int
) -> tuple[Samples, Array]:
  """As many rows as a step may buy, and which of them were bought.

  Everything about other prompts is zero before anything is computed.
  """
  bought = jnp.asarray(bought, bool)
  size = bought.shape[0]
  chex.assert_tree_shape_prefix(samples, (size,))
  for leaf in jax.tree.leaves(samples.features):
    bought &= jnp.all(jnp.isfinite(leaf.reshape(size, -1)), axis=-1)
  rows = jnp.argsort(~bought, stable=True)[:budget]
  where = bought[rows]
  samples = jax.tree.map(lambda x: jnp.asarray(x)[rows], samples)
  return probes.take_present(samples, where), where


def _apply(probe, samples, where, params, batch_stats):
  return probe.apply(
    {"params": params, "batch_stats": batch_stats},
    samples.features,
    where=where,
    train=True,
    mutable=["batch_stats"],
  )


def _vote_loss(probe, samples, where, response_weight, *variables):
  """Loss, running statistics and figures of the first probe."""
  (logits, response_logits), changed = _apply(probe, samples, where, *variables)
  labels = samples.labels
  of_votes = probe_losses.vote_loss(logits, labels.vote_right, where=where)
  of_responses = probe_losses.response_loss(
    response_logits, labels.correct, where=where
  )
  right = jnp.argmax(logits, axis=-1) == labels.vote_right
  responses = jnp.argmax(response_logits, axis=-1) == labels.correct
  rows = jnp.broadcast_to(where[:, None], responses.shape)
  return of_votes + response_weight * of_responses, (
    changed["batch_stats"],
    {
      "main_loss": of_votes,
      "response_loss": of_responses,
      "accuracy": reductions.all_mean(right, where=where),
      "response_accuracy": reductions.all_mean(responses, where=rows),
    },
  )


def _count_loss(probe, samples, where, *variables):
  """Loss, running statistics and figures of the second probe."""
  logits, changed = _apply(probe, samples, where, *variables)
  counts, possible = samples.labels.correct_outside, samples.features.possible
  value = probe_losses.count_loss(logits, counts, possible, where=where)
  p = probe_losses.class_probabilities(logits, possible)
  right = jnp.argmax(p, axis=-1) == counts
  figures = {"accuracy": reductions.all_mean(right, where=where)}
  return value, (changed["batch_stats"], figures)


def _descend(probe, loss, optimizer, clip_norm):
  """One update of one probe, with its figures."""
  (value, (batch_stats, figures)), gradient = jax.value_and_grad(
    loss, has_aux=True
  )(probe.params, probe.batch_stats)
  gradient, norm = clip_gradient(gradient, clip_norm)
  updates, opt_state = optimizer.update(gradient, probe.opt_state, probe.params)
  params = jax.tree.map(lambda p, u: p + u, probe.params, updates)
  figures = {"loss": value, "grad_norm": norm} | figures
  return ProbeState(params, batch_stats, opt_state), figures
