# SPDX-License-Identifier: Apache-2.0
"""A pretrained model on disk: its sizes, and its weights when asked for."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import (
  config as hub_config,
)
from saw_jax.models.hub import (
  files as hub_files,
)
from saw_jax.models.hub import (
  gguf_file,
)
from saw_jax.models.hub import (
  weights as hub_weights,
)
from saw_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint whose headers have been checked, and no weight read.

  Attributes:
    path: the directory or file.
    config: the decoder, unrolled and in float32; how it is computed is for the
      caller to change.
    document: what its `config.json` says, or would say.
  """

  path: pathlib.Path
  config: DecoderConfig
  document: Mapping[str, Any]
  _names: Mapping[hub_weights.Path, hub_weights.Piece]
  _read: hub_weights.Read
  _where: Callable[[str], str]

  def load(
    self, config: DecoderConfig | None = None, shardings: PyTree | None = None
  ) -> dict:
    """Reads the weights, shard by shard.

    Args:
      config: as `self.config`, but for how it is computed: whether layers are
        scanned over, and the dtypes.
      shardings: where each parameter goes, a tree like the parameters; the
        default device if there is none.

    Returns:
      The parameters, in the config's `param_dtype`.

    Raises:
      ValueError: a value is not finite.
    """
    return hub_weights.load_params(
      self.config if config is None else config,
      self._names,
      self._read,
      shardings=shardings,
      where=self._where,
    )


def open_checkpoint(
  path: str | os.PathLike, *, max_length: int | None = None
) -> Pretrained:
  """Reads and checks the headers of a checkpoint.

  Args:
    path: a Hugging Face directory, or a `.gguf` file.
    max_length: the longest sequence that the model will see, see
      `hub_config.read_config`.

  Returns:
    The checkpoint.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is damaged or says what is not so, a tensor is missing or
      of another shape, or the architecture is not known. The message names file
      and tensor, and no weight has been read.
    ImportError: a library that reads it is missing.
  """
  path = pathlib.Path(path)
  if path.suffix == ".gguf":
    file = gguf_file.GGUFFile(path)
    document, shapes, read = file.document, file.shapes, file.read
    where = config_path = str(path)
    places: dict[str, pathlib.Path] = {}
  else:
    if not path.is_dir():
      raise FileNotFoundError(f"{path}: there is no such directory")
    config_path = str(path / "config.json")
    document = hub_files.read_json(config_path)
    hub_config.find_family(document, config_path)  # Before the weights.
    tensors = hub_files.read_headers(path)
    shapes = {name: info.shape for name, info in tensors.items()}
    places = {name: info.path for name, info in tensors.items()}
    where = str(path)

    def read(name: str):
      return tensors[name].open()

  config = hub_config.read_config(
    document, where=config_path, max_length=max_length
  )
  family = hub_config.find_family(document, config_path)
  names = hub_weights.name_map(config, fused=family.fused)

  def place(name: str) -> str:
    return str(places.get(name, where))

  hub_weights.check_tensors(config, names, shapes, place)
  if path.suffix != ".gguf":
    for name in hub_weights.tensor_shapes(config, names):
      try:
        tensors[name].open()
      except ValueError as error:
        raise ValueError(f"{place(name)}: tensor {name!r}: {error}") from error
  return Pretrained(path, config, document, names, read, place)


def save_checkpoint(
  directory: str | os.PathLike,
  params: dict,
  config: DecoderConfig,
  *,
  document: Mapping[str, Any] | None = None,
  dtype: str = "bfloat16",
  max_bytes: int = 2_000_000_000,
) -> list[pathlib.Path]:
  """Writes a decoder as a Hugging Face directory, a file at a time.

  Args:
    directory: made if absent.
    params: the decoder's parameters.
    config: the decoder.
    document: the `config.json` that the decoder came with; made from the
      decoder if there is none.
    dtype: that the weights are stored in: float32, bfloat16 or float16.
    max_bytes: of a file of weights; more go into several. As much is in memory
      beside the parameters.

  Returns:
    The files that were written.

  Raises:
    ValueError: the document is not this decoder's, or no published family has
      all of its parts.
    ImportError: the extra `hf` is missing.
  """
  directory = pathlib.Path(directory)
  made = dict(hub_config.write_config(config) if document is None else document)
  where = f"{directory}/config.json"
  family = hub_config.find_family(made, where)
  found = hub_config.read_config(made, where=where)
  for name, shape in _shapes(found, family).items():
    if _shapes(config, family).get(name) != shape:
      raise ValueError(
        f"{where}: tensor {name!r} would have shape {list(shape)}, which is "
        "not this decoder's"
      )
  made["torch_dtype"] = made["dtype"] = dtype
  directory.mkdir(parents=True, exist_ok=True)
  names = hub_weights.name_map(config, fused=family.fused)
  written = hub_files.write_tensors(
    directory,
    hub_weights.tensor_shapes(config, names),
    hub_weights.tensor_values(config, names, params),
    dtype=dtype,
    max_bytes=max_bytes,
  )
  path = directory / "config.json"
  path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
  return [path, *written]


def _shapes(config: DecoderConfig, family: hub_config.Family) -> dict:
  return hub_weights.tensor_shapes(
    config, hub_weights.name_map(config, fused=family.fused)
  )
