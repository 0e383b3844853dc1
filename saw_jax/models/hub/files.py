# SPDX-License-Identifier: Apache-2.0
"""Directories of safetensors files: what they hold, read and written.

The package `safetensors` reads and writes a file, and notices whether it is
whole; here are the index of several files, and messages that name file and
tensor. Format: https://github.com/huggingface/safetensors
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from saw_jax.naming import needs_extra

# By the names that files have for them.
_DTYPES = {
  **{f"F{bits}": np.dtype(f"float{bits}") for bits in (64, 32, 16)},
  "BF16": np.dtype(jnp.bfloat16),
}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Tensor(NamedTuple):
  """A tensor of an open file; `values[a:b]` reads these rows, and no others."""

  path: pathlib.Path
  shape: tuple[int, ...]
  values: Any


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
  """Opens a safetensors file; a damaged one is a ValueError with its tensor."""
  safetensors = _safetensors()
  try:
    # Read, not mapped: pages of a mapped file count as memory of the process.
    file = safetensors.safe_open(path, framework="numpy", backend="pread")
  # An empty file cannot be mapped.
  except (safetensors.SafetensorError, OSError) as error:
    suspect = _suspect(path)
    place = f" at tensor {suspect!r}" if suspect else ""
    raise ValueError(f"{path}: truncated or damaged{place}: {error}") from error
  found = {}
  for name in file.keys():
    values = file.get_slice(name)
    shape, dtype = tuple(values.get_shape()), values.get_dtype()
    if dtype not in _DTYPES:
      known = ", ".join(_DTYPES)
      raise ValueError(
        f"{path}: tensor {name!r}: dtype {dtype} is not one of {known}"
      )
    if 0 in shape:
      values = np.zeros(shape, _DTYPES[dtype])
    found[name] = Tensor(path, shape, values)
  return found


def _suspect(path: pathlib.Path) -> str | None:
  """The first tensor that a file which cannot be opened is wrong about."""
  name = None
  try:
    with path.open("rb") as file:
      length = int.from_bytes(file.read(8), "little")
      size = path.stat().st_size - 8 - length
      header = json.loads(file.read(length)) if size >= 0 else {}
    header.pop("__metadata__", None)
    reached = 0
    # In the order of the file, as far as that can be told.
    names = sorted(header, key=lambda name: str(header[name]["data_offsets"]))
    names.sort(key=lambda name: header[name]["data_offsets"])
    for name in names:
      begin, end = header[name]["data_offsets"]
      itemsize = _DTYPES[header[name]["dtype"]].itemsize
      needed = math.prod(header[name]["shape"]) * itemsize
      if begin != reached or end - begin != needed or end > size:
        return name
      reached = end
  except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
    return name
  return None


def _safetensors():
  with needs_extra("hf", "safetensors files need their package"):
    import safetensors.numpy
  return safetensors


def read_headers(directory: str | os.PathLike) -> dict[str, Tensor]:
  """Opens the weights of a Hugging Face directory, one file or several."""
  directory = pathlib.Path(directory)
  index = directory / INDEX
  if not index.is_file():
    if (directory / SINGLE).is_file():
      return read_header(directory / SINGLE)
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    advice = "; {} is a pickle, which is not read: convert it"
    raise FileNotFoundError(
      f"{directory}: neither {SINGLE} nor {INDEX}"
      + "".join(map(advice.format, pickles[:1]))
    )
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(file, str) for file in weight_map.values()
  ):
    raise ValueError(f"{index}: no 'weight_map' from tensors to files")
  found = {}
  for shard in sorted(set(weight_map.values())):
    path = directory / shard
    names = [name for name, file in weight_map.items() if file == shard]
    if pathlib.PurePath(shard).name != shard:
      raise ValueError(f"{index}: {shard!r} is not the name of a file")
    if not path.is_file():
      raise FileNotFoundError(
        f"{path}: missing; the index has {len(names)} tensors in it"
      )
    tensors = read_header(path)
    if lost := [name for name in names if name not in tensors]:
      raise ValueError(
        f"{path}: no tensor {lost[0]!r}, which the index has in it"
      )
    found |= {name: tensors[name] for name in names}
  return found


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object from a file; anything else is a ValueError."""
  path = pathlib.Path(path)
  try:
    document = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{path}: there is no such file") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: not JSON: {error}") from error
  if not isinstance(document, dict):
    raise ValueError(f"{path}: not a JSON object")
  return document


def write_json(path: pathlib.Path, document: Mapping[str, Any]) -> pathlib.Path:
  """Writes a JSON object for people to read, and returns the path."""
  text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
  path.write_text(text, encoding="utf-8")
  return path


def write_tensors(
  directory: str | os.PathLike,
  shapes: Mapping[str, Sequence[int]],
  tensor: Callable[[str], np.ndarray],
  *,
  dtype: str = "bfloat16",
  max_bytes: int = 2_000_000_000,
) -> list[pathlib.Path]:
  """Writes tensors in files of at most `max_bytes`; returns the files."""
  directory, stored = pathlib.Path(directory), jnp.dtype(dtype)
  shards, held, total = [[]], 0, 0
  for name, shape in shapes.items():
    size = math.prod(shape) * stored.itemsize
    if shards[-1] and held + size > max_bytes:
      shards.append([])
      held = 0
    shards[-1].append(name)
    held, total = held + size, total + size

  paths, weight_map = [], {}
  for number, names in enumerate(shards, 1):
    file = SINGLE
    if len(shards) > 1:
      file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    tensors = {}
    for name in names:
      values = np.ascontiguousarray(tensor(name)).astype(stored, copy=False)
      found, wanted = list(values.shape), list(shapes[name])
      if found != wanted:
        raise ValueError(f"tensor {name!r} has shape {found}, not {wanted}")
      tensors[name] = values
    paths.append(directory / file)
    # Renamed when it is whole, so that no half of a file looks like one.
    temporary = paths[-1].with_suffix(".tmp")
    _safetensors().numpy.save_file(
      tensors, temporary, metadata={"format": "pt"}
    )
    temporary.replace(paths[-1])
    weight_map |= dict.fromkeys(names, file)
  if len(shards) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    paths.append(write_json(directory / INDEX, index))
  return paths
