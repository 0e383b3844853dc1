"""The batch that an update learns from."""

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import world_model
from saw_jax.rollout import transcript as transcript_lib
from saw_jax.training import packing as packing_lib
from saw_jax.types import Array


@flax.struct.dataclass
class TrainBatch:
  """`B` transcripts with what the losses need of them.

  `S` is the whole sequence, `T = S - prompt_size` the part after the prompts.
  An optional field that is `None` was not recorded; a loss that needs it says
  so when it is traced.
  """

  tokens: Array  # int32 [B, S]
  roles: Array  # int8 [B, S]
  starts: Array  # int32 [B], first real token
  advantages: Array  # float32 [B]
  old_log_probs: Array | None = None  # [B, T], before this step's updates
  behave_log_probs: Array | None = None  # [B, T], of the sampler
  ref_log_probs: Array | None = None  # [B, T], of the frozen reference
  value_targets: Array | None = None  # float32 [B], what the value head learns
  # [B] each: how rows add up to the world model's loss
  world: world_model.RowWeights | None = None
  packing: packing_lib.Packing | None = None  # None: rows as they are
  prompt_size: int = flax.struct.field(pytree_node=False, default=0)

  @property
  def completion_mask(self) -> Array:
    """True on the tokens that the policy chose. Shape `[B, T]`."""
    return self.roles[..., self.prompt_size :] == transcript_lib.POLICY

  @property
  def observation_mask(self) -> Array:
    """True on the tokens that the environment wrote. Shape `[B, T]`."""
    return self.roles[..., self.prompt_size :] == transcript_lib.OBSERVATION

  @property
  def valid(self) -> Array:
    """True on every real token. Shape `[B, S]`."""
    return self.roles != transcript_lib.PAD

  @property
  def positions(self) -> Array:
    """Position of each token in its own sequence, 0 on padding. `[B, S]`."""
    index = jnp.arange(self.tokens.shape[-1], dtype=jnp.int32)
    return jnp.maximum(index[None] - self.starts[:, None], 0)

  def require(self, field: str, user: str) -> Array:
    """Returns an optional field, or says which loss misses it."""
    value = getattr(self, field)
    if value is None:
      raise ValueError(f"{user} needs {field}, which this batch does not hold")
    return value


def make_batch(
  transcript: transcript_lib.Transcript, advantages: Array
) -> TrainBatch:
  """Joins a transcript of `P * G` rows with an advantage each, `[P, G]`."""
  return TrainBatch(
    tokens=transcript.tokens,
    roles=transcript.roles,
    starts=transcript.starts,
    advantages=advantages.reshape(transcript.starts.shape),
    behave_log_probs=transcript.behave_log_probs,
    prompt_size=transcript.prompt_size,
  )


def split_rows(batch: TrainBatch, count: int) -> TrainBatch:
  """Splits `B` rows into `count` parts: arrays `[count, B / count, ...]`.

  Part `k` holds the rows `k, k + count, ...`: an axis that is sharded over
  devices stays sharded inside every part.
  """
  rows = batch.tokens.shape[0]
  if rows % count:
    raise ValueError(f"{rows} rows do not split into {count} equal parts")
  return jax.tree.map(
    # Packed rows are of another number, and split alike.
    lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1),
    batch,
  )


def pack_rows(batch: TrainBatch, layout: packing_lib.Layout) -> TrainBatch:
  """Packs host arrays `[N, B, ...]`, in place of any packing they have."""
  return batch.replace(packing=packing_lib.pack(batch, layout))


def take_rows(batch: TrainBatch, part: int, parts: int) -> TrainBatch:
  """Takes the rows of mini-batch `part`, of arrays `[N, B, ...]`, unpacked.

  Groups stay whole where `parts` divides the number of prompts.
  """
  rows = batch.tokens.shape[1]
  if rows % parts:
    raise ValueError(f"{rows} rows do not split into {parts} mini-batches")
  size = rows // parts
  return jax.tree.map(
    lambda x: x[:, part * size : (part + 1) * size], batch.replace(packing=None)
  )
