"""Tests of saw_jax/tasks/household/alfworld_games.py; none needs the engine."""

import json
import logging
import re
import sys

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import alfworld_games as games
from saw_jax.tasks.household import world as hw
from saw_jax.tasks.household.rules import shortest_plan

# In the form of the package's, with nothing of its content.
LOGIC = games.Logic(
  domain="(define (domain alfred))",
  grammar='"rhs": "Your task is to: UNKNOWN GOAL."',
  goals={
    name: "\n(:goal (exists (?o # object) (is ?o {obj} {recep} {toggle})))\n)"
    for name in games.TASK_TYPES.values()
  },
)
WORLD = hw.World(
  *("heat", "kitchen", "mug", "cabinet", "put a hot mug in cabinet."),
  places=("cabinet 2", "cabinet 1", "microwave 1", "sinkbasin 1"),
  things=("mug 1", "apple 1"),
  lies_in=(3, 2),
  lamp_in=-1,
)
LOOK = hw.World(
  *("look", "bedroom", "pen", "desk", "look at pen under the desklamp."),
  *(("desk 1", "shelf 1"), ("pen 1",), (1,)),
  lamp_in=0,
)
# A world's places and things where the engine puts them: it counts down.
ZERO, ONE = (
  "_bar_" + "_bar_".join([f"_plus_{n}_dot_00"] * 3) for n in ("00", "01")
)


def draw(kind, seed):
  return hw.draw_world(Draws("games", kind, seed), "train", kinds=[kind])


def sections(problem):
  """The lines of `:objects` and of `:init`, and what follows them."""
  found = re.fullmatch(
    r"\(define \(problem household\)\n\(:domain alfred\)\n\(:objects\n(.*)\n\)"
    r"\n\(:init\n(.*)\n\)\n(.*)\n\)",
    problem,
    re.DOTALL,
  )
  return found[1].splitlines(), found[2].splitlines(), found[3]


class TestMakeProblem:
  def test_a_small_world(self):
    goal = LOGIC.goals["pick_heat_then_place_in_recep"]
    objects, init, rest = sections(games.make_problem(WORLD, goal))
    cabinet, mug, apple = f"Cabinet{ZERO}", f"Mug{ZERO}", f"Apple{ZERO}"
    sink = f"Sink{ZERO}_bar_Sinkbasin"
    for name in (cabinet, f"Cabinet{ONE}", f"Microwave{ZERO}", sink):
      assert f"{name} - receptacle" in objects
    assert {f"{mug} - object", "MugType - otype"} <= set(objects)
    assert {"SinkbasinType - rtype", "agent1 - agent"} <= set(objects)
    assert set(init) > {
      "(= (total-cost) 0)",
      f"(inReceptacle {mug} {sink})",
      f"(inReceptacle {apple} Microwave{ZERO})",
      f"(receptacleType {sink} SinkbasinType)",
      f"(openable {cabinet})",
      f"(receptacleAtLocation {cabinet} loc_bar_0_bar_1_bar_0_bar_30)",
      f"(heatable {mug})",
      f"(pickupable {apple})",
      "(canContain CabinetType MugType)",
    }
    no = {f"(openable {sink})", "(canContain CabinetType AppleType)"}
    assert not no & set(init)
    assert rest == (
      "(:goal (exists (?o - object) (is ?o Mug Cabinet Desklamp)))\n"
      "(:metric minimize (total-cost))"
    )

  def test_a_lamp_can_be_turned_on_and_not_taken(self):
    problem = games.make_problem(LOOK, LOGIC.goals["look_at_obj_in_light"])
    about = [fact for fact in sections(problem)[1] if "Desklamp_bar" in fact]
    assert [fact.strip("()").split()[0] for fact in about] == [
      *("objectType", "inReceptacle", "objectAtLocation", "toggleable")
    ]

  @pytest.mark.parametrize("kind", hw.KINDS)
  def test_all_that_is_said_is_declared_once(self, kind):
    for seed in range(10):
      world = draw(kind, seed)
      objects, init, _ = sections(
        games.make_problem(world, LOGIC.goals[games.TASK_TYPES[kind]])
      )
      names = [line.partition(" - ")[0] for line in objects]
      assert len(set(names)) == len(names)
      for fact in init[1:]:
        assert set(fact.strip("()").split()[1:]) <= set(names), fact
      assert len(set(init)) == len(init)
      in_places = [f for f in init if f.startswith("(inReceptacle ")]
      assert len(in_places) == len(world.things) + (world.lamp_in >= 0)

  def test_numbers_with_gaps_and_open_goals_are_refused(self):
    for first in ("cabinet 3", "cabinet 1"):
      world = WORLD._replace(places=(first, *WORLD.places[1:]))
      with pytest.raises(ValueError, match="numbers"):
        games.make_problem(world, "(:goal)")
    with pytest.raises(ValueError, match="bracket"):
      games.make_problem(WORLD, "(:goal (and")


