"""Game files of ALFWorld: those of its data set, and those of drawn worlds.

A game is a JSON file: the rules in PDDL, the wording as a grammar, and a room
with a goal. Rules and wording of the games that are written here come from the
installed package, so that a world of the household can be played in ALFWorld's
engine. https://arxiv.org/abs/2010.03768
"""

import collections
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from saw_jax import names
from saw_jax.tasks.household import world as world_lib
from saw_jax.tasks.household.rules import shortest_plan
from saw_jax.tasks.household.world import World, kind_of

_LOG = logging.getLogger(__name__)
GAME_FILE = "game.tw-pddl"
TASK_FILE = "traj_data.json"
# What ALFWorld calls the kinds of tasks.
TASK_TYPES: Mapping[str, str] = {
  "pick": "pick_and_place_simple",
  "look": "look_at_obj_in_light",
  "clean": "pick_clean_then_place_in_recep",
  "heat": "pick_heat_then_place_in_recep",
  "cool": "pick_cool_then_place_in_recep",
  "two": "pick_two_obj_and_place",
}
_TEXTS = ("pddl_domain", "grammar", "pddl_problem")
_GOAL = "UNKNOWN GOAL"  # what the package's grammar has in place of one
_LAMP = f"{world_lib.LAMP} 1"
# Receptacles that ALFWorld names after what they are a part of.
_BASINS = {"sinkbasin": "Sink", "bathtubbasin": "Bathtub"}


class Logic(NamedTuple):
  """What all games share."""

  domain: str  # the rules, in PDDL
  grammar: str  # the wording, with a gap for the goal
  goals: Mapping[str, str]  # PDDL by task type, with gaps for what it is about


class Game(NamedTuple):
  """What the engine plays."""

  data: Mapping[str, object]  # as in the file
  walkthrough: tuple[str, ...]  # actions that solve it; none if not known


def read_logic() -> Logic:
  """Reads the rules, the wording and the goals that the package ships."""
  with names.needs_extra("alfworld", "games of ALFWorld need its package"):
    from alfworld import info
    from alfworld.gen import goal_library
  return Logic(
    domain=_read(pathlib.Path(info.ALFRED_PDDL_PATH)),
    grammar=_read(pathlib.Path(info.ALFRED_TWL2_PATH)),
    goals={
      name: goal_library.gdict[name]["pddl"] for name in TASK_TYPES.values()
    },
  )


def make_problem(world: World, goal: str) -> str:
  """Writes a world as a problem in PDDL, with a goal of `Logic.goals`.

  Kinds of things are numbered from 1 on without gaps; the engine gives every
  thing the number that it has here.
  """
  places = _identifiers(world.places)
  things = _identifiers([*world.things, *[_LAMP] * (world.lamp_in >= 0)])
  locations = [f"loc_bar_{i}_bar_1_bar_0_bar_30" for i in range(len(places))]
  start = "loc_bar_minus_1_bar_1_bar_0_bar_30"

  objects = ["agent1 - agent"]
  objects += [f"{kind}Type - otype" for kind in _kinds(things)]
  objects += [f"{kind}Type - rtype" for kind in _kinds(places)]
  objects += [f"{name} - object" for name in things.values()]
  objects += [f"{name} - receptacle" for name in places.values()]
  objects += [f"{name} - location" for name in [*locations, start]]

  init = ["= (total-cost) 0", f"atLocation agent1 {start}"]
  for place, at in zip(places, locations, strict=True):
    kind = _title(kind_of(place))
    init.append(f"receptacleType {places[place]} {kind}Type")
    init.append(f"receptacleAtLocation {places[place]} {at}")
    if kind_of(place) in world_lib.OPENABLE:
      init.append(f"openable {places[place]}")
  lies_in = dict(zip(world.things, world.lies_in, strict=True))
  for thing, name in things.items():
    index = world.lamp_in if thing == _LAMP else lies_in[thing]
    init.append(f"objectType {name} {_title(kind_of(thing))}Type")
    init.append(f"inReceptacle {name} {places[world.places[index]]}")
    init.append(f"objectAtLocation {name} {locations[index]}")
    if thing == _LAMP:
      init.append(f"toggleable {name}")
      continue
    init.append(f"pickupable {name}")
    init += [
      f"{verb}able {name}"
      for verb in world_lib.TOOLS
      if kind_of(thing) in world_lib.ABLE[verb]
    ]
  init += [
    f"canContain {_title(place)}Type {_title(thing)}Type"
    for thing in dict.fromkeys(map(kind_of, world.things))
    for place in dict.fromkeys(map(kind_of, places))
    if place in world_lib.FITS[thing]
  ]

  filled = goal.format(
    obj=_title(world.thing),
    recep=_title(world.place),
    toggle=_title(world_lib.LAMP),
  ).replace("#", "-")
  return "\n".join(
    [
      "(define (problem household)",
      "(:domain alfred)",
      "(:objects",
      *objects,
      ")",
      "(:init",
      *(f"({fact})" for fact in init),
      ")",
      _first_expression(filled),
      "(:metric minimize (total-cost))",
      ")",
    ]
  )


