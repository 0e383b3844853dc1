# SPDX-License-Identifier: Apache-2.0
"""Whose vote is trusted by how its pass rate went: TraPO's selection.

Some prompts are labelled for good. Each visit of a prompt appends its pass
rate, against its label or its vote, to a curve; an unlabelled prompt is trained
on if its curve goes as those of the labelled ones. `E` counts visits, from the
first, up to the shortest curve of a reference. TraPO, arXiv 2512.13106
"""

import dataclasses
from collections.abc import Mapping, Sequence

import chex
import jax.numpy as jnp
import numpy as np

from saw_jax import reductions
from saw_jax.labels import selection, voting
from saw_jax.types import Array


@dataclasses.dataclass(frozen=True)
class CurveSettings:
  """When votes count, and how alike a curve has to be."""

  warm_up: int = 8  # epochs in which labelled prompts train alone
  top: float = 0.1
  threshold: float = 0.4


def vote_pass_rates(answer_ids: Array) -> Array:
  """The share of `[P, G]` that gave the vote; 0, and no vote, where it ties."""
  votes = voting.majority_vote(answer_ids)
  if votes.sizes.shape[-1] == 1:
    return voting.majority_share(votes)
  is_alone = votes.sizes[:, 0] > votes.sizes[:, 1]
  return reductions.select(voting.majority_share(votes), is_alone)


def curve_scores(references: Array, curves: Array) -> Array:
  """How curves `[n, E]` go with references `[N, E]`: mean correlations, `[n]`.

    scoreᵢ = 1/N Σⱼ ⟨zⱼ, zᵢ⟩,   z = (x − mean) / |x − mean|

  So a positive affine map of a curve changes nothing. A constant curve, as that
  of one visit, correlates by 0 with all, and counts among the references.

  >>> known = jnp.array([[0.0, 0.5, 1.0]])
  >>> curves = jnp.array([[0.1, 0.2, 0.3], [0.9, 0.9, 0.9]])
  >>> print(curve_scores(known, curves).round(5))
  [1. 0.]
  """
  chex.assert_equal_shape_suffix([references, curves], 1)
  references, curves = map(_standardised, (references, curves))
  product = jnp.sum(references[:, None] * curves[None], axis=-1)
  return jnp.mean(product, axis=0)


def trusted(
  scores: Array, *, top: float = 0.1, threshold: float = 0.4
) -> Array:
  """Marks the best max(1, ⌊n · top⌋) of `[n]`, and all of `threshold` or more.

  Boolean `[n]`, a union; ties go to the lower index.
  """
  order = jnp.argsort(-scores, stable=True)
  best = selection.first(order, max(1, int(scores.shape[0] * top)))
  return best | (scores >= threshold)


def trusted_prompts(
  references: Mapping[int, Sequence[float]],
  curves: Mapping[int, Sequence[float]],
  asked: Sequence[int],
  settings: CurveSettings,
) -> set[int]:
  """Whose votes count, of the prompts `asked`, by curves of any length.

  All are cut to the shortest reference. A prompt that was seen less often is
  not trusted, and without a reference nobody is.
  """
  size = min(map(len, references.values()), default=0)
  asked = [prompt for prompt in asked if len(curves.get(prompt, ())) >= size]
  if not size or not asked:
    return set()
  known = np.array([curve[:size] for curve in references.values()])
  scores = curve_scores(known, np.array([curves[x][:size] for x in asked]))
  how = dict(top=settings.top, threshold=settings.threshold)
  return {asked[place] for place in np.flatnonzero(trusted(scores, **how))}


def _standardised(x: Array) -> Array:
  d = reductions.all_deviations(x, axis=-1)
  square = jnp.sum(jnp.square(d), axis=-1, keepdims=True)
  return reductions.divide(d, reductions.square_root(square))
