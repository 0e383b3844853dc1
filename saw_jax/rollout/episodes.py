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

  `keys` `[N, B]` has one for each episode: an action's is that of its episode
  with the step folded in, whatever else is in a call of the sampler, which has
  `rows_per_call` prompts of each seed. Prompt sizes are rounded up to
  `prompt_multiple`; each size that occurs is compiled. `worlds` do not get the
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
  """The arrays of a `Played`, filled step by step."""

  def __init__(self, shape, prompt_size: int, width: int, pad_id: int):
    size = prompt_size + width
    self._prompt_size = prompt_size
    self._steps = np.zeros(shape, bool)
    self._tokens = np.full((*shape, size), pad_id, np.int32)
    self._roles = np.full((*shape, size), PAD, np.int8)
    self._starts = np.full(shape, prompt_size, np.int32)
    self._ends = np.full(shape, prompt_size, np.int32)
    self._log_probs = np.zeros((*shape, width), np.float32)
    self._entropies: np.ndarray | None = None

  def write(self, sampled: Transcript, n: int, c: int, where) -> list[int]:
    """Keeps a row, and returns the tokens of its action."""
    own = sampled.prompt_size
    first = self._prompt_size - own
    self._steps[where] = True
    self._tokens[where][first:] = sampled.tokens[n, c]
    self._roles[where][first:] = sampled.roles[n, c]
    self._starts[where] = sampled.starts[n, c] + first
    self._ends[where] = sampled.ends[n, c] + first
    self._log_probs[where][:] = sampled.behave_log_probs[n, c]
    if sampled.entropies is not None:
      if self._entropies is None:
        self._entropies = np.zeros_like(self._log_probs)
      self._entropies[where][:] = sampled.entropies[n, c]
    chosen = sampled.roles[n, c, own:] == POLICY
    return sampled.tokens[n, c, own:][chosen].tolist()

  def finish(self) -> Played:
    num_seeds, num_episodes, num_steps = self._steps.shape

    def rows(x: np.ndarray) -> np.ndarray:
      return x.reshape(num_seeds, num_episodes * num_steps, *x.shape[3:])

    groups = np.repeat(np.arange(num_episodes, dtype=np.int32), num_steps)
    return Played(
      Transcript(
        tokens=rows(self._tokens),
        roles=rows(self._roles),
        starts=rows(self._starts),
        ends=rows(self._ends),
        behave_log_probs=rows(self._log_probs),
        group_ids=np.tile(groups, (num_seeds, 1)),
        policy_versions=np.zeros(rows(self._ends).shape, np.int32),
        prompt_size=self._prompt_size,
        entropies=None if self._entropies is None else rows(self._entropies),
      ),
      self._steps,
    )
