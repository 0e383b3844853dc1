"""An update of ours beside MaxText's and Tunix's, compiled for a TPU slice.

  python benchmarks/slice.py [--topology=v5e-8] [--only=maxtext,tunix]
    [--shapes=16x1+2047,16x2048+1024] [--python3.12=PATH]

No chip is needed: libtpu compiles for a slice that is not here. The same model,
rows and slice go through each library's own step, and one reader, that of `saw
fit`, says of what was compiled how much memory of a chip it takes, what it
multiplies and what it sends. Of a shape ROWSxPROMPT+NEW, NEW tokens have a
loss.

A library is in an environment of its own, made under .cache/peers; MaxText
wants Python 3.12. Ours is compiled in each of them: two versions of libtpu are
not one ruler. What slice.jsonl of benchmarks/results has is not compiled again;
slice.md is written beside it. An update takes minutes.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peers  # noqa: E402
from saw_jax.ahead import report  # noqa: E402
from saw_jax.ahead import topology as topology_lib  # noqa: E402
from saw_jax.reporting import tables  # noqa: E402
from saw_jax.run import run_directory  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
REQUIREMENTS = {
  "tunix": ("google-tunix==0.1.7", "libtpu==0.0.42.1", "chex"),
  "maxtext": ("maxtext[tpu]==0.2.5",),
}
# Ours, and settings in which a library is compiled.
OURS = "saw_jax"
VARIANTS = {
  "tunix": {"DECODER": "Tunix, remat=DECODER, splash"},
  "maxtext": {
    "1": "MaxText, as it comes",
    "16": "MaxText, num_vocab_tiling=16",
  },
}
SHAPES = "16x1+2047", "16x2048+1024", "64x1+2047"
KEYS = "topology", "shape", "variant", "environment"
COLUMNS = "HBM, GiB", "TFLOP", "sent, GB", "roofline, s"
NOTES = """\
**Compiled, not run.** Each library's own update of Qwen2.5-1.5B's shape, all
rows at once and of full length: float32 weights and Adam's moments, bfloat16
products, layers computed again in the backward pass, splash attention, all of
it over `fsdp`.

- saw_jax: `saw fit` of `saw/tool_calling:row=gdpo_saw,scale=paper`, with the
  terms and diagnostics that the config has; packing off.
- Tunix: `grpo_loss_fn` in the jitted step of its trainer, with the memory and
  attention that its model offers (`RematConfig.DECODER`, splash), which are off
  by default; entropy as a metric.
- MaxText: the step that its `train_compile` compiles, cross-entropy on all
  tokens: where prompts have no loss it does more than the others.
- HBM: the most of a chip that the compiler has at one time; of what does not
  fit, what it asked for. TFLOP: matrix products of a chip. Sent: what a chip
  receives. Roofline: the slowest of products, memory and links, at what a chip
  can do.
- Ratios are of ours to the least of the library's settings that fit, compiled
  by the same libtpu: below 1 ours needs less.
"""


def words_of(shape: str) -> list[int]:
  """Rows, tokens of a prompt, and tokens with a loss."""
  found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)", shape)
  if not found:
    raise argparse.ArgumentTypeError(f"{shape!r} is not ROWSxPROMPT+NEW")
  return [int(x) for x in found.groups()]


def our_words(topology: str, shape: str) -> list[str]:
  """`saw fit` of SAW's update on rows of that shape."""
  rows, prompt, new = words_of(shape)
  keys = {
    "loop.prompts_per_step": rows // 2,
    "loop.group_size": 2,
    "loop.num_minibatches": 1,
    "loop.num_microbatches": 1,
    "loop.pack_length": 0,
    "model.remat": "full",
    "rollout.max_prompt_tokens": prompt,
    "rollout.prompt_multiple": prompt,
    "rollout.max_new_tokens": new,
    "rollout.completion_multiple": new,
  }
  config = "saw/tool_calling:row=gdpo_saw,scale=paper"
  return [
    *("-m", "saw_jax", "fit", f"--config={config}", f"--topology={topology}"),
    *("--programs=update", "--json"),
    *(f"--config.{key}={value}" for key, value in keys.items()),
  ]


def environment_of(name: str, python: str) -> str:
  """The Python of a library's environment, which is made where it is not."""
  how = dict(python=python, lowest=True) if name == "maxtext" else {}
  return peers.prepare(f"slice-{name}", REQUIREMENTS[name], **how)


