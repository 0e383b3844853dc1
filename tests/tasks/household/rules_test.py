"""Tests of saw_jax/tasks/household/rules.py."""

import inspect

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks import environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import rules as household
from saw_jax.tasks.household import world as hw

KITCHEN = hw.World(
  kind="heat",
  room="kitchen",
  thing="mug",
  place="cabinet",
  goal="put a hot mug in cabinet.",
  places=("cabinet 1", "microwave 1", "fridge 1", "sinkbasin 1", "shelf 1"),
  things=("mug 1", "apple 1"),
  lies_in=(4, 2),
  lamp_in=-1,
)


def play(actions, world=KITCHEN, **options):
  """The observations, and the environment as it is then."""
  env = household.Household(**options)
  env.enter(world)
  return [env.step(action).observation for action in actions], env


class TestTheExpert:
  @pytest.mark.parametrize("split", ["train", "test"])
  @pytest.mark.parametrize("kind", hw.KINDS)
  def test_it_solves_every_world(self, kind, split):
    for options in ({}, dict(receptacles=4, objects=3)):
      env = household.Household(split, kinds=[kind], **options)
      for seed in range(100):
        env.reset(seed)
        plan = household.shortest_plan(env.world)
        for i, action in enumerate(plan):
          assert action in env.admissible_actions, (action, env.world)
          step = env.step(action)
          last = i == len(plan) - 1
          assert step.done == last and step.reward == 10.0 * last, env.world

  def test_a_search_solves_it_too(self):
    env = household.Household()
    lengths = []
    for seed in range(200):
      env.reset(seed)
      plan = household.searching_plan(env.world, Draws(seed))
      assert plan == household.searching_plan(env.world, Draws(seed))
      for action in plan:
        assert action in env.admissible_actions
        step = env.step(action)
        if step.done:
          break
      assert env.won
      lengths.append(len(plan))
      assert len(plan) >= len(household.shortest_plan(env.world))
    assert max(lengths) <= 50

  def test_who_searches_sees_before_taking(self):
    for seed in range(100):
      env = household.Household(max_steps=200)
      seen = env.reset(seed)
      for action in household.searching_plan(env.world, Draws(seed)):
        if action.startswith("take"):
          assert " ".join(action.split()[1:3]) in seen
        seen += env.step(action).observation
        if env.done:
          break


