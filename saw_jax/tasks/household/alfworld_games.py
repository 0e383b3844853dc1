"""Game files of ALFWorld: those of its data set, and those of drawn worlds.

A game is a JSON file: rules in PDDL, the wording as a grammar, and a room with
a goal. Rules and wording come from the package.
https://arxiv.org/abs/2010.03768
"""

import collections
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax import naming
from saw_jax.tasks import row_files
from saw_jax.tasks.household import world as world_lib
from saw_jax.tasks.household.rules import shortest_plan
from saw_jax.tasks.household.world import LAMP, World, kind_of, number_of

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
_GOAL = "UNKNOWN GOAL"  # what the package's grammar has in place of one
# Receptacles that ALFWorld names after what they are a part of.
_BASINS = {"sinkbasin": "Sink", "bathtubbasin": "Bathtub"}
# What the engine plays, as in its file; "walkthrough" has actions that solve
# it, and none if nobody knows.
Game = dict[str, Any]


class Logic(NamedTuple):
  """What all games share."""

  domain: str  # the rules, in PDDL
  grammar: str  # the wording, with a gap for the goal
  goals: Mapping[str, str]  # PDDL by task type, with gaps for what it is about


def read_logic() -> Logic:
  """Reads the rules, the wording and the goals that the package ships."""
  with naming.needs_extra("alfworld", "games of ALFWorld need its package"):
    from alfworld import info
    from alfworld.gen import goal_library
  paths = (info.ALFRED_PDDL_PATH, info.ALFRED_TWL2_PATH)
  texts = [pathlib.Path(path).read_text(encoding="utf-8") for path in paths]
  known = goal_library.gdict
  goals = {name: known[name]["pddl"] for name in TASK_TYPES.values()}
  return Logic(*texts, goals)


def make_problem(world: World, goal: str) -> str:
  """Writes a world as a problem in PDDL, with a goal of `Logic.goals`."""
  lamp = [LAMP] if world.lamp_in >= 0 else []
  places = _identifiers(world.places)
  things = _identifiers([*world.things, *lamp])
  lies_in = [*world.lies_in, *[world.lamp_in] * len(lamp)]
  locations = [f"loc_bar_{i}_bar_1_bar_0_bar_30" for i in range(len(places))]
  start = "loc_bar_minus_1_bar_1_bar_0_bar_30"
  objects = {
    "agent": ["agent1"],
    "otype": dict.fromkeys(map(_type, things)),
    "rtype": dict.fromkeys(map(_type, places)),
    "object": things.values(),
    "receptacle": places.values(),
    "location": [*locations, start],
  }
  init = ["= (total-cost) 0", f"atLocation agent1 {start}"]
  for (place, name), at in zip(places.items(), locations, strict=True):
    init.append(f"receptacleType {name} {_type(place)}")
    init.append(f"receptacleAtLocation {name} {at}")
    if kind_of(place) in world_lib.OPENABLE:
      init.append(f"openable {name}")
  for (thing, name), index in zip(things.items(), lies_in, strict=True):
    verbs = [v for v, able in world_lib.ABLE.items() if kind_of(thing) in able]
    verbs = ["toggle"] if thing == LAMP else ["pickup", *verbs]
    init.append(f"objectType {name} {_type(thing)}")
    init.append(f"inReceptacle {name} {places[world.places[index]]}")
    init.append(f"objectAtLocation {name} {locations[index]}")
    init += [f"{verb}able {name}" for verb in verbs]
  init += [
    f"canContain {_type(place)} {_type(thing)}"
    for thing in dict.fromkeys(map(kind_of, world.things))
    for place in dict.fromkeys(map(kind_of, places))
    if place in world_lib.FITS[thing]
  ]
  gaps = dict(obj=world.thing, recep=world.place, toggle=kind_of(LAMP))
  goal = goal.format_map({k: kind.capitalize() for k, kind in gaps.items()})
  goal = goal.replace("#", "-").strip()
  # What follows the first expression is of no use.
  steps = ((letter == "(") - (letter == ")") for letter in goal)
  depths = list(itertools.accumulate(steps))
  if 0 not in depths:
    raise ValueError("the goal has a bracket that is not closed.")
  goal = goal[: depths.index(0) + 1]
  facts = "\n".join(f"({fact})" for fact in init)
  listed = "\n".join(
    f"{name} - {what}" for what, several in objects.items() for name in several
  )
  return (
    "(define (problem household)\n(:domain alfred)\n"
    f"(:objects\n{listed}\n)\n(:init\n{facts}\n)\n{goal}\n"
    "(:metric minimize (total-cost))\n)"
  )


