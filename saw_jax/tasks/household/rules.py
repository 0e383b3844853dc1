"""A household in words: ALFWorld's tasks, wording and commands, without it."""

import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Environment
from saw_jax.tasks.household import world as world_lib
from saw_jax.tasks.household.world import World, kind_of, number_of

NOTHING = "Nothing happens."
# Knives cut nothing here: its last line is ALFWorld's all the same.
HELP = (pathlib.Path(__file__).parent / "assets/help.txt").read_text()
_NOWHERE = -1  # where a carried object is, and who stands amid the room
LONGEST = 200  # no action has as many characters
_AROUND = "You are in the middle of a room. Looking quickly around you, you see"


class Household(Environment):
  """The world that `draw` makes of a seed; the step that solves it is paid.

  One object can be carried at a time, closed things show nothing, and what is
  not understood gets the answer "Nothing happens.".
  """

  def __init__(
    self, draw: Callable[[int], World], max_steps: int, reward: float
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
    self.wanted = [t for t in world.things if kind_of(t) == world.thing]
    self._actions = self._find_actions()
    return (
      "-= Welcome to TextWorld, ALFRED! =-\n\n"
      f"{_AROUND} {_listing(world.places)}.\n\nYour task is to: {world.goal}"
    )

  def _act(self, action: str) -> tuple[str, float, bool]:
    observation = NOTHING
    if len(action) <= LONGEST and action.strip() in self._actions:
      observation = self._do(action.strip())
      self.won = self._is_solved()
      self._actions = self._find_actions()
    return observation, self.max_return * self.won, self.won

  @property
  def admissible_actions(self) -> list[str]:
    return list(self._actions)

  def _find_actions(self) -> list[str]:
    actions = ["help", "inventory", "look"]
    places, held = self.world.places, self.held
    actions += [f"go to {p}" for i, p in enumerate(places) if i != self.at]
    if held is not None:
      actions.append(f"examine {held}")
    if self.at == _NOWHERE:
      return sorted(actions)
    place, closed = places[self.at], self.closed[self.at]
    actions.append(f"examine {place}")
    if kind_of(place) in world_lib.OPENABLE:
      actions.append(f"{'open' if closed else 'close'} {place}")
    if held is None and not closed:
      actions += [f"take {thing} from {place}" for thing in self._things_here()]
    if held is not None:
      if not closed and kind_of(place) in world_lib.FITS[kind_of(held)]:
        actions.append(f"move {held} to {place}")
      for verb, tool in world_lib.TOOLS.items():
        if kind_of(place) == tool and kind_of(held) in world_lib.ABLE[verb]:
          actions.append(f"{verb} {held} with {place}")
    if self.at == self.world.lamp_in:
      actions.append(f"use {world_lib.LAMP}")
    return sorted(actions)

  def _do(self, action: str) -> str:
    """Takes an admissible action, and returns what is said of it."""
    verb, _, rest = action.partition(" ")
    held = self.held
    if verb == "help":
      return HELP
    if verb == "inventory":
      carried = f"carrying: a {held}" if held else "not carrying anything"
      return f"You are {carried}."
    if verb == "go":
      place = rest.removeprefix("to ")
      self.at = self.world.places.index(place)
      return f"You arrive at {place}. {self._describe()}"
    if verb == "examine" and rest == held:
      # ALFWorld means to show what lies here too, but a comma in its rules
      # hides it: "?l - location, ?r" asks for a type called "location,".
      states = sorted(self.states[held], reverse=True)
      if not states:
        return f"There's nothing special about {held}."
      said = "cold" if states == ["cool"] else " and ".join(states)
      return f"This is a {said} {held}."
    if self.at == _NOWHERE:  # All is seen at the start only.
      return f"{_AROUND} nothing."
    place = self.world.places[self.at]
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
      return f"You turn on the {rest}."
    if verb == "take":
      self.held = rest.partition(" from ")[0]
      self.lies_in[self.held] = _NOWHERE
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
    lamp = [world_lib.LAMP] if self.at == self.world.lamp_in else []
    # ALFWorld lists kinds by name, and those of a kind from the last on.
    here = self._things_here() + lamp
    seen = _listing(sorted(here, key=lambda x: (kind_of(x), -number_of(x))))
    if kind_of(place) in world_lib.OPENABLE:
      return f"The {place} is open. In it, you see {seen}."
    return f"On the {place}, you see {seen}."

  def _is_solved(self) -> bool:
    world = self.world
    if world.kind == "look":
      return self._lit and self.at == world.lamp_in and self.held in self.wanted
    state = world_lib.STATES.get(world.kind)
    delivered = [
      place
      for thing in self.wanted
      if (place := self.lies_in[thing]) != _NOWHERE
      and kind_of(world.places[place]) == world.place
      and (state is None or state in self.states[thing])
    ]
    if world.kind == "two":  # both in the same one
      return len(set(delivered)) < len(delivered)
    return bool(delivered)


def _listing(names: Iterable[str]) -> str:
  """Lists things as ALFWorld does: "a apple 1, and a mug 2"."""
  *most, last = [f"a {name}" for name in names] or ["nothing"]
  return f"{', '.join(most)}, and {last}" if most else last


def expert(env: Household, draws: Draws) -> Iterator[str]:
  """Yields what to do next, knowing only what it has seen; it never ends."""
  places = range(len(env.world.places))
  order, seen = draws.sample(places, len(places)), set()
  while True:
    if env.at >= 0 and not env.closed[env.at]:
      seen.add(env.at)
    yield _next(env, seen, order)


def shortest_plan(world: World) -> list[str]:
  """Returns actions that solve a world, by knowing where everything is."""
  env = Household(lambda seed: world, 100, 1.0)
  env.reset(0)
  plan = []
  while not env.done:
    plan.append(_next(env, range(len(world.places)), ()))
    env.step(plan[-1])
  return plan


def _next(env: Household, seen: Collection[int], order: Sequence[int]) -> str:
  world, held = env.world, env.held
  state = world_lib.STATES.get(world.kind)
  kinds = [kind_of(place) for place in world.places]
  # Where wanted objects go: two of them to one place.
  taken = {env.lies_in[thing] for thing in env.wanted}
  places = [i for i, kind in enumerate(kinds) if kind == world.place]
  end = next((i for i in places if i in taken), places[0])

  def go(place: int, action: str, inside: bool = True) -> str:
    """The next action on the way to a place, or one for there."""
    name = world.places[place]
    if env.at != place:
      return f"go to {name}"
    if inside and env.closed[place]:
      return f"open {name}"
    return action.format(name)

  if held is None:
    for thing in env.wanted:
      place = env.lies_in[thing]
      is_done = place == end and (state is None or state in env.states[thing])
      if place in seen and (not is_done or world.kind == "look"):
        return go(place, f"take {thing} from {{}}")
  elif kind_of(held) != world.thing:
    # Nobody asked for it: put it down, where one stands if it fits.
    fits = world_lib.FITS[kind_of(held)]
    fitting = [i for i, kind in enumerate(kinds) if kind in fits]
    place = env.at if env.at in fitting else fitting[0]
    return go(place, f"move {held} to {{}}")
  elif world.kind == "look":
    if world.lamp_in in seen:
      return go(world.lamp_in, f"use {world_lib.LAMP}")
  elif state is not None and state not in env.states[held]:
    tool = kinds.index(world_lib.TOOLS[world.kind])
    return go(tool, f"{world.kind} {held} with {{}}", inside=False)
  else:
    return go(end, f"move {held} to {{}}")
  # It is somewhere that was not seen yet.
  return next((go(i, "") for i in order if i not in seen), "look")
