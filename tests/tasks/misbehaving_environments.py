"""Environments that misbehave: what an agent task must survive."""

import os
import time

from saw_jax.tasks import environments
from saw_jax.tasks.environments import Reply, Situation, Step


class Counter:
  """Counts its steps; an action names how it misbehaves."""

  max_return = 1.0
  task = "count"
  admissible_actions = ("count", "stop")

  def reset(self, seed):
    self.seed, self.count = seed, 0
    if seed == 666:
      raise RuntimeError("no such world")
    return f"world {seed}"

  def step(self, action):
    self.count += 1
    if action == "raise":
      raise ValueError("boom")
    if action == "hang":
      time.sleep(1000)
    if action == "lose":
      raise environments.EngineLost("its engine is gone")
    if action == "die":
      os._exit(3)
    odd = {"nan": ("fine", float("nan")), "no text": (None, 0.0)}
    odd |= {"empty": ("", 0.0), "enormous": ("x" * 10_000_000, 0.0)}
    if action in odd:
      return Step(*odd[action], False)
    done = action == "stop" or self.count == 4
    return Step(f"{self.seed} at {self.count}", float(action == "stop"), done)


class CounterTask(environments.AgentTask):
  """Letters as actions: what a completion says, up to the first space."""

  name, max_steps, max_return = "counter", 4, 1.0
  episodes = {"train": 12, "test": 5}

  def make(self, split):
    return Counter()

  def prompts(self, situation: Situation, history):
    for shown in (len(history), 0):
      words = [f"{seen}>{action}" for seen, action in history[:shown]]
      yield "\n".join([*words, situation.observation])

  def read_reply(self, completion):
    word = completion.partition(" ")[0].lower()
    return Reply(word if word.isalpha() else "", word.isalpha())

  def write_reply(self, action):
    return action


class Unloadable(CounterTask):
  """Cannot be read by another process."""

  def __reduce__(self):
    return exec, ("raise RuntimeError('not here')",)