class TestWording:
  def test_the_first_observation(self):
    env = household.Household()
    assert env.enter(KITCHEN) == (
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

  def test_lists(self):
    world = KITCHEN._replace(
      things=("mug 1", "apple 1", "cup 1"), lies_in=(4, 3, 3)
    )
    (found,), _ = play(["go to sinkbasin 1"], world)
    assert found.endswith("you see a apple 1, and a cup 1.")

  def test_lists_go_by_kind_and_then_from_the_last_on(self):
    world = KITCHEN._replace(
      things=("mug 1", "apple 1", "mug 2", "egg 1"), lies_in=(4, 4, 4, 2)
    )
    (found,), _ = play(["go to shelf 1"], world)
    assert found.endswith("you see a apple 1, a mug 2, and a mug 1.")
    take = ["go to shelf 1", "take mug 2 from shelf 1"]
    _, env = play([*take, "move mug 2 to shelf 1"], world)
    assert env.step("examine shelf 1").observation == found.removeprefix(
      "You arrive at shelf 1. "
    )

  def test_help_is_alfworlds(self):
    lines = household.HELP.splitlines()
    assert len(lines) == 14 and lines[0] == "Available commands:"
    assert (
      lines[1] == "  look:" + " " * 29 + "look around your current location"
    )
    assert (
      "  move (object) to (receptacle):  place an object in" in household.HELP
    )

  def test_a_lamp_is_turned_on(self):
    world = hw.World(
      kind="look",
      room="bedroom",
      thing="pen",
      place="desk",
      goal="look at pen under the desklamp.",
      places=("desk 1", "shelf 1"),
      things=("pen 1",),
      lies_in=(1,),
      lamp_in=0,
    )
    found, env = play(["go to desk 1", "use desklamp 1"], world)
    assert found[0].endswith("you see a desklamp 1.")
    assert found[1] == "You turn on the desklamp 1."
    assert not env.won  # without the pen
    rest = ["go to shelf 1", "take pen 1 from shelf 1", "go to desk 1"]
    assert [env.step(action).done for action in rest] == [False, False, True]


class TestRules:
  def reach(self, *actions, **options):
    return play(actions, **options)[0][-1]

  def test_one_can_carry_one_thing(self):
    take = ["go to shelf 1", "take mug 1 from shelf 1"]
    more = ["go to fridge 1", "open fridge 1", "take apple 1 from fridge 1"]
    assert self.reach(*take, *more) == household.NOTHING

  def test_what_is_closed_is_out_of_reach(self):
    go = "go to fridge 1"
    assert self.reach(go, "take apple 1 from fridge 1") == household.NOTHING

  @pytest.mark.parametrize(
    "action",
    [
      "take mug 1 from shelf 1",  # from afar
      "open fridge 1",
      "examine fridge 1",
      "heat mug 1 with microwave 1",
      "use desklamp 1",
      "close shelf 1",
      "go to shelf 2",
      "go to",
      "look around",
      "Look",
      "go to  shelf 1",
      "examine mug 1",  # only what is carried
    ],
  )
  def test_nothing_happens(self, action):
    assert self.reach(action) == household.NOTHING

  def test_what_does_not_fit_is_not_put_there(self):
    take = ["go to fridge 1", "open fridge 1", "take apple 1 from fridge 1"]
    put = ["go to shelf 1", "move apple 1 to shelf 1"]
    assert self.reach(*take, *put) == household.NOTHING

  def test_cooling_takes_the_heat_away(self):
    take = ["go to shelf 1", "take mug 1 from shelf 1"]
    heat = ["go to microwave 1", "heat mug 1 with microwave 1"]
    cool = ["go to fridge 1", "cool mug 1 with fridge 1"]
    found = self.reach(*take, *heat, *cool, "examine mug 1")
    assert found == "This is a cold mug 1."
    put = ["go to cabinet 1", "open cabinet 1", "move mug 1 to cabinet 1"]
    _, env = play([*take, *heat, *cool, *put])
    assert not env.won
    clean = ["go to sinkbasin 1", "clean mug 1 with sinkbasin 1"]
    found = self.reach(*take, *heat, *clean, "examine mug 1")
    assert found == "This is a hot and clean mug 1."
    clean = ["go to sinkbasin 1", "clean mug 1 with sinkbasin 1"]
    found = self.reach(*take, *cool, *clean, "examine mug 1")
    assert found == "This is a cool and clean mug 1."

  def test_what_lies_there_cannot_be_examined(self):
    assert self.reach("go to shelf 1", "examine mug 1") == household.NOTHING

  def test_two_have_to_be_in_the_same_place(self):
    world = KITCHEN._replace(
      kind="two",
      places=("cabinet 2", "cabinet 1", "shelf 1"),
      things=("mug 1", "mug 2"),
      lies_in=(2, 2),
    )

    def bring(thing, place):
      return [
        "go to shelf 1",
        f"take {thing} from shelf 1",
        f"go to {place}",
        f"open {place}",
        f"move {thing} to {place}",
      ]

    _, env = play(
      bring("mug 1", "cabinet 1") + bring("mug 2", "cabinet 2"), world
    )
    assert not env.won
    _, env = play(
      bring("mug 1", "cabinet 1") + bring("mug 2", "cabinet 1"), world
    )
    assert env.won

  def test_an_episode_ends(self):
    env = household.Household(max_steps=3)
    env.enter(KITCHEN)
    steps = [env.step("sing") for _ in range(3)]
    assert [step.done for step in steps] == [False, False, True]
    assert [step.reward for step in steps] == [0, 0, 0]
    with pytest.raises(RuntimeError, match="reset"):
      env.step("look")
    env.reset(0)
    assert not env.done

  def test_there_is_no_step_before_a_reset(self):
    with pytest.raises(RuntimeError, match="reset"):
      household.Household().step("look")


class TestActions:
  def walk(self, env, seed, steps=30):
    """Admissible actions at random, and what is seen at each."""
    draws, seen = Draws("walk", seed), [env.reset(seed)]
    for _ in range(steps):
      actions = env.admissible_actions
      seen.append((actions, env.step(draws.choice(actions))))
      if env.done:
        break
    return seen

  def test_the_same_seed_is_the_same_episode(self):
    for seed in range(20):
      first, second = household.Household(), household.Household()
      second.reset(seed + 1)  # what came before leaves nothing behind
      assert self.walk(first, seed) == self.walk(second, seed)

  def test_what_is_admissible_does_something(self):
    for seed in range(40):
      for step in self.walk(household.Household(), seed)[1:]:
        assert step[1].observation != household.NOTHING
        assert step[0] == sorted(set(step[0]))

  def test_what_does_something_is_admissible(self):
    for seed in range(15):
      env = household.Household(receptacles=5, objects=5, max_steps=10**6)
      env.reset(seed)
      draws = Draws(seed)
      names = [*env.world.places, *env.world.things, "desklamp 1"]
      every = [
        f"{verb} {name}"
        for verb in ("go to", "open", "close", "examine", "use")
        for name in names
      ] + [
        f"{verb} {a} {between} {b}"
        for verb, between in (
          ("take", "from"),
          ("move", "to"),
          ("clean", "with"),
          ("heat", "with"),
          ("cool", "with"),
        )
        for a in names
        for b in names
      ]
      for _ in range(6):
        actions = env.admissible_actions
        for action in every:
          # Nothing is undone: only what may not do anything is tried.
          if action not in actions:
            assert env.step(action).observation == household.NOTHING, action
        if env.step(draws.choice(actions)).done:
          break

  @hypothesis.given(
    st.lists(
      st.one_of(
        st.text(),
        st.binary().map(lambda b: b.decode("latin-1")),
        st.sampled_from(
          ["take  from ", "go to \x00", "take a 1 from  b 1", "\ud800", "use"]
          + ["examine", "open " * 99, "x" * 10**5, "clean 1 1 with -1", "İ" * 9]
          + ["move None to shelf 1", "go to shelf 1", "help", "_act look"]
        ),
      ),
      max_size=8,
    )
  )
  def test_hostile_text_never_raises(self, actions):
    env = household.Household()
    env.enter(KITCHEN)
    for action in actions:
      step = env.step(action)
      assert step.observation and step.reward == 0

  def test_it_is_an_environment(self):
    env: environments.Environment = household.Household(reward=1.0)
    assert env.max_return == 1.0
    env.reset(0)
    assert env.task == env.world.goal
    for name in ("reset", "step"):
      wanted = inspect.signature(getattr(environments.Environment, name))
      found = inspect.signature(getattr(household.Household, name))
      assert list(found.parameters) == list(wanted.parameters)


class TestMakePrompt:
  def test_the_first_step_has_no_history(self):
    prompt = household.make_prompt("cook.", "A room.", ["look", "help"])
    assert "cook." in prompt and "A room." in prompt
    assert "['look']" in prompt and "help" not in prompt
    assert "Observation 1" not in prompt
    assert "<think> </think>" in prompt and "<action> </action>" in prompt

  def test_later_ones_show_the_last_two(self):
    history = [(f"seen {k}", f"did {k}") for k in (1, 2, 3)]
    prompt = household.make_prompt("cook.", "A room.", ["look"], history)
    assert "seen 1" not in prompt
    assert (
      "[Observation 2: 'seen 2', Action 2: 'did 2'], "
      "[Observation 3: 'seen 3', Action 3: 'did 3']" in prompt
    )
    assert "3 step(s)" in prompt and "step 4" in prompt

  def test_braces_in_what_is_seen_are_kept(self):
    prompt = household.make_prompt("{x}", "{y}", ["{z}"], [("{a}", "{b}")])
    assert all(f"{{{letter}}}" in prompt for letter in "xyzab")
