"""What a task is: components, examples, and a score for each completion.

Text lives in this room and nowhere else; nothing here imports JAX, so that
grading processes start fast and hold little memory.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, overload

from saw_jax.names import nearest


@dataclasses.dataclass(frozen=True)
class Component:
  """One number of a reward, with the range it lies in."""

  name: str
  minimum: float
  maximum: float


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt with what is needed to score an answer to it.

  Attributes:
    key: identifies the example; random keys of its samples are folded from it.
    messages: chat messages, each with a "role" and a "content".
    reference: the ground truth.
    meta: whatever else the task wants to keep.
  """

  key: int
  messages: tuple[Mapping[str, str], ...]
  reference: str
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class LazyExamples(Sequence[Example]):
  """Examples made when they are asked for."""

  def __init__(self, make: Callable[[int], Example], size: int):
    """Makes nothing yet.

    Args:
      make: from an index to its example, the same each time.
      size: how many there are.
    """
    self._make = make
    self._size = size

  def __len__(self) -> int:
    return self._size

  @overload
  def __getitem__(self, index: int) -> Example: ...

  @overload
  def __getitem__(self, index: slice) -> list[Example]: ...

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self._make(i) for i in range(*index.indices(self._size))]
    index = int(index)
    if not -self._size <= index < self._size:
      raise IndexError(f"example {index} of {self._size}")
    return self._make(index % self._size)


class Outcome(enum.Enum):
  """How the scoring of one completion went.

  `WRONG` is anything readable that is not fully right. The last two mean that
  there is no reward at all: such a completion is masked, not punished. A task
  may return them where it depends on somebody else, such as a judge; what it
  raises is `CRASHED` too, and counts as a bug.
  """

  RIGHT = "right"
  WRONG = "wrong"
  UNPARSABLE = "unparsable"
  TIMED_OUT = "timed_out"
  CRASHED = "crashed"

  @property
  def scored(self) -> bool:
    """Whether a reward exists."""
    return self not in (Outcome.TIMED_OUT, Outcome.CRASHED)


@dataclasses.dataclass(frozen=True)
class Score:
  """One value per component; None where that component could not be scored."""

  values: tuple[float | None, ...]
  outcome: Outcome


class Task(Protocol):
  """A source of examples with a reward.

  A task is pickled into grading processes, so its class lives in an importable
  module. Drop what scoring does not need in `__getstate__`.

  A component that depends on the number of tokens, which a text does not have,
  is named in an optional attribute `token_limits`, with the most tokens that a
  response may have: `score` gives its value for a short enough response, and
  whoever has the tokens makes it 0 for a longer one.
  """

  name: str
  components: tuple[Component, ...]

  def examples(self, split: str) -> Sequence[Example]:
    """Returns the examples of a split; the sequence may be lazy."""
    ...

  def score(self, example: Example, completion: str) -> Score:
    """Scores a completion, deterministically and for any text at all."""
    ...


class Splits:
  """The part of a task that makes each split once, when it is asked for.

  A task that inherits from it says which splits there are in `splits`, and
  makes one in `_make`. Grading processes get the task without its examples.
  """

  _examples: Mapping[str, Sequence[Example]] = {}

  def __getstate__(self) -> dict[str, Any]:
    """Leaves the examples out: scoring needs none."""
    state = dict(self.__dict__)
    state.pop("_examples", None)
    return state

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits."""
    raise NotImplementedError

  def examples(self, split: str) -> Sequence[Example]:
    """Returns the examples of a split.

    Args:
      split: one of `splits`.

    Returns:
      The examples; the sequence may be lazy.

    Raises:
      ValueError: no such split, no file for it, or a broken row in the file.
      FileNotFoundError: its file is not there.
      ImportError: a library that reads or makes them is missing.
    """
    if split not in self.splits:
      raise ValueError(f"no split {split!r}: {nearest(split, self.splits)}")
    if split not in self._examples:
      self._examples = {**self._examples, split: self._make(split)}
    return self._examples[split]

  def _make(self, split: str) -> Sequence[Example]:
    raise NotImplementedError


def token_limits(task: Task) -> dict[int, int]:
  """Finds the components of a task that depend on the number of tokens.

  Args:
    task: any.

  Returns:
    The most tokens by index of the component.

  Raises:
    ValueError: a limit is of no component, or not positive.
  """
  names = [component.name for component in task.components]
  limits = getattr(task, "token_limits", {})
  for name, limit in limits.items():
    if name not in names:
      raise ValueError(
        f"a limit of {limit} tokens is of no component: {name!r}"
      )
    if limit < 1:
      raise ValueError(f"component {name!r} has a limit of {limit} tokens")
  return {names.index(name): limit for name, limit in limits.items()}
