"""What a task is: components, examples, and a score for each completion.

Nothing in this room imports JAX, so that workers start fast and stay small.
"""

import dataclasses
import enum
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from saw_jax.naming import check_choice, check_range, nearest  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Component:
  """One number of a reward, with the range it lies in."""

  name: str
  minimum: float
  maximum: float


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt with what is needed to score an answer to it.

  Random keys of its samples are folded from its `key`. A message has a "role"
  and a "content", the `reference` is the truth, `meta` what the task likes.
  """

  key: int
  messages: tuple[Mapping[str, str], ...]
  reference: str
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Outcome(enum.Enum):
  """How the scoring of one completion went.

  `WRONG` is anything readable that is not fully right. `TIMED_OUT` and
  `CRASHED` mean that there is no reward: the completion is masked, not
  punished. A task that asks somebody else, such as a judge, may return them.
  An exception is `CRASHED` too, and counts as a bug.
  """

  RIGHT = "right"
  WRONG = "wrong"
  UNPARSABLE = "unparsable"
  TIMED_OUT = "timed_out"
  CRASHED = "crashed"

  @property
  def scored(self) -> bool:
    return self not in (Outcome.TIMED_OUT, Outcome.CRASHED)


@dataclasses.dataclass(frozen=True)
class Score:
  """One value per component; None where that component could not be scored."""

  values: tuple[float | None, ...]
  outcome: Outcome


class Task(Protocol):
  """A source of examples with a reward.

  A task is pickled into worker processes, so its class lives in an importable
  module. Drop what scoring does not need in `__getstate__`.

  A text has no number of tokens. A component that depends on it is named in an
  optional attribute `token_limits`, with the most tokens of a response: `score`
  gives the value of one that is short enough, and whoever has the tokens makes
  it 0 for a longer one.

  `score_many(pairs)`, if there is one that is not None, scores several at once.

  Attributes:
    name: of the task, in messages and metrics.
    components: the numbers of the reward, in the order of `Score.values`.
  """

  name: str
  components: tuple[Component, ...]

  def examples(self, split: str) -> Sequence[Example]:
    """Returns the examples of a split such as "train" or "test".

    They are the same at every call, and may be made lazily. A `ValueError` says
    that there is no such split.
    """

  def score(self, example: Example, completion: str) -> Score:
    """Scores a completion: any text at all, empty, enormous or hostile.

    Returns one finite value within its range per component, and the outcome;
    the same for the same arguments, whatever was scored before.
    """


def asset(module: str, name: str) -> Any:
  """What a JSON file or a text of `assets` beside a module holds."""
  path = pathlib.Path(module).with_name("assets") / name
  text = path.read_text(encoding="utf-8")
  return json.loads(text) if path.suffix == ".json" else text.rstrip("\n")


# A row of a held-out evaluation has these columns, beside those of the
# components. A reward on the length may be called `length`: `over_length` is
# what an evaluation says of it.
FIGURES = frozenset(("total", "ended", "unscored", "length", "step", "seed"))


def token_limits(task: Task) -> dict[int, int]:
  """Returns the most tokens of a response by index of a component."""
  names = [component.name for component in task.components]
  limits = getattr(task, "token_limits", {})
  for name, limit in limits.items():
    if name not in names or limit < 1:
      raise ValueError(f"no component {name!r} has a limit of {limit} tokens")
  return {names.index(name): limit for name, limit in limits.items()}


def check_split(split: str, splits: Collection[str]) -> None:
  if split not in splits:
    raise ValueError(f"no split {split!r}: {nearest(split, splits)}")


def check_positive(config: Any, *names: str) -> None:
  check_range(config, "[1, inf)", *names)
