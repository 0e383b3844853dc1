"""Rooms, what lies where in them, and one of six things to do: from a seed.

The tasks, kinds of things and properties are those of ALFWorld
(https://arxiv.org/abs/2010.03768). Every world can be solved by construction.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from saw_jax.tasks import base
from saw_jax.tasks import draws as draws_lib
from saw_jax.tasks.draws import Draws

KINDS = ("pick", "look", "clean", "heat", "cool", "two")
# What changes an object, and what the changed object is called.
TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
STATES = {"clean": "clean", "heat": "hot", "cool": "cool"}
OPENABLE = frozenset(["cabinet", "drawer", "fridge", "microwave", "safe"])
LAMP = "desklamp 1"

_DATA = base.asset(__file__, "world.json")
_GOALS = _DATA["goals"]  # by kind of task
ABLE = _DATA["able"]  # what each tool does something to
# Object -> the receptacles that it can lie in.
FITS: Mapping[str, frozenset[str]] = {
  thing: frozenset(places)
  for things, places in _DATA["fits"]
  for thing in things
}


class Room(NamedTuple):
  """A kind of room: what may stand in it, how often, and what may lie there."""

  receptacles: Mapping[str, int]
  objects: Sequence[str]
  tasks: Sequence[str]


ROOMS = {name: Room(**room) for name, room in _DATA["rooms"].items()}
# Where a lamp can stand: tops, so that it is never behind a door.
_LAMP_PLACES = frozenset(["desk", "dresser", "sidetable", "coffeetable"])


class World(NamedTuple):
  """A room as it is before the first step, and what is to be done in it."""

  kind: str  # of the task, in KINDS
  room: str
  thing: str  # kind of object that the task is about
  place: str  # kind of receptacle that it goes to; the lamp's for "look"
  goal: str  # in words
  places: tuple[str, ...]
  things: tuple[str, ...]
  lies_in: tuple[int, ...]
  lamp_in: int  # index of its receptacle; -1: there is none


@functools.cache
def kind_of(name: str) -> str:
  """Returns the kind of a numbered thing: "apple" of "apple 1"."""
  return name.partition(" ")[0]


def number_of(name: str) -> int:
  return int(name.partition(" ")[2])


def split_of(world: World) -> str:
  """Returns the split of a world, whatever the wording and order of things."""
  lies_in = [world.places[index] for index in world.lies_in]
  lamp_in = world.places[world.lamp_in] if world.lamp_in >= 0 else ""
  essence = (
    (world.kind, world.room, world.thing, world.place, lamp_in),
    sorted(world.places),
    sorted(zip(world.things, lies_in, strict=True)),
  )
  return draws_lib.split_of(repr(essence))


def draw_world(
  draws: Draws,
  split: str,
  kinds: Sequence[str] = KINDS,
  receptacles: int = 16,
  objects: int = 20,
) -> World:
  """Draws a world of "train" or "test", with about so many things."""
  base.check_split(split, ("train", "test"))
  if not kinds or not set(kinds) <= set(KINDS):
    raise ValueError(f"kinds of tasks are {', '.join(KINDS)}, not {kinds}")
  while True:
    world = _draw(draws, draws.choice(kinds), receptacles, objects)
    if split_of(world) == split:
      return world


def _draw(draws: Draws, kind: str, receptacles: int, objects: int) -> World:
  name = draws.choice([name for name in ROOMS if kind in ROOMS[name].tasks])
  room = ROOMS[name]
  thing, place = draws.choice(_errands(kind, name))
  elsewhere = (FITS[thing] & set(room.receptacles)) - {place}

  # What the task cannot do without: its end, a place to start, and its tool.
  kinds = [place, draws.choice(sorted(elsewhere))]
  if kind in TOOLS and TOOLS[kind] not in kinds:
    kinds.append(TOOLS[kind])
  left = {k: n - kinds.count(k) for k, n in room.receptacles.items()}
  while len(kinds) < receptacles and any(left.values()):
    more = draws.choice([k for k, n in left.items() if n])
    kinds.append(more)
    left[more] -= 1
  # Listed as ALFWorld lists them.
  places = tuple(
    f"{k} {n}" for k in sorted(set(kinds)) for n in range(kinds.count(k), 0, -1)
  )

  # Nothing that the task is about lies where it is to go.
  wanted = 2 if kind == "two" else 1
  chosen = [thing] * wanted
  chosen += [draws.choice(room.objects) for _ in range(objects - wanted)]
  where: dict[str, list[int]] = {}
  for one in chosen:
    kinds = FITS[one] - {place} if one == thing else FITS[one]
    fitting = [i for i, p in enumerate(places) if kind_of(p) in kinds]
    if fitting and len(where.get(one, ())) < 3:
      where.setdefault(one, []).append(draws.choice(fitting))
  things = tuple(
    f"{one} {n}" for one, at in where.items() for n in range(1, len(at) + 1)
  )
  lies_in = tuple(itertools.chain(*where.values()))
  goal = draws.choice(_GOALS[kind]).format(thing=thing, place=place)
  lamps = [i for i, p in enumerate(places) if kind_of(p) == place]
  lamp = draws.choice(lamps) if kind == "look" else -1
  return World(kind, name, thing, place, goal, places, things, lies_in, lamp)


@functools.cache
def _errands(kind: str, room: str) -> list[tuple[str, str]]:
  """Every object with every receptacle that a task can take it to."""
  here = sorted(ROOMS[room].receptacles)
  return [
    (thing, place)
    for thing in ROOMS[room].objects
    if kind not in TOOLS or thing in ABLE[kind]
    for place in here
    if place in (_LAMP_PLACES if kind == "look" else FITS[thing])
    and place != TOOLS.get(kind)
    and (FITS[thing] & set(here)) - {place}
  ]
