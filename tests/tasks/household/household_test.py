"""The household: wording, rules and prompts by hand, its expert, its worlds.

What all tasks share is in text_tasks_test.py.
"""

import collections

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.household import rules
from saw_jax.tasks.household import world as hw
from saw_jax.tasks.household.rules import NOTHING, Household, shortest_plan
from saw_jax.tasks.household.task import HouseholdConfig, HouseholdTask

KITCHEN = hw.World(
  *("heat", "kitchen", "mug", "cabinet", "put a hot mug in cabinet."),
  ("cabinet 1", "microwave 1", "fridge 1", "sinkbasin 1", "shelf 1"),
  *(("mug 1", "apple 1"), (4, 2), -1),  # where they lie, and no lamp
)
LAMP = hw.World(
  *("look", "bedroom", "pen", "desk", "look at pen under the desklamp."),
  *(("desk 1", "shelf 1"), ("pen 1",), (1,), 0),
)
TAKE = ["go to shelf 1", "take mug 1 from shelf 1"]
FETCH = ["go to fridge 1", "open fridge 1", "take apple 1 from fridge 1"]
HEAT = ["go to microwave 1", "heat mug 1 with microwave 1"]
COOL = ["go to fridge 1", "cool mug 1 with fridge 1"]
CLEAN = ["go to sinkbasin 1", "clean mug 1 with sinkbasin 1"]
PUT = ["go to cabinet 1", "open cabinet 1", "move mug 1 to cabinet 1"]


def start(world=KITCHEN):
  env = Household(lambda seed: world, 50, 10.0)
  return env, env.reset(0)


def play(actions, world=KITCHEN):
  """The observations, and the environment as it is then."""
  env, _ = start(world)
  return [env.step(action).observation for action in actions], env


def make(split="train", **options):
  return HouseholdTask(HouseholdConfig(**options)).make(split)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", hw.KINDS)
def test_the_shortest_plan_solves_every_world(kind, split):
  for options in ({}, dict(receptacles=4, objects=3)):
    env = make(split, kinds=(kind,), **options)
    for seed in range(100):
      env.reset(seed)
      *plan, last = shortest_plan(env.world)
      for action in plan:
        assert action in env.admissible_actions, (action, env.world)
        assert env.step(action)[1:] == (0.0, False), env.world
      assert env.step(last)[1:] == (10.0, True), env.world


class TestExpert:
  def play(self, env, seed, wrong=0.0):
    """Plays an episode; returns its actions."""
    env.reset(seed)
    draws = Draws("test", seed)
    ours, actions = rules.expert(env, draws), []
    while not env.done:
      # What is closed is opened before it counts as seen.
      looks = env.at >= 0 and env.closed[env.at] and env.held is None
      action = next(ours)
      assert action in env.admissible_actions, (action, env.world)
      if looks and not wrong:
        assert action == f"open {env.world.places[env.at]}"
      if draws.chance(wrong):
        action = draws.choice(env.admissible_actions)
      env.step(action)
      actions.append(action)
    return actions

  @pytest.mark.parametrize("kind", hw.KINDS)
  @pytest.mark.parametrize("wrong", [0.0, 0.5])
  def test_it_solves_every_world_whatever_happens_to_it(self, kind, wrong):
    env = make(kinds=(kind,), receptacles=5, objects=6, max_steps=400)
    for seed in range(40):
      self.play(env, seed, wrong)
      assert env.won, env.world

  def test_it_knows_only_what_it_has_seen(self):
    env = make(receptacles=8, objects=8)
    longer = 0
    for seed in range(60):
      actions = self.play(env, seed)
      shortest = shortest_plan(env.world)
      assert len(actions) >= len(shortest)
      longer += len(actions) > len(shortest)
      for i, action in enumerate(actions):
        if action.startswith("take "):
          place = action.partition(" from ")[2]
          assert f"go to {place}" in actions[:i]
    assert longer > 30


