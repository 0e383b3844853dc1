"""How good a policy is on examples that it was not trained on."""

import copy
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import metrics, rollouts
from saw_jax.run.policy import Policy
from saw_jax.run.sections import AVERAGE
from saw_jax.tasks import base, data
from saw_jax.tasks.base import Component, Example, token_limits
from saw_jax.training import hosts

LOG = logging.getLogger(__name__)
# Evaluation keys are folded at steps that no training run reaches.
FIRST_STEP = 2**30

# Name of a benchmark and mode, as "aime24/sampled" -> the scores of each seed.
Scores = dict[str, list[dict[str, float]]]


class BaseEvaluator:
  """What evaluations of answers and of episodes share.

  `run` scores every one of `E` examples under the policies of all seeds;
  `modes` are how these are answered: the sampling, and how often.
  """

  def __init__(self, policy: Policy, workers: Any):
    self.policy, self._workers = policy, workers
    self._task, self._encoder = policy.made.task, policy.encoder
    self.config = config = policy.made.evaluation
    self.split, self.modes = config.split, self._modes(config.samples)
    self.examples = self._read(config.split, config.num_examples)

  def _modes(self, samples: int) -> dict[str, tuple[SamplingConfig, int]]:
    found = {"greedy": (SamplingConfig(greedy=True), 1)}
    if samples:
      heat, top_p = self.config.temperature, self.config.top_p
      sampling = SamplingConfig(temperature=heat, top_p=top_p)
      found["sampled"] = (sampling, samples)
    return found

  def on(self, split: str, samples: int) -> "BaseEvaluator":
    """Evaluates all of another split; with 0 samples it is greedy alone."""
    other = copy.copy(self)
    other.split, other.examples = split, self._read(split)
    other.modes = self._modes(samples)
    return other

  def scores(self, mode: str) -> list[dict[str, float]]:
    """Runs an evaluation and averages it, with what `more` has."""
    result = self.run(mode)
    found = average(mode, result, self._task.components)
    return [
      values | self.more({name: x[seed] for name, x in result.items()})
      for seed, values in enumerate(found)
    ]


class Evaluator(BaseEvaluator):
  """Scores answers to one set of held-out examples, greedy or sampled."""

  def _read(self, split: str, most: int | None = None) -> list[Example]:
    examples = self._encoder.keep(self._task.examples(split))
    return [examples[i] for i in range(len(examples))[:most]]

  def run(self, mode: str) -> dict[str, np.ndarray]:
    """Scores every one of `E` examples under the policies of all seeds.

    Returns `rewards` float32 `[N, E, G, M]`, `scored` bool of the same shape,
    `right`, `ended` bool and `lengths` int `[N, E, G]`; and `answers` int
    `[N, E, G]` where the task has an `answer_key`: samples of an example with
    the same number gave the same answer, -1 gave none.
    """
    policy, (sampling, group_size) = self.policy, self.modes[mode]
    size, shards = self.config.batch_size, policy.lift.num_shards
    size = -(-min(size, len(self.examples)) // shards) * shards
    # Long prompts beside long ones: a batch is as wide as its longest.
    lengths = [len(self._encoder.tokens(x)) for x in self.examples]
    sizes = list(map(self._encoder.round_up, lengths))
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(order), size):
      chosen = [self.examples[i] for i in order[start : start + size]]
      # The last batch is filled up, so that all have one shape.
      rows = [chosen + chosen[:1] * (size - len(chosen))] * policy.num_seeds
      transcript = rollouts.sample(
        policy.make_generate(sampling, group_size),
        policy.params,
        rows,
        rollouts.example_keys([0] * len(rows), FIRST_STEP, rows, group_size),
        encoder=self._encoder,
      )
      result = rollouts.score(transcript, rows, self._workers, self._encoder)
      if len(chosen) == size:  # Of a few, one that hangs may be the most.
        rollouts.check_scored(result, rows, self._workers, self._encoder)
      found = {
        "rewards": result.rewards,
        "scored": result.scored,
        "right": result.outcomes == rollouts.RIGHT,
        "ended": result.ended,
        "lengths": result.lengths,
      }
      # What a completion votes for, where the task has a notion of that.
      if hasattr(self._task, "answer_key"):
        asked = [
          x for of_seed in rows for x in of_seed for _ in range(group_size)
        ]
        pairs = zip(result.completions, asked, strict=True)
        keys = [self._task.answer_key(*pair) for pair in pairs]
        keys = np.array(keys, object).reshape(-1, group_size).tolist()
        found["answers"] = data.answer_ids(keys).reshape(result.lengths.shape)
      for name, value in found.items():
        parts.setdefault(name, []).append(value[:, : len(chosen)])
    back = np.argsort(order)
    return {name: np.concatenate(x, 1)[:, back] for name, x in parts.items()}

  def more(self, result: dict[str, np.ndarray]) -> dict[str, float]:
    """What a task averages in a way of its own, such as BFCL's categories."""
    found = {
      f"over_{self._task.components[component].name}": float(
        (result["lengths"] > limit).mean()
      )
      for component, limit in token_limits(self._task).items()
    }
    if hasattr(self._task, "averages"):
      right = result["right"].mean(-1, dtype=np.float64)
      found |= self._task.averages(self.examples, right)
    return found


