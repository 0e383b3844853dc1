# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints as a decoder's parameters, and back."""

import collections
import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import config as hub_config
from saw_jax.models.hub import files as hub_files
from saw_jax.models.hub import gguf_file
from saw_jax.types import Array, PyTree

LOG = logging.getLogger(__name__)
# Of a leaf inside a layer: `layers` stands for `layer_0`, `layer_1`, ...
Path = tuple[str, ...]
# From the name of a tensor to its values, or to what reads rows of them.
Read = Callable[[str], np.ndarray | hub_files.Tensor]

# Leaf -> tensor, the tensor's axes, the leaf's axes. Letters written together
# are one axis of the tensor. Names in a layer follow `model.layers.{}.`.
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_EMBEDDING = {("embedding",): (_EMBED, "V D", "VD")}
_LAYER = {
  ("attention_norm", "scale"): ("input_layernorm.weight", "D", "D"),
  ("attention", "query"): ("self_attn.q_proj.weight", "NH D", "DNH"),
  ("attention", "query_bias"): ("self_attn.q_proj.bias", "NH", "NH"),
  ("attention", "key"): ("self_attn.k_proj.weight", "KH D", "DKH"),
  ("attention", "key_bias"): ("self_attn.k_proj.bias", "KH", "KH"),
  ("attention", "value"): ("self_attn.v_proj.weight", "KH D", "DKH"),
  ("attention", "value_bias"): ("self_attn.v_proj.bias", "KH", "KH"),
  ("attention", "query_norm", "scale"): ("self_attn.q_norm.weight", "H", "H"),
  ("attention", "key_norm", "scale"): ("self_attn.k_norm.weight", "H", "H"),
  ("attention", "out"): ("self_attn.o_proj.weight", "D NH", "NHD"),
  ("mlp_norm", "scale"): ("post_attention_layernorm.weight", "D", "D"),
  ("mlp", "gate"): ("mlp.gate_proj.weight", "F D", "DF"),
  ("mlp", "up"): ("mlp.up_proj.weight", "F D", "DF"),
  ("mlp", "down"): ("mlp.down_proj.weight", "D F", "FD"),
}
_REST = {
  ("final_norm", "scale"): ("model.norm.weight", "D", "D"),
  ("head",): (_HEAD, "V D", "DV"),
}
# Tensors that are one in Phi-3, one after the other.
_FUSED = {
  **{f"self_attn.{x}_proj.weight": "self_attn.qkv_proj.weight" for x in "qkv"},
  "mlp.gate_proj.weight": "mlp.gate_up_proj.weight",
  "mlp.up_proj.weight": "mlp.gate_up_proj.weight",
}
# Norms of what a block returns are called otherwise in OLMo 2.
_POST_NORM = {
  "input_layernorm.weight": "post_attention_layernorm.weight",
  "post_attention_layernorm.weight": "post_feedforward_layernorm.weight",
}


class Piece(NamedTuple):
  """Where a leaf comes from: rows of a tensor, their shape, and our axes."""

  tensor: str  # its name, with `{}` for the number of the layer
  rows: slice  # of the first axis
  columns: tuple[int, ...]  # sizes of its other axes
  shape: tuple[int, ...]  # that the rows are brought into
  axes: tuple[int, ...]  # of it, in the order that the leaf has them


def name_map(config: DecoderConfig, *, fused: bool) -> dict[Path, Piece]:
  """Tells where each leaf of a decoder is; those of layers are in `layers`."""
  one = dataclasses.replace(
    config, num_layers=1, windows=(), rotated=(), scan_layers=False
  )
  leaves = flatten_dict(decoder.param_shapes(one))
  renamed = (_FUSED if fused else {}) | (_POST_NORM if config.post_norm else {})
  names, lengths = {}, collections.Counter()
  for path, (name, theirs, ours) in (_EMBEDDING | _LAYER | _REST).items():
    leaf = leaves.get(("layer_0", *path) if path in _LAYER else path)
    if leaf is None:  # one that this decoder does not have
      continue
    if path in _LAYER:
      path = ("layers", *path)
      name = f"model.layers.{{}}.{renamed.get(name, name)}"
    sizes = dict(zip(ours, leaf.shape, strict=True))
    letters = theirs.replace(" ", "")
    rows, *columns = (
      math.prod(sizes[letter] for letter in axis) for axis in theirs.split()
    )
    begin = lengths[name]
    lengths[name] += rows
    names[path] = Piece(
      tensor=name,
      rows=slice(begin, begin + rows),
      columns=tuple(columns),
      shape=tuple(sizes[letter] for letter in letters),
      axes=tuple(letters.index(letter) for letter in ours),
    )
  return names