def make_game(world: World, logic: Logic) -> Game:
  """Makes the game of a drawn world; its walkthrough is the shortest plan."""
  goal = world.goal.removesuffix(".")  # the grammar has a full stop
  return {
    "pddl_domain": logic.domain,
    "grammar": logic.grammar.replace(_GOAL, goal),
    "pddl_problem": make_problem(world, logic.goals[TASK_TYPES[world.kind]]),
    "solvable": True,
    "walkthrough": shortest_plan(world),
  }


def write_games(
  folder: pathlib.Path | str, worlds: Iterable[World], logic: Logic
) -> list[pathlib.Path]:
  """Writes the games of a split in the layout of ALFWorld's data set."""
  paths = []
  for number, world in enumerate(worlds):
    task_type = TASK_TYPES[world.kind]
    is_look = world.kind == "look"
    thing = world.thing.capitalize()
    place = kind_of(LAMP if is_look else world.place).capitalize()
    name = f"{task_type}-{thing}-None-{place}-{number}"
    home = pathlib.Path(folder, name, "trial_0")
    home.mkdir(parents=True, exist_ok=True)
    params = {
      "object_target": thing,
      "parent_target": "" if is_look else place,
      "toggle_target": place if is_look else "",
      "mrecep_target": "",
      "object_sliced": False,
    }
    about = {"task_type": task_type, "pddl_params": params}
    game = make_game(world, logic)
    for name, content in ((TASK_FILE, about), (GAME_FILE, game)):
      (home / name).write_text(json.dumps(content), encoding="utf-8")
    paths.append(home / GAME_FILE)
  return paths


def read_game(path: pathlib.Path | str) -> Game:
  game = row_files.read_object(path)
  for name in ("pddl_domain", "grammar", "pddl_problem"):
    if not isinstance(game.get(name), str) or not game[name].strip():
      raise ValueError(f"{path} is damaged: it has no text {name!r}.")
  walk = game["walkthrough"] = game.get("walkthrough") or []
  if not isinstance(walk, list) or not all(isinstance(a, str) for a in walk):
    raise ValueError(f"{path} is damaged: its walkthrough is no list of texts.")
  return game


def read_kind(path: pathlib.Path | str) -> str:
  """Returns the kind of a game's task, from the file beside it; "": others."""
  task = row_files.read_object(pathlib.Path(path).with_name(TASK_FILE))
  kinds = {task_type: kind for kind, task_type in TASK_TYPES.items()}
  return kinds.get(task.get("task_type"), "")


def find_games(
  folder: pathlib.Path | str, kinds: Sequence[str] = world_lib.KINDS
) -> list[pathlib.Path]:
  """Finds the solvable games of a split that ALFWorld plays, ordered by path.

  Damaged ones are left out, and the log says how many.
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
      if read_kind(path) in kinds and read_game(path).get("solvable"):
        found.append(path)
    except (FileNotFoundError, ValueError) as error:
      damaged.append(str(error))
  if damaged:
    told = "%d games in %s are left out; the first: %s"
    _LOG.warning(told, len(damaged), folder, damaged[0])
  if not found:
    raise ValueError(
      f"{folder} holds no solvable {GAME_FILE} of {', '.join(kinds)}, and "
      f"{len(damaged)} damaged ones."
    )
  return found


def _identifiers(names: Iterable[str]) -> dict[str, str]:
  """Identifiers by name; the engine numbers those of a kind backwards."""
  names = list(names)
  counts = collections.Counter(map(kind_of, names))
  found = {}
  for name in names:
    kind, number = kind_of(name), number_of(name)
    if not 1 <= number <= counts[kind] or name in found:
      raise ValueError(f"{name!r} breaks the numbers of its kind, 1 to n.")
    where = f"_bar__plus_{counts[kind] - number:02d}_dot_00" * 3
    found[name] = kind.capitalize() + where
    if kind in _BASINS:
      found[name] = f"{_BASINS[kind]}{where}_bar_{kind.capitalize()}"
  return found


def _type(name: str) -> str:
  return f"{kind_of(name).capitalize()}Type"
