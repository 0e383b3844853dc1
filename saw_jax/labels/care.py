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
import flax.linen as nn
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
  features = probes.zero_features(_LEAST_BATCH, group_size, hidden_size)
  store = replay.make_replay(settings.replay_size, group_size, hidden_size)
  states = []
  for probe, one in zip(
    make_probes(settings), jax.random.split(key), strict=True
  ):
    variables = probe.init(one, features)
    params = variables["params"]
    opt_state = optimizer.init(params)
    states.append(ProbeState(params, variables["batch_stats"], opt_state))
  return CareState(*states, store, updates=jnp.zeros((), jnp.int32))


def make_probes(settings: CareSettings) -> tuple[nn.Module, nn.Module]:
  """Makes the modules, which hold no parameters."""
  names = "prompt", "joint", "response_hidden", "response"
  widths = [getattr(settings, f"{name}_width") for name in names]
  return probes.VoteProbe(*widths), probes.CountProbe(*widths)


def care_probabilities(
  state: CareState, features: ProbeFeatures, settings: CareSettings
) -> tuple[Array, Array]:
  """What the probes think of `P` prompts, with their running statistics.

  The probability that each vote is right, `[P]`, and that of each number of
  correct responses outside it, `[P, G + 1]`, exactly 0 for numbers that cannot
  occur. A prompt's probabilities depend on that prompt alone.
  """
  features = jax.lax.stop_gradient(features)
  vote, count = make_probes(settings)
  logits, _ = vote.apply(state.vote.variables, features)
  count_logits = count.apply(state.count.variables, features)
  p = probe_losses.class_probabilities
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
  anew for each update: uniformly for the first probe, by class for the second.
  Samples of this step are not among the older ones.

  A batch of a single prompt, whose variance is 0, updates nothing, but is
  stored. A prompt with a feature that is not finite is left out, as if it had
  not been bought. Of the mask `bought [P]` the first `budget` count; labels of
  other rows reach nothing. The metrics are averages over the updates (0 where
  there was none), and how many prompts were learnt from, replayed and stored.
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

  def descend(name, probe, loss, places, there):
    both = jax.tree.map(
      lambda a, b: jnp.concatenate([a.astype(b.dtype), b[places]]),
      samples,
      store.samples,
    )
    loss = functools.partial(loss, both, jnp.concatenate([where, there]))
    probe, figures = _descend(probe, loss, optimizer, settings.clip_norm)
    return probe, {f"{name}/{key}": x for key, x in figures.items()}

  def update(both, index):
    vote_key, count_key = jax.random.split(jax.random.fold_in(key, index))
    loss = functools.partial(_vote_loss, vote, settings.response_weight)
    drawn = replay.draw_uniform(store, vote_key, draws)
    vote_state, figures = descend("vote", both[0], loss, *drawn)
    loss = functools.partial(_count_loss, count)
    drawn = replay.draw_stratified(store, count_key, draws, classes)
    count_state, more = descend("count", both[1], loss, *drawn)
    return (vote_state, count_state), figures | more

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


def _gather_bought(
  samples: Samples, bought: Array, budget: int
) -> tuple[Samples, Array]:
  """As many rows as a step may buy, and which of them were bought.

  Everything about other prompts is zero before anything is computed.
  """
  chex.assert_tree_shape_prefix(samples, bought.shape)
  for leaf in jax.tree.leaves(samples.features):
    bought &= jnp.all(jnp.isfinite(leaf.reshape(bought.size, -1)), axis=-1)
  rows = jnp.argsort(~bought, stable=True)[:budget]
  where = bought[rows]
  samples = jax.tree.map(lambda x: jnp.asarray(x)[rows], samples)
  return probes.take_present(samples, where), where


def _vote_loss(probe, response_weight, samples, where, variables):
  """Loss, running statistics and figures of the first probe."""
  (logits, response_logits), changed = probe.apply(
    variables, samples.features, where, mutable="batch_stats"
  )
  labels = samples.labels
  of_votes = probe_losses.vote_loss(logits, labels.vote_right, where)
  of_responses = probe_losses.response_loss(
    response_logits, labels.correct, where
  )
  responses = jnp.argmax(response_logits, axis=-1) == labels.correct
  rows = jnp.broadcast_to(where[:, None], responses.shape)
  figures = {
    "main_loss": of_votes,
    "response_loss": of_responses,
    "accuracy": _accuracy(logits, labels.vote_right, where),
    "response_accuracy": reductions.all_mean(responses, where=rows),
  }
  value = of_votes + response_weight * of_responses
  return value, (changed["batch_stats"], figures)


def _count_loss(probe, samples, where, variables):
  """Loss, running statistics and figures of the second probe."""
  logits, changed = probe.apply(
    variables, samples.features, where, mutable="batch_stats"
  )
  counts, possible = samples.labels.correct_outside, samples.features.possible
  value = probe_losses.count_loss(logits, counts, possible, where)
  p = probe_losses.class_probabilities(logits, possible)
  figures = {"accuracy": _accuracy(p, counts, where)}
  return value, (changed["batch_stats"], figures)


def _accuracy(scores: Array, classes: Array, where: Array) -> Array:
  return reductions.all_mean(jnp.argmax(scores, -1) == classes, where=where)


def _descend(probe, loss, optimizer, clip_norm):
  """One update of one probe, with its figures."""

  def of_params(params):
    return loss(probe.variables | {"params": params})

  (value, (batch_stats, figures)), gradient = jax.value_and_grad(
    of_params, has_aux=True
  )(probe.params)
  gradient, norm = clip_gradient(gradient, clip_norm)
  updates, opt_state = optimizer.update(gradient, probe.opt_state, probe.params)
  params = jax.tree.map(jnp.add, probe.params, updates)
  figures = {"loss": value, "grad_norm": norm} | figures
  return ProbeState(params, batch_stats, opt_state), figures
