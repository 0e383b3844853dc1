"""A household in words: ALFWorld's tasks, wording and commands, without it.

What is said and what can be done are ALFWorld's to the letter, which needs an
engine and a planner and takes tens of milliseconds a step (`alfworld_task`;
tests/engines_test.py plays both side by side); rooms are drawn from a seed
(`household_world`). One object can be carried at a time, what is closed shows
nothing, and what is not understood is answered by "Nothing happens.".
"""

import bisect
import functools
from collections.abc import Callable, Sequence

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Step
from saw_jax.tasks.household import world as household_world
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
_LAMP = f"{household_world.LAMP} 1"
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

_FIRST_PROMPT = """\
You are an expert agent that acts in the ALFRED embodied environment.
Your task is to: {task}
Your current observation is: {observation}
The actions that are admissible now are: [{actions}].

It is your turn to act. First reason step by step about the situation, inside \
<think> </think> tags. Then choose one admissible action and write it inside \
<action> </action> tags."""
_PROMPT = """\
You are an expert agent that acts in the ALFRED embodied environment.
Your task is to: {task}
So far you have taken {steps} step(s). The last {shown} observation(s) and the \
actions that you took: {history}
You are now at step {now} and your current observation is: {observation}
The actions that are admissible now are: [{actions}].

It is your turn to act. First reason step by step about the situation, inside \
<think> </think> tags. Then choose one admissible action and write it inside \
<action> </action> tags."""