def tensor_shapes(
  config: DecoderConfig, names: Mapping[Path, Piece]
) -> dict[str, tuple[int, ...]]:
  """Lists the tensors of a checkpoint, layer by layer, with their shapes."""
  found = []
  lengths = {piece.tensor: piece.rows.stop for piece in names.values()}
  for path, piece in names.items():
    shape = (lengths[piece.tensor], *piece.columns)
    places = [0 if path in _EMBEDDING else config.num_layers]
    if path[0] == "layers":
      places = range(config.num_layers)
    found += [(i, piece.tensor.format(i), shape) for i in places]
  found.sort(key=lambda entry: entry[0])
  return {name: shape for _, name, shape in found}


def check_tensors(
  config: DecoderConfig,
  names: Mapping[Path, Piece],
  found: Mapping[str, tuple[int, ...]],
  where: Callable[[str], str],
) -> None:
  """Refuses tensors that are missing, of another shape, or of no use."""
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
    if not is_known and not (config.tied_head and name == _HEAD):
      raise ValueError(
        f"{where(name)}: tensor {name!r} has no place in this architecture"
      )


def load_params(
  config: DecoderConfig,
  names: Mapping[Path, Piece],
  read: Read,
  shardings: PyTree | None = None,
  where: Callable[[str], str] = str,
) -> dict:
  """Makes a decoder's parameters, leaf by leaf.

  A process reads each tensor once, and of it the rows from the first to the
  last that its devices need. Beyond the result, memory holds these and the
  process's part of one leaf. `shardings` tell where each leaf goes, by default
  to the default device. A value that is not finite is a ValueError.
  """
  shapes = decoder.param_shapes(config)
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, shapes)

  def make(path, leaf, sharding) -> Array:
    root, *rest = (key.key for key in path)
    layer = root.removeprefix("layer_")
    piece = names[(root if root == layer else "layers", *rest)]

    is_stacked = leaf.ndim > len(piece.axes)
    layers = range(leaf.shape[0]) if is_stacked else [layer]
    # What is needed here: copies on several devices are one.
    own = sharding.addressable_devices_indices_map(leaf.shape).values()
    own = {
      str(index): [range(n)[x] for n, x in zip(leaf.shape, index, strict=True)]
      for index in own
    }
    sizes = {key: [*map(len, places)] for key, places in own.items()}
    values = {key: np.empty(size, leaf.dtype) for key, size in sizes.items()}
    first = piece.axes.index(0)  # the axis that is the tensor's first
    rows = [places[is_stacked:][first] for places in own.values()]
    begin, end = min(x.start for x in rows), max(x.stop for x in rows)
    size = (piece.rows.stop - piece.rows.start) // piece.shape[0]
    rows = slice(*(piece.rows.start + size * x for x in (begin, end)))
    for number in layers:
      name = piece.tensor.format(number)
      found = read(name)[rows].reshape(end - begin, *piece.shape[1:])
      found = found.transpose(piece.axes)
      for key, places in own.items():
        part, cut = values[key], [slice(x.start, x.stop) for x in places]
        if is_stacked:
          part, cut = part[number], cut[1:]
        place = places[is_stacked:][first]
        cut[first] = slice(place.start - begin, place.stop - begin)
        hub_files.round_to(part, found[tuple(cut)], where(name), name)
    shard = lambda index: values[str(index)]  # noqa: E731
    return jax.make_array_from_callback(leaf.shape, sharding, shard)

  return jax.tree_util.tree_map_with_path(make, shapes, shardings)


def tensor_values(
  config: DecoderConfig, names: Mapping[Path, Piece], params: dict
) -> Read:
  """Gives a decoder's parameters under their published names."""
  leaves, sources = flatten_dict(params), collections.defaultdict(list)
  for path, piece in names.items():
    for i in range(config.num_layers if path[0] == "layers" else 1):
      sources[piece.tensor.format(i)].append((piece, path, i))

  def leaf(path: Path, layer: int) -> Array:
    if path[0] != "layers":
      return leaves[path]
    if config.scan_layers:
      return leaves[path][layer]
    return leaves[(f"layer_{layer}", *path[1:])]

  def value(name: str) -> np.ndarray:
    rows = []
    for piece, path, layer in sources[name]:
      back = np.asarray(leaf(path, layer)).transpose(np.argsort(piece.axes))
      rows.append(back.reshape(-1, *piece.columns))
    return rows[0] if len(rows) == 1 else np.concatenate(rows)

  return value


