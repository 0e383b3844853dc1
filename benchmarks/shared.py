"""What benchmarks share: fair turns, medians with ranges, and files."""

import pathlib
import statistics
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))


def order(names: Sequence[str], repetition: int) -> list[str]:
  """Every second repetition in reverse: nobody always goes first."""
  return list(names)[:: -1 if repetition % 2 else 1]


def spread(name: str, values: Sequence[float]) -> dict:
  """A median under its name, and its range beside it."""
  middle, ends = statistics.median(values), [min(values), max(values)]
  return {name: float(middle), f"{name}_range": [float(x) for x in ends]}


def between(ends: Sequence[float]) -> str:
  return "{:.2f} to {:.2f}".format(*ends)


def write(
  stem: str,
  document: dict,
  title: str,
  head: Sequence[str],
  rows: Sequence[Sequence[str]],
  *notes: str,
  words: int = 1,
) -> None:
  """Writes what was measured: all of it as JSON, and a table on a page.

  The last note ends with what it was measured on. `words` are the columns at
  the left that hold no numbers.
  """
  from saw_jax.reporting import tables
  from saw_jax.run import metrics, run_directory

  document |= run_directory.environment()
  where = f"{document['machine']}, commit {document['commit']}."
  lines = [f"### {title}", "", *tables.grid(head, rows, words=words)]
  for note in (*notes[:-1], f"{notes[-1]} {where}"):
    lines += ["", note]
  RESULTS.mkdir(exist_ok=True)
  metrics.write_json(RESULTS / f"{stem}.json", document)
  text = "\n".join([*lines, ""])
  (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
  print(text)
