"""Rooms of chests by hand."""

import dataclasses

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.vault import task as vault

TASK = vault.VaultTask(vault.VaultConfig(form="compact"))


def play(seed, *actions):
  env = TASK.make("train")
  return env, [env.reset(seed)] + [env.step(action) for action in actions]


def test_an_episode_by_hand():
  env, (first, *steps) = play(
    *(3, "open elm", "take green", "open iron", "open elm", "take white"),
    *("open pine", "take black", "open brass"),
  )
  things = "oak, iron, elm white, pine black, brass lamp"
  assert env.task == f"get lamp in dusk: {things}"
  assert first == "you come in; hand, floor blue green red"
  assert [step.observation.partition(";")[0] for step in steps] == [
    "nothing happens",  # the hand is empty
    "you have green",
    "key of elm",  # which is not the iron chest's
    "open elm",
    "you have white",
    "open pine",
    "you have black",
    "open brass, you have lamp",
  ]
  seen = "you have white; hand white, floor blue green red"
  assert steps[4].observation == seen
  assert [step.reward for step in steps] == [0.0] * 7 + [1.0]
  assert [step.done for step in steps] == [False] * 7 + [True]


def test_a_rule_is_of_the_room_whatever_the_split_and_differs_between_rooms():
  rules = {}
  for split in ("train", "test"):
    env = TASK.make(split)
    for seed in range(64):
      env.reset(seed)
      rules.setdefault(env.room, set()).add(tuple(env.key_of.items()))
  assert len(rules) == 8
  assert all(len(some) == 1 for some in rules.values())
  assert len(set.union(*rules.values())) > 6


def wins(wrong_rate):
  env, won = TASK.make("test"), 0
  for seed in range(200):
    draws = Draws("play", seed)
    env.reset(seed)
    expert = TASK.expert(env, draws)
    while not env.done:
      action = next(expert)
      if draws.chance(wrong_rate):
        action = draws.choice(env.admissible_actions)
      won += env.step(action).reward
  return won / 200


def test_who_knows_the_rule_wins_and_who_tries_at_random_does_not():
  assert wins(0.0) == 1.0
  assert wins(1.0) < 0.06


def test_a_rule_of_an_episode_comes_back_in_no_other():
  config = dataclasses.replace(TASK.config, rule_per_episode=True)
  env, rules = vault.VaultTask(config).make("train"), set()
  for seed in range(64):
    env.reset(seed)
    rules.add((env.room, *env.key_of.values()))
  assert len(rules) > 60
  told = TASK.demonstrations(40, seed=0, rule_per_episode=True)
  assert told == vault.VaultTask(config).demonstrations(40, seed=0)
  assert told != TASK.demonstrations(40, seed=0)
