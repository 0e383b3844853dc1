"""Which episodes an evaluation has, as hashes: a panel that can be compared.

Each episode is hashed by what a fixed walk through it shows: the task, what is
seen, what can be done, and what is paid. So worlds with other hidden rules, or
an engine that answers otherwise, have other hashes. Nothing in them depends on
the machine.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import AgentTask, Situation

_STEPS = 4  # of a walk


def walked(task: AgentTask, split: str, count: int) -> list[str]:
  """Hashes of the first `count` episodes of a split, in their order."""
  env, found = task.make(split), []
  for seed in range(min(count, task.num_episodes(split))):
    draws, seen = Draws("panel", split, seed), env.reset(seed)
    told = [env.task, seen]
    while len(told) < 2 + _STEPS and not env.done:
      actions = tuple(env.admissible_actions)
      action = task.mistake(Situation(env.task, seen, actions), draws)
      seen, reward, done = env.step(action)
      told.append(f"{actions} {action} {seen} {reward:.6g} {done}")
    found.append(short("\n".join(told).encode()))
  return found


def describe(task: Any, split: str, count: int) -> dict[str, Any] | None:
  """A panel in short, if one is known; the order of episodes is none of it."""
  hashes = task.panel(split, count) if hasattr(task, "panel") else []
  if not hashes:
    return None
  return {"split": split, "episodes": len(hashes), "digest": digest(hashes)}


def digest(hashes: Sequence[str]) -> str:
  return short("\n".join(sorted(hashes)).encode(), 16)


def short(content: bytes, digits: int = 8) -> str:
  return hashlib.sha256(content).hexdigest()[:digits]
