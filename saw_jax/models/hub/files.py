# SPDX-License-Identifier: Apache-2.0
"""Directories of safetensors files: what they hold, read and written.

The package `safetensors` reads and writes a file, and notices whether it is
whole; here are the index of several files, and messages that name file and
tensor. Format: https://github.com/huggingface/safetensors
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from saw_jax.naming import needs_extra

# By the names that files have for them.
_DTYPES = {
  **{f"F{bits}": np.dtype(f"float{bits}") for bits in (64, 32, 16)},
  "BF16": np.dtype(jnp.bfloat16),
}
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Folders of files that are being written, and of those that are whole.
_WRITTEN, _WHOLE = ".saving", ".saved"
_KINDS = {
  b"version https://git-lfs": "a Git LFS pointer, not the file: git lfs pull",
  b"GGUF": "a GGUF file: give it the ending .gguf, and name it itself",
  b"PK\3\4": "a ZIP archive, perhaps a pickle of torch, which is not read",
  b"\x80\2\x8a": "a pickle of torch, which is not read: convert it",
}
_OTHERS = {
  "adapter_config.json": "an adapter (PEFT): merge it into its base model",
  "*.gguf": "a GGUF file: name it in place of its directory",
  "*.bin": "a pickle, which is not read: convert it",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file; `tensor[a:b]` reads these rows, and no others."""

  path: pathlib.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int  # in bytes, of its first value

  def __getitem__(self, rows: slice) -> np.ndarray:
    begin, end, _ = rows.indices(self.shape[0])
    size = math.prod(self.shape[1:])
    # Read, not mapped: pages of a mapped file count as memory of the process.
    offset = self.offset + begin * size * self.dtype.itemsize
    count = (end - begin) * size
    found = np.fromfile(self.path, self.dtype, count, offset=offset)
    return found.reshape(end - begin, *self.shape[1:])


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
  """Opens a safetensors file; a damaged one is a ValueError."""
  safetensors = _safetensors()
  try:
    # The package looks whether the file is whole. A slice of it is read here,
    # since the package reads all of a tensor for one.
    with safetensors.safe_open(path, framework="numpy", backend="pread"):
      pass
  # An empty file cannot be mapped.
  except (safetensors.SafetensorError, OSError) as error:
    said = kind_of(path) or f"truncated or damaged: {error}"
    raise ValueError(f"{path}: {said}") from error
  with path.open("rb") as file:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
  header.pop("__metadata__", None)
  found = {}
  for name, one in header.items():
    if one["dtype"] not in _DTYPES:
      known = ", ".join(_DTYPES)
      raise ValueError(
        f"{path}: tensor {name!r}: dtype {one['dtype']} is not one of {known}"
      )
    begin, _ = one["data_offsets"]
    shape, dtype = tuple(one["shape"]), _DTYPES[one["dtype"]]
    found[name] = Tensor(path, shape, dtype, 8 + size + begin)
  return found


def kind_of(path: pathlib.Path) -> str:
  """What a file of another kind is, by its first bytes; else nothing."""
  with contextlib.suppress(OSError), path.open("rb") as file:
    begin = file.read(32)
    return next((y for x, y in _KINDS.items() if begin.startswith(x)), "")
  return ""


def find(directory: pathlib.Path, name: str) -> pathlib.Path:
  """Where a file of a checkpoint is: see `replacing`, which may be cut off."""
  whole = directory / _WHOLE
  is_there = (whole / name).is_file() or (whole / CONFIG).is_file()
  return whole / name if is_there else directory / name