def compile_one(name: str, python: str, case: tuple[str, str, str]) -> dict:
  """Compiles an update in a library's environment.

  Raises:
    peers.PeerError: it did not compile, with the last line that it said.
  """
  topology, shape, variant = case
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  words = our_words(topology, shape)
  if variant != OURS:  # Ours sets the rest of the environment itself.
    environment |= topology_lib.environment(topology_lib.read(topology))
    environment |= {"PYTHONPATH": str(ROOT)}
    sizes = json.dumps(words_of(shape))
    words = ["-m", f"benchmarks.slice_workers.{name}", topology, sizes, variant]
  done = subprocess.run(
    [python, *words], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  lines = [line for line in done.stdout.splitlines() if '"needs"' in line]
  if not lines:
    said = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
    raise peers.PeerError(said[-1])
  return json.loads(lines[-1])


def figures(found: dict, topology: topology_lib.Topology) -> list[float]:
  """`COLUMNS`, of a chip; NaN of what did not fit and so was not compiled."""
  times = report.roofline(found, topology)
  sent = sum(entry[-1] for entry in found.get("moved", ()))
  return [
    (found["needs"] - found["beside"]) / report.GIB,
    found["flops"] / 1e12,
    sent / 1e9 if times else math.nan,
    max(times.values(), default=math.nan),
  ]


def table(records: list[dict]) -> str:
  """Writes what was compiled as Markdown."""
  lines = ["### An update beside Tunix's and MaxText's, on a slice", "", NOTES]
  groups: dict[tuple, list[dict]] = {}
  for record in records:
    key = record["topology"], record["shape"], record["environment"]
    groups.setdefault(key, []).append(record)
  for (name, shape, environment), group in groups.items():
    topology = topology_lib.read(name)
    rows, prompt, new = words_of(shape)
    lines += [
      f"#### {name}: {rows} rows of {prompt} + {new} tokens, in "
      f"{environment}'s environment",
      "",
    ]
    rows, ours, least = [], None, [math.inf] * len(COLUMNS)
    for record in group:
      if "failed" in record:
        rows.append([record["label"], record["failed"], *[""] * 3])
        continue
      found = record["found"]
      values = figures(found, topology)
      fits = report.fits(found, topology)
      cells = ("-" if math.isnan(x) else f"{x:.3g}" for x in values)
      rows.append([record["label"] + ": does not fit" * (not fits), *cells])
      if record["variant"] == OURS:
        ours = values
      elif fits:
        least = list(map(min, least, values))
    if ours and math.isfinite(least[0]):
      ratios = (f"{a / b:.2f}" for a, b in zip(ours, least, strict=True))
      rows.append(["**ours to theirs**", *ratios])
    lines += [*tables.grid(["update", *COLUMNS], rows), ""]
  for line in sorted({x["versions"] for x in records if "versions" in x}):
    lines.append(f"- {line}")
  commits = sorted({x["commit"] for x in records})
  lines += ["", f"`python benchmarks/slice.py`, {', '.join(commits)}.", ""]
  return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description="An update beside MaxText's and Tunix's on a TPU slice."
  )
  listed = lambda text: tuple(text.split(","))  # noqa: E731
  parser.add_argument("--topology", default="v5e-8")
  parser.add_argument("--only", type=listed, default=tuple(REQUIREMENTS))
  parser.add_argument("--shapes", type=listed, default=SHAPES)
  parser.add_argument(
    "--python3.12", dest="python", default="python3.12", help="for MaxText"
  )
  found = parser.parse_args(arguments)
  for name in found.only:
    if name not in REQUIREMENTS:
      parser.error(f"{name!r} is not one of {', '.join(REQUIREMENTS)}")
  try:
    topology_lib.read(found.topology)
    for shape in found.shapes:
      words_of(shape)
  except (ValueError, argparse.ArgumentTypeError) as error:
    parser.error(str(error))
  return found


def versions(python: str) -> str:
  """What the environment of a Python holds, of what matters here."""
  names = "maxtext", "google_tunix", "jax", "jaxlib", "libtpu", "flax"
  folder = pathlib.Path(python).parent.parent
  found = folder.glob("lib/python*/site-packages/*.dist-info")
  pairs = (path.stem.rsplit("-", 1) for path in found)
  return ", ".join(sorted(" ".join(x) for x in pairs if x[0] in names))


def main() -> None:
  given = parse()
  path = RESULTS / "slice.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  records = [json.loads(line) for line in lines]
  # What failed is tried again, if it is asked for.
  records = [
    record
    for record in records
    if "found" in record or record["environment"] not in given.only
  ]
  known = {tuple(x[key] for key in KEYS) for x in records}
  commit = run_directory.environment()["commit"]
  for shape, name in itertools.product(given.shapes, given.only):
    for variant, label in ({OURS: OURS} | VARIANTS[name]).items():
      case = given.topology, shape, variant
      if (*case, name) in known:
        continue
      peers.say(f"{label} in {name}'s environment: {shape}, {given.topology}")
      record = dict(zip(KEYS, (*case, name), strict=True))
      record |= {"label": label, "commit": commit}
      try:
        python = environment_of(name, given.python)
        record["versions"] = versions(python)
        record["found"] = compile_one(name, python, case)
      except (peers.PeerError, OSError) as error:
        record["failed"] = str(error)
        peers.say(record["failed"])
      records.append(record)
      path.write_text("".join(json.dumps(x) + "\n" for x in records))
      path.with_suffix(".md").write_text(table(records))


if __name__ == "__main__":
  main()