def average(
  mode: str, result: dict[str, np.ndarray], components: Sequence[Component]
) -> list[dict[str, float]]:
  """Averages an evaluation over its examples, seed by seed."""
  found = []
  for n, rewards in enumerate(result["rewards"]):
    values, scored = {}, result["scored"][n]
    for m, component in enumerate(components):
      chosen = rewards[..., m][scored[..., m]]
      mean = chosen.mean(dtype=np.float64) if chosen.size else np.nan
      values[component.name] = float(mean)
    values["total"] = sum(values.values())
    # A reward may have this name: then mean@k alone says what is fully right.
    values.setdefault("right", float(result["right"][n].mean()))
    values["ended"] = float(result["ended"][n].mean())
    values["unscored"] = float(1 - scored.mean())
    values["length"] = float(result["lengths"][n].mean())
    more = at_k(result, n) if mode == "sampled" else {}
    found.append(values | {name: float(x.mean()) for name, x in more.items()})
  return found


def at_k(result: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
  """Scores the `k` samples of each example together, `[E]` a figure.

  `mean@k` is the share of right samples, `pass@k` whether one is right, `maj@k`
  whether the most frequent answer is, the first of equals.
  """
  right = result["right"][seed]
  k = right.shape[-1]
  figures = {
    f"mean@{k}": right.mean(-1, dtype=np.float64),
    f"pass@{k}": right.any(-1).astype(np.float64),
  }
  if "answers" in result:
    answers = result["answers"][seed]
    votes = (answers[:, :, None] == answers[:, None, :]).sum(-1)
    voted = np.where(answers >= 0, votes, 0).argmax(-1)[:, None]
    wins = np.take_along_axis(right & (answers >= 0), voted, -1)
    figures[f"maj@{k}"] = wins[:, 0].astype(np.float64)
  return figures


def per_example(
  result: dict[str, np.ndarray], seed: int, components: Sequence[Component]
) -> dict[str, np.ndarray]:
  """Averages what was scored over the samples of each example: `[E]`."""
  rewards, scored = result["rewards"][seed], result["scored"][seed]
  figures = {}
  for m, component in enumerate(components):
    chosen = scored[..., m]
    count = chosen.sum(-1)
    total = np.where(chosen, rewards[..., m], 0).sum(-1, dtype=np.float64)
    name = component.name
    name = f"reward/{name}" if name in base.FIGURES else name
    figures[name] = total[count > 0] / count[count > 0]
  for name, key in dict(right="right", ended="ended", length="lengths").items():
    figures.setdefault(name, result[key][seed].mean(-1, dtype=np.float64))
  return figures


def score_benchmarks(
  evaluator: BaseEvaluator,
  *,
  seeds: Sequence[int],
  step: int,
  path: pathlib.Path,
  stop: Callable[[], bool],
) -> Scores | None:
  """Scores the policies of all seeds on each benchmark, kept part by part.

  Gives scores by benchmark and mode, and their means under `benchmarks/<mode>`;
  None if `stop`, asked after each part, said so.
  """
  found, parts = _read(path, seeds, step), {}
  for name, samples in evaluator.config.benchmarks.items():
    on = evaluator.on(name, samples)
    parts |= {f"{name}/{mode}": (on, mode) for mode in on.modes}
  for number, (key, (on, mode)) in enumerate(parts.items(), start=1):
    # Processes need not share a disk: all skip a part, or none does.
    if not hosts.any_of(key not in found):
      continue
    where, size = f"{number} of {len(parts)}", len(on.examples)
    LOG.info("benchmark %s (%s): %d examples", key, where, size)
    found[key] = on.scores(mode)
    if hosts.is_first():
      document = {"step": step, "seeds": list(seeds), "scores": found}
      metrics.write_json(path, document)
    if stop() and number < len(parts):
      return None
  scores = {key: found[key] for key in parts}
  for mode in dict.fromkeys(mode for _, mode in parts.values()):
    own = [scores[key] for key in parts if parts[key][1] == mode]
    scores[f"{AVERAGE}/{mode}"] = [
      {
        name: float(np.mean([values[name] for values in every]))
        for name in every[0]
        if all(name in values for values in every)
      }
      for every in zip(*own, strict=True)
    ]
  return scores


def _read(path: pathlib.Path, seeds: Sequence[int], step: int) -> Scores:
  """The scores of the same policies that an earlier start has kept."""
  try:
    document = metrics.from_json(path.read_text(encoding="utf-8"))
    if document["step"] == step and document["seeds"] == list(seeds):
      return dict(document["scores"])
  except FileNotFoundError:
    pass
  except (ValueError, TypeError, KeyError) as error:
    LOG.warning("%s is damaged (%s): scoring anew", path, error)
  return {}
