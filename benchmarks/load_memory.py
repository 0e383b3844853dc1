"""How much memory processes need that load a released model onto one mesh.

  python benchmarks/load_memory.py --model=Qwen2.5-7B-Instruct --processes=2

Makes a sharded directory of the model's shapes, whose zeros take no room on the
disk, and has it loaded in bfloat16, split over all virtual devices of all
processes, which find each other on loopback. The processes load one after the
other, so that a machine needs the memory of one alone. Of each process, in GB:
the peak of its resident memory and what that was before, its part of the model,
and what it read. They go to benchmarks/results/load_memory.json, by model and
processes.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FILE_BYTES = 4e9
# What Qwen2.5-7B has otherwise than the 1.5B.
SEVEN = {
  "vocab_size": 152064,
  "hidden_size": 3584,
  "num_attention_heads": 28,
  "num_key_value_heads": 4,
  "intermediate_size": 18944,
  "tie_word_embeddings": False,
}


def document_of(name: str) -> dict:
  """The `config.json` of a released model."""
  found = ROOT / "saw_jax" / "ahead" / "assets" / "released_models.json"
  models = json.loads(found.read_text())
  small = models["Qwen2.5-1.5B-Instruct"]
  return {**models, "Qwen2.5-7B-Instruct": {**small, **SEVEN}}[name]


def write(folder: pathlib.Path, document: dict) -> None:
  """Writes the files of a model whose weights are holes."""
  from saw_jax.models.hub import config as hub_config
  from saw_jax.models.hub import pretrained

  (folder / "config.json").write_text(json.dumps(document))
  config = hub_config.read_config(document, where="config.json")
  names = pretrained.name_map(config, fused=False)
  files, end = [{}], 0
  for name, shape in pretrained.tensor_shapes(config, names).items():
    begin, end = end, end + 2 * math.prod(shape)
    if end > FILE_BYTES:
      files.append({})
      begin, end = 0, end - begin
    files[-1][name] = {
      "dtype": "BF16",
      "shape": shape,
      "data_offsets": [begin, end],
    }
  where = {}
  for number, header in enumerate(files):
    path = folder / f"model-{number}.safetensors"
    text = json.dumps(header).encode()
    with path.open("wb") as file:
      file.write(len(text).to_bytes(8, "little") + text)
      last = [*header.values()][-1]
      file.truncate(8 + len(text) + last["data_offsets"][1])
    where |= dict.fromkeys(header, path.name)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": where}))


def load(folder: str, port: int, index: int, count: int) -> dict[str, float]:
  """Loads this process's part when it is its turn; says what that took."""
  import jax

  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
  from orbax.checkpoint import multihost

  from saw_jax.models.hub import pretrained
  from saw_jax.training import parallel

  source = pretrained.open_checkpoint(folder)
  both = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
  config = dataclasses.replace(source.config, scan_layers=True, **both)
  mesh = parallel.make_mesh(parallel.ParallelConfig("meshed", fsdp=-1))
  shardings = parallel.param_shardings(mesh, config)
  jax.block_until_ready(jax.numpy.zeros(()))
  wait = multihost.get_barrier_sync_fn()
  for turn in range(index):
    wait(key=f"loaded_{turn}", timeout_ms=3_600_000)
  before, read = _peak(), _read()
  params = jax.block_until_ready(source.load(config, shardings))
  leaves = jax.tree.leaves(params)
  shares = [
    sum(part.data.nbytes for part in leaf.addressable_shards) for leaf in leaves
  ]
  found = {
    "before": before,
    "peak": _peak(),
    "share": sum(shares) / 1e9,
    "largest_share_of_a_leaf": max(shares) / 1e9,
    "read": _read() - read,
    "model": sum(leaf.nbytes for leaf in leaves) / 1e9,
  }
  del params, leaves
  for turn in range(index, count):
    wait(key=f"loaded_{turn}", timeout_ms=3_600_000)
  return found


def _peak() -> float:
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
      return int(line.split()[1]) * 1024 / 1e9
  raise OSError("there is no peak of memory in /proc/self/status")


def _read() -> float:
  return int(pathlib.Path("/proc/self/io").read_text().split()[1]) / 1e9


def measure(model: str, processes: int, devices: int) -> list[dict[str, float]]:
  with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    write(pathlib.Path(folder), document_of(model))
    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    each = [
      subprocess.Popen(
        [sys.executable, __file__, "--join", folder]
        + [str(x) for x in (port, index, processes)],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
      )
      for index in range(processes)
    ]
    said = [process.communicate()[0] for process in each]
  if any(process.returncode for process in each):
    raise SystemExit("a process that loads has failed")
  return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", default="Qwen2.5-7B-Instruct")
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--devices", type=int, default=4, help="of each process")
  out = ROOT / "benchmarks" / "results" / "load_memory.json"
  parser.add_argument("--out", type=pathlib.Path, default=out)
  parser.add_argument("--join", nargs=4, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.join:
    folder, *numbers = flags.join
    print(json.dumps(load(folder, *map(int, numbers))))
    return
  from saw_jax.run import run_directory

  found = measure(flags.model, flags.processes, flags.devices)
  key = f"{flags.model}, {flags.processes} x {flags.devices} devices"
  held = json.loads(flags.out.read_text()) if flags.out.exists() else {}
  held[key] = {"processes": found, **run_directory.environment()}
  flags.out.write_text(json.dumps(held, indent=2) + "\n")
  print(json.dumps({key: found}, indent=2))


if __name__ == "__main__":
  main()
