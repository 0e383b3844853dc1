"""What stands below the main table: lines of Markdown, and pictures.

A section is a function of `report.Found` that gives lines. These are the lists
that tables have.
"""

import functools
from collections.abc import Callable

from saw_jax.reporting.report import Found
from saw_jax.reporting.sections import (
  comparisons,
  figures,
  labels,
  parts,
  rewards,
  sweeps,
)

_COMPARED = (comparisons.interquartile_means, comparisons.paired_differences)

REWARDS = (
  functools.partial(parts.keep, names=("entropy", "length")),
  rewards.before_and_after,
  rewards.steps_to_thresholds,
  *_COMPARED,
  rewards.draw,
)
FIGURES = (
  functools.partial(
    parts.keep,
    names=("success", "reward/return", "steps", "invalid", "failed", "entropy")
    + ("lambda", "loss/world_model", "clipped_tokens", "observation_nll"),
    evals=("right", "observation_accuracy"),
  ),
  figures.by_kind,
  figures.first_and_last,
  figures.seconds,
  *_COMPARED,
  figures.draw,
)
LABELS = (
  functools.partial(
    parts.keep,
    names=("reward/total", "audit/correct", "audit/vote_right")
    + ("audit/majority", "audit/with_gap", "labels/labelled", "labels/wasted")
    + ("labels/hopeless", "entropy"),
    every=5,
  ),
  labels.before,
  labels.by_budget,
  labels.training,
  labels.bought,
  *_COMPARED,
)
SWEEP = (
  functools.partial(
    parts.keep,
    names=("reward/total", "nll/positive", "nll/negative", "entropy", "length"),
    every=5,
  ),
  sweeps.rewards,
  sweeps.at_the_end,
  *_COMPARED,
  sweeps.draw,
)


def draw_choices(*buyers: str) -> Callable[[Found], list[str]]:
  """A section that draws what the labels of some rows were spent on."""
  return functools.partial(labels.draw_choices, buyers=buyers)
