# SPDX-License-Identifier: Apache-2.0
"""Prompts going into a rollout, and the one record that comes out of it."""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
import numpy as np

from saw_jax.types import Array


class Role:
  """Who wrote a token. Masks come from roles, never from token values."""

  PAD = 0  # nobody
  PROMPT = 1  # the task
  POLICY = 2  # sampled, its end-of-sequence token included
  OBSERVATION = 3  # the environment, between two turns of the policy
  GLUE = 4  # the chat template, between turns


PAD, PROMPT, POLICY = Role.PAD, Role.PROMPT, Role.POLICY
OBSERVATION, GLUE = Role.OBSERVATION, Role.GLUE


@flax.struct.dataclass
class PromptBatch:
  """Prompts, padded on the left so that they end together."""

  tokens: Array  # int32 [P, S]
  lengths: Array  # int32 [P]
  ids: Array  # int32 [P], of the examples: they go into the row keys
  # int32 [P], tokens at the end of each prompt that were sampled before: the
  # next one gets the key that follows. None: there are none.
  sampled: Array | None = None


@flax.struct.dataclass
class Transcript:
  """What happened in `B = P * G` rows: the rows of a prompt are neighbours.

  Per-token arrays of an update are `[B, T]` and begin at `prompt_size`. All
  properties allow more leading axes, such as one of seeds.
  """

  tokens: Array  # int32 [B, S], prompts padded left, the rest right
  roles: Array  # int8 [B, S], see Role
  starts: Array  # int32 [B], the first real token
  ends: Array  # int32 [B], one past the last real token
  behave_log_probs: Array  # float32 [B, T], of the distribution sampled from
  group_ids: Array  # int32 [B], the prompt's place in its batch
  policy_versions: Array  # int32 [B], optimizer step of the weights
  prompt_size: int = flax.struct.field(pytree_node=False)  # S - T
  # float32 [B, T], of the distributions sampled from. None: not recorded
  entropies: Array | None = None
  # float32 [B, T], of the model's own distribution: at temperature 1, with all
  # tokens. None: not recorded
  untempered_log_probs: Array | None = None

  @property
  def completion_mask(self) -> Array:
    """True on the tokens that the policy chose. Shape `[B, T]`."""
    return self.roles[..., self.prompt_size :] == Role.POLICY

  @property
  def observation_mask(self) -> Array:
    """True on the tokens that the environment wrote. Shape `[B, T]`."""
    return self.roles[..., self.prompt_size :] == Role.OBSERVATION

  @property
  def completion_lengths(self) -> Array:
    """How many tokens the policy chose, int32. Shape `[B]`."""
    return self.completion_mask.sum(-1).astype("int32")

  @property
  def valid(self) -> Array:
    """True on the tokens that somebody wrote. Shape `[B, S]`."""
    return self.roles != Role.PAD

  @property
  def positions(self) -> Array:
    """Each token's distance from its row's first, int32. Shape `[B, S]`."""
    order = np.arange(self.tokens.shape[-1], dtype=np.int32)
    order = order.reshape((1,) * (self.tokens.ndim - 1) + (-1,))
    return jnp.maximum(order - self.starts[..., None], 0)


def pad_prompts(
  prompts: Sequence[Sequence[int]],
  *,
  ids: Sequence[int] | None = None,
  size: int | None = None,
  multiple: int = 1,
  truncate: bool = False,
  pad_id: int = 0,
) -> PromptBatch:
  """Lays prompts out in one array, in NumPy.

  Args:
    prompts: token ids; at least one, none empty.
    ids: a number per example that is its own wherever it turns up, int32; by
      default its place in this batch.
    size: of the array; by default that of the longest prompt.
    multiple: the default size is rounded up to it, so that few sizes occur and
      little is compiled.
    truncate: cut prompts longer than `size` on the left in place of raising.
    pad_id: the token put before short prompts. Nothing reads it.

  Returns:
    The batch.

  Raises:
    ValueError: there is no prompt, one is empty, or one is too long.
  """
  if not prompts:
    raise ValueError("There is no prompt to pad.")
  lengths = [len(prompt) for prompt in prompts]
  if min(lengths) == 0:
    raise ValueError(f"Prompt {lengths.index(0)} is empty.")
  if size is None:
    size = -(-max(lengths) // multiple) * multiple
  elif max(lengths) > size and not truncate:
    raise ValueError(
      f"Prompt {lengths.index(max(lengths))} has {max(lengths)} tokens and "
      f"there is room for {size}; pass truncate=True to keep its last {size}."
    )
  tokens = np.full((len(prompts), size), pad_id, np.int32)
  for row, prompt in enumerate(prompts):
    kept = list(prompt)[-size:]
    tokens[row, size - len(kept) :] = kept
  return PromptBatch(
    tokens=tokens,
    lengths=np.minimum(lengths, size).astype(np.int32),
    ids=np.arange(len(prompts), dtype=np.int32)
    if ids is None
    else np.asarray(ids, np.int32),
  )


def append_observations(
  transcript: Transcript,
  observations: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  before: Sequence[int] = (),
  after: Sequence[int] = (),
) -> Transcript:
  """Puts what the environment said behind what the policy said, in NumPy.

  Directly behind, whatever the padding: the first token of an observation is
  predicted from the policy's last. What comes earlier in a row is not changed,
  so that causal attention computes the same for it.

  Args:
    transcript: of one turn; without an axis of seeds.
    observations: token ids for each row; a row with none stays as it is.
    max_tokens: of an observation that are kept, its first ones.
    before: tokens of the chat template between the two.
    after: tokens of the chat template behind the observation.

  Returns:
    The transcript, longer by as many positions as the longest addition can
    need. The template's tokens have the role `GLUE`.

  Raises:
    ValueError: there is not one observation for each row.

  References:
    PaW, https://arxiv.org/abs/2606.02388
  """
  tokens, roles = np.array(transcript.tokens), np.array(transcript.roles)
  if len(observations) != len(tokens):
    raise ValueError(
      f"{len(observations)} observations for {len(tokens)} transcripts"
    )
  more = len(before) + max_tokens + len(after)
  wider = ((0, 0), (0, more))
  tokens, roles = np.pad(tokens, wider), np.pad(roles, wider)
  ends = np.array(transcript.ends)
  for row, observation in enumerate(observations):
    for part, role in (
      (before, GLUE),
      (list(observation)[:max_tokens], OBSERVATION),
      (after, GLUE),
    ):
      if len(observation):
        end = ends[row] + len(part)
        tokens[row, ends[row] : end] = part
        roles[row, ends[row] : end] = role
        ends[row] = end

  def widen(values):
    return None if values is None else np.pad(np.array(values), wider)

  return transcript.replace(
    tokens=tokens,
    roles=roles,
    ends=ends,
    behave_log_probs=widen(transcript.behave_log_probs),
    entropies=widen(transcript.entropies),
    untempered_log_probs=widen(transcript.untempered_log_probs),
  )