def make_game(world: World, logic: Logic) -> Game:
  """Makes the game of a drawn world; its walkthrough is the shortest plan."""
  walkthrough = tuple(shortest_plan(world))
  goal = world.goal.removesuffix(".")  # the grammar has a full stop
  return Game(
    {
      "pddl_domain": logic.domain,
      "grammar": logic.grammar.replace(_GOAL, goal),
      "pddl_problem": make_problem(world, logic.goals[TASK_TYPES[world.kind]]),
      "solvable": True,
      "walkthrough": list(walkthrough),
    },
    walkthrough,
  )


def write_games(
  folder: pathlib.Path | str, worlds: Iterable[World], logic: Logic
) -> list[pathlib.Path]:
  """Writes the games of a split in the layout of ALFWorld's data set."""
  paths = []
  for number, world in enumerate(worlds):
    task_type = TASK_TYPES[world.kind]
    is_look = world.kind == "look"
    thing, place = _title(world.thing), _title(world.place)
    if is_look:
      place = _title(world_lib.LAMP)
    home = pathlib.Path(
      folder, f"{task_type}-{thing}-None-{place}-{number}", "trial_0"
    )
    home.mkdir(parents=True, exist_ok=True)
    about = {
      "task_type": task_type,
      "pddl_params": {
        "object_target": thing,
        "parent_target": "" if is_look else place,
        "toggle_target": place if is_look else "",
        "mrecep_target": "",
        "object_sliced": False,
      },
    }
    for name, content in (
      (TASK_FILE, about),
      (GAME_FILE, make_game(world, logic).data),
    ):
      (home / name).write_text(json.dumps(content), encoding="utf-8")
    paths.append(home / GAME_FILE)
  return paths


def read_game(path: pathlib.Path | str) -> Game:
  data = _read_object(pathlib.Path(path))
  for name in _TEXTS:
    if not isinstance(data.get(name), str) or not data[name].strip():
      raise ValueError(f"{path} is damaged: it has no text {name!r}.")
  walkthrough = data.get("walkthrough") or []
  if not isinstance(walkthrough, list) or not all(
    isinstance(action, str) for action in walkthrough
  ):
    raise ValueError(f"{path} is damaged: its walkthrough is no list of texts.")
  return Game(data, tuple(walkthrough))


def read_kind(path: pathlib.Path | str) -> str:
  """Returns the kind of a game's task, from the file beside it; "": others."""
  task = _read_object(pathlib.Path(path).with_name(TASK_FILE))
  kinds = {task_type: kind for kind, task_type in TASK_TYPES.items()}
  return kinds.get(task.get("task_type"), "")


def find_games(
  folder: pathlib.Path | str, kinds: Sequence[str] = world_lib.KINDS
) -> list[pathlib.Path]:
  """Finds the games of a split that ALFWorld plays, ordered by path.

  They are of a wanted kind, without movable receptacles and without slices, and
  known to be solvable. Damaged ones are left out, and the log says how many.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(
      f"there is no folder {folder}: name the one that holds ALFWorld's train, "
      "valid_seen and valid_unseen."
    )
  found, damaged = [], []
  for path in sorted(folder.rglob(GAME_FILE)):
    if "movable" in str(path.parent) or "Sliced" in str(path.parent):
      continue
    try:
      if read_kind(path) in kinds and read_game(path).data.get("solvable"):
        found.append(path)
    except (FileNotFoundError, ValueError) as error:
      damaged.append(str(error))
  if damaged:
    _LOG.warning(
      "%d games in %s are left out; the first: %s",
      *(len(damaged), folder, damaged[0]),
    )
  if not found:
    raise ValueError(
      f"{folder} holds no solvable {GAME_FILE} of {', '.join(kinds)}, and "
      f"{len(damaged)} damaged ones."
    )
  return found


def _read(path: pathlib.Path) -> str:
  return path.read_text(encoding="utf-8")


def _read_object(path: pathlib.Path) -> dict[str, object]:
  try:
    data = json.loads(_read(path))
  except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  if not isinstance(data, dict):
    raise ValueError(f"{path} is damaged: it is no object.")
  return data


def _title(kind: str) -> str:  # PDDL reads capitals as small letters
  return kind.capitalize()


def _identifiers(names: Iterable[str]) -> dict[str, str]:
  """Identifiers by name; the engine numbers those of a kind backwards."""
  names = list(names)
  counts = collections.Counter(map(kind_of, names))
  found = {}
  for name in names:
    kind, number = kind_of(name), int(name.rpartition(" ")[2])
    if not 1 <= number <= counts[kind] or name in found:
      raise ValueError(f"{name!r} breaks the numbers of its kind, 1 to n.")
    whole = _BASINS.get(kind, _title(kind))
    where = f"_bar__plus_{counts[kind] - number:02d}_dot_00"
    part = f"_bar_{_title(kind)}" if kind in _BASINS else ""
    found[name] = f"{whole}{where * 3}{part}"
  return found


def _kinds(names: Iterable[str]) -> list[str]:
  return [_title(kind) for kind in dict.fromkeys(map(kind_of, names))]


def _first_expression(text: str) -> str:
  depth, text = 0, text.strip()
  for index, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return text[: index + 1]
  raise ValueError("the goal has a bracket that is not closed.")
