"""Runs notebooks and writes what they print and draw into them.

  python experiments/run_notebooks.py notebooks/01_saw_by_hand.ipynb

What is kept is what a reader sees: no timings, no logs of the kernel, no
progress bars. `make notebooks` runs all of them.
"""

import pathlib
import sys

_EXTRA = "pip install -e '.[notebooks]'"


def main(paths: list[str]) -> int:
  try:
    import nbformat
    from nbclient import NotebookClient
  except ImportError:
    print(f"error: what runs notebooks is missing: {_EXTRA}", file=sys.stderr)
    return 2
  if not paths:
    print("error: name the notebooks to run", file=sys.stderr)
    return 2
  for path in map(pathlib.Path, paths):
    print(path, flush=True)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
      notebook,
      timeout=None,
      record_timing=False,
      resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
      if cell.cell_type == "code":
        cell.outputs = [out for out in cell.outputs if not _is_log(out)]
    # What the kernel says of itself differs from machine to machine.
    notebook.metadata["language_info"] = {"name": "python"}
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
  return 0


def _is_log(output) -> bool:
  return output.get("name") == "stderr"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
