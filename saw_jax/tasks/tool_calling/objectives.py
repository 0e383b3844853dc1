"""Tool calling with several objectives, some of which soon teach nothing.

What ToolRL adds up are components of their own here: the names of calls, the
names of parameters, and the values, which are hard. There may also be a format
that is soon nearly always right, whose reward may err, and a coin that nobody
can learn.
"""

import dataclasses
from collections.abc import Iterator

from saw_jax.tasks import answer_task, base
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import rewards, task

_MAXIMA = {"format": 1.0, "names": 1.0, "parameters": 1.0, "values": 3.0}
_MAXIMA["coin"] = 1.0


@dataclasses.dataclass(frozen=True)
class ToolObjectivesConfig(task.ToolCallingConfig):
  """Tool calling's, and which objectives there are."""

  objectives: tuple[str, ...] = ("format", "names", "parameters", "values")
  error_rate: float = 0.0  # how often the reward of the format is the other one

  def __post_init__(self):
    for name in self.objectives:
      base.check_choice("objectives", name, _MAXIMA)
    base.check_range(self, "[0, 1]", "error_rate")
    super().__post_init__()

  @property
  def generated_splits(self) -> tuple[str, ...]:
    return ()  # BFCL's checker knows no parts


class ToolObjectivesTask(task.ToolCallingTask):
  """Each objective is a component of the reward, from 0; values weigh 3.

  Errors and coins are drawn by the example and the text, so that a response
  always has the same reward. A request without calls has no wrong ones.
  """

  name = "tool_objectives"
  Config = ToolObjectivesConfig

  def __init__(self, config: ToolObjectivesConfig | None = None):
    super().__init__(config)
    self.components = tuple(
      base.Component(name, 0.0, _MAXIMA[name])
      for name in self.config.objectives
    )

  def score(self, example: base.Example, completion: str) -> base.Score:
    found = super().score(example, completion)
    parts, answer = (1.0, 1.0, 1.0), rewards.extract_completion(completion)
    if rewards.CALL in example.reference:
      gold = rewards.read_calls(example.reference)
      parts = rewards.call_parts(answer, gold) or (0.0, 0.0, 0.0)
    draws = Draws("objectives", example.key, completion)
    errs, coin = draws.chance(self.config.error_rate), draws.chance(0.5)
    shares = dict(zip(("names", "parameters", "values"), parts, strict=True))
    shares |= {"format": abs(found.values[1] - errs), "coin": float(coin)}
    values = (shares[x.name] * x.maximum for x in self.components)
    return dataclasses.replace(found, values=tuple(values))

  best_values = answer_task.AnswerTask.best_values

  def damages(self, example: base.Example) -> Iterator[answer_task.Damage]:
    """None: what a mistake costs depends on the draws."""
    return iter(())
