# SPDX-License-Identifier: Apache-2.0
"""Published tensors as a decoder's parameters, and back.

What a family calls its tensors is data: for each leaf of our tree, which rows
of which tensor, and in which layout. Loading and saving read the same table.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.types import Array, PyTree

# Of a leaf inside a layer: `layers` stands for `layer_0`, `layer_1`, ...
Path = tuple[str, ...]
# From the name of a tensor to its values.
Read = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Piece:
  """Where a leaf comes from: rows of a tensor, their shape, and our axes."""

  tensor: str  # its name, with `{}` for the number of the layer
  tensor_shape: tuple[int, ...]
  rows: tuple[int, int]  # of the first axis, from and to
  shape: tuple[int, ...]  # that the rows are brought into
  axes: tuple[int, ...]  # of it, in the order that the leaf has them


def name_map(config: DecoderConfig, *, fused: bool) -> dict[Path, Piece]:
  """Says for each leaf of a decoder where it comes from.

  Args:
    config: the decoder.
    fused: queries, keys and values are one tensor, and so are gate and up
      (Phi-3).

  Returns:
    A piece for each leaf; the leaves of layers are under `layers`, whether or
    not the decoder scans over them.
  """
  c = config
  D, N, K, H, F = c.width, c.num_heads, c.num_kv_heads, c.head_size, c.mlp_size
  layer = "model.layers.{}."

  def vector(name: str, size: int) -> Piece:
    return Piece(name, (size,), (0, size), (size,), (0,))

  def matrix(name: str, rows: int, columns: int, first=0, total=0) -> Piece:
    return Piece(
      name,
      (total or rows, columns),
      (first, first + rows),
      (rows, columns),
      (1, 0),
    )

  def heads(name: str, count: int, first=0, total=0) -> Piece:
    return Piece(
      name,
      ((total or count) * H, D),
      (first * H, (first + count) * H),
      (count, H, D),
      (2, 0, 1),
    )

  names = {
    ("embedding",): dataclasses.replace(
      matrix("model.embed_tokens.weight", c.vocab_size, D), axes=(0, 1)
    ),
    ("layers", "attention_norm", "scale"): vector(
      layer + "input_layernorm.weight", D
    ),
  }
  attention = ("layers", "attention")
  if fused:
    qkv = layer + "self_attn.qkv_proj.weight"
    names |= {
      (*attention, "query"): heads(qkv, N, 0, N + 2 * K),
      (*attention, "key"): heads(qkv, K, N, N + 2 * K),
      (*attention, "value"): heads(qkv, K, N + K, N + 2 * K),
    }
  else:
    for ours, theirs, count in (
      ("query", "q_proj", N),
      ("key", "k_proj", K),
      ("value", "v_proj", K),
    ):
      name = f"{layer}self_attn.{theirs}."
      names[(*attention, ours)] = heads(name + "weight", count)
      if c.qkv_bias:
        names[(*attention, f"{ours}_bias")] = Piece(
          name + "bias", (count * H,), (0, count * H), (count, H), (0, 1)
        )
  if c.qk_norm:
    for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
      names[(*attention, ours, "scale")] = vector(
        f"{layer}self_attn.{theirs}.weight", H
      )
  names |= {
    (*attention, "out"): Piece(
      layer + "self_attn.o_proj.weight",
      (D, N * H),
      (0, D),
      (D, N, H),
      (1, 2, 0),
    ),
    ("layers", "mlp_norm", "scale"): vector(
      layer + "post_attention_layernorm.weight", D
    ),
  }
  mlp = ("layers", "mlp")
  if fused:
    both = layer + "mlp.gate_up_proj.weight"
    names[(*mlp, "gate")] = matrix(both, F, D, 0, 2 * F)
    names[(*mlp, "up")] = matrix(both, F, D, F, 2 * F)
  else:
    names[(*mlp, "gate")] = matrix(layer + "mlp.gate_proj.weight", F, D)
    names[(*mlp, "up")] = matrix(layer + "mlp.up_proj.weight", F, D)
  names[(*mlp, "down")] = matrix(layer + "mlp.down_proj.weight", D, F)
  names[("final_norm", "scale")] = vector("model.norm.weight", D)
  if not c.tied_head:
    names[("head",)] = matrix("lm_head.weight", c.vocab_size, D)
  return names


def tensor_shapes(
  config: DecoderConfig, names: Mapping[Path, Piece]
) -> dict[str, tuple[int, ...]]:
  """Lists the tensors that a checkpoint of a decoder has.

  Args:
    config: the decoder.
    names: from `name_map`.

  Returns:
    The shape of each tensor: what is not of a layer in its place before and
    behind, and layer by layer between.
  """
  before, inside, behind = {}, {}, {}
  for path, piece in names.items():
    if path[0] == "layers":
      inside[piece.tensor] = piece.tensor_shape
    else:
      (behind if inside and path != ("embedding",) else before)[
        piece.tensor
      ] = piece.tensor_shape
  return {
    **before,
    **{
      name.format(i): shape
      for i in range(config.num_layers)
      for name, shape in inside.items()
    },
    **behind,
  }


def check_tensors(
  config: DecoderConfig,
  names: Mapping[Path, Piece],
  found: Mapping[str, tuple[int, ...]],
  where: Callable[[str], str],
) -> None:
  """Compares the tensors of a checkpoint with those that a decoder needs.

  Args:
    config: the decoder.
    names: from `name_map`.
    found: the shape of each tensor that is there.
    where: from the name of a tensor to its file, for messages; for one that is
      not there, the checkpoint.

  Raises:
    ValueError: a tensor is missing, of another shape, or of no use to the
      decoder, which would then compute something else.
  """
  wanted = tensor_shapes(config, names)
  for name, shape in wanted.items():
    if name not in found:
      raise ValueError(f"{where(name)}: no tensor {name!r}")
    if tuple(found[name]) != shape:
      raise ValueError(
        f"{where(name)}: tensor {name!r} has shape {list(found[name])}; the "
        f"config wants {list(shape)}"
      )
  for name in found:
    # A tied head is stored by some; the frequencies were, once.
    is_known = name in wanted or name.endswith("rotary_emb.inv_freq")
    if not is_known and not (config.tied_head and name == "lm_head.weight"):
      raise ValueError(
        f"{where(name)}: tensor {name!r} has no place in this architecture"
      )


def load_params(
  config: DecoderConfig,
  names: Mapping[Path, Piece],
  read: Read,
  *,
  shardings: PyTree | None = None,
  where: Callable[[str], str] = str,
) -> dict:
  """Makes a decoder's parameters, shard by shard.

  Beside what is made, memory holds one shard of one leaf, and what `read`
  returns for one tensor.

  Args:
    config: the decoder, for layout and `param_dtype`.
    names: from `name_map`.
    read: from the name of a tensor to its values; a mapped file will do.
    shardings: where each leaf goes, a tree like the parameters; the default
      device if there is none.
    where: from the name of a tensor to its file, for messages.

  Returns:
    The parameters, as `decoder.init_params` has them.

  Raises:
    ValueError: a value is not finite.
  """
  shapes = jax.eval_shape(
    lambda key: decoder.init_params(config, key), jax.random.key(0)
  )
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, shapes)

  def make(path, leaf, sharding) -> Array:
    piece, layers = _find(config, names, path)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      sizes = [
        len(range(*part.indices(size)))
        for part, size in zip(index, leaf.shape, strict=True)
      ]
      values = np.empty(sizes, leaf.dtype)
      if layers is None:
        _copy(values, piece, None, index)
      elif len(index) > len(piece.axes):
        chosen = layers[index[0]]
        for i, layer in enumerate(chosen):
          _copy(values[i], piece, layer, index[1:])
      else:
        _copy(values, piece, layers[0], index)
      return values

    def _copy(out, piece, layer, index) -> None:
      name = piece.tensor.format(layer)
      part = read(name)[slice(*piece.rows)].reshape(piece.shape)
      out[...] = part.transpose(piece.axes)[index]
      if not np.isfinite(out).all():
        raise ValueError(
          f"{where(name)}: damaged: tensor {name!r} has values that are not "
          "finite"
        )

    return jax.make_array_from_callback(leaf.shape, sharding, shard)

  return jax.tree_util.tree_map_with_path(make, shapes, shardings)


def tensor_values(
  config: DecoderConfig, names: Mapping[Path, Piece], params: dict
) -> Read:
  """Gives a decoder's parameters under their published names.

  Args:
    config: the decoder.
    names: from `name_map`.
    params: the decoder's parameters.

  Returns:
    A function from the name of a tensor to its values; each call copies no more
    than that tensor from the device.
  """
  sources: dict[str, list[tuple[Piece, tuple[str, ...], int | None]]] = {}
  for path, piece in names.items():
    layers = range(config.num_layers) if path[0] == "layers" else [None]
    for i in layers:
      sources.setdefault(piece.tensor.format(i), []).append((piece, path, i))

  def leaf(path: Path, layer: int | None) -> Array:
    if layer is None or config.scan_layers:
      found = _walk(params, path)
      return found if layer is None else found[layer]
    return _walk(params, (f"layer_{layer}", *path[1:]))

  def value(name: str) -> np.ndarray:
    parts = sorted(sources[name], key=lambda source: source[0].rows)
    rows = []
    for piece, path, layer in parts:
      back = np.asarray(leaf(path, layer)).transpose(np.argsort(piece.axes))
      shape = (piece.rows[1] - piece.rows[0], *piece.tensor_shape[1:])
      rows.append(back.reshape(shape))
    return rows[0] if len(rows) == 1 else np.concatenate(rows)

  return value


def count_parameters(config: DecoderConfig) -> int:
  """Counts a decoder's parameters without making them.

  Args:
    config: the decoder.

  Returns:
    Their number; a tied head counts once.
  """
  shapes = tensor_shapes(config, name_map(config, fused=False))
  return sum(math.prod(shape) for shape in shapes.values())


def _find(
  config: DecoderConfig, names: Mapping[Path, Piece], path: tuple
) -> tuple[Piece, list[int] | None]:
  """The piece of a leaf, and the layers that the leaf holds, if any."""
  keys = tuple(key.key for key in path)
  if keys[0] == "layers":
    return names[keys], list(range(config.num_layers))
  if keys[0].startswith("layer_"):
    return names[("layers", *keys[1:])], [int(keys[0].removeprefix("layer_"))]
  return names[keys], None


def _walk(tree: Any, path: Path) -> Any:
  for key in path:
    tree = tree[key]
  return tree
