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

_GOALS = {
  "pick": ("put a {thing} in {place}.", "put some {thing} on {place}."),
  "look": (
    "look at {thing} under the desklamp.",
    "examine the {thing} with the desklamp.",
  ),
  "two": (
    "put two {thing} in {place}.",
    "find two {thing} and put them in {place}.",
  ),
} | {
  verb: (
    f"put a {state} {{thing}} in {{place}}.",
    f"{verb} some {{thing}} and put it in {{place}}.",
  )
  for verb, state in STATES.items()
}
# What each tool does something to.
ABLE = {
  "clean": "apple bowl butterknife cloth cup dishsponge egg fork knife ladle"
  " lettuce mug pan plate pot potato soapbar spatula spoon tomato".split(),
  "heat": "apple bread cup egg mug plate potato tomato".split(),
  "cool": "apple bowl bread cup egg lettuce mug pan plate pot potato tomato"
  " winebottle".split(),
}

_FOOD = "countertop diningtable fridge garbagecan microwave sinkbasin"
_DISH = "cabinet countertop diningtable fridge microwave shelf sinkbasin"
_CUTLERY = "countertop diningtable drawer sinkbasin"
_COOKWARE = "cabinet countertop diningtable fridge sinkbasin stoveburner"
_SMALL = (
  "armchair bed coffeetable desk diningtable drawer dresser garbagecan safe"
  " shelf sidetable sofa tvstand"
)
_PAPER = "armchair bed coffeetable desk diningtable drawer dresser sidetable"
_DECOR = (
  "cabinet coffeetable countertop desk diningtable dresser safe shelf"
  " sidetable toilet tvstand"
)
_BATH = "bathtubbasin cabinet cart countertop garbagecan sinkbasin toilet"
# Object -> the receptacles that it can lie in.
FITS: Mapping[str, frozenset[str]] = {
  thing: frozenset(places.split())
  for things, places in (
    ("apple bread egg potato tomato", _FOOD),
    ("lettuce", "countertop diningtable fridge garbagecan sinkbasin"),
    ("bowl cup plate", _DISH),
    ("mug", f"{_DISH} coffeemachine desk drawer dresser sidetable"),
    ("butterknife fork knife ladle spatula spoon", _CUTLERY),
    ("pan pot", _COOKWARE),
    ("peppershaker saltshaker", "cabinet countertop diningtable drawer shelf"),
    ("winebottle", "cabinet countertop diningtable fridge garbagecan"),
    ("dishsponge", "bathtubbasin cabinet cart countertop drawer sinkbasin"),
    ("cellphone creditcard keychain remotecontrol watch", _SMALL),
    ("cd pen pencil", "desk drawer dresser garbagecan safe shelf sidetable"),
    ("book laptop newspaper", f"{_PAPER} sofa tvstand"),
    ("pillow", "armchair bed sofa"),
    ("alarmclock", "bed desk dresser shelf sidetable"),
    ("statue vase", _DECOR),
    ("candle", f"{_DECOR} bathtubbasin cart drawer"),
    ("tissuebox", f"{_DECOR} bed cart drawer sofa"),
    ("cloth soapbar", f"{_BATH} drawer"),
    ("soapbottle spraybottle", f"{_BATH} drawer shelf"),
    ("toiletpaper", f"{_BATH} drawer toiletpaperhanger"),
    ("handtowel", "cabinet cart countertop handtowelholder sinkbasin"),
  )
  for thing in things.split()
}


class Room(NamedTuple):
  """A kind of room: what may stand in it, how often, and what may lie there."""

  receptacles: Mapping[str, int]
  objects: Sequence[str]
  tasks: tuple[str, ...]


_HOME = ("pick", "look", "two")
ROOMS: Mapping[str, Room] = {
  "kitchen": Room(
    dict(cabinet=6, drawer=5, countertop=3, stoveburner=4, diningtable=1)
    | dict(fridge=1, microwave=1, sinkbasin=1, garbagecan=1, coffeemachine=1)
    | dict(shelf=3),
    "apple bread egg potato tomato lettuce bowl cup plate mug butterknife"
    " fork knife ladle spatula spoon pan pot peppershaker saltshaker"
    " winebottle dishsponge".split(),
    ("pick", "clean", "heat", "cool", "two"),
  ),
  "bathroom": Room(
    dict(cabinet=4, drawer=4, countertop=2, sinkbasin=2, bathtubbasin=1)
    | dict(toilet=1, garbagecan=1, cart=1, toiletpaperhanger=1)
    | dict(handtowelholder=2, shelf=2),
    "cloth soapbar soapbottle spraybottle toiletpaper handtowel candle"
    " tissuebox dishsponge".split(),
    ("pick", "clean", "two"),
  ),
  "bedroom": Room(
    dict(bed=1, desk=2, dresser=1, sidetable=2, drawer=8, shelf=5)
    | dict(garbagecan=1, safe=1, armchair=1),
    "alarmclock book cd cellphone creditcard keychain laptop mug pen pencil"
    " pillow statue vase watch".split(),
    _HOME,
  ),
  "livingroom": Room(
    dict(sofa=1, armchair=2, coffeetable=1, diningtable=1, sidetable=2)
    | dict(tvstand=1, shelf=4, drawer=5, cabinet=4, garbagecan=1, safe=1),
    "book cellphone creditcard keychain laptop newspaper pillow"
    " remotecontrol statue tissuebox vase watch candle".split(),
    _HOME,
  ),
}
# Where a lamp can stand: tops, so that it is never behind a door.
_LAMP_PLACES = frozenset(["desk", "dresser", "sidetable", "coffeetable"])


class World(NamedTuple):
  """A room as it is before the first step, and what is to be done in it.

  `places` are receptacles and `things` objects, each a kind and a number;
  `lies_in` gives for each object the index of its receptacle. The lamp, if
  there is one, cannot be moved and is not among the objects.
  """

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
  """Draws a world of "train" or "test", of one of the kinds of tasks.

  There are as many receptacles, or as many as the task needs or the room can
  have, and at most as many objects.
  """
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
