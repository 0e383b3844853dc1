"""Compiles every table at scale `paper` for slices, and writes results/scale.

  python experiments/scale.py --minutes=30

Goes on where it was: programs.jsonl has what was compiled, by what it is made
of, so that rows that share a program share a line. Nothing is run.
"""

import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from saw_jax.ahead import page
from saw_jax.run import config as config_lib

MINUTES = flags.DEFINE_float("minutes", 30.0, "When to begin no other one.")
TABLES = flags.DEFINE_list("tables", [], "As saw/tool_calling; all by default.")
SLICES = flags.DEFINE_list(
  "slices", ["v5e-8", "v5e-16", "v5e-64", "v6e-8", "v5p-16"], "In this order."
)
PROGRAMS = flags.DEFINE_list("programs", [], "As --programs of saw fit.")
ROWS = flags.DEFINE_bool(
  "rows", False, "Also rows with an update of their own."
)
FOLDER = pathlib.Path(__file__).parents[1] / "results" / "scale"
# What a config leaves open.
SAID = {"saw/summaries": {"task.options.judge.url": "http://localhost"}}


def parts_of(config) -> str:
  """What the programs of a row are made of: others share its line."""
  kept = config.to_dict()
  for name in ("task", "evaluation", "grading", "warm_start", "tokenizer"):
    kept.pop(name)
  labels, algorithm = kept.pop("labels"), kept["algorithm"]
  kept["observes"] = labels["method"] != "truth"
  kept["critic"] = algorithm["advantage"] == "step_gae"
  for name in ("advantage", "weights"):
    algorithm.pop(name), algorithm.pop(f"{name}_options")
  world = algorithm.pop("world_model")
  kept["world"] = world["loss"], world["loss_options"]
  return json.dumps(kept, sort_keys=True, default=str)


def groups() -> dict[str, list[list[str]]]:
  """Of each table, its rows by the programs that they share."""
  found = {}
  for name in TABLES.value or config_lib.names():
    table, rows = config_lib.module(name), collections.defaultdict(list)
    for row in table.ROWS if "paper" in table.SCALES else ():
      config = table.get_config(f"row={row},scale=paper")
      rows[parts_of(config)].append(row)
    if rows:
      found[name] = sorted(rows.values(), key=len, reverse=True)
  return found


def compile_one(name: str, row: str, where: str) -> dict:
  """The figures of one row on one slice, by the command."""
  words = [f"--config={name}:row={row},scale=paper", f"--topology={where}"]
  words += [f"--config.{k}={v}" for k, v in SAID.get(name, {}).items()]
  command = [sys.executable, "-m", "saw_jax", "fit", *words]
  lines, some = [], PROGRAMS.value
  with (
    tempfile.TemporaryFile("w+") as errors,
    subprocess.Popen(
      [*command, "--json", "--suggest", f"--programs={','.join(some)}"],
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
    ) as child,
  ):
    for line in child.stdout:
      lines.append(json.loads(line))
      print("  ", line[:100].strip(), flush=True)
    status = child.wait()
    errors.seek(0)
    said = errors.read().strip().splitlines() if status == 2 else []
  commit = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
  )
  return {
    "table": name,
    "row": row,
    "slice": where,
    "commit": commit.stdout.strip(),
    "programs": some,
    "command": " ".join(["saw", "fit", *words]),
    "refused": said[-1:] and said[-1].removeprefix("error: "),
    "figures": lines,
  }


def main(_) -> None:
  FOLDER.mkdir(parents=True, exist_ok=True)
  file, begun = FOLDER / "programs.jsonl", time.time()
  known = file.read_text().splitlines() if file.exists() else []
  known = {
    (x["table"], x["row"], x["slice"]): x for x in map(json.loads, known)
  }
  every = groups()
  wanted = [
    (name, rows[0], where)
    for most in ((1, None) if ROWS.value else (1,))
    for where in SLICES.value
    for name, shared in every.items()
    for rows in shared[:most]
  ]
  for name, row, where in wanted:
    before = known.get((name, row, where), {"programs": ["none"]})
    if not before.get("programs") or before["programs"] == PROGRAMS.value:
      continue
    if time.time() > begun + 60 * MINUTES.value:
      continue
    print(time.strftime("%H:%M:%S"), name, row, where, flush=True)
    one = known[name, row, where] = compile_one(name, row, where)
    with file.open("a") as out:
      out.write(json.dumps(one) + "\n")
  text = "\n".join(page.lines(every, known, SLICES.value))
  (FOLDER / "README.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