class TestWording:
  def test_the_first_observation(self):
    assert start()[1] == (
      "-= Welcome to TextWorld, ALFRED! =-\n\n"
      "You are in the middle of a room. Looking quickly around you, you see a "
      "cabinet 1, a microwave 1, a fridge 1, a sinkbasin 1, and a shelf 1.\n\n"
      "Your task is to: put a hot mug in cabinet."
    )

  def test_an_episode(self):
    expected = {
      "look": "You are in the middle of a room. Looking quickly around you, "
      "you see nothing.",
      "inventory": "You are not carrying anything.",
      "go to fridge 1": "You arrive at fridge 1. The fridge 1 is closed.",
      "examine fridge 1": "The fridge 1 is closed.",
      "open fridge 1": "You open the fridge 1. The fridge 1 is open. In it, "
      "you see a apple 1.",
      "close fridge 1": "You close the fridge 1.",
      "go to sinkbasin 1": "You arrive at sinkbasin 1. On the sinkbasin 1, you "
      "see nothing.",
      "go to shelf 1": "You arrive at shelf 1. On the shelf 1, you see a mug "
      "1.",
      "take mug 1 from shelf 1": "You pick up the mug 1 from the shelf 1.",
      "inventory ": "You are carrying: a mug 1.",
      "examine mug 1": "There's nothing special about mug 1.",
      "go to microwave 1": "You arrive at microwave 1. The microwave 1 is "
      "closed.",
      "heat mug 1 with microwave 1": "You heat the mug 1 using the microwave "
      "1.",
      " examine mug 1": "This is a hot mug 1.",
      "look\n": "You are facing the microwave 1. Next to it, you see nothing.",
      "go to cabinet 1": "You arrive at cabinet 1. The cabinet 1 is closed.",
      "open cabinet 1": "You open the cabinet 1. The cabinet 1 is open. In it, "
      "you see nothing.",
      "move mug 1 to cabinet 1": "You move the mug 1 to the cabinet 1.",
    }
    found, env = play(expected)
    assert found == list(expected.values())
    assert env.won and env.done

  def test_lists_go_by_kind_and_then_from_the_last_on(self):
    world = KITCHEN._replace(
      things=("mug 1", "apple 1", "mug 2", "cup 1"), lies_in=(4, 4, 4, 3)
    )
    actions = ["go to shelf 1", "take mug 2 from shelf 1"]
    actions += ["move mug 2 to shelf 1", "examine shelf 1"]
    found, env = play(actions, world)
    assert found[0].endswith("you see a apple 1, a mug 2, and a mug 1.")
    assert found[-1] == found[0].removeprefix("You arrive at shelf 1. ")
    env.step("take apple 1 from shelf 1")
    assert env.step("examine shelf 1")[0].endswith("a mug 2, and a mug 1.")

  def test_help_is_alfworlds(self):
    lines = rules.HELP.splitlines()
    assert len(lines) == 14 and lines[0] == "Available commands:"
    assert "  move (object) to (receptacle):  place an object in" in rules.HELP

  def test_a_lamp_is_turned_on(self):
    found, env = play(["go to desk 1", "use desklamp 1"], LAMP)
    assert found[0].endswith("you see a desklamp 1.")
    assert found[1] == "You turn on the desklamp 1."
    assert not env.won  # without the pen
    rest = ["go to shelf 1", "take pen 1 from shelf 1", "go to desk 1"]
    assert [env.step(action).done for action in rest] == [False, False, True]


