"""A household in words: ALFWorld's tasks, wording and commands, without it.

tests/engines_test.py plays it beside ALFWorld's engine, to the letter.
"""

import functools
from collections.abc import Callable, Sequence

from saw_jax.tasks.environments import (
  BoundedEnvironment,
)
from saw_jax.tasks.household import world as world_lib
from saw_jax.tasks.household.world import World, kind_of

NOTHING = "Nothing happens."
# Knives cut nothing here: the last line is ALFWorld's all the same.
_COMMANDS = {
  "look": "look around your current location",
  "inventory": "check your current inventory",
  "go to (receptacle)": "move to a receptacle",
  "open (receptacle)": "open a receptacle",
  "close (receptacle)": "close a receptacle",
  "take (object) from (receptacle)": "take an object from a receptacle",
  "move (object) to (receptacle)": "place an object in or on a receptacle",
  "examine (something)": "examine a receptacle or an object",
  "use (object)": "use an object",
  "heat (object) with (receptacle)": "heat an object using a receptacle",
  "clean (object) with (receptacle)": "clean an object using a receptacle",
  "cool (object) with (receptacle)": "cool an object using a receptacle",
  "slice (object) with (object)": "slice an object using a sharp object",
}
HELP = "Available commands:\n" + "".join(
  # One line is two columns short.
  f"  {command + ':':{32 if command.startswith('move') else 34}}{what}\n"
  for command, what in _COMMANDS.items()
)
_HELD = -1  # where an object is that is carried
_NOWHERE = -1  # where one is in the middle of the room
LONGEST = 200  # no action has as many characters
_LAMP = f"{world_lib.LAMP} 1"
_AROUND = (
  "You are in the middle of a room. Looking quickly around you, you see "
)
# What is said of an object's state.
_STATES_SAID = {
  frozenset(["hot"]): "hot",
  frozenset(["cool"]): "cold",
  frozenset(["clean"]): "clean",
  frozenset(["hot", "clean"]): "hot and clean",
  frozenset(["cool", "clean"]): "cool and clean",
}


class Household(BoundedEnvironment):
  """An `Environment`: the world that `draw` makes of a seed, until solved.

  One object can be carried at a time, what is closed shows nothing, and what is
  not understood is answered by "Nothing happens.". The step that solves the
  task pays `reward`; the others pay nothing.

  Attributes:
    world: as it was at the start.
    won: whether the task is solved.
    at: index of the receptacle in front of one; -1: none.
    held: the object that is carried, if any.
    lies_in: by object the index of its receptacle; -1: it is held.
    closed: whether a receptacle is closed, by index.
    states: by object what was done to it: "clean", "hot" or "cool".
  """

  def __init__(
    self, draw: Callable[[int], World], *, max_steps: int, reward: float
  ):
    super().__init__(max_steps, reward)
    self._draw = draw

  def _start(self, seed: int) -> str:
    self.world = world = self._draw(seed)
    self.task = world.goal
    self.won = self._lit = False
    self.at = _NOWHERE
    self.held: str | None = None
    self.lies_in = dict(zip(world.things, world.lies_in, strict=True))
    self.closed = [kind_of(p) in world_lib.OPENABLE for p in world.places]
    self.states: dict[str, set[str]] = {thing: set() for thing in world.things}
    self._wanted = [t for t in world.things if kind_of(t) == world.thing]
    self._actions = self._find_actions()
    return (
      f"-= Welcome to TextWorld, ALFRED! =-\n\n{_AROUND}"
      f"{_listing(world.places)}.\n\n"
      f"Your task is to: {world.goal}"
    )

  def _act(self, action: str) -> tuple[str, float, bool]:
    if len(action) > LONGEST or action.strip() not in self._actions:
      return NOTHING, self.max_return * self.won, self.won
    observation = self._do(action.strip())
    self.won = self._is_solved()
    self._actions = self._find_actions()
    return observation, self.max_return * self.won, self.won

  @property
  def admissible_actions(self) -> list[str]:
    return list(self._actions)

  def _find_actions(self) -> list[str]:
    actions = [
      f"go to {place}"
      for index, place in enumerate(self.world.places)
      if index != self.at
    ]
    if self.held is not None:
      actions.append(f"examine {self.held}")
    if self.at != _NOWHERE:
      place = self.world.places[self.at]
      kind, closed = kind_of(place), self.closed[self.at]
      actions.append(f"examine {place}")
      if kind in world_lib.OPENABLE:
        actions.append(f"{'open' if closed else 'close'} {place}")
      if self.held is None and not closed:
        actions += [f"take {one} from {place}" for one in self._things_here()]
      if self.held is not None:
        thing = kind_of(self.held)
        if not closed and kind in world_lib.FITS[thing]:
          actions.append(f"move {self.held} to {place}")
        for verb, tool in world_lib.TOOLS.items():
          if kind == tool and thing in world_lib.ABLE[verb]:
            actions.append(f"{verb} {self.held} with {place}")
      if self.at == self.world.lamp_in:
        actions.append(f"use {_LAMP}")
    return sorted([*actions, "help", "inventory", "look"])

  def _do(self, action: str) -> str:
    """Takes an admissible action, and returns what is said of it."""
    if action == "help":
      return HELP
    if action == "inventory":
      held = f": a {self.held}." if self.held else " anything."
      return f"You are {'' if self.held else 'not '}carrying{held}"
    if action == "look" and self.at == _NOWHERE:
      return f"{_AROUND}nothing."  # All is seen at the start only.
    verb, _, rest = action.partition(" ")
    if verb == "go":
      self.at = self.world.places.index(rest.removeprefix("to "))
      return f"You arrive at {rest.removeprefix('to ')}. {self._describe()}"
    if verb == "examine" and rest == self.held:
      # ALFWorld means to show what lies here too, but a comma in its rules
      # hides it: "?l - location, ?r" asks for a type called "location,".
      if not self.states[rest]:
        return f"There's nothing special about {rest}."
      return f"This is a {_STATES_SAID[frozenset(self.states[rest])]} {rest}."
    place, held = self.world.places[self.at], self.held
    if verb == "look":
      return f"You are facing the {place}. Next to it, you see nothing."
    if verb == "examine":
      return self._describe()
    if verb in ("open", "close"):
      self.closed[self.at] = verb == "close"
      seen = "" if verb == "close" else f" {self._describe()}"
      return f"You {verb} the {place}.{seen}"
    if verb == "use":
      self._lit = True
      return f"You turn on the {_LAMP}."
    if verb == "take":
      self.held = rest.partition(" from ")[0]
      self.lies_in[self.held] = _HELD
      return f"You pick up the {self.held} from the {place}."
    if verb == "move":
      self.lies_in[held], self.held = self.at, None
      return f"You move the {held} to the {place}."
    if verb != "clean":  # hot or cool, not both
      self.states[held] -= {"hot", "cool"}
    self.states[held].add(world_lib.STATES[verb])
    return f"You {verb} the {held} using the {place}."

  def _things_here(self) -> list[str]:
    return [thing for thing, place in self.lies_in.items() if place == self.at]

  def _describe(self) -> str:
    place = self.world.places[self.at]
    if self.closed[self.at]:
      return f"The {place} is closed."
    lamp = [_LAMP] if self.at == self.world.lamp_in else []
    seen = _listing(sorted(self._things_here() + lamp, key=_rank))
    if kind_of(place) in world_lib.OPENABLE:
      return f"The {place} is open. In it, you see {seen}."
    return f"On the {place}, you see {seen}."

  def _is_solved(self) -> bool:
    world = self.world
    if world.kind == "look":
      at_lamp = self.at == world.lamp_in
      return self._lit and at_lamp and self.held in self._wanted
    state = world_lib.STATES.get(world.kind)
    delivered = [
      self.lies_in[thing]
      for thing in self._wanted
      if self.lies_in[thing] != _HELD
      and kind_of(world.places[self.lies_in[thing]]) == world.place
      and (state is None or state in self.states[thing])
    ]
    if world.kind == "two":  # both in the same one
      return len(set(delivered)) < len(delivered)
    return bool(delivered)


