# SPDX-License-Identifier: Apache-2.0
"""Many episodes in lockstep: one action each, then the next, as token ids.

All calls of the sampler have the same number of rows. Episodes that are over
make for fewer calls and not for smaller ones, so that nothing is compiled after
the first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from saw_jax.rollout import transcript as transcript_lib
from saw_jax.rollout import turns
from saw_jax.rollout.transcript import POLICY, PromptBatch, Transcript
from saw_jax.types import Array

# An episode: its seed's place among the N, and its own among the B.
Place = tuple[int, int]


class Played(NamedTuple):
  """What was sampled: a row for each step that an episode could have had."""

  transcript: Transcript  # host arrays, rows [N, B * E]
  steps: np.ndarray  # bool [N, B, E], the steps that were taken


def play(
  turn: Callable[..., tuple[Transcript, Any]],
  params: Any,
  worlds: Any,
  keys: Array,
  *,
  num_steps: int,
  rows_per_call: int,
  max_prompt_tokens: int,
  prompt_multiple: int,
  eos_ids: Sequence[int],
  pad_id: int = 0,
) -> Played:
  """Plays episodes of all seeds until they are over, or out of `num_steps`.

  `worlds.prompts(places)` says what the policy is asked, and
  `worlds.act(places, actions)` which episodes are over. It gets tokens without
  `eos_ids`, or None where an engine could not sample any. An action's key is
  its episode's, of `keys [N, B]`, with the step folded in. A call of the
  sampler, `(params, prompts, keys, kept=) -> (rows, kept)` with what the call
  before has kept, has `rows_per_call` prompts of each seed. Where all episodes
  are of one call, each stays in its row.
  """
  num_seeds, num_episodes = keys.shape
  most = -(-max_prompt_tokens // prompt_multiple) * prompt_multiple
  rows = {}  # (n, b, step) -> what was sampled
  kept, prompts, asked = turns.Kept(), {}, None
  running = [list(range(num_episodes)) for _ in range(num_seeds)]
  for step in range(num_steps):
    places = [(n, b) for n, own in enumerate(running) for b in own]
    if not places:
      break
    prompts |= zip(places, worlds.prompts(places), strict=True)
    actions = {}
    # Long prompts beside long ones: a call is as wide as its longest.
    queues = [
      sorted(own, key=lambda b, n=n: -(-len(prompts[n, b]) // prompt_multiple))
      for n, own in enumerate(running)
    ]
    most_rows = max(map(len, running))
    kept = kept if most_rows <= rows_per_call else None
    if kept and kept.cache:
      queues = asked.tolist()  # All in their rows, also those that are over.
    for first in range(0, most_rows, rows_per_call):
      chosen = [own[first : first + rows_per_call] for own in queues]
      batch, asked = _fill(chosen, prompts, rows_per_call, prompt_multiple)
      step_keys = _step_keys(keys, asked, step)
      sampled, kept = turn(params, batch, step_keys, kept=kept)
      sampled = transcript_lib.pad_left(sampled, most)
      for n, own in enumerate(chosen):
        for c, b in enumerate(own):
          if b not in running[n]:
            continue
          row = jax.tree.map(lambda x, n=n, c=c: x[n, c], sampled)
          rows[n, b, step] = row.replace(group_ids=np.int32(b))
          action = row.tokens[row.roles == POLICY].tolist()
          words = [token for token in action if token not in eos_ids]
          actions[n, b] = words if action else None
    over = worlds.act(places, [actions[place] for place in places])
    for (n, b), is_over in zip(places, over, strict=True):
      if is_over:
        running[n].remove(b)
  # Steps that were not taken are padding.
  empty = jax.tree.map(np.zeros_like, row).replace(
    tokens=np.full_like(row.tokens, pad_id),
    starts=np.int32(most),
    ends=np.int32(most),
  )
  every = [
    rows.get((n, b, step), empty.replace(group_ids=np.int32(b)))
    for n, b, step in np.ndindex(*keys.shape, num_steps)
  ]
  whole = jax.tree.map(lambda *own: np.stack(own), *every)
  whole = jax.tree.map(lambda x: x.reshape(num_seeds, -1, *x.shape[1:]), whole)
  steps = np.zeros((*keys.shape, num_steps), bool)
  steps[tuple(np.array(list(rows)).T)] = True
  return Played(whole, steps)


def _fill(
  chosen: Sequence[Sequence[int]],
  prompts: dict[Place, Sequence[int]],
  size: int,
  multiple: int,
) -> tuple[PromptBatch, np.ndarray]:
  """Lays the chosen episodes out in `size` rows, repeating to fill up."""
  anyone = next((n, own[0]) for n, own in enumerate(chosen) if own)
  places = [
    (n, own[min(c, len(own) - 1)]) if own else anyone
    for n, own in enumerate(chosen)
    for c in range(size)
  ]
  flat = [prompts[place] for place in places]
  batch = transcript_lib.pad_prompts(flat, multiple=multiple)
  shape = (len(chosen), size)
  batch = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), batch)
  return batch, np.array(places, np.int32)[:, 1].reshape(shape)


@jax.jit
def _step_keys(keys: Array, rows: Array, step: int) -> Array:
  """The keys of the episodes `rows [N, C]`, with the step folded in."""
  chosen = jax.vmap(lambda own, rows: own[rows])(keys, rows)
  fold = jax.vmap(jax.random.fold_in, (0, None))
  return jax.vmap(fold, (0, None))(chosen, step)
