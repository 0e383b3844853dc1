# SPDX-License-Identifier: Apache-2.0
"""CARE: probes choose which labels to buy, and are trained on what they chose.

In every step of a policy's training, for `P` prompts with `G` responses each:

  1. `replay.probe_features` of the current policy, before its update
  2. `care_probabilities`; then `gap.expected_gap` of the counts is what prompts
     are ranked by, and `selection.care_selection` spends the budget
  3. the policy's update, where labels were bought on true rewards
  4. `train_probes` on the bought prompts and some older ones

Functions are pure, for one seed, and have static shapes: they may be compiled
and mapped over seeds. The probes start untrained and choose from the first step
on; ground truth reaches them by bought labels only. Optimizers are optax's.
https://arxiv.org/abs/2605.25864, as its released code has it.
"""

import dataclasses
import functools
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import naming, reductions
from saw_jax.labels import probes, replay
from saw_jax.labels.replay import ProbeFeatures, ProbeLabels, Replay
from saw_jax.settings import constant
from saw_jax.types import Array, Key, PyTree

# A batch of one prompt has no variance to normalise by.
_LEAST_BATCH = 2
_CLIP_EPS = 1e-6
_PROBES = probes.VoteProbe, probes.CountProbe


@dataclasses.dataclass(frozen=True)
class CareSettings:
  """CARE's probes, as the released scripts set them."""

  length_scale: float = replay.LENGTH_SCALE  # tokens
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
    naming.check_range(self, "[0, inf)", "train_steps", "replay_batch")
    naming.check_range(self, "[1, inf)", "replay_size")
    naming.check_range(self, "(0, inf]", "length_scale", "clip_norm")

  @property
  def widths(self) -> tuple[int, ...]:
    hidden = self.response_hidden_width
    return self.prompt_width, self.joint_width, hidden, self.response_width


@flax.struct.dataclass
class ProbeState:
  """One probe."""

  params: PyTree
  batch_stats: PyTree  # running means and variances
  opt_state: PyTree

  @property
  def variables(self) -> dict[str, PyTree]:
    return {"params": self.params, "batch_stats": self.batch_stats}


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
  store = replay.make_replay(settings.replay_size, group_size, hidden_size)
  features, _ = jax.tree.map(lambda x: x[:1], store.samples)

  def make(probe, key):
    made = probe(settings.widths).init(key, features)
    return ProbeState(**made, opt_state=optimizer.init(made["params"]))

  states = map(make, _PROBES, jax.random.split(key))
  return CareState(*states, store, updates=jnp.zeros((), jnp.int32))


def care_probabilities(
  state: CareState, features: ProbeFeatures, settings: CareSettings
) -> tuple[Array, Array]:
  """What the probes think of `P` prompts, with their running statistics.

  The probability that each vote is right, `[P]`, and that of each number of
  correct responses outside it, `[P, G + 1]`, exactly 0 for numbers that cannot
  occur. A prompt's probabilities depend on that prompt alone.
  """
  features = jax.lax.stop_gradient(features)
  vote, count = (probe(settings.widths) for probe in _PROBES)
  logits, _ = vote.apply(state.vote.variables, features)
  count_logits = count.apply(state.count.variables, features)
  p = probes.class_probabilities
  return p(logits)[:, 1], p(count_logits, features.possible)


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
  anew: uniformly for the first probe, by class for the second. A batch of a
  single prompt, whose variance is 0, updates nothing, and a prompt with a
  feature that is not finite is left out. Of the mask `bought [P]` the first
  `budget` count; labels of other rows reach nothing.
  """
  chex.assert_tree_shape_prefix((features, labels), bought.shape)
  for leaf in jax.tree.leaves(features):
    bought &= jnp.all(jnp.isfinite(leaf.reshape(bought.size, -1)), axis=-1)
  # As many rows as a step may buy; all about others is 0 from here on.
  rows = jnp.argsort(~bought, stable=True)[:budget]
  where = bought[rows]
  samples = jax.tree.map(lambda x: jnp.asarray(x)[rows], (features, labels))
  samples = replay.take_present(samples, where)
  store, draws = state.replay, settings.replay_batch
  num_bought = jnp.sum(where)
  num_replayed = jnp.minimum(min(draws, settings.replay_size), store.pushed)
  active = (num_bought > 0) & (num_bought + num_replayed >= _LEAST_BATCH)
  classes = labels.correct.shape[-1] + 1

  def descend(name, probe, old, loss, drawn):
    """One update of one probe, on the samples of the step and those drawn."""
    places, there = drawn
    batch = jax.tree.map(
      lambda a, b: jnp.concatenate([a.astype(b.dtype), b[places]]),
      samples,
      store.samples,
    )
    present = jnp.concatenate([where, there])

    def of_params(params):
      variables = old.variables | {"params": params}
      found, changed = probe.apply(
        variables, batch[0], present, mutable="batch_stats"
      )
      value, figures = loss(found, *batch, present)
      return value, (changed["batch_stats"], figures)

    descent = jax.value_and_grad(of_params, has_aux=True)
    (value, (batch_stats, figures)), gradient = descent(old.params)
    gradient, norm = clip_gradient(gradient, settings.clip_norm)
    updates, opt_state = optimizer.update(gradient, old.opt_state, old.params)
    params = jax.tree.map(jnp.add, old.params, updates)
    figures = {"loss": value, "grad_norm": norm} | figures
    figures = {f"{name}/{key}": x for key, x in figures.items()}
    return ProbeState(params, batch_stats, opt_state), figures

  vote, count = (probe(settings.widths) for probe in _PROBES)
  vote_loss = functools.partial(_vote_loss, settings.response_weight)

  def update(both, index):
    vote_key, count_key = jax.random.split(jax.random.fold_in(key, index))
    drawn = replay.draw_uniform(store, vote_key, draws)
    of_vote, figures = descend("vote", vote, both[0], vote_loss, drawn)
    drawn = replay.draw_stratified(store, count_key, draws, classes)
    of_count, more = descend("count", count, both[1], _count_loss, drawn)
    return (of_vote, of_count), figures | more

  both = state.vote, state.count
  new, metrics = jax.lax.scan(update, both, jnp.arange(settings.train_steps))
  new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, both)
  metrics = jax.tree.map(
    lambda x: jnp.where(active, reductions.all_mean(x), 0), metrics
  )
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


def _vote_loss(response_weight, found, features, labels, where):
  (logits, response_logits), correct = found, labels.correct
  rows = jnp.broadcast_to(where[:, None], correct.shape)
  of_vote = probes.balanced_loss(logits, labels.vote_right, where)
  of_responses = probes.response_loss(response_logits, correct, where)
  return of_vote + response_weight * of_responses, {
    "main_loss": of_vote,
    "response_loss": of_responses,
    "accuracy": _accuracy(logits, labels.vote_right, where),
    "response_accuracy": _accuracy(response_logits, correct, rows),
  }


def _count_loss(logits, features, labels, where):
  counts, possible = labels.correct_outside, features.possible
  p = probes.class_probabilities(logits, possible)
  value = probes.count_loss(logits, counts, possible, where)
  return value, {"accuracy": _accuracy(p, counts, where)}


def _accuracy(scores: Array, classes: Array, where: Array) -> Array:
  return reductions.all_mean(jnp.argmax(scores, -1) == classes, where=where)
