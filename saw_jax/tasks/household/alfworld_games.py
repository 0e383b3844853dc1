"""Game files of ALFWorld: those of its data set, and those of drawn worlds.

A game is a JSON file: the rules in PDDL, the wording as a grammar, and a room
with a goal. Rules and wording of the games that are written here are those of
the installed package, read when they are needed; rooms and goals are worlds of
the household (`household_world`), so that the same world can be played there
and in ALFWorld's engine.

References:
  Shridhar et al., "ALFWorld: Aligning Text and Embodied Environments for
  Interactive Learning". https://arxiv.org/abs/2010.03768
"""

import collections
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from saw_jax.tasks.household import (
  rules as household,
)
from saw_jax.tasks.household import (
  world as household_world,
)
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
_LAMP = f"{household_world.LAMP} 1"
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
  """Reads the rules and the wording that the package alfworld ships.

  Returns:
    Both, with the goals of its task types.

  Raises:
    ImportError: the package is missing.
  """
  try:
    from alfworld import info
    from alfworld.gen import goal_library
  except ImportError as error:
    raise ImportError(
      "games of ALFWorld need its package: pip install 'saw_jax[alfworld]'"
    ) from error
  return Logic(
    domain=_read(pathlib.Path(info.ALFRED_PDDL_PATH)),
    grammar=_read(pathlib.Path(info.ALFRED_TWL2_PATH)),
    goals={
      name: goal_library.gdict[name]["pddl"] for name in TASK_TYPES.values()
    },
  )


def make_problem(world: World, goal: str) -> str:
  """Writes a world as a problem in PDDL.

  Args:
    world: whose kinds of things are numbered from 1 on without gaps.
    goal: of its task type, as in `Logic.goals`.

  Returns:
    The problem. The engine gives every thing the number that it has here.

  Raises:
    ValueError: numbers have gaps.
  """
  places = _identifiers(world.places)
  things = _identifiers([*world.things, *[_LAMP] * (world.lamp_in >= 0)])
  kinds = {name: _title(kind_of(name)) for name in [*places, *things]}
  locations = [f"loc_bar_{i}_bar_1_bar_0_bar_30" for i in range(len(places))]
  start = "loc_bar_minus_1_bar_1_bar_0_bar_30"

  objects = ["agent1 - agent"]
  objects += [f"{kinds[t]}Type - otype" for t in _first_of_kind(things)]
  objects += [f"{kinds[p]}Type - rtype" for p in _first_of_kind(places)]
  objects += [f"{name} - object" for name in things.values()]
  objects += [f"{name} - receptacle" for name in places.values()]
  objects += [f"{name} - location" for name in [*locations, start]]

  init = ["= (total-cost) 0", f"atLocation agent1 {start}"]
  for place, at in zip(places, locations, strict=True):
    init.append(f"receptacleType {places[place]} {kinds[place]}Type")
    init.append(f"receptacleAtLocation {places[place]} {at}")
    if kind_of(place) in household_world.OPENABLE:
      init.append(f"openable {places[place]}")
  lies_in = dict(zip(world.things, world.lies_in, strict=True))
  for thing, name in things.items():
    index = world.lamp_in if thing == _LAMP else lies_in[thing]
    init.append(f"objectType {name} {kinds[thing]}Type")
    init.append(f"inReceptacle {name} {places[world.places[index]]}")
    init.append(f"objectAtLocation {name} {locations[index]}")
    if thing == _LAMP:
      init.append(f"toggleable {name}")
      continue
    init.append(f"pickupable {name}")
    init += [
      f"{verb}able {name}"
      for verb in household_world.TOOLS
      if household_world.is_able(verb, kind_of(thing))
    ]
  init += [
    f"canContain {kinds[p]}Type {kinds[t]}Type"
    for t in _first_of_kind(world.things)
    for p in _first_of_kind(places)
    if kind_of(p) in household_world.FITS[kind_of(t)]
  ]

  filled = goal.format(
    obj=_title(world.thing),
    recep=_title(world.place),
    toggle=_title(household_world.LAMP),
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
  """Makes the game of a world.

  Args:
    world: any that `household_world.draw_world` draws.
    logic: rules and wording.

  Returns:
    The game. Its walkthrough is the shortest plan.
  """
  walkthrough = tuple(household.shortest_plan(world))
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
  """Writes games in the layout of ALFWorld's data set.

  Args:
    folder: of a split; made if it is not there.
    worlds: one game each.
    logic: rules and wording.

  Returns:
    The paths of the game files.
  """
  paths = []
  for number, world in enumerate(worlds):
    task_type = TASK_TYPES[world.kind]
    is_look = world.kind == "look"
    thing, place = _title(world.thing), _title(world.place)
    if is_look:
      place = _title(household_world.LAMP)
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
  """Reads a game file.

  Args:
    path: of a `game.tw-pddl`.

  Returns:
    The game.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged.
  """
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
  """Reads of which kind the task of a game is.

  Args:
    path: of the game, which has the file of its task beside it.

  Returns:
    The kind, in `household_world.KINDS`; empty for any other.

  Raises:
    FileNotFoundError: the file of the task is not there.
    ValueError: it is damaged.
  """
  task = _read_object(pathlib.Path(path).with_name(TASK_FILE))
  kinds = {task_type: kind for kind, task_type in TASK_TYPES.items()}
  return kinds.get(task.get("task_type"), "")


def find_games(
  folder: pathlib.Path | str,
  kinds: Sequence[str] = household_world.KINDS,
) -> list[pathlib.Path]:
  """Finds the games of a split that can be played.

  These are the ones that ALFWorld takes: of a wanted task type, without movable
  receptacles and without slices, and known to be solvable. Damaged ones are
  left out, and the log says how many.

  Args:
    folder: of a split, as `json_2.1.1/train`.
    kinds: of tasks, in `household_world.KINDS`.

  Returns:
    Paths of game files, sorted.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it holds no such game.
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


def _title(kind: str) -> str:
  """As ALFWorld begins names; PDDL reads capitals as small letters."""
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


def _first_of_kind(names: Iterable[str]) -> Iterator[str]:
  seen = set()
  for name in names:
    if kind_of(name) not in seen:
      seen.add(kind_of(name))
      yield name


def _first_expression(text: str) -> str:
  """A text to the bracket that closes its first one."""
  depth, text = 0, text.strip()
  for index, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return text[: index + 1]
  raise ValueError("the goal has a bracket that is not closed.")
