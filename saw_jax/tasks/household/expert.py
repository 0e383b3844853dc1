"""An expert of the household that looks at where it stands at every step.

It goes on from wherever it is, so that demonstrations can hold mistakes and
what to do about them. It knows only what it has seen.
"""

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import world as world_lib
from saw_jax.tasks.household.rules import Household
from saw_jax.tasks.household.world import kind_of

_LAMP = f"{world_lib.LAMP} 1"


class Expert:
  """Solves one episode of a household from its start, in a drawn search order.

  Somebody else takes the steps, its own or others.
  """

  def __init__(self, env: Household, draws: Draws):
    self._env, self._world = env, env.world
    places = range(len(env.world.places))
    self._order = draws.sample(places, len(places))
    self._seen: set[int] = set()
    self._kinds = [kind_of(place) for place in env.world.places]

  def action(self) -> str:
    """Returns what it would do now."""
    env, world = self._env, self._world
    if env.at >= 0 and not env.closed[env.at]:
      self._seen.add(env.at)
    if env.held is not None and kind_of(env.held) != world.thing:
      return self._put_down()
    if env.held is None:
      return self._fetch()
    if world.kind == "look":
      if world.lamp_in not in self._seen:
        return self._search()
      return self._go(world.lamp_in, inside=False) or f"use {_LAMP}"
    state = world_lib.STATES.get(world.kind)
    if state is not None and state not in env.states[env.held]:
      tool = self._kinds.index(world_lib.TOOLS[world.kind])
      place = world.places[tool]
      return (
        self._go(tool, inside=False) or f"{world.kind} {env.held} with {place}"
      )
    return self._put(self._end())

  def _fetch(self) -> str:
    """Takes a wanted object that was seen, or looks for one."""
    env, world = self._env, self._world
    end = self._end()
    state = world_lib.STATES.get(world.kind)
    for thing in world.things:
      place = env.lies_in[thing]
      if kind_of(thing) != world.thing or place not in self._seen:
        continue
      is_done = place == end and (state is None or state in env.states[thing])
      if not is_done or world.kind == "look":
        return self._go(place) or f"take {thing} from {world.places[place]}"
    return self._search()

  def _end(self) -> int:
    """Where wanted objects go; two of them to one place."""
    for thing in self._world.things:
      place = self._env.lies_in[thing]
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
    fits = world_lib.FITS[kind_of(self._env.held)]
    places = [i for i, kind in enumerate(self._kinds) if kind in fits]
    at = self._env.at
    return self._put(at if at in places else places[0])

  def _go(self, place: int, *, inside: bool = True) -> str:
    """The next action on the way to a place; empty if one is there."""
    name = self._world.places[place]
    if self._env.at != place:
      return f"go to {name}"
    if inside and self._env.closed[place]:
      return f"open {name}"
    return ""
