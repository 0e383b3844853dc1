"""How many tokens of prompts of episodes were read the turn before.

  python benchmarks/turns.py [--tokenizer=CHECKPOINT, of the papers' scale]

Counts, and runs no model: 64 episodes in one call, of each table's expert, a
quarter of whose actions are mistakes, and of games of Gymnasium at random. A
turn shares the longest prefix, in tokens, of the last prompt with its action.
Read is what `rollout.turns` reads of a call with its padding, in parts.
"""

import argparse
import itertools
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from saw_jax.rollout import generate, turns
from saw_jax.run import agents, registry, rollouts
from saw_jax.run import config as config_lib
from saw_jax.run.sections import RolloutConfig
from saw_jax.tasks.environments import Situation
from saw_jax.tokenizer import ByteTokenizer

EPISODES, GROUP, MISTAKES = 64, 8, 0.25
GAME = dict(form="compact", shown=100, max_steps=12)


def play(task, tokenizer, most):
  """The tokens of each turn of some episodes: prompts and actions."""
  config = RolloutConfig(max_prompt_tokens=most, long_prompts="truncate")
  encoder, episodes = rollouts.Encoder(tokenizer, config), []
  starts = itertools.islice(task._starts("train", 0), EPISODES)
  for start, draws in starts:
    env, history, found = task.make("train"), (), []
    seen = env.reset(start)
    expert = task.expert and task.expert(env, draws)
    while not env.done:
      now = Situation(env.task, seen, tuple(env.admissible_actions))
      _, ids = agents.write_prompt(task, encoder, now, history)
      action = next(expert) if expert else draws.choice(now.actions)
      if expert and draws.chance(MISTAKES):
        action = task.mistake(now, draws)
      found.append((ids, tokenizer.encode(task.write_reply(action))))
      history = (*history, (seen, action))
      seen = env.step(action).observation
    episodes.append(found)
  return episodes


def count(episodes):
  """Tokens a prompt, and the shares of them: shared, first, and read."""
  total = shared = read = width = 0
  has, goes_on = False, True  # what a turn has kept; whether it saved anything
  for turn in range(max(map(len, episodes))):
    lacks, prompts = [], []
    for own in (own for own in episodes if len(own) > turn):
      prompts.append(ids := own[turn][0])
      last = [*own[turn - 1][0], *own[turn - 1][1]] if turn else []
      size = min(len(ids) - 1, len(last))
      differs = np.array(ids[:size]) != np.array(last[:size])
      same = int(differs.argmax()) if differs.any() else size
      shared, total = shared + same, total + len(ids)
      lacks.append(len(ids) - same)
    longest = max(map(len, prompts))
    rest, is_long = longest, longest > turns.PART
    if is_long and has:  # As `rollouts.Native.turn` decides it.
      goes_on &= max(lacks) + turns.PART <= longest
      _, part = generate.whole_parts(longest, turns.PART)
      rest = min(-(-max(lacks) // part) * part, longest) if goes_on else longest
    has = is_long and goes_on
    read, width = read + rest * len(lacks), width + longest * len(lacks)
  first = sum(len(own[0][0]) for own in episodes) * (1 - 1 / GROUP)
  rows = sum(map(len, episodes))
  return total / rows, shared / total, first / total, read / width


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tokenizer", help="of the papers' scale")
  given = parser.parse_args().tokenizer
  cases = {}
  for table in ("household", "shop", "search"):
    for scale in ("tiny", "paper") if given else ("tiny",):
      run = config_lib.typed(config_lib.load(f"paw/{table}:scale={scale}"))
      task = registry.make_task(run.task.name, run.task.options)
      name = given if run.checkpoint else run.tokenizer.name
      tokenizer = registry.make_tokenizer(name, run.chat_template_options)
      cases[f"{table} {scale}"] = task, tokenizer, run.rollout.max_prompt_tokens
  for env in ("FrozenLake-v1", "Taxi-v4"):
    task = registry.make_task("gymnasium", {"env": env, **GAME})
    cases[env] = task, ByteTokenizer(), 4096
  print("| | tokens | shared | first, of groups | read |\n|" + " --- |" * 5)
  for name, case in cases.items():
    tokens, *shares = count(play(*case))
    shown = " | ".join(f"{x:.0%}" for x in shares)
    print(f"| {name} | {tokens:.0f} | {shown} |")


if __name__ == "__main__":
  main()
