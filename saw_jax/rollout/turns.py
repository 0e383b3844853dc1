# SPDX-License-Identifier: Apache-2.0
"""From one turn of many episodes to the next, without reading all of it anew.

A prompt often begins as the last one of its episode did, and may go on with
what was answered. What it shares with a row that was read is compared token by
token: the same text in other tokens is another prefix.
"""

from typing import Any, NamedTuple

import numpy as np

from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array

PART = 128  # tokens of prompts that are read at a time, where some are shared


class Kept(NamedTuple):
  """What a turn has read, for the next one by the same weights: if anything."""

  cache: Any = None  # keys and values, where they were sampled
  transcript: Transcript | None = None  # of the rows [N, B], on the host


class Shared(NamedTuple):
  """What prompts have in common with a row of the turn before. `[N, B]`."""

  sources: Array  # int32, that row, of those in the same shard
  shifts: Array  # int32, how much further to the right it began
  counts: Array  # int32, of tokens, but never a prompt's last

  def unread(self, lengths: Array) -> Array:
    """How many tokens at the ends of prompts are read: as many of each row."""
    return (lengths - self.counts).max()


def share(last: Transcript, prompts: PromptBatch, shards: int = 1) -> Shared:
  """Finds the longest prefix of each prompt that a seed and shard has read."""
  starts = prompts.tokens.shape[-1] - np.asarray(prompts.lengths)
  # From the left, -1 where nothing was read: so was the token drawn last.
  width, size = last.tokens.shape[-1], starts.shape[1] // shards
  places = last.starts[..., None] + np.arange(width)
  read = np.take_along_axis(last.tokens, np.minimum(places, width - 1), -1)
  read = np.where(places < last.ends[..., None] - 1, read, -1)
  found = np.zeros((3, *starts.shape), np.int32)
  for n, b in np.ndindex(*starts.shape):
    own = slice(b // size * size, b // size * size + size)
    ids = prompts.tokens[n, b, starts[n, b] : -1][: width - 1]
    differs = read[n, own, : len(ids) + 1] != np.append(ids, -2)
    counts = differs.argmax(-1)
    source = counts.argmax()
    shift = last.starts[n, own][source] - starts[n, b]
    found[:, n, b] = source, shift, counts[source]
  return Shared(*found)
