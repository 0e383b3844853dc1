"""How good a policy is on examples that it was not trained on."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import rollouts
from saw_jax.settings import constant
from saw_jax.tasks.base import Component, Outcome, Task, token_limits
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tokenizer import Tokenizer

# Evaluation keys are folded at steps that no training run reaches.
_FIRST_STEP = 2**30


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """What is evaluated, and how often."""

  split: str = constant("test")
  num_examples: int = 128
  batch_size: int = 128  # prompts at a time
  samples: int = 4  # per prompt, in the final sampled evaluation
  temperature: float = 1.0  # of those samples
  top_p: float = 1.0  # likewise
  interval: int = 10  # steps between greedy evaluations; 0: only at the end
  # Splits that the finished policies are scored on, whole -> samples an
  # example; 0: greedily alone. See run/benchmarks.py.
  benchmarks: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, samples in self.benchmarks.items():
      if isinstance(samples, bool) or not isinstance(samples, int):
        raise ValueError(
          f"evaluation.benchmarks.{name} is a number of samples, not "
          f"{samples!r}"
        )
      if samples < 0:
        raise ValueError(
          f"evaluation.benchmarks.{name} is {samples}: a number of samples is "
          "0 or more"
        )


class Evaluator:
  """Scores policies on one set of held-out examples, greedily or sampled."""

  def __init__(
    self,
    task: Task,
    tokenizer: Tokenizer,
    encoder: rollouts.Encoder,
    config: EvaluationConfig,
    make_sampler: Callable[[SamplingConfig, int], rollouts.Generate],
  ):
    """Takes the examples; nothing is compiled yet.

    Args:
      task: where the examples come from.
      tokenizer: for the completions' text.
      encoder: of the prompts.
      config: which examples, and how many samples.
      make_sampler: from a sampling and a group size to a sampler.
    """
    examples = task.examples(config.split)
    self.components = task.components
    self.examples = [
      examples[i] for i in range(min(len(examples), config.num_examples))
    ]
    self._task, self._config, self._tokenizer = task, config, tokenizer
    self._encoder = encoder
    # What a completion votes for, where the task has a notion of that.
    self._answer_key = getattr(task, "answer_key", None)
    self._make_sampler = functools.cache(make_sampler)
    self._modes = self._samplers(config.samples)

  @property
  def modes(self) -> tuple[str, ...]:
    """How examples are answered: `greedy`, and `sampled` unless 0 samples."""
    return tuple(self._modes)

  def on(self, split: str, samples: int) -> "Evaluator":
    """Evaluates another split in the same way, all of it.

    Args:
      split: of the task.
      samples: per example; 0 to be greedy alone.

    Returns:
      The other evaluator. What is compiled is shared.

    Raises:
      ValueError: the task has no such split.
    """
    examples = self._task.examples(split)
    other = copy.copy(self)
    other.examples = [examples[i] for i in range(len(examples))]
    other._modes = self._samplers(samples)
    return other

  def _samplers(self, samples: int) -> dict[str, tuple[Any, int]]:
    config = self._config
    modes = {"greedy": (self._make_sampler(SamplingConfig(greedy=True), 1), 1)}
    if samples:
      sampling = SamplingConfig(
        temperature=config.temperature, top_p=config.top_p
      )
      modes["sampled"] = (self._make_sampler(sampling, samples), samples)
    return modes

  def run(
    self, mode: str, params: Any, grader: Grader, *, num_seeds: int
  ) -> dict[str, np.ndarray]:
    """Scores every example under the policies of all seeds.

    Args:
      mode: `greedy`, one answer an example; or `sampled`, `samples` of them.
      params: of all seeds, as the lift keeps them.
      grader: scores the answers.
      num_seeds: `N`.

    Returns:
      `rewards` float32 `[N, E, G, M]`, `scored` bool of the same shape,
      `right`, `ended` bool and `lengths` int `[N, E, G]`, for `E` examples; and
      `answers` int `[N, E, G]` where the task has an `answer_key`: samples of
      an example with the same number gave the same answer, -1 gave none.
    """
    generate_fn, group_size = self._modes[mode]
    size = min(self._config.batch_size, len(self.examples))
    # Long prompts beside long ones: a batch is as wide as its longest.
    order = sorted(
      range(len(self.examples)),
      key=lambda place: self._encoder.size(self.examples[place]),
    )
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(order), size):
      places = order[start : start + size]
      chosen = [self.examples[place] for place in places]
      # The last batch is filled up, so that all have one shape.
      padded = chosen + chosen[:1] * (size - len(chosen))
      ids = np.array([example.key for example in padded])
      rows = [padded] * num_seeds
      transcript = rollouts.sample(
        generate_fn,
        params,
        rows,
        rollouts.row_keys(
          [0] * num_seeds, _FIRST_STEP, [ids] * num_seeds, group_size
        ),
        encoder=self._encoder,
        multiple=1,
      )
      result = rollouts.score(
        transcript,
        rows,
        tokenizer=self._tokenizer,
        grader=grader,
        stops=self._encoder.stops,
      )
      right = np.array(
        [outcome is Outcome.RIGHT for outcome in result.outcomes]
      ).reshape(result.lengths.shape)
      found = {
        "rewards": result.rewards,
        "scored": result.scored,
        "right": right,
        "ended": result.ended,
        "lengths": result.lengths,
      }
      if self._answer_key is not None:
        keys = [self._answer_key(text) for text in result.completions]
        found["answers"] = _answer_ids(keys, group_size).reshape(right.shape)
      for name, value in found.items():
        parts.setdefault(name, []).append(value[:, : len(chosen)])
    back = np.argsort(order)
    return {
      name: np.concatenate(value, 1)[:, back] for name, value in parts.items()
    }

  def scores(
    self, mode: str, params: Any, grader: Grader, *, num_seeds: int
  ) -> list[dict[str, float]]:
    """Runs an evaluation and averages it; see `average`.

    Args:
      mode: `greedy` or `sampled`.
      params: of all seeds, as the lift keeps them.
      grader: scores the answers.
      num_seeds: `N`.

    Returns:
      The means of each seed; with what the task averages in a way of its own,
      such as the categories of BFCL, and, for each component with a limit of
      tokens, the share of answers that are longer, as `over_<component>`.
    """
    result = self.run(mode, params, grader, num_seeds=num_seeds)
    found = average(mode, result, self.components)
    for component, limit in token_limits(self._task).items():
      for seed, values in enumerate(found):
        over = result["lengths"][seed] > limit
        values[f"over_{self.components[component].name}"] = float(over.mean())
    if hasattr(self._task, "averages"):
      for seed, values in enumerate(found):
        right = result["right"][seed].mean(-1, dtype=np.float64)
        values |= self._task.averages(self.examples, right)
    return found


def average(
  mode: str, result: dict[str, np.ndarray], components: Sequence[Component]
) -> list[dict[str, float]]:
  """Averages an evaluation.

  Args:
    mode: `greedy` or `sampled`.
    result: from `Evaluator.run`.
    components: of the task.

  Returns:
    For each seed what `summarise` gives, and the means of `at_k` where it was
    sampled.
  """
  found = summarise(result, components)
  if mode == "sampled":
    for seed, values in enumerate(found):
      for name, value in at_k(result, seed).items():
        values[name] = float(value.mean())
  return found


def at_k(result: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
  """Scores the samples of each example together.

  Args:
    result: from `Evaluator.run`, with `k` samples an example.
    seed: index of the seed.

  Returns:
    For each figure one number an example, `[E]`: `mean@k`, the share of right
    samples; `pass@k`, whether one is right; and `maj@k`, whether the most
    frequent answer is, where `answers` are known.
  """
  right = result["right"][seed]
  k = right.shape[-1]
  figures = {
    f"mean@{k}": right.mean(-1, dtype=np.float64),
    f"pass@{k}": right.any(-1).astype(np.float64),
  }
  if "answers" in result:
    figures[f"maj@{k}"] = _vote(right, result["answers"][seed])
  return figures


def _vote(right: np.ndarray, answers: np.ndarray) -> np.ndarray:
  """Whether the most frequent answer is right; of equals the first counts.

  Answers are ids, negative where there is none. Both are `[E, samples]`.
  """
  is_answer = answers >= 0
  same = answers[:, :, None] == answers[:, None, :]
  voted = np.where(is_answer, same.sum(-1), 0).argmax(-1)[:, None]
  wins = np.take_along_axis(right & is_answer, voted, -1)
  return wins[:, 0].astype(np.float64)


def _answer_ids(keys: Sequence[str | None], group_size: int) -> np.ndarray:
  """Numbers the answers of each group in the order in which they occur."""
  ids = []
  for start in range(0, len(keys), group_size):
    numbers: dict[str, int] = {}
    for key in keys[start : start + group_size]:
      ids.append(-1 if key is None else numbers.setdefault(key, len(numbers)))
  return np.array(ids, np.int64)


def per_example(
  result: dict[str, np.ndarray], seed: int, components: Sequence[Component]
) -> dict[str, np.ndarray]:
  """Averages an evaluation over the samples of each example.

  Args:
    result: from `Evaluator.run`.
    seed: index of the seed.
    components: of the task.

  Returns:
    For each figure one number an example, `[E]`; examples of which nothing was
    scored are left out of a component.
  """
  rewards, scored = result["rewards"][seed], result["scored"][seed]
  figures = {}
  for m, component in enumerate(components):
    chosen = scored[..., m]
    count = chosen.sum(-1)
    total = np.where(chosen, rewards[..., m], 0).sum(-1, dtype=np.float64)
    figures[component.name] = total[count > 0] / count[count > 0]
  for name in ("right", "ended", "lengths"):
    figures[name] = result[name][seed].mean(-1, dtype=np.float64)
  return figures


def summarise(
  result: dict[str, np.ndarray], components: Sequence[Component]
) -> list[dict[str, float]]:
  """Averages an evaluation over its examples, seed by seed.

  Args:
    result: from `Evaluator.run`.
    components: of the task.

  Returns:
    For each seed: the mean of each component over what was scored, their sum
    as `total`, the share of fully right answers, of ended ones and of unscored
    ones, and the mean length in tokens.
  """
  summaries = []
  for index in range(result["rewards"].shape[0]):
    rewards, scored = result["rewards"][index], result["scored"][index]
    values = {}
    for m, component in enumerate(components):
      chosen = rewards[..., m][scored[..., m]]
      values[component.name] = (
        float(chosen.mean(dtype=np.float64)) if chosen.size else float("nan")
      )
    values["total"] = sum(values.values())
    values["right"] = float(result["right"][index].mean())
    values["ended"] = float(result["ended"][index].mean())
    values["unscored"] = float(1 - scored.mean())
    values["length"] = float(result["lengths"][index].mean())
    summaries.append(values)
  return summaries
