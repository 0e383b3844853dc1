"""The household as a task; text_tasks_test.py has what all tasks share."""

import pytest

from saw_jax.tasks.environments import Situation
from saw_jax.tasks.household.task import HouseholdConfig, HouseholdTask

COMPACT = HouseholdTask(HouseholdConfig(form="compact"))
ENGLISH = HouseholdTask()
HISTORY = [(f"seen {k}", f"did {k}") for k in (1, 2, 3)]


def prompt(made, history, shown=0, **fields):
  """The prompt with so many of the last steps."""
  situation = Situation(
    "cook.", "A room.", ("go to bed 1", "help", "look"), 0.0, False
  )
  texts = list(made.prompts(situation._replace(**fields), history))
  return texts[len(texts) - 1 - shown]


class TestPrompts:
  def test_english_ones_are_alfworlds(self):
    assert prompt(ENGLISH, ()) == (
      "You are an expert agent that acts in the ALFRED embodied environment.\n"
      "Your task is to: cook.\n"
      "Your current observation is: A room.\n"
      "The actions that are admissible now are: ['go to bed 1', 'look'].\n\n"
      "It is your turn to act. First reason step by step about the situation, "
      "inside <think> </think> tags. Then choose one admissible action and "
      "write it inside <action> </action> tags."
    )
    assert (
      "So far you have taken 3 step(s). The last 2 observation(s) and the "
      "actions that you took: [Observation 2: 'seen 2', Action 2: 'did 2'], "
      "[Observation 3: 'seen 3', Action 3: 'did 3']\n"
      "You are now at step 4 and your current observation is: A room.\n"
    ) in prompt(ENGLISH, HISTORY, 2)

  def test_braces_in_what_is_seen_are_kept(self):
    text = prompt(
      ENGLISH, [("{a}", "{b}")], 1, task="{x}", observation="{y}", actions="{}"
    )
    assert all(f"{{{letter}}}" in text for letter in "xyab")

  def test_compact_ones_have_the_task_the_places_and_the_last_actions(self):
    assert prompt(COMPACT, HISTORY, 2) == "cook.| bed 1|did 2;did 3|A room.>"
    # The first observation lists the places, which are there already.
    assert prompt(COMPACT, ()) == "cook.| bed 1||>"


@pytest.mark.parametrize("text", ["", " ", "mug 1", "look" * 100, "1 look"])
def test_what_is_no_action_is_invalid(text):
  assert COMPACT.read_reply(text) == ("", False)


def test_an_episode_is_of_the_kind_of_its_task():
  task = HouseholdTask(HouseholdConfig(kinds=("look", "two"), num_test=30))
  env = task.make("test")
  found = set()
  for seed in range(30):
    kind = task.category("test", seed)
    env.reset(seed)
    assert ("examine" in env.task or "look at" in env.task) == (kind == "look")
    found.add(kind)
  assert found == {"look", "two"}
