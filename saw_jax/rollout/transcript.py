# SPDX-License-Identifier: Apache-2.0
"""Prompts going into a rollout, and the one record that comes out of it."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.types import Array

# Who wrote a token. Masks come from roles, never from token values.
PAD = 0  # nobody
PROMPT = 1  # the task
POLICY = 2  # sampled, its end-of-sequence token included
OBSERVATION = 3  # the environment, between two turns of the policy
GLUE = 4  # the chat template, between turns


@flax.struct.dataclass
class PromptBatch:
  """Prompts, padded on the left so that they end together."""

  tokens: Array  # int32 [P, S]
  lengths: Array  # int32 [P]
  ids: Array  # int32 [P], of the examples: they go into the row keys
  # int32 [P], tokens at the end of each prompt that were sampled before: the
  # next one gets the key that follows. None: there are none.
  sampled: Array | None = None

  @property
  def first_times(self) -> Array:
    """Which key of its row the next token gets."""
    none = jnp.zeros_like(self.lengths)
    return none if self.sampled is None else self.sampled


@flax.struct.dataclass
class Transcript:
  """What happened in `B = P * G` rows: the rows of a prompt are neighbours.

  Per-token arrays of an update, such as masks, are `[B, T]` and begin at
  `prompt_size`; `valid` and `positions` are `[B, S]`. All properties allow more
  leading axes, such as one of seeds.
  """

  tokens: Array  # int32 [B, S], prompts padded left, the rest right
  roles: Array  # int8 [B, S], see PAD to GLUE
  starts: Array  # int32 [B], the first real token
  ends: Array  # int32 [B], one past the last real token
  behave_log_probs: Array  # float32 [B, T], of the distribution sampled from
  group_ids: Array  # int32 [B], the prompt's place in its batch
  prompt_size: int = flax.struct.field(pytree_node=False)  # S - T
  # float32 [B, T], of the distributions sampled from. None: not recorded
  entropies: Array | None = None

  @property
  def completion_mask(self) -> Array:
    return self.roles[..., self.prompt_size :] == POLICY

  @property
  def observation_mask(self) -> Array:
    return self.roles[..., self.prompt_size :] == OBSERVATION

  @property
  def completion_lengths(self) -> Array:
    return self.completion_mask.sum(-1).astype("int32")

  @property
  def valid(self) -> Array:
    return self.roles != PAD

  @property
  def positions(self) -> Array:
    """Each token's distance from its row's first."""
    order = np.arange(self.tokens.shape[-1], dtype=np.int32)
    order = order.reshape((1,) * (self.tokens.ndim - 1) + (-1,))
    return jnp.maximum(order - self.starts[..., None], 0)


def pad_prompts(
  prompts: Sequence[Sequence[int]],
  *,
  ids: Sequence[int] | None = None,
  multiple: int = 1,
) -> PromptBatch:
  """Lays prompts of token ids out in one array, padded to a `multiple`."""
  lengths = [len(prompt) for prompt in prompts]
  if not lengths or not min(lengths):
    raise ValueError(f"there is an empty prompt, or none: lengths {lengths}")
  size = -(-max(lengths) // multiple) * multiple
  tokens = np.zeros((len(prompts), size), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, size - len(prompt) :] = prompt
  ids = range(len(prompts)) if ids is None else ids
  return PromptBatch(tokens, *np.array([lengths, ids], np.int32))


def pad_left(transcript: Transcript, prompt_size: int) -> Transcript:
  """Makes room for longer prompts, in NumPy."""
  more = prompt_size - transcript.prompt_size
  widths = [(0, 0)] * (transcript.tokens.ndim - 1) + [(more, 0)]
  return transcript.replace(
    tokens=np.pad(transcript.tokens, widths),
    roles=np.pad(transcript.roles, widths, constant_values=PAD),
    starts=transcript.starts + more,
    ends=transcript.ends + more,
    prompt_size=prompt_size,
  )


def write(
  tokens_S: np.ndarray, roles_S: np.ndarray, begin: int, *parts: Any
) -> int:
  """Writes parts of a row, `(tokens, role)` each; returns where they end."""
  for part, role in parts:
    end = begin + len(part)
    tokens_S[begin:end], roles_S[begin:end] = part, role
    begin = end
  return begin


def append_observations(
  transcript: Transcript,
  observations: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  before: Sequence[int] = (),
) -> Transcript:
  """Appends what the environment said to what the policy said, in NumPy.

  The first `max_tokens` of an observation follow the policy's last, behind the
  chat template's tokens `before`, which have the role `GLUE`.
  PaW, https://arxiv.org/abs/2606.02388
  """
  wider = ((0, 0), (0, len(before) + max_tokens))
  # Copies: what has a position gets more of them.
  longer = jax.tree.map(
    lambda x: np.pad(x, wider) if np.ndim(x) == 2 else np.array(x), transcript
  )
  rows = zip(longer.tokens, longer.roles, observations, strict=True)
  for row, (tokens, roles, said) in enumerate(rows):
    if len(said):
      parts = (before, GLUE), (said[:max_tokens], OBSERVATION)
      longer.ends[row] = write(tokens, roles, longer.ends[row], *parts)
  return longer