class TestRules:
  FROM_AFAR = ["take mug 1 from shelf 1", "open fridge 1", "examine fridge 1"]
  FROM_AFAR += ["heat mug 1 with microwave 1", "use desklamp 1"]
  OTHERS = ["close shelf 1", "go to shelf 2", "go to", "look around", "Look"]
  OTHERS += ["go to  shelf 1", "look" + " " * 200]

  @pytest.mark.parametrize(
    "actions",
    [[action] for action in (*FROM_AFAR, *OTHERS)]
    + [
      ["go to shelf 1", "examine mug 1"],  # only what is carried
      ["go to fridge 1", "take apple 1 from fridge 1"],  # it is closed
      [*TAKE, *FETCH],  # one thing at a time
      [*FETCH, "go to shelf 1", "move apple 1 to shelf 1"],  # it does not fit
    ],
  )
  def test_nothing_happens(self, actions):
    assert play(actions)[0][-1] == NOTHING

  @pytest.mark.parametrize(
    ("actions", "state"),
    [([*HEAT, *COOL], "cold"), ([*COOL, *HEAT], "hot")]
    + [([*HEAT, *CLEAN], "hot and clean"), ([*COOL, *CLEAN], "cool and clean")],
  )
  def test_hot_and_cool_exclude_each_other(self, actions, state):
    found, env = play([*TAKE, *actions, "examine mug 1"])
    assert found[-1] == f"This is a {state} mug 1."
    for action in PUT:
      env.step(action)
    assert env.won == ("hot" in state)

  @pytest.mark.parametrize("second", ["cabinet 1", "cabinet 2"])
  def test_two_have_to_be_in_the_same_place(self, second):
    world = KITCHEN._replace(
      kind="two",
      places=("cabinet 2", "cabinet 1", "shelf 1"),
      things=("mug 1", "mug 2"),
      lies_in=(2, 2),
    )
    actions = []
    for thing, place in (("mug 1", "cabinet 1"), ("mug 2", second)):
      actions += ["go to shelf 1", f"take {thing} from shelf 1"]
      actions += [f"go to {place}", f"open {place}", f"move {thing} to {place}"]
    assert play(actions, world)[1].won == (second == "cabinet 1")


def test_all_that_does_something_is_admissible():
  """And the other way round: of every command with every name."""
  for seed in range(15):
    env = make(receptacles=5, objects=5, max_steps=10**6)
    env.reset(seed)
    draws = Draws(seed)
    names = [*env.world.places, *env.world.things, "desklamp 1"]
    one = ("go to", "open", "close", "examine", "use")
    two = dict(take="from", move="to", clean="with", heat="with", cool="with")
    every = [f"{verb} {name}" for verb in one for name in names] + [
      f"{verb} {a} {between} {b}"
      for verb, between in two.items()
      for a in names
      for b in names
    ]
    for _ in range(6):
      actions = env.admissible_actions
      assert actions == sorted(set(actions)) and set(actions) & set(every)
      for action in every:
        if action not in actions:
          assert env.step(action).observation == NOTHING, action
      step = env.step(draws.choice(actions))
      assert step.observation != NOTHING
      if step.done:
        break


COMPACT = HouseholdTask(HouseholdConfig(form="compact"))
ENGLISH = HouseholdTask()
HISTORY = [(f"seen {k}", f"did {k}") for k in (1, 2, 3)]


def prompt(made, history):
  """The longest prompt."""
  situation = Situation("cook.", "A room.", ("go to bed 1", "help", "look"))
  return next(made.prompts(situation, history))


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
    ) in prompt(ENGLISH, HISTORY)

  def test_compact_ones_have_the_task_the_places_and_the_last_actions(self):
    assert prompt(COMPACT, HISTORY) == "cook.| bed 1|did 2;did 3|A room.>"
    # The first observation lists the places, which are there already.
    assert prompt(COMPACT, ()) == "cook.| bed 1||>"


def test_an_episode_is_of_the_kind_of_its_task():
  task = HouseholdTask(HouseholdConfig(kinds=("look", "two"), num_test=30))
  env = task.make("test")
  kinds = [task.category("test", seed) for seed in range(30)]
  assert set(kinds) == {"look", "two"}
  for seed, kind in enumerate(kinds):
    env.reset(seed)
    assert ("two" in env.task) == (kind == "two")


