"""How many steps a second the household takes.

  python benchmarks/household_steps.py

Plays admissible actions at random, each time with the list of what is
admissible and a new world when an episode is over, and prints the median over
repetitions.
"""

import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

REPETITIONS = 5
STEPS = 20_000


def main() -> None:
  from saw_jax.tasks.draws import Draws
  from saw_jax.tasks.household.task import HouseholdTask

  rates = []
  for repetition in range(REPETITIONS):
    env, draws = HouseholdTask().make("train"), Draws(repetition)
    episode = 0
    env.reset(episode)
    start = time.perf_counter()
    for _ in range(STEPS):
      if env.step(draws.choice(env.admissible_actions)).done:
        episode += 1
        env.reset(episode)
    rates.append(STEPS / (time.perf_counter() - start))
  print(f"{statistics.median(rates):,.0f} steps a second")


if __name__ == "__main__":
  main()
