# SPDX-License-Identifier: Apache-2.0
"""A pretrained model on disk: its sizes, and its weights when asked for."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import config as hub_config
from saw_jax.models.hub import files as hub_files
from saw_jax.models.hub import gguf_file
from saw_jax.models.hub import weights as hub_weights
from saw_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint whose headers have been checked, and no weight read."""

  path: pathlib.Path  # the directory or file
  # The decoder, unrolled and in float32; how it is computed is for the caller
  # to change.
  config: DecoderConfig
  document: Mapping[str, Any]  # what its `config.json` has, or would have
  _names: Mapping[hub_weights.Path, hub_weights.Piece]
  _read: hub_weights.Read
  _where: Callable[[str], str]

  def load(
    self, config: DecoderConfig | None = None, shardings: PyTree | None = None
  ) -> dict:
    """Reads the weights, shard by shard, see `weights.load_params`.

    `config` may differ from `self.config` in dtypes and whether layers are
    scanned.
    """
    return hub_weights.load_params(
      config or self.config, self._names, self._read, shardings, self._where
    )


def open_checkpoint(
  path: str | os.PathLike, *, max_length: int | None = None
) -> Pretrained:
  """Reads and checks the headers of a Hugging Face directory or a `.gguf` file.

  What is missing, damaged, contradictory or unknown is one sentence that names
  file and tensor. `max_length`: see `config.read_config`.
  """
  path = pathlib.Path(path)
  places: dict[str, pathlib.Path] = {}
  config_path = str(path)
  if path.suffix == ".gguf":
    file = gguf_file.GGUFFile(path)
    document, shapes, read = file.document, file.shapes, file.read
  else:
    if not path.is_dir():
      raise FileNotFoundError(f"{path}: there is no such directory")
    config_path = str(path / "config.json")
    document = hub_files.read_json(config_path)
    hub_config.find_family(document, config_path)  # Before the weights.
    tensors = hub_files.read_headers(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    places = {name: tensor.path for name, tensor in tensors.items()}
    read = lambda name: tensors[name].values  # noqa: E731

  config = hub_config.read_config(
    document, where=config_path, max_length=max_length
  )
  family = hub_config.find_family(document, config_path)
  names = hub_weights.name_map(config, fused=family.fused)

  def place(name: str) -> str:
    return str(places.get(name, path))

  hub_weights.check_tensors(config, names, shapes, place)
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
  """Writes a decoder as a Hugging Face directory, and returns its files.

  `document` is the `config.json` that the decoder came with; by default it is
  made. Weights are stored in `dtype`, see `files.write_tensors`.
  """
  directory = pathlib.Path(directory)
  where = f"{directory}/config.json"
  made = dict(hub_config.write_config(config) if document is None else document)
  family = hub_config.find_family(made, where)

  def layout(config: DecoderConfig):
    names = hub_weights.name_map(config, fused=family.fused)
    return names, hub_weights.tensor_shapes(config, names)

  names, shapes = layout(config)
  _, wanted = layout(hub_config.read_config(made, where=where))
  for name, shape in wanted.items():
    if shapes.get(name) != shape:
      raise ValueError(
        f"{where}: tensor {name!r} would have shape {list(shape)}, which is "
        "not this decoder's"
      )
  made["torch_dtype"] = made["dtype"] = dtype
  directory.mkdir(parents=True, exist_ok=True)
  values = hub_weights.tensor_values(config, names, params)
  written = hub_files.write_tensors(
    directory, shapes, values, dtype=dtype, max_bytes=max_bytes
  )
  return [hub_files.write_json(directory / "config.json", made), *written]