class Household:
  """An `Environment`: one world a seed, done when solved or out of steps."""

  def __init__(
    self,
    split: str = "train",
    *,
    kinds: Sequence[str] = household_world.KINDS,
    receptacles: int = 16,
    objects: int = 20,
    max_steps: int = 50,
    reward: float = 10.0,
  ):
    """Makes no world yet: `reset` does.

    Args:
      split: "train" or "test"; no world belongs to both.
      kinds: of tasks, drawn from with equal shares.
      receptacles: how many a room has.
      objects: how many lie in it at most.
      max_steps: after which the episode is over.
      reward: of the step that solves the task; the others pay nothing.
    """
    self.max_return = reward
    self.task = ""
    self._options = dict(kinds=kinds, receptacles=receptacles, objects=objects)
    self._split = split
    self._max_steps = max_steps

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation."""
    draws = Draws("household", self._split, seed)
    return self.enter(
      household_world.draw_world(draws, self._split, **self._options)
    )

  def enter(self, world: World) -> str:
    """Starts an episode in a world, and returns its first observation."""
    self.world = world
    self.task = world.goal
    self.won = False
    self._steps = 0
    self._at = _NOWHERE
    self._lit = False
    self._index = {name: i for i, name in enumerate(world.places)}
    self._lies_in = dict(zip(world.things, world.lies_in, strict=True))
    self._contents: list[list[str]] = [[] for _ in world.places]
    for thing, place in self._lies_in.items():
      self._contents[place].append(thing)
    if world.lamp_in >= 0:
      self._contents[world.lamp_in].append(_LAMP)
    for contents in self._contents:
      contents.sort(key=_rank)
    self._closed = [
      kind_of(name) in household_world.OPENABLE for name in world.places
    ]
    self._held: str | None = None
    self._states: dict[str, set[str]] = {}
    self._wanted = [t for t in world.things if kind_of(t) == world.thing]
    self._trips = [f"go to {name}" for name in world.places]
    return (
      f"-= Welcome to TextWorld, ALFRED! =-\n\n{_AROUND}"
      f"{_listing(world.places)}.\n\n"
      f"Your task is to: {world.goal}"
    )

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done.

    Raises:
      RuntimeError: the episode is done, or none was started.
    """
    if not self.task or self.done:
      raise RuntimeError("the episode is over: reset first")
    self._steps += 1
    observation = self._act(action)
    if observation != NOTHING:
      self.won = self._is_solved()
    return Step(observation, self.max_return * self.won, self.done)

  @property
  def done(self) -> bool:
    """Whether the task is solved or the steps are used up."""
    return self.won or self._steps >= self._max_steps

  @property
  def at(self) -> int:
    """Index of the receptacle in front of one; -1: of none."""
    return self._at

  @property
  def held(self) -> str | None:
    """The object that is carried."""
    return self._held

  def place_of(self, thing: str) -> int:
    """Returns the index of the receptacle an object is in; -1: it is held."""
    return self._lies_in[thing]

  def is_closed(self, index: int) -> bool:
    """Returns whether a receptacle is closed."""
    return self._closed[index]

  def states_of(self, thing: str) -> frozenset[str]:
    """Returns what was done to an object: "clean", "hot" or "cool"."""
    return frozenset(self._states.get(thing, ()))

  @property
  def admissible_actions(self) -> list[str]:
    """What would do something now, sorted."""
    actions = [trip for i, trip in enumerate(self._trips) if i != self._at]
    if self._held is not None:
      actions.append(f"examine {self._held}")
    if self._at != _NOWHERE:
      place = self.world.places[self._at]
      kind = kind_of(place)
      actions.append(f"examine {place}")
      if kind in household_world.OPENABLE:
        verb = "open" if self._closed[self._at] else "close"
        actions.append(f"{verb} {place}")
      if self._held is None and not self._closed[self._at]:
        actions += [
          f"take {thing} from {place}"
          for thing in self._contents[self._at]
          if thing in self._lies_in
        ]
      if self._held is not None:
        thing = kind_of(self._held)
        if not self._closed[self._at] and kind in household_world.FITS[thing]:
          actions.append(f"move {self._held} to {place}")
        for verb, tool in household_world.TOOLS.items():
          if kind == tool and household_world.is_able(verb, thing):
            actions.append(f"{verb} {self._held} with {place}")
      if self._at == self.world.lamp_in:
        actions.append(f"use {_LAMP}")
    return sorted([*actions, "help", "inventory", "look"])

  def _act(self, action: str) -> str:
    """Does what the words say; in any other case nothing happens."""
    if len(action) > LONGEST:
      return NOTHING
    words = action.strip().split(" ")
    verb, names = words[0], words[1:]
    if verb in ("look", "inventory", "help"):
      return NOTHING if names else getattr(self, f"_{verb}")()
    if verb == "go" and names[:1] == ["to"]:
      return self._go(" ".join(names[1:]))
    if verb in ("open", "close", "examine", "use"):
      return getattr(self, f"_{verb}")(" ".join(names))
    between = _BETWEEN.get(verb)
    if len(names) == 5 and names[2] == between:
      thing, place = " ".join(names[:2]), " ".join(names[3:])
      if self._index.get(place, _NOWHERE) != self._at or self._at == _NOWHERE:
        return NOTHING
      if verb in household_world.TOOLS:
        return self._change(verb, thing, place)
      return getattr(self, f"_{verb}")(thing, place)
    return NOTHING

  def _look(self) -> str:
    if self._at == _NOWHERE:
      return f"{_AROUND}nothing."  # All is seen at the start only.
    place = self.world.places[self._at]
    return f"You are facing the {place}. Next to it, you see nothing."

  def _inventory(self) -> str:
    if self._held is None:
      return "You are not carrying anything."
    return f"You are carrying: a {self._held}."

  def _help(self) -> str:
    return HELP

  def _go(self, place: str) -> str:
    index = self._index.get(place, self._at)
    if index == self._at:
      return NOTHING
    self._at = index
    return f"You arrive at {place}. {self._describe(index)}"

  def _open(self, place: str) -> str:
    index = self._index.get(place, _NOWHERE)
    if index == _NOWHERE or index != self._at or not self._closed[index]:
      return NOTHING
    self._closed[index] = False
    return f"You open the {place}. {self._describe(index)}"

  def _close(self, place: str) -> str:
    index = self._index.get(place, _NOWHERE)
    if index == _NOWHERE or index != self._at or self._closed[index]:
      return NOTHING
    if kind_of(place) not in household_world.OPENABLE:
      return NOTHING
    self._closed[index] = True
    return f"You close the {place}."

  def _examine(self, name: str) -> str:
    # ALFWorld means to show what lies here too, but a comma in its rules hides
    # it: "?l - location, ?r" asks for a type that is called "location,".
    if name == self._held:
      states = self._states.get(name)
      if not states:
        return f"There's nothing special about {name}."
      return f"This is a {_STATES_SAID[frozenset(states)]} {name}."
    index = self._index.get(name, _NOWHERE)
    if index == _NOWHERE or index != self._at:
      return NOTHING
    return self._describe(index)

  def _use(self, name: str) -> str:
    if name != _LAMP or self._at != self.world.lamp_in or self._at == _NOWHERE:
      return NOTHING
    self._lit = True
    return f"You turn on the {_LAMP}."

  def _take(self, thing: str, place: str) -> str:
    if self._held is not None or self._closed[self._at]:
      return NOTHING
    if self._lies_in.get(thing, _HELD) != self._at:
      return NOTHING
    self._contents[self._at].remove(thing)
    self._lies_in[thing] = _HELD
    self._held = thing
    return f"You pick up the {thing} from the {place}."

  def _move(self, thing: str, place: str) -> str:
    if thing != self._held or self._closed[self._at]:
      return NOTHING
    if kind_of(place) not in household_world.FITS[kind_of(thing)]:
      return NOTHING
    bisect.insort(self._contents[self._at], thing, key=_rank)
    self._lies_in[thing] = self._at
    self._held = None
    return f"You move the {thing} to the {place}."

  def _change(self, verb: str, thing: str, place: str) -> str:
    if thing != self._held or kind_of(place) != household_world.TOOLS[verb]:
      return NOTHING
    if not household_world.is_able(verb, kind_of(thing)):
      return NOTHING
    states = self._states.setdefault(thing, set())
    if verb != "clean":  # hot or cool, not both
      states -= {"hot", "cool"}
    states.add(household_world.STATES[verb])
    return f"You {verb} the {thing} using the {place}."

  def _describe(self, index: int) -> str:
    place = self.world.places[index]
    if self._closed[index]:
      return f"The {place} is closed."
    seen = _listing(self._contents[index])
    if kind_of(place) in household_world.OPENABLE:
      return f"The {place} is open. In it, you see {seen}."
    return f"On the {place}, you see {seen}."

  def _is_solved(self) -> bool:
    world = self.world
    if world.kind == "look":
      at_lamp = self._at == world.lamp_in
      return self._lit and at_lamp and self._held in self._wanted
    state = household_world.STATES.get(world.kind)
    delivered = [
      self._lies_in[thing]
      for thing in self._wanted
      if self._lies_in[thing] != _HELD
      and kind_of(world.places[self._lies_in[thing]]) == world.place
      and (state is None or state in self._states.get(thing, ()))
    ]
    if world.kind == "two":  # both in the same one
      return len(set(delivered)) < len(delivered)
    return bool(delivered)


