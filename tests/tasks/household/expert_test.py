"""The household's expert, wherever its mistakes lead."""

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import world as hw
from saw_jax.tasks.household.expert import expert, shortest_plan
from saw_jax.tasks.household.task import HouseholdConfig, HouseholdTask


def make(**options):
  return HouseholdTask(HouseholdConfig(**options)).make("train")


def play(env, seed, wrong=0.0):
  """Plays an episode; returns its actions."""
  draws = Draws("test", seed)
  ours = expert(env, draws)
  actions = []
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
def test_it_solves_every_world_whatever_happens_to_it(kind, wrong):
  env = make(kinds=(kind,), receptacles=5, objects=6, max_steps=400)
  for seed in range(40):
    env.reset(seed)
    play(env, seed, wrong)
    assert env.won, env.world


def test_it_knows_only_what_it_has_seen():
  env = make(receptacles=8, objects=8)
  longer = 0
  for seed in range(60):
    env.reset(seed)
    actions = play(env, seed)
    shortest = shortest_plan(env.world)
    assert len(actions) >= len(shortest)
    longer += len(actions) > len(shortest)
    for i, action in enumerate(actions):
      if action.startswith("take "):
        place = action.partition(" from ")[2]
        assert f"go to {place}" in actions[:i]
  assert longer > 30
