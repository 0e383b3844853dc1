"""An expert of the household that looks at where it stands at every step.

`household.searching_plan` writes all actions down beforehand, and is lost after
a wrong one. This one goes on from wherever it is, so that demonstrations can
hold mistakes and what to do about them. It knows only what it has seen.
"""

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import world as household_world
from saw_jax.tasks.household.rules import Household
from saw_jax.tasks.household.world import kind_of

_LAMP = f"{household_world.LAMP} 1"


class Expert:
  """Solves one episode of a household, one action at a time."""

  def __init__(self, env: Household, draws: Draws):
    """Chooses the order in which it will look for things.

    Args:
      env: at the start of an episode; whoever steps it, this one looks on.
      draws: of the order.
    """
    self._env, self._world = env, env.world
    places = range(len(env.world.places))
    self._order = draws.sample(places, len(places))
    self._seen: set[int] = set()
    self._kinds = [kind_of(place) for place in env.world.places]

  def look(self) -> None:
    """Notes what is in front; to be called after every step."""
    at = self._env.at
    if at >= 0 and not self._env.is_closed(at):
      self._seen.add(at)

  def action(self) -> str:
    """Returns what it would do now."""
    env, world = self._env, self._world
    self.look()
    if env.held is not None and kind_of(env.held) != world.thing:
      return self._put_down()
    if env.held is None:
      return self._fetch()
    if world.kind == "look":
      if world.lamp_in not in self._seen:
        return self._search()
      return self._go(world.lamp_in, inside=False) or f"use {_LAMP}"
    state = household_world.STATES.get(world.kind)
    if state is not None and state not in env.states_of(env.held):
      tool = self._kinds.index(household_world.TOOLS[world.kind])
      place = world.places[tool]
      return (
        self._go(tool, inside=False) or f"{world.kind} {env.held} with {place}"
      )
    return self._put(self._end())

  def _fetch(self) -> str:
    """Takes a wanted object that was seen, or looks for one."""
    env, world = self._env, self._world
    end = self._end()
    state = household_world.STATES.get(world.kind)
    for thing in world.things:
      place = env.place_of(thing)
      if kind_of(thing) != world.thing or place not in self._seen:
        continue
      is_done = place == end and (
        state is None or state in env.states_of(thing)
      )
      if not is_done or world.kind == "look":
        return self._go(place) or f"take {thing} from {world.places[place]}"
    return self._search()

  def _end(self) -> int:
    """Where wanted objects go; two of them to one place."""
    for thing in self._world.things:
      place = self._env.place_of(thing)
      if kind_of(thing) == self._world.thing and place >= 0:
        if self._kinds[place] == self._world.place:
          return place
    return self._kinds.index(self._world.place)

  def _search(self) -> str:
    for place in self._order:
      if place not in self._seen:
        return self._go(place)
    return "look"

  def _put(self, place: int) -> str:
    name = self._world.places[place]
    return self._go(place) or f"move {self._env.held} to {name}"

  def _put_down(self) -> str:
    """Gets rid of what nobody asked for, where one stands if it fits."""
    fits = household_world.FITS[kind_of(self._env.held)]
    places = [i for i, kind in enumerate(self._kinds) if kind in fits]
    at = self._env.at
    return self._put(at if at in places else places[0])

  def _go(self, place: int, *, inside: bool = True) -> str:
    """The next action on the way to a place; empty if one is there."""
    name = self._world.places[place]
    if self._env.at != place:
      return f"go to {name}"
    if inside and self._env.is_closed(place):
      return f"open {name}"
    return ""