class Pretrained(NamedTuple):
  """A checkpoint whose headers have been checked, and no weight read."""

  path: pathlib.Path  # the directory or file
  # The decoder, unrolled and in float32; how it is computed is for the caller
  # to change.
  config: DecoderConfig
  document: Mapping[str, Any]  # what its `config.json` has, or would have
  # (config=, shardings=None) -> weights, see `load_params`; dtypes and whether
  # layers are scanned may be those of another config.
  load: Callable[..., dict]


def open_checkpoint(
  path: str | os.PathLike, *, max_length: int | None = None
) -> Pretrained:
  """Checks the headers of a Hugging Face directory or `.gguf` file."""
  path = pathlib.Path(path)
  where, places = str(path), {}
  if path.suffix == ".gguf" and not path.is_dir():
    file = gguf_file.GGUFFile(path)
    document, shapes, read = file.document, file.shapes, file.read
  elif path.is_file():
    said = hub_files.kind_of(path) or "a file: name its directory"
    raise ValueError(f"{path}: {said}")
  else:
    where = str(hub_files.find(path, hub_files.CONFIG))
    document = hub_files.read_json(where)
    hub_config.find_family(document, where)  # Before the weights.
    tensors = hub_files.read_headers(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    places = {name: str(tensor.path) for name, tensor in tensors.items()}
    read = tensors.__getitem__

  config = hub_config.read_config(document, where=where, max_length=max_length)
  stored = {_EMBED, _HEAD} & set(shapes)
  if config.tied_head and len(stored) == 2:
    if not _are_equal(shapes, read, _EMBED, _HEAD):
      # As transformers has it from version 5 on: what is stored is used.
      LOG.warning("%s: not tied, as %s is not the embedding", path, _HEAD)
      document = {**document, "tie_word_embeddings": False}
      config = dataclasses.replace(config, tied_head=False)
  fused = "fused" in hub_config.find_family(document, where).parts
  names = name_map(config, fused=fused)
  if config.tied_head and stored == {_HEAD}:  # the other of two names
    names["embedding",] = names["embedding",]._replace(tensor=_HEAD)

  def place(name: str) -> str:
    return places.get(name, str(path))

  check_tensors(config, names, shapes, place)

  def load(config=config, shardings: PyTree | None = None) -> dict:
    return load_params(config, names, read, shardings, place)

  return Pretrained(path, config, document, load)


def _are_equal(shapes: Mapping[str, tuple], read: Read, *names: str) -> bool:
  (size, *rest), other = (shapes[name] for name in names)
  tensors = [read(name) for name in names]
  # In parts, as a whole may be large.
  return other == (size, *rest) and all(
    np.array_equal(*(np.float64(x[i : min(i + 4096, size)]) for x in tensors))
    for i in range(0, size, 4096)
  )


def save_checkpoint(
  directory: str | os.PathLike,
  params: dict,
  config: DecoderConfig,
  *,
  document: Mapping[str, Any] | None = None,
  dtype: str = "bfloat16",
  max_bytes: int = 2_000_000_000,
) -> list[pathlib.Path]:
  """Writes a decoder as a Hugging Face directory, and returns its files."""
  directory = pathlib.Path(directory)
  where = f"{directory}/config.json"
  made = dict(hub_config.write_config(config) if document is None else document)
  fused = "fused" in hub_config.find_family(made, where).parts

  theirs = hub_config.read_config(made, where=where)
  names = name_map(config, fused=fused)
  shapes = tensor_shapes(config, names)
  wanted = tensor_shapes(theirs, name_map(theirs, fused=fused))
  for name in (*wanted, *shapes):
    said, ours = wanted.get(name), shapes.get(name)
    if said != ours:
      raise ValueError(
        f"{where}: tensor {name!r} would have shape {said and list(said)}, "
        f"and this decoder's has {ours and list(ours)}"
      )
  made["torch_dtype"] = made["dtype"] = dtype
  values = tensor_values(config, names, params)
  with hub_files.replacing(directory) as folder:
    written = [hub_files.write_json(folder / hub_files.CONFIG, made)]
    written += hub_files.write_tensors(
      folder, shapes, values, dtype=dtype, max_bytes=max_bytes
    )
  return [directory / path.name for path in written]
