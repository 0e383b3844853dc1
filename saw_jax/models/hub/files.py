# SPDX-License-Identifier: Apache-2.0
"""Directories of safetensors files: what they hold, read and written.

The package `safetensors` reads and writes a file, and says whether it is whole;
here are the index of several files, and messages that name file and tensor.

Format: https://github.com/huggingface/safetensors
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

# By the names that files have for them.
_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor is, and what it is."""

  path: pathlib.Path
  name: str
  dtype: str  # the file's name of it
  shape: tuple[int, ...]
  file: Any  # the open file

  def open(self) -> Any:
    """Opens the tensor: `[a:b]` reads these rows, and no others.

    Raises:
      ValueError: it has a dtype that is not a float's.
    """
    if self.dtype not in _DTYPES:
      raise ValueError(f"dtype {self.dtype} is not one of {', '.join(_DTYPES)}")
    if 0 in self.shape:
      return np.zeros(self.shape, _DTYPES[self.dtype])
    return self.file.get_slice(self.name)


def read_header(path: str | os.PathLike) -> dict[str, TensorInfo]:
  """Reads which tensors a safetensors file holds.

  Args:
    path: the file.

  Returns:
    The tensors, by name; the file stays open as long as one of them is kept.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated, or its header makes no sense; the message names
      the file and, where it can be told, the tensor.
    ImportError: the extra `hf` is missing.
  """
  safetensors = _safetensors()
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: there is no such file")
  try:
    # Read, not mapped: pages of a mapped file count as memory of the process.
    file = safetensors.safe_open(path, framework="numpy", backend="pread")
  # An empty file cannot be mapped.
  except (safetensors.SafetensorError, OSError) as error:
    suspect = _suspect(path)
    place = "" if suspect is None else f" at tensor {suspect!r}"
    raise ValueError(f"{path}: truncated or damaged{place}: {error}") from error
  found = {}
  for name in file.keys():
    part = file.get_slice(name)
    shape = tuple(part.get_shape())
    found[name] = TensorInfo(path, name, part.get_dtype(), shape, file)
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
      if (
        begin != reached
        or end - begin != math.prod(header[name]["shape"]) * itemsize
        or end > size
      ):
        return name
      reached = end
  except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
    return name
  return None


def _safetensors():
  try:
    import safetensors
  except ImportError as error:
    raise ImportError(
      "safetensors files need the extra 'hf': pip install 'saw_jax[hf]'"
    ) from error
  return safetensors


def read_headers(directory: str | os.PathLike) -> dict[str, TensorInfo]:
  """Reads which tensors a Hugging Face directory holds, in one file or several.

  Args:
    directory: with `model.safetensors`, or with an index and its shards.

  Returns:
    The tensors of all files, by name.

  Raises:
    FileNotFoundError: there are no weights, or a shard is missing.
    ValueError: a file is damaged, or the index says what is not so.
  """
  directory = pathlib.Path(directory)
  index = directory / INDEX
  if not index.is_file():
    if not (directory / SINGLE).is_file():
      pickles = sorted(path.name for path in directory.glob("*.bin"))
      advice = (
        f"; {pickles[0]} is a pickle, which is not read: convert it"
        if pickles
        else ""
      )
      raise FileNotFoundError(
        f"{directory}: neither {SINGLE} nor {INDEX}{advice}"
      )
    return read_header(directory / SINGLE)
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(file, str) for file in weight_map.values()
  ):
    raise ValueError(f"{index}: no 'weight_map' from tensors to files")
  shards = sorted(set(weight_map.values()))
  for shard in shards:
    if pathlib.PurePath(shard).name != shard:
      raise ValueError(f"{index}: {shard!r} is not the name of a file")
    if not (directory / shard).is_file():
      count = sum(file == shard for file in weight_map.values())
      raise FileNotFoundError(
        f"{directory / shard}: missing; the index has {count} tensors in it"
      )
  found = {shard: read_header(directory / shard) for shard in shards}
  for name, shard in weight_map.items():
    if name not in found[shard]:
      raise ValueError(
        f"{directory / shard}: no tensor {name!r}, which the index has in it"
      )
  return {name: found[shard][name] for name, shard in weight_map.items()}


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object from a file.

  Args:
    path: the file.

  Returns:
    The object.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no JSON, or not an object.
  """
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


def write_tensors(
  directory: str | os.PathLike,
  shapes: Mapping[str, Sequence[int]],
  tensor: Callable[[str], np.ndarray],
  *,
  dtype: str = "bfloat16",
  max_bytes: int = 2_000_000_000,
) -> list[pathlib.Path]:
  """Writes tensors as a Hugging Face directory has them, a file at a time.

  Args:
    directory: where the files go; it exists.
    shapes: of each tensor, in the order in which they are written.
    tensor: from a name to its values, called once for each.
    dtype: that they are stored in: float32, bfloat16 or float16.
    max_bytes: a file that holds more than one tensor is not larger. The tensors
      of one file are in memory at once.

  Returns:
    The files: one, or the shards and their index.

  Raises:
    ValueError: a tensor has another shape than was said.
    ImportError: the extra `hf` is missing.
  """
  directory = pathlib.Path(directory)
  stored = jnp.dtype(dtype)
  sizes = {
    name: math.prod(shape) * stored.itemsize for name, shape in shapes.items()
  }
  shards: list[list[str]] = [[]]
  room = max_bytes
  for name, size in sizes.items():
    if shards[-1] and size > room:
      shards.append([])
      room = max_bytes
    shards[-1].append(name)
    room -= size

  paths, weight_map = [], {}
  for number, names in enumerate(shards):
    file = SINGLE
    if len(shards) > 1:
      file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
    _write_file(directory / file, names, shapes, tensor, stored)
    paths.append(directory / file)
    weight_map |= dict.fromkeys(names, file)
  if len(shards) > 1:
    document = {
      "metadata": {"total_size": sum(sizes.values())},
      "weight_map": weight_map,
    }
    path = directory / INDEX
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    paths.append(path)
  return paths


def _write_file(
  path: pathlib.Path,
  names: Iterable[str],
  shapes: Mapping[str, Sequence[int]],
  tensor: Callable[[str], np.ndarray],
  stored: np.dtype,
) -> None:
  _safetensors()
  from safetensors.numpy import save_file

  tensors = {}
  for name in names:
    values = np.ascontiguousarray(tensor(name)).astype(stored, copy=False)
    if values.shape != tuple(shapes[name]):
      raise ValueError(
        f"tensor {name!r} has shape {list(values.shape)}, not "
        f"{list(shapes[name])}"
      )
    tensors[name] = values
  # Renamed when it is whole, so that no half of a file looks like one.
  temporary = path.with_suffix(".tmp")
  save_file(tensors, temporary, metadata={"format": "pt"})
  temporary.replace(path)
