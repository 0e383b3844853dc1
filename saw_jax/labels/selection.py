# SPDX-License-Identifier: Apache-2.0
"""Which prompts of a batch get a label, and what the others are trained on.

A budget is a share of the batch, rounded up. CARE buys where the expected gap
is largest, after it has set aside ("gated") the prompts whose vote is most
likely right; the baselines buy by one score, without a gate. Numbers of prompts
are Python integers, so that one compiled function serves every step.

A label turns a prompt's rewards into true ones. A gated prompt keeps the
rewards of its vote. All others have advantage 0: they are dropped, but stay in
the batch and its denominators.

CARE, https://arxiv.org/abs/2605.25864.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import gap, voting
from saw_jax.types import Array, Key, Numeric

WARM_UP = 20  # steps before the gate opens


class Selection(NamedTuple):
  """What becomes of each prompt of a batch."""

  labelled: Array  # bool [P]: the ground truth is bought
  gated: Array  # bool [P]: its vote is among the most trusted
  order: Array  # int32 [P]: prompts by rank, the bought ones first

  @property
  def pseudo_labelled(self) -> Array:
    """The prompts that are trained on their vote."""
    return self.gated & ~self.labelled

  @property
  def dropped(self) -> Array:
    """The prompts that are trained on nothing."""
    return ~self.gated & ~self.labelled


def budget(batch_size: int, fraction: float) -> int:
  """Counts the prompts that are a share of a batch: ⌈P · fraction⌉ in [0, P].

  The product is rounded up as floating point has it: 7% of 100 are 8.
  """
  return min(max(math.ceil(batch_size * fraction), 0), batch_size)


@functools.partial(
  jax.jit, static_argnames=("label_fraction", "gate_fraction", "warm_up")
)
def care_selection(
  scores: Array,
  vote_probabilities: Array,
  step: Numeric,
  *,
  label_fraction: float = 0.2,
  gate_fraction: float = 0.25,
  warm_up: int = WARM_UP,
) -> Selection:
  """Buys labels where they are expected to change most.

    gated    = the ⌈P · gate_fraction⌉ prompts whose vote is likeliest right,
               none before step warm_up + 1
    rank     = score, but −1 where gated
    labelled = the ⌈P · label_fraction⌉ prompts of highest rank

  The gate is a share by rank and no threshold. Ties go to the lower index, in
  the gate (where the reference code leaves them open) as in the ranking, and a
  NaN ranks below everything. A gated prompt is labelled only if there are too
  few others. With a gate_fraction of 0 this is how the baselines buy.

  `scores [P]` are expected gaps, not negative; `vote_probabilities [P]` that
  the vote is right; `step`, which may be traced, counts from 1.

  >>> scores, p = jnp.array([5.0, 4.0, 3.0]), jnp.array([0.9, 0.1, 0.2])
  >>> later = care_selection(scores, p, 21, label_fraction=0.3)
  >>> print(later.labelled, later.gated)
  [False  True False] [ True False False]
  """
  chex.assert_equal_shape([scores, vote_probabilities])
  (size,) = scores.shape
  trusted = first(_order(vote_probabilities), budget(size, gate_fraction))
  gated = trusted & (step > warm_up)
  order = _order(jnp.where(gated, -jnp.ones_like(scores), scores))
  return Selection(first(order, budget(size, label_fraction)), gated, order)


def advantage_multipliers(
  selection: Selection, scores: Array, *, soft_adv: float = 1.0
) -> Array:
  """How much each prompt counts in the update: factors of advantages, `[P]`.

    1                            labelled
    clip(soft_adv · score, 0, 1) gated, and not labelled
    0                            else

  `scores [P]` are those that the prompts were selected with. An expected gap is
  0 (all responses agree, so that advantages are 0 anyway) or at least √G ≥ 1:
  with soft_adv = 1 every gated prompt that matters counts 1. With soft_adv ≤ 0
  every prompt counts 1, and those without a label are trained on their vote. No
  gradient flows.

  >>> s = Selection(*jnp.array([[1, 0, 0], [0, 1, 0]], bool), jnp.arange(3))
  >>> print(advantage_multipliers(s, jnp.array([4.0, 0.4, 3.0])))
  [1.  0.4 0. ]
  """
  scores = jax.lax.stop_gradient(scores)
  scores = reductions.select(scores, selection.pseudo_labelled)
  softened = jnp.clip(soft_adv * scores, 0, 1)
  return jnp.where(selection.labelled | (soft_adv <= 0), 1, softened)


def random_scores(key: Key, num_prompts: int) -> Array:
  """Scores at random, `[P]`: whom to label is a fair draw. Consumes the key."""
  # A permutation rather than draws from an interval, in which two can be equal.
  return jax.random.permutation(key, num_prompts).astype(jnp.result_type(float))


def entropy_scores(answer_ids: Array) -> Array:
  """Scores by how much the answers differ: `voting.vote_entropy`, `[P]`."""
  return voting.vote_entropy(voting.majority_vote(answer_ids))


def unlikeliness_scores(mean_probabilities: Array) -> Array:
  """Scores by how improbable the tokens of the responses are: −mean_j mean_t π.

  From `certainty.mean_probability` of each response, `[P, G]`, to `[P]`. A mean
  that is not finite counts as 0.
  """
  mean = jnp.mean(reductions.at_least_float32(mean_probabilities), axis=-1)
  return -reductions.select(mean, jnp.isfinite(mean))


def oracle_scores(pseudo_rewards: Array, true_rewards: Array) -> Array:
  """Scores by the gap itself, which nobody knows before labels are bought.

  Rounded so that equal gaps are equal: all prompts that split into the vote and
  the right answer have 2√G up to the last digits. 0-or-1 rewards are `[P, G]`.
  """
  gaps = gap.corrective_advantage_gap(pseudo_rewards, true_rewards)
  return jnp.round(gaps, 9 if gaps.dtype == jnp.float64 else 5)


def first(order: Array, count: int) -> Array:
  """Marks the first `count` prompts of an order. Boolean `[P]`."""
  return jnp.zeros(order.shape, bool).at[order[:count]].set(True)


def _order(scores: Array) -> Array:
  """Prompts from the highest score to the lowest, ties by index."""
  return jnp.argsort(-jnp.asarray(scores), stable=True).astype(jnp.int32)