def test_a_game_is_what_the_package_writes():
  game = games.make_game(WORLD, LOGIC)
  assert set(game) == {
    *("pddl_domain", "grammar", "pddl_problem", "solvable", "walkthrough")
  }
  assert game["pddl_domain"] == LOGIC.domain
  assert 'to: put a hot mug in cabinet."' in game["grammar"]
  assert game["walkthrough"] == shortest_plan(WORLD)


TEXTS = b'{"pddl_domain": "x", "grammar": "y", "pddl_problem": %s}'


class TestFolders:
  @pytest.fixture
  def folder(self, tmp_path):
    """A split with two worlds of each kind."""
    worlds = [draw(kind, seed) for seed in range(2) for kind in hw.KINDS]
    paths = games.write_games(tmp_path / "train", worlds, LOGIC)
    assert len(paths) == 12
    return tmp_path / "train"

  def test_what_is_written_is_found_and_read(self, folder):
    paths = games.find_games(folder)
    assert len(paths) == 12 and paths == sorted(paths)
    wanted = {draw(k, s).goal[:-1] for s in range(2) for k in hw.KINDS}
    found = set()
    for path in paths:
      game = games.read_game(path)
      found.add(game["grammar"].partition("to: ")[2][:-2])
      assert game["walkthrough"]
      about = json.loads((path.parent / games.TASK_FILE).read_text())
      kind = games.read_kind(path)
      assert games.TASK_TYPES[kind] == about["task_type"]
      assert path.parts[-3].startswith(about["task_type"])
      params = about["pddl_params"]
      lamp = "Desklamp" if kind == "look" else ""
      assert params["toggle_target"] == lamp and not params["object_sliced"]
      assert (params["parent_target"] == "") == (kind == "look")
    assert found == wanted
    kinds = map(games.read_kind, games.find_games(folder, ["heat", "two"]))
    assert sorted(kinds) == ["heat", "heat", "two", "two"]

  @pytest.mark.parametrize(
    ("name", "content"),
    [
      (games.GAME_FILE, b""),
      (games.GAME_FILE, b'{"pddl_domain": "x", "grammar"'),
      (games.GAME_FILE, b"[1, 2]"),
      (games.GAME_FILE, b"\xff\xfe\x00"),
      (games.GAME_FILE, b"[" * 100_000),
      (games.GAME_FILE, b'{"pddl_domain": "x", "grammar": "y"}'),
      (games.GAME_FILE, TEXTS % b'" "'),
      (games.GAME_FILE, TEXTS % b'"z", "walkthrough": "look"'),
      (games.TASK_FILE, b"no"),
    ],
  )
  def test_a_damaged_game_is_left_out_and_told(
    self, folder, caplog, name, content
  ):
    broken = games.find_games(folder)[3].with_name(name)
    broken.write_bytes(content)
    with caplog.at_level(logging.WARNING):
      paths = games.find_games(folder)
    assert len(paths) == 11
    assert broken.parent not in {path.parent for path in paths}
    assert "1 games in" in caplog.text and str(broken) in caplog.text
    if name == games.GAME_FILE:
      with pytest.raises(ValueError, match="game.tw-pddl"):
        games.read_game(broken)

  def test_what_alfworld_leaves_out_is_left_out(self, folder):
    first, second, third, *_ = games.find_games(folder)
    data = json.loads(first.read_text())
    first.write_text(json.dumps(data | {"solvable": False}))
    second.parent.parent.rename(folder / "pick_movable-1")
    third.with_name(games.TASK_FILE).unlink()
    assert len(games.find_games(folder)) == 9

  def test_an_empty_folder_is_named(self, tmp_path):
    with pytest.raises(ValueError, match="heat"):
      games.find_games(tmp_path, ["heat"])
    with pytest.raises(FileNotFoundError, match="valid_unseen"):
      games.find_games(tmp_path / "train")
    with pytest.raises(FileNotFoundError):
      games.read_game(tmp_path / games.GAME_FILE)


def test_without_the_package_its_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "alfworld", None)
  with pytest.raises(ImportError, match=re.escape("saw_jax[alfworld]")):
    games.read_logic()
