"""Experts of the household: one that has to look for things, and a plan.

Both look at where they stand at every step and go on from there, so that
demonstrations can hold mistakes and what to do about them.
"""

from collections.abc import Collection, Iterator, Sequence

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import world as world_lib
from saw_jax.tasks.household.rules import Household
from saw_jax.tasks.household.world import World, kind_of


def expert(env: Household, draws: Draws) -> Iterator[str]:
  """Yields what to do next, whoever took the last step; it never ends.

  It looks into places in a drawn order, and knows only what it has seen.
  """
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
