"""Rewards that are Python functions, of a completion and its row.

A function takes `(completion, row)`, or `(completions, rows)` for many at a
time. It may be `async`: then all of its answers are awaited together.
"""

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from saw_jax import naming
from saw_jax.tasks import base

Row = Mapping[str, Any]
_Fn = TypeVar("_Fn", bound=Callable)
_RANGE = "reward_range"  # the attribute of a function that says its own


class RewardFunctionError(Exception):
  """A reward function raised; the message names it."""


class Reward(NamedTuple):
  """A function with the name and the range of its component."""

  name: str
  fn: Callable[..., Any]
  minimum: float
  maximum: float
  is_batched: bool  # it is asked about many completions at a time
  is_async: bool

  async def values(self, texts: Sequence[str], rows: Sequence[Row]) -> list:
    """What the function says of completions, whatever that is."""
    try:
      if self.is_batched:
        found = self.fn(list(texts), list(rows))
        found = await found if inspect.isawaitable(found) else found
      else:
        found = [self.fn(*pair) for pair in zip(texts, rows, strict=True)]
        if any(map(inspect.isawaitable, found)):
          found = await asyncio.gather(*found)
      found = [x.item() if hasattr(x, "item") else x for x in found]
    except Exception as error:
      said = f"{self.name}: {type(error).__name__}: {error}"
      raise RewardFunctionError(said) from error
    if len(found) == len(texts):
      return found
    # No value is a text: it ends the run.
    return [f"{len(found)} values for {len(texts)} completions"] * len(texts)


def reward(minimum: float = 0.0, maximum: float = 1.0) -> Callable[[_Fn], _Fn]:
  """Marks a reward function with the range that its values lie in.

  A value outside of it ends the run, with a message that names the function.

  >>> @reward(minimum=-1.0)
  ... def polite(completion, row):
  ...   return 1.0 if "please" in completion else -1.0
  >>> make_rewards([polite])[0].minimum
  -1.0
  """

  def mark(fn: _Fn) -> _Fn:
    setattr(fn, _RANGE, (float(minimum), float(maximum)))
    return fn

  return mark


def make_rewards(
  given: Any, ranges: Mapping[str, Sequence[float]] = {}
) -> tuple[Reward, ...]:
  """Makes rewards of functions, or of their places as `naming.load` has them.

  `given` is a list or one of them, or a mapping that names them; a place may
  name several functions of a file: `my_rewards.py:right,short`.
  """
  if not isinstance(given, Mapping):
    several = [given] if isinstance(given, str) or callable(given) else given
    given = [(None, x) for one in several for x in _spread(one)]
  found: dict[str, Reward] = {}
  for name, fn in given.items() if isinstance(given, Mapping) else given:
    fn = naming.load(fn) if isinstance(fn, str) else fn
    if not callable(fn):
      raise TypeError(f"a reward is a function, not {fn!r}")
    name = name or getattr(fn, "__name__", type(fn).__name__)
    if name in found or "<" in name:
      raise ValueError(
        f"rewards have names of their own, and there is {name!r}"
        f"{' twice' * (name in found)}: say rewards={{'name': function}}"
      )
    try:
      inspect.signature(fn).bind("a completion", {})
    except TypeError as error:
      said = "function (completion, row), or (completions, rows) for many"
      raise ValueError(f"reward {name!r} is no {said}: {error}") from error
    if name in base.FIGURES:
      raise ValueError(
        f"a reward cannot be called {name!r}, as a figure of every evaluation "
        f"is: say rewards={{'my_{name}': function}}"
      )
    low, high = ranges.get(name, getattr(fn, _RANGE, (0.0, 1.0)))
    if not low < high:
      raise ValueError(f"reward {name!r} has no range: from {low} to {high}")
    found[name] = Reward(
      *(name, fn, float(low), float(high)),
      is_batched=naming.arguments(fn)[:1] == ("completions",),
      is_async=any(map(inspect.iscoroutinefunction, (fn, type(fn).__call__))),
    )
  if not found:
    raise ValueError("there is no reward: say rewards=[function, ...]")
  naming.check_options(list(found), ranges, "ranges: the rewards")
  return tuple(found.values())


def columns(
  rewards: Sequence[Reward], texts: Sequence[str], rows: Sequence[Row]
) -> list[tuple]:
  """The values of each completion, one of each reward."""
  found = [one.values(texts, rows) for one in rewards]
  waits = any(one.is_async for one in rewards)
  found = _run(found) if waits else map(_finish, found)
  return list(zip(*found, strict=True))


def _run(coroutines: list) -> list:
  async def every() -> list:
    return await asyncio.gather(*coroutines)

  return asyncio.run_coroutine_threadsafe(every(), _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
  """The one loop of this process: what a client keeps open is of its loop."""
  loop = asyncio.new_event_loop()
  # In a thread of its own: a notebook's has a loop that is running.
  threading.Thread(target=loop.run_forever, daemon=True).start()
  return loop


def _finish(coroutine: Any) -> list:
  """What a coroutine gives that never waits."""
  try:
    coroutine.send(None)
  except StopIteration as done:
    return done.value
  raise RewardFunctionError("a function that waits is an `async def`")


def _spread(place: Any) -> list:
  if not isinstance(place, str):
    return [place]
  where, _, names = place.rpartition(":")
  if not where:
    raise ValueError(f"a reward is named as my_rewards.py:right, not {place!r}")
  return [f"{where}:{name.strip()}" for name in names.split(",")]
