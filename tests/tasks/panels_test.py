"""The episodes that tables are scored on are those of configs/panels.json.

  python -m tests.tasks.panels_test

writes it: a change there moves every number of the table, and CHANGELOG.md says
so.
"""

import json
import pathlib
import sys

import pytest

from saw_jax.reporting import catalogue
from saw_jax.run import build, registry, run_directory
from saw_jax.run import config as config_lib
from saw_jax.tasks import environments, panels
from saw_jax.tasks.household import alfworld_task
from tests import agent_helpers, helpers

FILE = pathlib.Path(__file__).parents[2] / "configs" / "panels.json"
PANELS = json.loads(FILE.read_text()) if FILE.exists() else {}
TASKS = ("household", "search", "shop")
CASES = [f"paw/{name}:tiny" for name in (*TASKS, "hidden")]
CASES += [f"paw/{name}:paper" for name in TASKS]


def task_of(case):
  name, scale = case.split(":")
  config = config_lib.typed(catalogue.load(name).config("grpo", scale))
  task = registry.make_task(config.task.name, config.task.options)
  return task, (config.evaluation.split, config.evaluation.num_examples)


def panel(case):
  task, held_out = task_of(case)
  hashes = task.panel(*held_out)
  return {**panels.describe(task, *held_out), "hashes": " ".join(hashes)}


@pytest.mark.parametrize("case", CASES)
def test_a_panel_is_the_committed_one(case):
  assert sorted(PANELS) == sorted(CASES)
  assert panel(case) == PANELS[case]
  hashes = PANELS[case]["hashes"].split()
  assert len(set(hashes)) > 0.9 * len(hashes) > 80
  # Of other episodes, none: a split is no part of another.
  train = task_of(case)[0].panel("train", len(hashes))
  assert not set(train) & set(hashes)


def test_the_page_has_the_digests():
  text = (FILE.parents[1] / "docs" / "does_it_reproduce.md").read_text()
  for case, found in PANELS.items():
    name, scale = case.split(":")
    line = f"| `{name}` | {scale} | {found['episodes']} | `{found['digest']}` |"
    assert line in text


def test_a_panel_is_that_of_another_process_and_in_any_order():
  code = "from tests.tasks import panels_test as t; import json; "
  code += "print(json.dumps(t.panel(t.CASES[0])))"
  environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
  found = helpers.python("-c", code, env=environment)
  hashes = PANELS[CASES[0]]["hashes"]
  assert found.returncode == 0, found.stderr
  assert json.loads(found.stdout) == PANELS[CASES[0]]
  assert panels.digest(hashes.split()[::-1]) == PANELS[CASES[0]]["digest"]
  assert panels.digest(hashes.split()[1:]) != PANELS[CASES[0]]["digest"]


class Room:
  """A room that looks like every other, and answers by a rule of its own."""

  task, admissible_actions = "open it", ["push", "pull"]

  def __init__(self, rule, pays):
    self.rule, self.pays, self.done = rule, pays, False

  def reset(self, seed):
    self.seed, self.done = seed, False
    return f"room {seed}"

  def step(self, action):
    return environments.Step(f"{self.rule} {action}", self.pays, False)


class Rooms(environments.AgentTask):
  name, max_steps, max_return, episodes = "rooms", 9, 1.0, {"test": 5}
  panel = panels.walked

  def __init__(self, rule="click", pays=0.0):
    self.rule, self.pays = rule, pays

  def make(self, split):
    return Room(self.rule, self.pays)


def test_a_hash_knows_what_only_actions_show():
  found = Rooms().panel("test", 3)
  assert found == Rooms().panel("test", 9)[:3] == [*dict.fromkeys(found)]
  for other in (Rooms("clack"), Rooms(pays=0.5)):
    assert not set(other.panel("test", 9)) & set(found)
  assert panels.describe(Rooms(), "test", 9)["episodes"] == 5
  # What is not made from nothing has no panel that could be compared.
  assert panels.describe(agent_helpers.EchoTask(), "test", 3) is None
  assert panels.describe(helpers.Letters(), "test", 3) is None


def test_files_have_hashes_of_their_own(tmp_path):
  files = [tmp_path / name for name in "ab"]
  for file in files:
    file.write_text(file.name)
  one = alfworld_task.AlfworldTask.__new__(alfworld_task.AlfworldTask)
  one._paths, one.episodes = {"test": files}, {"test": 2}
  assert one.panel("test", 9) == [panels.short(name) for name in (b"a", b"b")]
  assert one.panel("test", 1) == [panels.short(b"a")]


def test_a_run_says_what_it_is_scored_on(tmp_path):
  config = catalogue.load("paw/household").config("grpo", "tiny")
  config.warm_start.num_steps = 0
  config.evaluation.num_examples = 12
  build.build(config_lib.typed(config), [0], tmp_path)
  hashes = PANELS["paw/household:tiny"]["hashes"].split()[:12]
  assert run_directory.read_run(tmp_path)["panel"] == {
    "split": "test",
    "episodes": 12,
    "digest": panels.digest(hashes),
  }


def main() -> None:
  found = {case: panel(case) for case in CASES}
  FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
  main()