SEEDS = range(300)


def worlds(split="train", **options):
  return [hw.draw_world(Draws(split, s), split, **options) for s in SEEDS]


class TestDrawWorld:
  def test_every_kind_and_every_room_occurs(self):
    assert len(set(worlds())) == len(SEEDS)
    found = collections.Counter(world.kind for world in worlds())
    assert set(found) == set(hw.KINDS)
    assert min(found.values()) > len(SEEDS) / 12
    assert {world.room for world in worlds()} == set(hw.ROOMS)

  @pytest.mark.parametrize(
    "options",
    [{}, dict(receptacles=3, objects=1)]
    + [dict(kinds=[kind], receptacles=5, objects=4) for kind in hw.KINDS],
  )
  def test_a_world_is_as_its_tables_and_what_was_asked_for_say(self, options):
    for split in ("train", "test"):
      for world in worlds(split, **options):
        room = hw.ROOMS[world.room]
        assert world.kind in room.tasks and world.thing in world.goal
        assert world.kind in options.get("kinds", hw.KINDS)
        assert len(world.places) == options.get("receptacles", 16)
        assert len(world.things) <= max(options.get("objects", 20), 2)
        assert len(set(world.places)) == len(world.places)
        assert len(set(world.things)) == len(world.things)
        counts = collections.Counter(map(hw.kind_of, world.places))
        assert all(n <= room.receptacles[k] for k, n in counts.items())
        for thing, index in zip(world.things, world.lies_in, strict=True):
          kind, place = hw.kind_of(thing), hw.kind_of(world.places[index])
          assert kind in room.objects and place in hw.FITS[kind]
          # Nothing is done yet.
          assert (kind, place) != (world.thing, world.place)
        wanted = list(map(hw.kind_of, world.things)).count(world.thing)
        assert wanted >= (2 if world.kind == "two" else 1)
        assert world.place in counts
        if world.kind in hw.TOOLS:
          assert hw.TOOLS[world.kind] in counts
          assert world.thing in hw.ABLE[world.kind]
        assert (world.lamp_in >= 0) == (world.kind == "look")
        if world.kind == "look":
          assert hw.kind_of(world.places[world.lamp_in]) == world.place
        else:
          assert world.place in hw.FITS[world.thing]

  def test_it_refuses_what_there_is_not(self):
    for split, kinds in (("valid", hw.KINDS), ("train", ["x"]), ("train", [])):
      with pytest.raises(ValueError):
        hw.draw_world(Draws(0), split, kinds=kinds)


class TestSplits:
  @pytest.mark.parametrize("options", [{}, dict(receptacles=3, objects=1)])
  def test_they_do_not_overlap(self, options):
    train, test = (
      {world._replace(goal="") for world in worlds(split, **options)}
      for split in ("train", "test")
    )
    assert not train & test
    assert set(map(hw.split_of, train)) == {"train"}
    assert set(map(hw.split_of, test)) == {"test"}

  def test_words_and_order_do_not_count(self):
    for world in worlds()[:50]:
      last = len(world.places) - 1
      other = world._replace(
        goal="?",
        places=world.places[::-1],
        things=world.things[::-1],
        lies_in=tuple(last - i for i in world.lies_in[::-1]),
        lamp_in=last - world.lamp_in if world.lamp_in >= 0 else -1,
      )
      assert hw.split_of(other) == hw.split_of(world) == "train"


def test_everything_fits_somewhere_in_each_of_its_rooms():
  rooms = hw.ROOMS.values()
  assert set(hw.FITS) == {thing for room in rooms for thing in room.objects}
  places = {place for room in rooms for place in room.receptacles}
  assert all(fitting <= places for fitting in hw.FITS.values())
  for room in rooms:
    for thing in room.objects:
      assert hw.FITS[thing] & set(room.receptacles), thing
