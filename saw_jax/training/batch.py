"""The batch that an update learns from, as it is or packed.

Packed, prompts with their responses lie one after the other in rows of a fixed
length, of which each token sees its own response alone. The log-probs go back
to their places in `[B, T]`, so that no loss, mask or denominator knows of it.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import world_model
from saw_jax.rollout import transcript as transcript_lib
from saw_jax.types import Array


@flax.struct.dataclass
class Packing:
  """Where `B` rows lie in `R` packed rows of `L` tokens.

  The tokens whose log-probs are wanted, those after the prompts, come first in
  `sources` and `targets`: at most `C` of a packed row.
  """

  tokens: Array  # int32 [R, L]
  positions: Array  # int32 [R, L], in the token's own row
  segments: Array  # int32 [R, L], from 1 in each packed row; 0 is padding
  sources: Array  # int32 [R, C], place before each wanted token
  targets: Array  # int32 [R, C], the wanted tokens
  rows: Array  # int32 [B], the packed row of each row
  offsets: Array  # int32 [B], in `targets`, of its first wanted token
  prompt_ends: Array  # int32 [B], place of its last prompt token
  counts: Array  # int32 [B], of its wanted tokens


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
  lags: Array | None = None  # int32 [B], versions since a row was sampled
  kept: Array | None = None  # bool [B, T], whose advantage counts; None: all
  value_targets: Array | None = None  # float32 [B], what the value head learns
  # [B] each: how rows add up to the world model's loss
  world: world_model.RowWeights | None = None
  packing: Packing | None = None  # None: rows as they are
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

  def padded_share(self) -> np.ndarray:
    """The share of positions of an update that are padding, of `[N]` seeds."""
    real = self.valid if self.packing is None else self.packing.segments > 0
    return 1 - np.mean(real, axis=(1, 2))

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


def leave_out(batch: TrainBatch, rows: Array) -> TrainBatch:
  """Keeps the responses of some rows, but learns nothing from them."""
  chosen = batch.roles == transcript_lib.POLICY
  chosen &= rows.reshape(batch.starts.shape)[..., None]
  glue = np.int8(transcript_lib.GLUE)
  return batch.replace(roles=np.where(chosen, glue, batch.roles))


def take_rows(batch: TrainBatch, part: int, parts: int) -> TrainBatch:
  """Takes the rows of mini-batch `part`, of arrays `[N, B, ...]`, unpacked."""
  rows = batch.tokens.shape[1]
  if rows % parts:
    raise ValueError(f"{rows} rows do not split into {parts} mini-batches")
  size = rows // parts
  return jax.tree.map(
    lambda x: x[:, part * size : (part + 1) * size], batch.replace(packing=None)
  )


def first_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
  """Packs items into bins, the longest first, each where it first fits.

  At most 11/9 of the fewest bins possible, and 6/9 of a bin (Dósa 2007). Equal
  lengths keep their order, so that the same batch is packed in the same way.

  >>> first_fit(np.array([3, 6, 5, 2]), 8)
  [[1, 3], [2, 0]]
  """
  bins: list[list[int]] = []
  free: list[int] = []
  for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
    length = int(lengths[item])
    if length > capacity:
      raise ValueError(
        f"row {item} has {length} tokens, more than the {capacity} of a packed "
        "row: set loop.pack_length to at least the longest prompt and response"
      )
    place = next((k for k, room in enumerate(free) if room >= length), None)
    if place is None:
      bins.append([])
      free.append(capacity)
      place = len(bins) - 1
    bins[place].append(item)
    free[place] -= length
  return bins


def pack_rows(
  batch: TrainBatch,
  length: int,  # L
  *,
  num_shards: int = 1,  # S, devices with rows of their own: those of `pmapped`
  num_microbatches: int = 1,  # K, parts of an update, by stride: `split_rows`
  row_multiple: int = 1,  # of the packed rows of a part: the shards of a mesh
  target_multiple: int = 64,  # of C, to bound the number of compiled shapes
) -> TrainBatch:
  """Packs host arrays `[N, B, S]`, in place of any packing they have.

  The real tokens of a row are contiguous; those after the prompts are wanted.
  Row `j` of part `k` of shard `s` is packed row `(s·R' + j)·K + k` of `[R]`, so
  that the splits that cut `[B]` cut `[R]` alike; `rows` count within a part.
  """
  arrays = batch.tokens, batch.roles, batch.starts
  tokens, roles, starts = map(np.asarray, arrays)
  (N, B), S, K = starts.shape, num_shards, num_microbatches
  first = batch.prompt_size
  if B % (S * K):
    raise ValueError(f"{B} rows do not split into {S} shards of {K} parts")
  real = roles != transcript_lib.PAD
  lengths = real.sum(-1)
  prompts = real[..., :first].sum(-1)
  wanted = lengths - prompts

  # Rows of the batch, by seed, shard and part.
  members = np.arange(B).reshape(S, -1, K)
  bins = {}
  for n, s, k in np.ndindex(N, S, K):
    own = members[s, :, k]
    found = first_fit(lengths[n, own], length)
    bins[n, s, k] = [own[items] for items in found]
  # An eighth of the most that a part can need is the step from shape to shape.
  step = math.lcm(max(1, B // (S * K * 8)), row_multiple)
  height = _round_up(max(map(len, bins.values())), step)
  width = max(
    wanted[key[0], items].sum() for key, rows in bins.items() for items in rows
  )
  width = _round_up(max(int(width), 1), target_multiple)

  R = S * height * K
  sizes = dict.fromkeys(("tokens", "positions", "segments"), length)
  sizes |= dict.fromkeys(("sources", "targets"), width)
  packed = {k: np.zeros((N, R, size), np.int32) for k, size in sizes.items()}
  rows, offsets, prompt_ends = np.zeros((3, N, B), np.int32)
  for (n, s, k), filled in bins.items():
    for j, items in enumerate(filled):
      r, begin, taken = (s * height + j) * K + k, 0, 0
      for segment, b in enumerate(items, start=1):
        own, prompt, count = lengths[n, b], prompts[n, b], wanted[n, b]
        here, there = slice(begin, begin + own), slice(taken, taken + count)
        packed["tokens"][n, r, here] = tokens[n, b, starts[n, b] :][:own]
        packed["positions"][n, r, here] = np.arange(own)
        packed["segments"][n, r, here] = segment
        packed["sources"][n, r, there] = begin + prompt - 1 + np.arange(count)
        packed["targets"][n, r, there] = tokens[n, b, first:][:count]
        rows[n, b], offsets[n, b] = j, taken
        prompt_ends[n, b] = max(begin + prompt - 1, 0)
        begin, taken = begin + own, taken + count
  packed |= dict(rows=rows, offsets=offsets, prompt_ends=prompt_ends)
  packed["counts"] = wanted.astype(np.int32)
  return batch.replace(packing=Packing(**packed))


def unpack(values_RC: Array, packing: Packing, size: int) -> Array:
  """Puts numbers `[R, C]` of packed rows back into rows `[B, size]`."""
  steps = jnp.arange(size)
  there = steps[None] < packing.counts[:, None]
  columns = jnp.where(there, packing.offsets[:, None] + steps[None], 0)
  return jnp.where(there, values_RC[packing.rows[:, None], columns], 0.0)


def _round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple
