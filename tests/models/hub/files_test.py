"""Tests of safetensors files: what is written is read, damage is named."""

import json
import pathlib
import struct

import numpy as np
import pytest

from saw_jax.models.hub import files as hub_files
from tests import helpers

rng = np.random.default_rng(0)
TENSORS = {
  "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
  "b.bias": rng.normal(size=(7,)).astype(np.float32),
  "c.weight": rng.normal(size=(2, 3, 2)).astype(np.float32),
}
SHAPES = {name: value.shape for name, value in TENSORS.items()}


def write(directory, **options):
  options = {"dtype": "float32", **options}
  given = SHAPES, TENSORS.__getitem__
  return hub_files.write_tensors(directory, *given, **options)


def raw(path, header, data=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  size = len(text) if length is None else length
  path.write_bytes(struct.pack("<Q", size) + text + data)


def entry(shape, begin, end, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_bytes_are_the_published_format(tmp_path):
  # By hand: length, header padded with spaces to 8 bytes, then the numbers.
  hub_files.write_tensors(
    tmp_path, {"x": (2,)}, lambda name: np.array([1.0, -2.0]), dtype="float16"
  )
  data = (tmp_path / "model.safetensors").read_bytes()
  (length,) = struct.unpack("<Q", data[:8])
  assert length % 8 == 0
  assert json.loads(data[8 : 8 + length]) == {
    "__metadata__": {"format": "pt"},
    "x": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]},
  }
  assert data[8 + length :] == bytes.fromhex("003c00c0")


@pytest.mark.parametrize("max_bytes", [10_000, 90, 1])
def test_every_tensor_comes_back(tmp_path, max_bytes):
  paths = write(tmp_path, max_bytes=max_bytes)
  found = hub_files.read_headers(tmp_path)
  assert set(found) == set(TENSORS)
  for name, value in TENSORS.items():
    np.testing.assert_array_equal(found[name][:], value)
  shards = {1: 3, 90: 2, 10_000: 1}[max_bytes]
  assert len(list(tmp_path.glob("*.safetensors"))) == shards
  assert len(paths) == shards + (shards > 1)
  assert (tmp_path / hub_files.INDEX).is_file() == (shards > 1)


def test_of_a_tensor_the_rows_that_are_asked_for_are_read(tmp_path):
  values = np.arange(2e6, dtype=np.float32).reshape(-1, 100)
  hub_files.write_tensors(
    tmp_path, {"x": values.shape}, lambda name: values, dtype="float32"
  )
  tensor = hub_files.read_headers(tmp_path)["x"]
  count = lambda: int(io.read_text().split()[1])  # noqa: E731
  io = pathlib.Path("/proc/self/io")
  before = count()
  np.testing.assert_array_equal(tensor[70:90], values[70:90])
  assert count() - before < 50_000  # 20 rows are 8,000 bytes, of 8 MB
  np.testing.assert_array_equal(tensor[19_990:], values[19_990:])


def test_shapes_without_entries_and_others_than_were_said(tmp_path):
  with pytest.raises(ValueError, match=r"'x' has shape \[3\], not \[2\]"):
    hub_files.write_tensors(tmp_path, {"x": (2,)}, lambda name: np.zeros(3))
  assert not (tmp_path / hub_files.SINGLE).exists()
  none = np.zeros((0, 3))
  hub_files.write_tensors(tmp_path, {"x": none.shape}, lambda name: none)
  assert hub_files.read_headers(tmp_path)["x"][:].shape == (0, 3)


def test_each_cut_of_a_file_is_noticed(tmp_path):
  [path] = write(tmp_path)
  whole = path.read_bytes()
  parts = [whole[:size] for size in range(0, len(whole), 17)]
  for part in (*parts, whole[:-1], whole + bytes(2)):
    path.write_bytes(part)
    with pytest.raises(ValueError, match="model.safetensors: .*damaged: "):
      hub_files.read_header(path)


def test_each_flipped_bit_of_a_header_is_noticed_or_harmless(tmp_path):
  # Whatever the flip: a ValueError that names the file, or tensors that lie
  # within the file (a letter of a name, or one kind of number for another).
  [path] = write(tmp_path)
  whole, noticed = path.read_bytes(), 0
  (length,) = struct.unpack("<Q", whole[:8])
  for bit in range(0, 8 * (8 + length), 3):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
      found = hub_files.read_header(path)
    except ValueError as error:
      assert str(path) in str(error)
      noticed += 1
    else:
      assert {info.shape for info in found.values()} == set(SHAPES.values())
  assert noticed > 100


@pytest.mark.parametrize(
  "header",
  [
    *(b"[]", b"{,}", b"[" * 10_000),
    {"x": 3},
    *({"x": entry(*bad)} for bad in (([2**60], 0, 2**62), ([2], 0, "8"))),
    *({"x": entry(*bad)} for bad in (([-2], 0, 8), ([3], 0, 8), ([1], 4, 8))),
    {"x": entry([2], 0, 8, "F33")},
    {"x": entry([2], 0, 8), "y": entry([1], 4, 8)},
  ],
)
def test_a_header_that_makes_no_sense(tmp_path, header):
  path = tmp_path / "x.safetensors"
  raw(path, header, bytes(8))
  with pytest.raises(ValueError, match=r"x\.safetensors: .*damaged: "):
    hub_files.read_header(path)
  raw(path, {"x": entry([2], 0, 2, "I8")}, bytes(2))
  with pytest.raises(ValueError, match="'x': dtype I8"):
    hub_files.read_header(path)


@pytest.mark.parametrize("use", [hub_files.read_headers, write])
def test_without_the_package_the_extra_is_named(tmp_path, use):
  write(tmp_path)
  with helpers.lacking("hf", "safetensors"):
    use(tmp_path)


def test_shards_that_are_not_as_their_index_has_them(tmp_path):
  write(tmp_path, max_bytes=1)
  index = tmp_path / hub_files.INDEX
  weight_map = json.loads(index.read_text())["weight_map"]
  shard = weight_map["a.weight"]
  index.write_text(json.dumps({"weight_map": {**weight_map, "z": shard}}))
  with pytest.raises(ValueError, match=f"{shard}: no tensor 'z'"):
    hub_files.read_headers(tmp_path)
  (tmp_path / shard).unlink()
  with pytest.raises(FileNotFoundError, match=f"{shard}: missing.* 2 tensors"):
    hub_files.read_headers(tmp_path)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "[]",
    '{"weight_map": [1]}',
    # Out of its directory.
    '{"weight_map": {"a": "../other/model.safetensors"}}',
  ],
)
def test_an_index_that_is_none(tmp_path, text):
  (tmp_path / hub_files.INDEX).write_text(text)
  with pytest.raises(ValueError, match=r"index\.json: "):
    hub_files.read_headers(tmp_path)


def test_no_weights_and_pickles_that_are_not_read(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors"):
    hub_files.read_headers(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
  with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin"):
    hub_files.read_headers(tmp_path)


def test_two_do_not_save_into_one_folder(tmp_path):
  with hub_files.replacing(tmp_path) as folder:
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="another"):
      with hub_files.replacing(tmp_path):
        pass
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
  with hub_files.replacing(tmp_path):
    pass  # It is free again.


def test_weights_are_floating_point(tmp_path):
  with pytest.raises(ValueError, match="floating point"):
    write(tmp_path, dtype="int8")