@contextlib.contextmanager
def replacing(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives an empty folder, whose files replace a checkpoint's at its end.

  Whenever that is cut off, `find` finds all of the old files, or of the new.
  """
  directory.mkdir(parents=True, exist_ok=True)
  with _alone_in(directory):
    _settle(directory)
    written = directory / _WRITTEN
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    try:
      yield written
      written.rename(directory / _WHOLE)
    finally:
      shutil.rmtree(written, ignore_errors=True)
    _settle(directory)


@contextlib.contextmanager
def _alone_in(directory: pathlib.Path) -> Iterator[None]:
  """Refuses a second writer, where files can be locked at all."""
  place = os.open(directory, os.O_RDONLY)
  try:
    try:
      fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      what = "another one saves there: wait for it, or choose another folder"
      raise ValueError(f"{directory}: {what}") from error
    except OSError:
      pass  # A file system without locks.
    yield
  finally:
    os.close(place)


def _settle(directory: pathlib.Path) -> None:
  whole = directory / _WHOLE
  if not whole.is_dir():
    return
  if (whole / CONFIG).is_file():
    old = [directory / SINGLE, directory / INDEX]
    for path in (*old, *directory.glob("model*-of-*.safetensors")):
      path.unlink(missing_ok=True)
    # Once it has moved, no old file is left.
    (whole / CONFIG).replace(directory / CONFIG)
  for path in sorted(whole.iterdir()):
    path.replace(directory / path.name)
  whole.rmdir()


def _safetensors():
  with needs_extra("hf", "safetensors files need their package"):
    import safetensors.numpy
  return safetensors


def read_headers(directory: str | os.PathLike) -> dict[str, Tensor]:
  """Opens the weights of a Hugging Face directory, one file or several."""
  directory = pathlib.Path(directory)
  index, single = find(directory, INDEX), find(directory, SINGLE)
  if not index.is_file():
    if single.is_file():
      return read_header(single)
    raise FileNotFoundError(
      f"{directory}: neither {SINGLE} nor {INDEX}{others(directory)}"
    )
  weight_map = read_json(index).get("weight_map")
  is_map = isinstance(weight_map, dict)
  if not is_map or {*map(type, weight_map.values())} - {str}:
    raise ValueError(f"{index}: no 'weight_map' from tensors to files")
  shards = sorted(set(weight_map.values()))
  paths = {shard: find(directory, shard) for shard in shards}
  if single.is_file() and single not in paths.values():
    if paths and all(path.is_file() for path in paths.values()):
      raise ValueError(
        f"{directory}: two models, {SINGLE} and that of {INDEX}: remove one"
      )
    return read_header(single)
  found = {}
  for shard, path in paths.items():
    names = {name for name, file in weight_map.items() if file == shard}
    if pathlib.PurePath(shard).name != shard:
      raise ValueError(f"{index}: {shard!r} is not the name of a file")
    if not path.is_file():
      raise FileNotFoundError(
        f"{path}: missing; the index has {len(names)} tensors in it"
      )
    tensors = read_header(path)
    for name in sorted(names ^ set(tensors)):
      no, has = ("no ", "has") if name in names else ("", "does not have")
      what = f"{no}tensor {name!r}, which the index {has} in it"
      raise ValueError(f"{path}: {what}")
    found |= tensors
  return found


def others(directory: pathlib.Path) -> str:
  """The end of a message: what lies in a directory that is no checkpoint."""
  found = [(p.name, y) for x, y in _OTHERS.items() for p in directory.glob(x)]
  return "; here is {}, {}".format(*found[0]) if found else ""


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object from a file; anything else is a ValueError."""
  path = pathlib.Path(path)
  try:
    document = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"{path}: there is no such file{others(path.parent)}"
    ) from error
  except (ValueError, RecursionError) as error:
    said = kind_of(path) or f"not JSON: {error}"
    raise ValueError(f"{path}: {said}") from error
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
  if stored not in _DTYPES.values():
    raise ValueError(f"weights are saved as floating point, not as {stored}")
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
      values = tensor(name)
      found, wanted = list(values.shape), list(shapes[name])
      if found != wanted:
        raise ValueError(f"tensor {name!r} has shape {found}, not {wanted}")
      tensors[name] = np.empty(found, stored)
      round_to(tensors[name], values, directory, name)
    paths.append(directory / file)
    save = _safetensors().numpy.save_file
    save(tensors, paths[-1], metadata={"format": "pt"})
    weight_map |= dict.fromkeys(names, file)
  if len(shards) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    paths.append(write_json(directory / INDEX, index))
  return paths


def round_to(
  found: np.ndarray, values: np.ndarray, where: Any, name: str
) -> None:
  """Writes a tensor into an array, where it must be finite."""
  with np.errstate(over="ignore"):
    found[...] = values
  if not np.isfinite(found).all():
    said = f"{where}: damaged: tensor {name!r} has values that are not finite"
    if np.isfinite(values).all():
      said = f"{where}: tensor {name!r} has values too large for {found.dtype}"
    raise ValueError(said)
