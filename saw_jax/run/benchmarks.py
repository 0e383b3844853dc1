"""Finished policies on whole benchmarks, kept part by part.

A table of a paper has a column a benchmark, and scoring them takes hours at its
scale. So what was scored is written down as soon as it is there, and whoever is
killed in between goes on behind it.
"""

import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from saw_jax.run import rollouts, run_directory
from saw_jax.run.episode_evaluation import EpisodeEvaluator
from saw_jax.run.evaluation import Evaluator
from saw_jax.tasks.base import Task
from saw_jax.tasks.environments import AgentTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import hosts

LOG = logging.getLogger(__name__)

AVERAGE = "benchmarks"  # stands in the place of a benchmark's name

# Name of a benchmark and mode, as "aime24/sampled" -> the scores of each seed.
Scores = dict[str, list[dict[str, float]]]


def check(
  task: Task | AgentTask, encoder: rollouts.Encoder, wanted: Iterable[str]
) -> None:
  """Says what is wrong with benchmarks before a run, and not at its end."""
  for name in wanted:
    if name == AVERAGE:
      raise ValueError(
        f"a benchmark is called {AVERAGE!r}, as their average is: rename it"
      )
    if isinstance(task, AgentTask):
      size = task.num_episodes(name)
    else:
      examples = task.examples(name)
      size = len(examples)
      for index in range(size):
        encoder.tokens(examples[index])
    if not size:
      raise ValueError(f"the benchmark {name!r} is empty")


def score(
  evaluators: Mapping[str, Evaluator | EpisodeEvaluator],
  params: Any,
  grader: Grader | EnvironmentPool,
  *,
  seeds: Sequence[int],
  step: int,
  path: pathlib.Path,
  stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
  """Scores the policies of all seeds on each benchmark."""
  found = _read(path, seeds, step)
  parts = [
    (name, mode, evaluator)
    for name, evaluator in evaluators.items()
    for mode in evaluator.modes
  ]
  for number, (name, mode, evaluator) in enumerate(parts, start=1):
    key = f"{name}/{mode}"
    # Processes need not share a disk: all skip a part, or none does.
    if not hosts.any_of(key not in found):
      continue
    LOG.info(
      "benchmark %s, %s (%d of %d): %d examples",
      name,
      mode,
      number,
      len(parts),
      len(evaluator.examples),
    )
    found[key] = evaluator.scores(mode, params, grader, num_seeds=len(seeds))
    if hosts.is_first():
      document = {"step": step, "seeds": list(seeds), "scores": found}
      run_directory.write_json(path, document)
    if hosts.any_of(stop()) and number < len(parts):
      return None
  return _with_averages({f"{n}/{m}": found[f"{n}/{m}"] for n, m, _ in parts})


def _with_averages(scores: Scores) -> Scores:
  modes: dict[str, list[list[dict[str, float]]]] = {}
  for key, seeds in scores.items():
    modes.setdefault(key.rpartition("/")[2], []).append(seeds)
  averages = {
    f"{AVERAGE}/{mode}": [_mean(values) for values in zip(*found, strict=True)]
    for mode, found in modes.items()
  }
  return {**scores, **averages}


def _mean(benchmarks: Sequence[dict[str, float]]) -> dict[str, float]:
  """The plain mean of each figure that all benchmarks have."""
  return {
    name: float(np.mean([values[name] for values in benchmarks]))
    for name in benchmarks[0]
    if all(name in values for values in benchmarks)
  }


def _read(path: pathlib.Path, seeds: Sequence[int], step: int) -> Scores:
  """What an earlier start has scored of the same policies."""
  try:
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["step"] == step and document["seeds"] == list(seeds):
      return dict(document["scores"])
  except FileNotFoundError:
    pass
  except (ValueError, TypeError, KeyError) as error:
    LOG.warning("%s is damaged (%s): scoring anew", path, error)
  return {}