class _Plan:
  """Actions that are written down, and what they leave open."""

  def __init__(self, world: World):
    self.world = world
    self.actions: list[str] = []
    self._at = _NOWHERE
    self._opened: set[int] = set()

  def go(self, index: int, *, inside: bool = True) -> str:
    """Goes somewhere, opens it where needed, and returns its name."""
    place = self.world.places[index]
    if index != self._at:
      self.actions.append(f"go to {place}")
      self._at = index
    is_closed = kind_of(place) in world_lib.OPENABLE
    if inside and is_closed and index not in self._opened:
      self.actions.append(f"open {place}")
      self._opened.add(index)
    return place


def shortest_plan(world: World) -> list[str]:
  """Returns actions that solve a world, by knowing where everything is."""
  plan = _Plan(world)
  kinds = [kind_of(place) for place in world.places]
  wanted = [
    (thing, index)
    for thing, index in zip(world.things, world.lies_in, strict=True)
    if kind_of(thing) == world.thing
  ]
  for thing, index in wanted[: 2 if world.kind == "two" else 1]:
    plan.actions.append(f"take {thing} from {plan.go(index)}")
    if world.kind == "look":
      plan.go(world.lamp_in)
      plan.actions.append(f"use {_LAMP}")
      break
    if world.kind in world_lib.TOOLS:
      tool = kinds.index(world_lib.TOOLS[world.kind])
      place = plan.go(tool, inside=False)
      plan.actions.append(f"{world.kind} {thing} with {place}")
    place = plan.go(kinds.index(world.place))
    plan.actions.append(f"move {thing} to {place}")
  return plan.actions


def _listing(names: Sequence[str]) -> str:
  """Lists things as ALFWorld does: "a apple 1, and a mug 2"."""
  if not names:
    return "nothing"
  listed = [f"a {name}" for name in names]
  if len(listed) > 1:
    listed[-1] = f"and {listed[-1]}"
  return ", ".join(listed)


@functools.cache
def _rank(thing: str) -> tuple[str, int]:
  """ALFWorld lists kinds by name, and those of a kind from the last on."""
  kind, _, number = thing.partition(" ")
  return kind, -int(number)
