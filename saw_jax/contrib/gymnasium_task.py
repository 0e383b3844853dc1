"""Environments of Gymnasium as a task: those of text, and of named actions."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from saw_jax import naming
from saw_jax.contrib import worlds

# What the numbers of actions mean, as the environments' pages have it.
_ACTIONS = {
  "Blackjack": ("stick", "hit"),
  "CliffWalking": ("up", "right", "down", "left"),
  "FrozenLake": ("left", "down", "right", "up"),
  "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
}
_COLOUR = re.compile(r"\x1b\[\d(\d)[\d;]*m")
_COLOURED = re.compile(_COLOUR.pattern + r"([^\x1b]*)\x1b\[0m")
_COLOURS = "gray red green yellow blue magenta cyan white".split()


@dataclasses.dataclass(frozen=True)
class GymnasiumConfig(worlds.AskedConfig):
  """Which environment, and what its numbers are called."""

  # An id; "module:Name-v0" imports the module that registers it.
  env: str = "FrozenLake-v1"
  # Of a Discrete space, in its order and in small letters; empty: known, or
  # else numbers.
  actions: tuple[str, ...] = ()
  # A function of the environment, an observation and its info to a text, given
  # as "module:name" or "file.py:name"; empty: the observation, or what `render`
  # shows.
  describe: str = ""


class Game(worlds.World):
  """One environment of Gymnasium, played with words.

  A text that is no action, or one that the mask of its info does not allow,
  changes nothing and takes a step.
  """

  def __init__(self, config: GymnasiumConfig, split: str):
    super().__init__(config, split)
    self._describe = naming.load(config.describe) if config.describe else None
    self._env = _make(config)
    self.names = _name_actions(config, self._env.action_space)
    about = inspect.getdoc(self._env.unwrapped) or config.env
    self._goal = config.goal or " ".join(about.partition("\n\n")[0].split())

  def _start(self, seed: int) -> str:
    self.task = self._goal
    return self._see(*self._env.reset(seed=self._first + seed))

  def _act(self, action: str) -> tuple[str, float, bool]:
    choice = self._choices.get(action.lower()) if self.names else action
    if not self._env.action_space.contains(choice):
      return self._seen, 0.0, False
    seen, reward, terminated, truncated, info = self._env.step(choice)
    return self._see(seen, info), reward, terminated or truncated

  def _see(self, observation: Any, info: Mapping[str, Any]) -> str:
    mask = info.get("action_mask", [1] * len(self.names))
    allowed = zip(self.names.items(), mask, strict=True)
    self._choices = {name: number for (name, number), ok in allowed if ok}
    self.admissible_actions = list(self._choices)
    if self._describe:
      observation = self._describe(self._env.unwrapped, observation, info)
    elif self._env.render_mode == "ansi":
      observation = _uncolour(self._env.render())
    self._seen = observation
    return observation


class GymnasiumTask(worlds.WorldTask):
  """One kind of environment, another episode each seed."""

  name = _module = "gymnasium"
  _world = Game
  _places = ("describe",)

  def __init__(self, config: GymnasiumConfig):
    super().__init__(config)
    self._names = self.make("train").names

  def _is_action(self, text: str) -> bool:
    return text.lower() in self._names if self._names else bool(text)


def _make(config: GymnasiumConfig) -> Any:
  import gymnasium

  options = {"disable_env_checker": True, **config.kwargs}
  try:
    env = gymnasium.make(config.env, **options)
    is_text = isinstance(env.observation_space, gymnasium.spaces.Text)
    if is_text or config.describe:
      return env
    if "ansi" in env.metadata.get("render_modes", ()):
      return gymnasium.make(config.env, **{"render_mode": "ansi", **options})
  except gymnasium.error.Error as error:
    raise ValueError(f"gymnasium has no {config.env!r}: {error}") from error
  raise ValueError(
    f"{config.env} shows a {type(env.observation_space).__name__} and no text: "
    "name a function that describes it in options.describe"
  )


def _name_actions(config: GymnasiumConfig, space: Any) -> dict[str, Any]:
  """The number of each action by its name; none where an action is a text."""
  import gymnasium

  if isinstance(space, gymnasium.spaces.Text):
    return {}
  if not isinstance(space, gymnasium.spaces.Discrete):
    raise ValueError(
      f"an action of {config.env} is a {type(space).__name__}; it has to be a "
      "Text, or Discrete, whose actions have names"
    )
  kind = config.env.rpartition(":")[2].partition("-v")[0]
  size, known = int(space.n), _ACTIONS.get(kind, ())
  names = config.actions or known or tuple(map(str, range(size)))
  if len(set(names)) != size:
    raise ValueError(
      f"{config.env} has {size} actions, and options.actions {len(names)} names"
    )
  numbered = enumerate(names, int(space.start))
  return {name.lower(): number for number, name in numbered}


def _uncolour(text: str) -> str:
  r"""What a terminal shows in colour, in brackets; with its name if of several.

  >>> _uncolour("S\x1b[41mF\x1b[0mG")
  'S[F]G'
  """
  several = len(set(_COLOUR.findall(text))) > 1

  def mark(found: re.Match) -> str:
    name = f"{_COLOURS[int(found[1]) % 8]}:" if several else ""
    return f"[{name}{found[2]}]"

  count = 1
  while count:  # from the inside
    text, count = _COLOURED.subn(mark, text)
  return text.strip("\n")
