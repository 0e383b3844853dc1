"""Every table from runs that are made up, and what was written of them.

`python -m tests.reporting.golden_tables` writes tests/golden/tables/ again.
"""

import hashlib
import json
import pathlib
import re
import tempfile
import zlib
from collections.abc import Sequence

import numpy as np

from saw_jax.reporting import catalogue, report
from saw_jax.reporting.runs import RowRuns
from tests.reporting import made_up

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "tables"
STEPS = 23
SEEDS = (0, 1, 2)
_ASKED = ("care/knights", "paw/shop")  # also with their rows on request

# Table, scale, seeds, and whether rows on request are in it.
CASES = (
  *((table, "tiny", SEEDS, False) for table in catalogue.names()),
  *((table, "tiny", SEEDS[:2], True) for table in _ASKED),
  ("saw/tool_calling", "paper", SEEDS, False),
  ("saw/summaries", "small", SEEDS[:1], False),
  ("saw/summaries", "paper", SEEDS, False),
  ("asympo/benchmarks", "paper", SEEDS, False),
  ("asympo/math", "small", SEEDS[:1], False),
  ("gdpo/math", "paper", SEEDS[:1], False),
  ("care/math", "paper", SEEDS[:1], False),
  ("paw/household", "paper", SEEDS[:2], False),
)
# Kept in full: one of each kind of table.
WHOLE = (
  "saw_tool_calling_paper_3",
  "saw_summaries_small_1",
  "asympo_math_tiny_3",
  "care_knights_tiny_2_asked",
  "gdpo_math_tiny_3",
)
_KINDS = ("reward", "weight", "cv", "constant_groups")
_REWARDS = ("total", "correct", "correctness", "format", "quality")
_REWARDS += ("conciseness", "length", "return")
_PARTS = ("names", "parameters", "values")  # rewards of saw/objectives alone
_SECONDS = ("generate", "score", "choose", "estimate", "update", "probes")
_METRICS = (
  *(f"{kind}/{reward}" for kind in _KINDS for reward in _REWARDS),
  *("success", "steps", "invalid", "entropy", "length", "observation_nll"),
  *("audit/correct", "audit/vote_right", "audit/majority", "audit/with_gap"),
  *("nll/positive", "nll/negative", "zero_advantage", "gradient_norm"),
  *("seconds/step", *(f"seconds/{name}" for name in _SECONDS)),
)
# Metrics that rows have if their name has this in it.
_OF_SOME = {
  "paw": ("lambda", "loss/world_model", "clipped_tokens"),
  "_0": ("labels/labelled", "labels/wasted", "labels/hopeless")
  + ("labels/bought", "labels/prompts"),
  "care_0": ("gate/precision",),
  "asympo": ("skipped",),
}


def name_of(case) -> str:
  table, scale, seeds, asked = case
  words = [table.replace("/", "_"), scale, str(len(seeds))]
  return "_".join([*words, "asked"] if asked else words)


def make_runs(
  folder: pathlib.Path, names: Sequence[str], scores: Sequence[str], seeds
) -> dict[str, RowRuns]:
  """Writes finished runs; the seeds of the first lie in two directories."""
  directories = {}
  for number, name in enumerate(names):
    parts = [seeds] if number or len(seeds) < 2 else [seeds[:-1], seeds[-1:]]
    paths = [folder / f"{name}_seeds_{part[0]}" for part in parts]
    for path, part in zip(paths, parts, strict=True):
      _make_run(path, name, scores, part, has_kinds=number % 2 == 1)
    directories[name] = RowRuns(tuple(paths), tuple(seeds))
  return directories


def _make_run(directory, name, scores, seeds, *, has_kinds) -> None:
  some = [m for part, ms in _OF_SOME.items() if part in name for m in ms]
  parts = tuple(x for x in _PARTS if f"sampled/{x}" in scores)
  some += [f"{kind}/{part}" for kind in _KINDS for part in parts]
  draws = {
    seed: np.random.default_rng(zlib.crc32(f"{name} {seed}".encode()))
    for seed in seeds
  }

  def draw(names, steps, rise) -> list[list]:
    lines = [["step", "seed", *names]]
    for step in steps:
      for seed, rng in draws.items():
        values = rng.random(len(names)) + rise * step / STEPS
        lines.append([step, seed, *(f"{value:.4f}" for value in values)])
    return lines

  metrics = draw([*_METRICS, *some], range(STEPS), 2)
  # Rows with kinds were not scored before their first step.
  steps = (10, STEPS) if has_kinds else (0, 10, STEPS)
  rewards = (*_REWARDS, *parts)
  evals = draw(["right", "observation_accuracy", *rewards], steps, 0)
  kinds = ["sampled/right_pick", "sampled/right_look"] if has_kinds else []
  wanted = dict.fromkeys([*scores, "sampled/right", *kinds])
  finals = {
    seed: {score: round(float(rng.random()), 4) for score in wanted}
    for seed, rng in draws.items()
  }
  commit = "abc" if has_kinds else "def"
  made_up.write_run(
    directory, metrics, finals, evals, step=STEPS, commit=commit
  )
  if has_kinds:
    for step, file, mean in (
      (0, "evaluation_start", 0.25),
      (STEPS, "evaluation", 0.5),
    ):
      found = {"mean": mean, "std": 1.0, "low": mean - 0.1, "high": mean + 0.1}
      greedy = dict.fromkeys(rewards, {**found, "count": 128})
      scored = [{"seed": seed, "greedy": greedy} for seed in seeds]
      document = json.dumps({"step": step, "seeds": scored})
      (directory / f"{file}.json").write_text(document)


def write(case, folder: pathlib.Path) -> pathlib.Path:
  """Writes the table of a case from runs that it makes."""
  name, scale, seeds, asked = case
  table = catalogue.load(name)
  names = table.default_runs + (list(table.on_request) if asked else [])
  scores = list(table.columns(scale).values())
  directories = make_runs(folder / "runs", names, scores, seeds)
  out = folder / "out"
  report.write(table, directories, out, scale=scale, command="python make it")
  return out


def digest(out: pathlib.Path) -> dict[str, str]:
  """Hashes of the files; numbers of a CSV file to nine digits."""
  found = {}
  for path in sorted(out.iterdir()):
    if path.suffix in (".md", ".csv"):
      text = path.read_text(encoding="utf-8")
      if path.suffix == ".csv":
        text = re.sub(
          r"-?\d+\.\d+(e-?\d+)?", lambda m: f"{float(m[0]):.9g}", text
        )
      found[path.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
  return found


def main(root: str | None = None) -> None:
  digests = {}
  for case in CASES:
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(root or folder) / name_of(case)
      folder.mkdir()
      out = write(case, folder)
      digests[name_of(case)] = digest(out)
      if name_of(case) in WHOLE:
        text = (out / "table.md").read_text(encoding="utf-8")
        (FOLDER / f"{name_of(case)}.md").write_text(text, encoding="utf-8")
  (FOLDER / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
  import sys

  main(*sys.argv[1:])
