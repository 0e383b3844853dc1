# SPDX-License-Identifier: Apache-2.0
"""CARE: probes choose which labels to buy, and are trained on what they chose.

In every step of a policy's training, for `P` prompts with `G` responses each:

  1. `probes.probe_features` of the current policy, before its update
  2. `select_prompts`: the probes score, the budget is spent
  3. the policy's update, where labels were bought on true rewards
  4. `train_probes` on the bought prompts and some older ones

Functions are pure, for one seed, and have static shapes: they may be compiled
and mapped over seeds. The probes start untrained and choose from the first step
on; ground truth reaches them through bought labels only.

arXiv:2605.25864, as its released code has it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import gap, probe_losses, probes, replay, selection
from saw_jax.labels.probes import ProbeFeatures
from saw_jax.labels.replay import ProbeLabels, Replay, Samples
from saw_jax.settings import constant
from saw_jax.types import Array, Key, Numeric, PyTree

# A batch of one prompt has no variance to normalise by.
_LEAST_BATCH = 2
_CLIP_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class CareSettings:
  """What CARE leaves open, as the released scripts set it.

  `learning_rate` to `weight_decay` are for whoever makes the optimizer, AdamW;
  gradients are clipped here.
  """

  label_fraction: float = constant(0.2)  # of the prompts of a step
  gate_fraction: float = constant(0.25)  # of the prompts of a step
  warm_up: int = constant(selection.WARM_UP)  # steps before the gate opens
  soft_adv: float = constant(1.0)  # of `selection.advantage_multipliers`
  length_scale: float = probes.LENGTH_SCALE  # tokens
  prompt_width: int = constant(128)
  joint_width: int = constant(256)
  response_hidden_width: int = constant(64)
  response_width: int = constant(512)
  activation: str = constant("relu")  # of `probes.ACTIVATIONS`
  learning_rate: float = constant(1e-4)
  b1: float = constant(0.9)
  b2: float = constant(0.999)
  eps: float = constant(1e-8)
  weight_decay: float = constant(0.0)
  clip_norm: float = constant(1.0)  # of the gradient of each probe; inf: none
  train_steps: int = constant(3)  # updates of each probe in a step
  # Of the first probe's loss of responses.
  response_weight: float = constant(1.5)
  balance_power: float = constant(0.5)  # 0: all classes weigh the same
  balance_minimum: float = constant(0.25)
  balance_maximum: float = constant(4.0)
  replay_size: int = constant(2048)  # prompts
  replay_batch: int = constant(16)  # prompts of an update; 0: no replay

  def __post_init__(self):
    if self.activation not in probes.ACTIVATIONS:
      raise ValueError(
        f"unknown activation {self.activation!r}; choose one of "
        f"{tuple(probes.ACTIVATIONS)}"
      )
    for name in ("label_fraction", "gate_fraction"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f"{name} is {getattr(self, name)}; it is a share, from 0 to 1"
        )
    for name in ("warm_up", "train_steps", "replay_batch"):
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


class Optimizer(Protocol):
  """What the probes are updated with, as optax has it."""

  def init(self, params: PyTree) -> PyTree:
    """Gives the state before the first update."""
    ...

  def update(
    self, updates: PyTree, state: PyTree, params: PyTree
  ) -> tuple[PyTree, PyTree]:
    """Turns gradients into what is added to parameters, and a new state."""
    ...


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


class Scores(NamedTuple):
  """What the probes think of `P` prompts, and what follows."""

  selection: selection.Selection
  expected_gaps: Array  # [P], `gap.expected_gap`
  vote_probabilities: Array  # [P], that the vote is right
  count_probabilities: Array  # [P, G + 1], of correct responses outside of it


def create_state(
  key: Key,
  group_size: int,
  hidden_size: int,
  *,
  settings: CareSettings,
  optimizer: Optimizer,
) -> CareState:
  """Makes untrained probes and an empty store.

  Args:
    key: consumed.
    group_size: G.
    hidden_size: D, of the policy.
    settings: of the run.
    optimizer: of both probes, each with a state of its own.

  Returns:
    The state before the first step.

  References:
    CARE, https://arxiv.org/abs/2605.25864
  """
  features = probes.zero_features(_LEAST_BATCH, group_size, hidden_size)

  def create(probe, key):
    variables = probe.init(key, features)
    return ProbeState(
      params=variables["params"],
      batch_stats=variables["batch_stats"],
      opt_state=optimizer.init(variables["params"]),
    )

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
  """Makes the modules, which hold no parameters.

  Args:
    settings: of the run.

  Returns:
    The probe of votes and the probe of counts.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> make_probes(CareSettings())[0].prompt_width
  128
  """
  shape = dict(
    prompt_width=settings.prompt_width,
    joint_width=settings.joint_width,
    response_hidden_width=settings.response_hidden_width,
    response_width=settings.response_width,
    activation=probes.ACTIVATIONS[settings.activation],
  )
  return probes.VoteProbe(**shape), probes.CountProbe(**shape)


def care_probabilities(
  state: CareState, features: ProbeFeatures, *, settings: CareSettings
) -> tuple[Array, Array]:
  """Says what the probes think, with their running statistics.

  A prompt's probabilities depend on that prompt alone.

  Args:
    state: of one seed.
    features: of `P` prompts.
    settings: of the run.

  Returns:
    The probability that each vote is right, `[P]`, and that of each number of
    correct responses outside of the vote, `[P, G + 1]`, exactly 0 for numbers
    that cannot occur. No gradient flows to the features.

  References:
    CARE, https://arxiv.org/abs/2605.25864
  """
  features = jax.lax.stop_gradient(features)
  vote, count = make_probes(settings)
  logits, _ = vote.apply(_variables(state.vote), features)
  count_logits = count.apply(_variables(state.count), features)
  return (
    probe_losses.class_probabilities(logits)[:, 1],
    probe_losses.class_probabilities(count_logits, features.possible),
  )


def select_prompts(
  state: CareState,
  features: ProbeFeatures,
  step: Numeric,
  *,
  settings: CareSettings,
) -> Scores:
  """Chooses whose labels to buy and whose votes to trust.

  Args:
    state: of one seed.
    features: of `P` prompts.
    step: of the policy's training, from 1. An integer, which may be traced.
    settings: of the run.

  Returns:
    The selection with what it rests on. No label was read.

  References:
    CARE, https://arxiv.org/abs/2605.25864
  """
  right, counts = care_probabilities(state, features, settings=settings)
  gaps = gap.expected_gap(counts, features.voted_count)
  chosen = selection.care_selection(
    gaps,
    right,
    step,
    label_fraction=settings.label_fraction,
    gate_fraction=settings.gate_fraction,
    warm_up=settings.warm_up,
  )
  return Scores(chosen, gaps, right, counts)


def train_probes(
  state: CareState,
  key: Key,
  features: ProbeFeatures,
  labels: ProbeLabels,
  bought: Array,
  *,
  settings: CareSettings,
  optimizer: Optimizer,
) -> tuple[CareState, dict[str, Array]]:
  """Updates both probes with the labels of a step, then stores these.

  An update is on the bought prompts and up to `replay_batch` older ones, drawn
  anew for each update: uniformly for the first probe, by class for the second.
  Samples of this step are not among the older ones.

  Nothing happens in a step without a bought label. A batch of a single prompt,
  whose variance is 0, updates nothing, but is stored. A prompt with a feature
  that is not finite is left out, as if it had not been bought.

  Args:
    state: of one seed.
    key: consumed.
    features: of the `P` prompts of the step.
    labels: of the same prompts. Rows that were not bought reach nothing,
      whatever they are.
    bought: mask of the prompts whose label was bought, at most
      `selection.budget(P, label_fraction)` of them; of more, the first ones
      count. Shape `[P]`.
    settings: of the run.
    optimizer: of both probes.

  Returns:
    The state, and metrics: averages over the updates of the losses, of the
    accuracies in training and of the norms of the gradients before they are
    clipped (0 where there was no update), and how many prompts were learnt
    from, were replayed and are stored.

  References:
    CARE, https://arxiv.org/abs/2605.25864
  """
  samples, where = _gather_bought(
    Samples(features, labels), bought, settings.label_fraction
  )
  num_bought = jnp.sum(where)
  num_replayed = jnp.minimum(
    min(settings.replay_batch, settings.replay_size), state.replay.pushed
  )
  active = (num_bought > 0) & (num_bought + num_replayed >= _LEAST_BATCH)
  vote, count = make_probes(settings)
  draw = functools.partial(_with_replayed, state.replay, samples, where)
  num_classes = labels.correct.shape[-1] + 1

  def update(both, index):
    vote_key, count_key = jax.random.split(jax.random.fold_in(key, index))
    vote_batch = draw(
      *replay.draw_uniform(state.replay, vote_key, count=settings.replay_batch)
    )
    count_batch = draw(
      *replay.draw_stratified(
        state.replay,
        count_key,
        count=settings.replay_batch,
        num_classes=num_classes,
      )
    )
    vote_loss = functools.partial(_vote_loss, vote, *vote_batch, settings)
    count_loss = functools.partial(_count_loss, count, *count_batch, settings)
    vote_state, vote_metrics = _descend(
      both[0], vote_loss, optimizer, settings.clip_norm, "vote"
    )
    count_state, count_metrics = _descend(
      both[1], count_loss, optimizer, settings.clip_norm, "count"
    )
    return (vote_state, count_state), vote_metrics | count_metrics

  both = state.vote, state.count
  new, metrics = jax.lax.scan(update, both, jnp.arange(settings.train_steps))
  new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, both)
  metrics = {
    name: jnp.where(active, reductions.all_mean(each), 0)
    for name, each in metrics.items()
  }
  stored = replay.push(state.replay, samples, where)
  metrics |= {
    "num_bought": num_bought,
    "num_replayed": jnp.where(active, num_replayed, 0),
    "num_stored": jnp.minimum(stored.pushed, stored.capacity),
  }
  updates = state.updates + active * settings.train_steps
  return CareState(*new, replay=stored, updates=updates), metrics


def clip_gradient(gradient: PyTree, maximum: float) -> tuple[PyTree, Array]:
  """Scales a gradient down to a greatest norm.

    g · min(1, maximum / (‖g‖₂ + 10⁻⁶))

  Args:
    gradient: any tree.
    maximum: norm of the result, but for the ε; infinity for no clipping.

  Returns:
    The gradient, and its norm before.

  References:
    CARE, https://arxiv.org/abs/2605.25864, by way of PyTorch's clip_grad_norm_

  >>> clipped, norm = clip_gradient(jnp.array([3.0, 4.0]), 1.0)
  >>> print(norm, jnp.array_str(clipped, precision=4))
  5.0 [0.6 0.8]
  """
  squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
  norm = reductions.square_root(sum(squares, start=jnp.zeros(())))
  factor = jnp.minimum(1, maximum / (norm + _CLIP_EPS))
  return jax.tree.map(lambda leaf: leaf * factor, gradient), norm


def _variables(probe: ProbeState) -> dict[str, PyTree]:
  return {"params": probe.params, "batch_stats": probe.batch_stats}


def _gather_bought(
  samples: Samples, bought: Array, label_fraction: float
) -> tuple[Samples, Array]:
  """As many rows as a step may buy, and which of them were bought.

  Everything about other prompts is zero before anything is computed.
  """
  bought = jnp.asarray(bought, bool)
  size = bought.shape[0]
  chex.assert_tree_shape_prefix(samples, (size,))
  finite = [
    jnp.all(jnp.isfinite(leaf.reshape(size, -1)), axis=-1)
    for leaf in jax.tree.leaves(samples.features)
  ]
  bought &= functools.reduce(jnp.logical_and, finite)
  budget = selection.budget(size, label_fraction)
  rows = jnp.argsort(~bought, stable=True)[:budget]
  where = bought[rows]
  samples = jax.tree.map(lambda x: jnp.asarray(x)[rows], samples)
  return probes.take_present(samples, where), where


def _with_replayed(
  store: Replay, samples: Samples, where: Array, places: Array, there: Array
) -> tuple[Samples, Array]:
  """Bought samples and those at some places of the store, with their mask."""
  older = replay.take(store, places)
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a.astype(b.dtype), b]), samples, older
  )
  return both, jnp.concatenate([where, there])


def _weigh(settings: CareSettings) -> Any:
  return functools.partial(
    probe_losses.class_weights,
    power=settings.balance_power,
    minimum=settings.balance_minimum,
    maximum=settings.balance_maximum,
  )


def _vote_loss(probe, samples, where, settings, params, batch_stats):
  """Loss, running statistics and figures of the first probe."""
  (logits, response_logits), changed = probe.apply(
    {"params": params, "batch_stats": batch_stats},
    samples.features,
    where=where,
    train=True,
    mutable=["batch_stats"],
  )
  labels = samples.labels
  of_votes = probe_losses.vote_probe_loss(
    logits,
    response_logits,
    labels.vote_right,
    labels.correct,
    where=where,
    response_weight=0.0,
    weigh=_weigh(settings),
  )
  of_responses = probe_losses.response_loss(
    response_logits, labels.correct, where=where
  )
  right = jnp.argmax(logits, axis=-1) == labels.vote_right
  responses = jnp.argmax(response_logits, axis=-1) == labels.correct
  rows = jnp.broadcast_to(where[:, None], responses.shape)
  figures = {
    "main_loss": of_votes,
    "response_loss": of_responses,
    "accuracy": reductions.all_mean(right, where=where),
    "response_accuracy": reductions.all_mean(responses, where=rows),
  }
  value = of_votes + settings.response_weight * of_responses
  return value, (changed["batch_stats"], figures)


def _count_loss(probe, samples, where, settings, params, batch_stats):
  """Loss, running statistics and figures of the second probe."""
  logits, changed = probe.apply(
    {"params": params, "batch_stats": batch_stats},
    samples.features,
    where=where,
    train=True,
    mutable=["batch_stats"],
  )
  counts, possible = samples.labels.correct_outside, samples.features.possible
  value = probe_losses.count_probe_loss(
    logits, counts, possible, where=where, weigh=_weigh(settings)
  )
  p = probe_losses.class_probabilities(logits, possible)
  right = jnp.argmax(p, axis=-1) == counts
  figures = {"accuracy": reductions.all_mean(right, where=where)}
  return value, (changed["batch_stats"], figures)


def _descend(probe, loss, optimizer, clip_norm, name):
  """One update of one probe, with its figures under the probe's name."""
  (value, (batch_stats, figures)), gradient = jax.value_and_grad(
    loss, has_aux=True
  )(probe.params, probe.batch_stats)
  gradient, norm = clip_gradient(gradient, clip_norm)
  updates, opt_state = optimizer.update(gradient, probe.opt_state, probe.params)
  params = jax.tree.map(lambda p, u: p + u, probe.params, updates)
  figures = {"loss": value, "grad_norm": norm} | figures
  return ProbeState(params, batch_stats, opt_state), {
    f"{name}/{key}": figure for key, figure in figures.items()
  }
