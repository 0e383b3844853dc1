"""Picks a few completions of a step, with their rewards, for people to read."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from saw_jax.run import agents, rollouts
from saw_jax.run.rollouts import Encoder, Examples, Rollout
from saw_jax.tasks.base import Component

PROMPTS, OF_EACH = 2, 4  # of a seed and step
MOST_CHARS = 4000  # of a text; longer ones lose their middle

Row = dict[str, Any]
Rows = list[list[Row]]  # of each seed


def of_answers(
  examples: Examples,
  rollout: Rollout,
  advantages: np.ndarray,
  components: Sequence[Component],
  encoder: Encoder,
) -> Rows:
  """Rows of each seed; `advantages` are those of rows `[N, P * G]`."""
  shape = rollout.lengths.shape
  texts = np.array(rollouts.texts_of(rollout, encoder), object).reshape(shape)
  advantages = np.asarray(advantages).reshape(shape)
  names = [component.name for component in components]

  def row(n: int, p: int, g: int) -> Row:
    values = zip(rollout.rewards[n, p, g], rollout.scored[n, p, g], strict=True)
    rewards = [_number(value) if known else None for value, known in values]
    return _row(
      "\n\n".join(m["content"] for m in examples[n][p].messages),
      texts[n, p, g],
      dict(zip(names, rewards, strict=True)),
      _number(advantages[n, p, g]),
      rollouts.OUTCOMES[rollout.outcomes[n, p, g]].value,
    )

  return _each(row, shape)


def of_episodes(played: agents.Episodes, max_return: float) -> Rows:
  """Rows of each seed: an episode is its first prompt and what followed."""
  shape = played.failed.shape

  def row(n: int, p: int, g: int) -> Row:
    turns = played.turns[n][p * shape[2] + g]
    said = [
      f"[action {count}{'' if turn.valid else ', does not parse'}] "
      f"{turn.reply}\n[world] {turn.observation}"
      for count, turn in enumerate(turns, start=1)
    ]
    paid = float(played.returns[n, p, g])
    won, failed = paid >= max_return, played.failed[n, p, g]
    return _row(
      turns[0].prompt if turns else "",
      "\n".join(said),
      {"return": None if failed else paid},
      None,
      "failed" if failed else "right" if won else "wrong",
    )

  return _each(row, shape)


def _each(row, shape: Sequence[int]) -> Rows:
  places = list(np.ndindex(min(shape[1], PROMPTS), min(shape[2], OF_EACH)))
  return [[row(n, *place) for place in places] for n in range(shape[0])]


def _row(prompt, completion, rewards, advantage, outcome) -> Row:
  values = list(rewards.values())
  return {
    "prompt": shorten(prompt, MOST_CHARS),
    "completion": shorten(completion, MOST_CHARS),
    **{f"reward/{name}": value for name, value in rewards.items()},
    "total": None if None in values else sum(values),
    "advantage": advantage,
    "outcome": outcome,
  }


def shorten(text: str, most: int) -> str:
  """Cuts a text to about `most` characters, all of them valid Unicode."""
  if len(text) > most:
    head, tail = text[: most * 3 // 4], text[-most // 4 :]
    cut = len(text) - len(head) - len(tail)
    text = f"{head}\n[... {cut:,} more ...]\n{tail}"
  return text.encode("utf-8", "replace").decode()


def _number(value) -> float | None:
  return float(value) if math.isfinite(value) else None
