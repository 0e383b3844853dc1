# SPDX-License-Identifier: Apache-2.0
"""A pretrained model on disk: its sizes, and its weights when asked for."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import config as hub_config
from saw_jax.models.hub import files as hub_files
from saw_jax.models.hub import gguf_file
from saw_jax.models.hub import weights as hub_weights
from saw_jax.types import PyTree


class Pretrained(NamedTuple):
  """A checkpoint whose headers have been checked, and no weight read."""

  path: pathlib.Path  # the directory or file
  # The decoder, unrolled and in float32; how it is computed is for the caller
  # to change.
  config: DecoderConfig
  document: Mapping[str, Any]  # what its `config.json` has, or would have
  # (config=, shardings=None) -> weights, see `weights.load_params`; dtypes and
  # whether layers are scanned may be those of another config.
  load: Callable[..., dict]


def open_checkpoint(
  path: str | os.PathLike, *, max_length: int | None = None
) -> Pretrained:
  """Reads and checks the headers of a Hugging Face directory or a `.gguf` file.

  What is missing, damaged, contradictory or unknown is one sentence that names
  file and tensor. `max_length`: see `config.read_config`.
  """
  path = pathlib.Path(path)
  where, places = str(path), {}
  if path.suffix == ".gguf":
    file = gguf_file.GGUFFile(path)
    document, shapes, read = file.document, file.shapes, file.read
  elif not path.is_dir():
    raise FileNotFoundError(f"{path}: there is no such directory")
  else:
    where = str(path / "config.json")
    document = hub_files.read_json(where)
    hub_config.find_family(document, where)  # Before the weights.
    tensors = hub_files.read_headers(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    places = {name: str(tensor.path) for name, tensor in tensors.items()}
    read = lambda name: tensors[name].values  # noqa: E731

  config = hub_config.read_config(document, where=where, max_length=max_length)
  fused = hub_config.find_family(document, where).fused
  names = hub_weights.name_map(config, fused=fused)

  def place(name: str) -> str:
    return places.get(name, str(path))

  hub_weights.check_tensors(config, names, shapes, place)

  def load(config=config, shardings: PyTree | None = None) -> dict:
    return hub_weights.load_params(config, names, read, shardings, place)

  return Pretrained(path, config, document, load)


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
  fused = hub_config.find_family(made, where).fused

  def layout(config: DecoderConfig):
    names = hub_weights.name_map(config, fused=fused)
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
