"""Compiles every table at scale `paper` for slices, and writes results/scale.

  python experiments/scale.py --minutes=30

Goes on where it was: programs.jsonl has what was compiled, and at which commit;
rows that share a program share a line. What is refused by arithmetic is said
without compiling. Nothing is run.
"""

import collections
import json
import pathlib
import subprocess
import time

from absl import app, flags

from experiments import scale_page as page
from saw_jax.ahead import compiled, report, topology
from saw_jax.run import children
from saw_jax.run import config as config_lib

MINUTES = flags.DEFINE_float("minutes", 30.0, "When to begin no other one.")
TABLES = flags.DEFINE_list("tables", [], "As saw/tool_calling; all by default.")
SLICES = flags.DEFINE_list(
  "slices", ["v5e-8", "v5e-16", "v5e-64", "v6e-8", "v5p-16"], "In this order."
)
NAMES = ["weights", "layers", "generate", "observe", "log_probs", "update"]
PROGRAMS = flags.DEFINE_list("programs", NAMES, "Others stay as they are.")
STALE = flags.DEFINE_list("stale", [], "Commits whose figures are made anew.")
ROWS = flags.DEFINE_bool("rows", False, "Also rows with their own update.")
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
  for name in config_lib.names():
    table, rows = config_lib.module(name), collections.defaultdict(list)
    for row in table.ROWS if "paper" in table.SCALES else ():
      config = table.get_config(f"row={row},scale=paper")
      rows[parts_of(config)].append(row)
    if rows:
      found[name] = sorted(rows.values(), key=len, reverse=True)
  return found


def refusal(name: str, row: str, where: str) -> str:
  """Why a row cannot run on a slice, by arithmetic; empty: it may."""
  config = config_lib.module(name).get_config(f"row={row},scale=paper")
  config.update_from_flattened_dict(SAID.get(name, {}))
  slice_ = topology.read(where)
  try:
    split = compiled.splitting(config_lib.typed(config), slice_.count)
    config.update_from_flattened_dict(split)
    made = compiled.experiment_of(config_lib.typed(config), slice_.count)
    report.check_room(made, slice_)
  except ValueError as error:
    return str(error)
  return ""


def compile_some(name: str, row: str, where: str, some: list[str]) -> list:
  """The figures of some programs of a row on a slice, by the command."""
  command = children.saw(*words_of(name, row, where))
  commit = subprocess.getoutput("git rev-parse --short HEAD")
  lines = []
  with subprocess.Popen(
    [*command, "--json", "--suggest", f"--programs={','.join(some)}"],
    stdout=subprocess.PIPE,
    text=True,
  ) as child:
    for line in child.stdout:
      lines.append(json.loads(line) | {"commit": commit})
      print("  ", line[:100].strip(), flush=True)
  return lines


def words_of(name: str, row: str, where: str) -> list[str]:
  more = [f"--config.{k}={v}" for k, v in SAID.get(name, {}).items()]
  config = f"--config={name}:row={row},scale=paper"
  return ["fit", config, f"--topology={where}", *more]


def main(_) -> None:
  file, begun = FOLDER / "programs.jsonl", time.time()
  known = map(json.loads, file.read_text().splitlines())
  known = {(x["table"], x["row"], x["slice"]): x for x in known}
  every = groups()
  wanted = [
    (name, rows[0], where)
    for most in ((1, None) if ROWS.value else (1,))
    for where in SLICES.value
    for name, shared in every.items()
    for rows in shared[: most if name in (TABLES.value or every) else 0]
  ]
  for at in wanted:
    before = known.get(at, {"asked": [], "figures": []})
    gone = [x for x in before["figures"] if x["commit"] in STALE.value]
    gone = {x.get("program") for x in gone} & set(PROGRAMS.value)
    gone, kept = gone.union(STALE.value), before["figures"]
    kept = [x for x in kept if x.get("program", x["commit"]) not in gone]
    asked = [x for x in before["asked"] if x not in gone]
    some = [x for x in PROGRAMS.value if x not in asked]
    refused = refusal(*at)
    late = time.time() > begun + 60 * MINUTES.value
    if not refused and (not some or late):
      continue
    if not refused:
      asked = asked + some
      print(time.strftime("%H:%M:%S"), *at, *some, flush=True)
      kept = kept + compile_some(*at, some)
    one = dict(zip(("table", "row", "slice"), at, strict=True))
    one["command"] = " ".join(["saw", *words_of(*at)])
    known[at] = one | {"refused": refused, "asked": asked, "figures": kept}
    lines = "".join(json.dumps(x) + "\n" for x in known.values())
    file.write_text(lines, encoding="utf-8")
    text = "\n".join(page.lines(every, known, SLICES.default))
    (FOLDER / "README.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
