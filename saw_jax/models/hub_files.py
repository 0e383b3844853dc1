# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: headers that are checked, tensors that are mapped.

A file is the size of its header in eight bytes, the header in JSON, and the
tensors one after the other. Reading maps the file, so that a tensor costs
memory for what is copied out of it; writing streams, one tensor at a time, and
an error names its tensor. tests/parity_test.py holds it to what transformers
reads and writes.

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

_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# A header of a model with 100,000 tensors has some 10 MB.
_MAX_HEADER = 100_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor is, and what it is."""

  path: pathlib.Path
  dtype: str  # the file's name of it
  shape: tuple[int, ...]
  offset: int  # in the file, in bytes

  def open(self) -> np.ndarray:
    """Maps the tensor; nothing is read before it is used.

    Raises:
      ValueError: it has a dtype that is not a float's.
    """
    if self.dtype not in _DTYPES:
      raise ValueError(f"dtype {self.dtype} is not one of {', '.join(_DTYPES)}")
    if 0 in self.shape:
      return np.zeros(self.shape, _DTYPES[self.dtype])
    data = np.memmap(
      self.path,
      np.uint8,
      "r",
      self.offset,
      (math.prod(self.shape) * _DTYPES[self.dtype].itemsize,),
    )
    return data.view(_DTYPES[self.dtype]).reshape(self.shape)


def read_header(path: str | os.PathLike) -> dict[str, TensorInfo]:
  """Reads which tensors a safetensors file holds.

  Args:
    path: the file.

  Returns:
    The tensors, by name.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated, or its header makes no sense; the message names
      the file and, where there is one, the tensor.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: there is no such file")
  size = path.stat().st_size
  with path.open("rb") as file:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
      raise ValueError(
        f"{path}: truncated or damaged: {size} bytes do not hold its header"
      )
    text = file.read(length)
  try:
    header = json.loads(text)
    if not isinstance(header, dict):
      raise ValueError("not an object")
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: damaged: its header is not JSON") from error
  header.pop("__metadata__", None)

  found, ends = {}, {}
  for name, entry in header.items():
    try:
      dtype, shape = entry["dtype"], tuple(entry["shape"])
      begin, end = entry["data_offsets"]
      numbers = (*shape, begin, end)
      if not isinstance(dtype, str) or not all(
        type(number) is int and number >= 0 for number in numbers
      ):
        raise ValueError("not sizes")
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"{path}: damaged: the header's entry of tensor {name!r} makes no sense"
      ) from error
    if dtype in _DTYPES and (
      end - begin != math.prod(shape) * _DTYPES[dtype].itemsize
    ):
      raise ValueError(
        f"{path}: damaged: tensor {name!r} of shape {list(shape)} in {dtype} "
        f"cannot be {end - begin} bytes"
      )
    found[name] = TensorInfo(path, dtype, shape, 8 + length + begin)
    ends[name] = (begin, end)
  reached = 0
  for name, (begin, end) in sorted(ends.items(), key=lambda item: item[1]):
    if begin != reached or end < begin:
      raise ValueError(
        f"{path}: damaged: tensor {name!r} starts at byte {begin} of the data, "
        f"where {reached} was expected"
      )
    reached = end
    if 8 + length + end > size:
      raise ValueError(
        f"{path}: truncated: tensor {name!r} ends at byte {8 + length + end}, "
        f"the file at {size}"
      )
  if 8 + length + reached != size:
    raise ValueError(
      f"{path}: damaged: {size - 8 - length - reached} bytes behind its last "
      "tensor"
    )
  return found


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
  max_bytes: int = 5_000_000_000,
) -> list[pathlib.Path]:
  """Writes tensors as a Hugging Face directory has them, one at a time.

  Args:
    directory: where the files go; it exists.
    shapes: of each tensor, in the order in which they are written.
    tensor: from a name to its values, called once for each.
    dtype: that they are stored in: float32, bfloat16 or float16.
    max_bytes: a file that holds more than one tensor is not larger.

  Returns:
    The files: one, or the shards and their index.

  Raises:
    ValueError: a tensor has another shape than was said.
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
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name in names:
    begin, end = end, end + math.prod(shapes[name]) * stored.itemsize
    header[name] = {
      "dtype": _NAMES[stored],
      "shape": list(shapes[name]),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  # Renamed when it is whole, so that no half of a file looks like one.
  temporary = path.with_suffix(".tmp")
  with temporary.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
      values = np.ascontiguousarray(tensor(name)).astype(stored, copy=False)
      if values.shape != tuple(shapes[name]):
        raise ValueError(
          f"tensor {name!r} has shape {list(values.shape)}, not "
          f"{list(shapes[name])}"
        )
      file.write(values.reshape(-1).view(np.uint8).data)
  temporary.replace(path)
