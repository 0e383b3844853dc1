# SPDX-License-Identifier: Apache-2.0
"""Many episodes in lockstep: one action each, then the next, as token ids.

Every step asks the sampler about the episodes that still run, in calls of one
fixed number of rows. A finished episode leaves by making the calls fewer, so
that nothing is compiled after the first. What is asked and what becomes of an
answer is the affair of a `Worlds`; text is not seen here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from saw_jax.rollout import transcript as transcript_lib
from saw_jax.rollout.transcript import PAD, POLICY, PromptBatch, Transcript
from saw_jax.types import Array

# An episode: its seed's place among the N, and its own among the B.
Place = tuple[int, int]


class Worlds(Protocol):
  """What the episodes of all seeds are played in."""

  def prompts(self, places: Sequence[Place]) -> list[Sequence[int]]:
    """Returns what the policy is asked now, for each running episode."""
    ...

  def act(
    self, places: Sequence[Place], actions: Sequence[Sequence[int]]
  ) -> list[bool]:
    """Takes the tokens of an action each; returns which episodes are over."""
    ...


class Played(NamedTuple):
  """What was sampled: a row for each step that an episode could have had."""

  transcript: Transcript  # host arrays, rows [N, B * E]
  steps: np.ndarray  # bool [N, B, E], the steps that were taken


def play(
  generate: Callable[[Any, PromptBatch, Array], Transcript],
  params: Any,
  worlds: Worlds,
  keys: Array,
  *,
  num_steps: int,
  rows_per_call: int,
  max_prompt_tokens: int,
  prompt_multiple: int,
  max_new_tokens: int,
  eos_ids: Sequence[int],
  pad_id: int = 0,
) -> Played:
  """Plays episodes of all seeds until they are over, or out of `num_steps`.

  The key of an action is that of its episode, of `keys` `[N, B]`, with the step
  folded in. A call of the sampler has `rows_per_call` prompts of each seed, of
  a size that is rounded up to `prompt_multiple`. `worlds` do not get the
  `eos_ids` that end an action.
  """
  num_seeds, num_episodes = keys.shape
  most = -(-max_prompt_tokens // prompt_multiple) * prompt_multiple
  shape = (num_seeds, num_episodes, num_steps)
  record = _Record(shape, most, max_new_tokens, pad_id)
  running = [list(range(num_episodes)) for _ in range(num_seeds)]
  for step in range(num_steps):
    places = [(n, b) for n, rows in enumerate(running) for b in rows]
    if not places:
      break
    prompts = dict(zip(places, worlds.prompts(places), strict=True))
    actions = {}
    calls = math.ceil(max(map(len, running)) / rows_per_call)
    # Long prompts beside long ones: a call is as wide as its longest.
    queues = [
      sorted(rows, key=lambda b, n=n: -(-len(prompts[n, b]) // prompt_multiple))
      for n, rows in enumerate(running)
    ]
    for call in range(calls):
      part = slice(call * rows_per_call, (call + 1) * rows_per_call)
      chosen = [rows[part] for rows in queues]
      batch, rows = _fill(chosen, prompts, rows_per_call, prompt_multiple)
      sampled = jax.device_get(
        generate(params, batch, _step_keys(keys, rows, step))
      )
      for n, own in enumerate(chosen):
        for c, b in enumerate(own):
          actions[n, b] = record.write(sampled, n, c, (n, b, step))
    answers = [
      [token for token in actions[place] if token not in eos_ids]
      for place in places
    ]
    over = worlds.act(places, answers)
    for (n, b), is_over in zip(places, over, strict=True):
      if is_over:
        running[n].remove(b)
  return record.finish()


def _fill(
  chosen: Sequence[Sequence[int]],
  prompts: dict[Place, Sequence[int]],
  size: int,
  multiple: int,
) -> tuple[PromptBatch, np.ndarray]:
  """Lays the chosen episodes of each seed out in `size` rows.

  Rows that are left over repeat an episode, so that they end when it does.
  """
  anyone = next((n, own[0]) for n, own in enumerate(chosen) if own)
  flat, rows = [], np.zeros((len(chosen), size), np.int32)
  for n, own in enumerate(chosen):
    for c in range(size):
      place = (n, own[min(c, len(own) - 1)]) if own else anyone
      flat.append(prompts[place])
      rows[n, c] = place[1]
  batch = transcript_lib.pad_prompts(flat, multiple=multiple)
  shape = (len(chosen), size)
  batch = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), batch)
  return batch, rows


@jax.jit
def _step_keys(keys: Array, rows: Array, step: int) -> Array:
  """The keys of the episodes `rows [N, C]`, with the step folded in."""

  def one_seed(own, chosen):
    return jax.vmap(jax.random.fold_in, (0, None))(own[chosen], step)

  return jax.vmap(one_seed)(keys, rows)


class _Record:
  """What was sampled, `[N, B, E, ...]`, filled step by step."""

  def __init__(self, shape, prompt_size: int, width: int, pad_id: int):
    size = prompt_size + width
    groups = np.arange(shape[1], dtype=np.int32)[:, None]
    self._steps = np.zeros(shape, bool)
    self._rows = Transcript(
      tokens=np.full((*shape, size), pad_id, np.int32),
      roles=np.full((*shape, size), PAD, np.int8),
      starts=np.full(shape, prompt_size, np.int32),
      ends=np.full(shape, prompt_size, np.int32),
      behave_log_probs=np.zeros((*shape, width), np.float32),
      group_ids=np.broadcast_to(groups, shape),
      prompt_size=prompt_size,
    )

  def write(self, sampled: Transcript, n: int, c: int, where) -> list[int]:
    """Keeps a row, and returns the tokens of its action."""
    rows, own = self._rows, sampled.prompt_size
    first = rows.prompt_size - own
    self._steps[where] = True
    rows.tokens[where][first:] = sampled.tokens[n, c]
    rows.roles[where][first:] = sampled.roles[n, c]
    rows.starts[where] = sampled.starts[n, c] + first
    rows.ends[where] = sampled.ends[n, c] + first
    rows.behave_log_probs[where][:] = sampled.behave_log_probs[n, c]
    if sampled.entropies is not None:
      if rows.entropies is None:
        empty = np.zeros_like(rows.behave_log_probs)
        self._rows = rows = rows.replace(entropies=empty)
      rows.entropies[where][:] = sampled.entropies[n, c]
    chosen = sampled.roles[n, c, own:] == POLICY
    return sampled.tokens[n, c, own:][chosen].tolist()

  def finish(self) -> Played:
    N, B, E = self._steps.shape
    rows = jax.tree.map(lambda x: x.reshape(N, B * E, *x.shape[3:]), self._rows)
    return Played(rows, self._steps)