_BETWEEN = {"take": "from", "move": "to"} | dict.fromkeys(
  household_world.TOOLS, "with"
)


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
    is_closed = kind_of(place) in household_world.OPENABLE
    if inside and is_closed and index not in self._opened:
      self.actions.append(f"open {place}")
      self._opened.add(index)
    return place


def shortest_plan(world: World) -> list[str]:
  """Solves a world by knowing where everything is.

  Args:
    world: any that `draw_world` draws.

  Returns:
    The actions; the last one solves the task.
  """
  return _plan(world, lambda plan, index: None)


def searching_plan(world: World, draws: Draws) -> list[str]:
  """Solves a world by looking for things, as who does not know it has to.

  Receptacles are visited in random order until what is wanted is seen.

  Args:
    world: any that `draw_world` draws.
    draws: of the order.

  Returns:
    The actions. There may be more than an episode allows.
  """
  unseen = draws.sample(range(len(world.places)), len(world.places))

  def search(plan: _Plan, index: int) -> None:
    while index in unseen:
      plan.go(unseen.pop(0))

  return _plan(world, search)


def _plan(world: World, find: Callable[[_Plan, int], None]) -> list[str]:
  plan = _Plan(world)
  kinds = [kind_of(place) for place in world.places]
  wanted = [
    (thing, index)
    for thing, index in zip(world.things, world.lies_in, strict=True)
    if kind_of(thing) == world.thing
  ]
  for thing, index in wanted[: 2 if world.kind == "two" else 1]:
    find(plan, index)
    plan.actions.append(f"take {thing} from {plan.go(index)}")
    if world.kind == "look":
      find(plan, world.lamp_in)
      plan.go(world.lamp_in)
      plan.actions.append(f"use {_LAMP}")
      break
    if world.kind in household_world.TOOLS:
      tool = kinds.index(household_world.TOOLS[world.kind])
      place = plan.go(tool, inside=False)
      plan.actions.append(f"{world.kind} {thing} with {place}")
    place = plan.go(kinds.index(world.place))
    plan.actions.append(f"move {thing} to {place}")
  return plan.actions


def make_prompt(
  task: str,
  observation: str,
  admissible_actions: Sequence[str],
  history: Sequence[tuple[str, str]] = (),
  *,
  shown: int = 2,
) -> str:
  """Writes what the policy is asked at a step.

  Args:
    task: what is to be done.
    observation: the current one.
    admissible_actions: what would do something; "help" is left out.
    history: every earlier observation of the episode with the action taken.
    shown: how many of the last ones are shown.

  Returns:
    The text of one message of the user; without history a shorter one.
  """
  actions = ", ".join(f"'{a}'" for a in admissible_actions if a != "help")
  if not history:
    return _FIRST_PROMPT.format(
      task=task, observation=observation, actions=actions
    )
  first = max(len(history) - shown, 0)
  entries = ", ".join(
    f"[Observation {k}: '{seen}', Action {k}: '{action}']"
    for k, (seen, action) in enumerate(history[first:], first + 1)
  )
  return _PROMPT.format(
    task=task,
    steps=len(history),
    shown=len(history) - first,
    history=entries,
    now=len(history) + 1,
    observation=observation,
    actions=actions,
  )


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
