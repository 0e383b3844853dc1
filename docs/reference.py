"""Writes docs/configuration.md and docs/metrics.md from what the code says.

  python docs/reference.py

A test says when a page is old.
"""

import ast
import dataclasses
import inspect
import pathlib
import re
import sys
import textwrap
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

_KEYS = """\
# Config reference

Every key of a config, with its type, its default and what it means. This page
is written by `python docs/reference.py` from the dataclasses that read the
keys, and a test says when it is old.

A key is set in Python, as `config.loop.num_steps = 200`, or on the command
line, as `--config.loop.num_steps=200`. An unknown key, or a value of another
type, stops the run at once, with the nearest key. A `Mapping` is a free
section: it holds the arguments of the function or task that is named beside
it, which checks them. Where a `Choice` is asked for, a function does as well
as its name, and in Python a function of the step where a `Schedule` is.

What has no key is changed from Python alone, on the typed config:

```python
from saw_jax.run import config as configs

run = configs.typed(configs.get_config())
run = configs.replace(run, "optimizer.b1", 0.8)
```
"""
_FIGURES = """\
# Metrics glossary

Every figure that a run logs, in `metrics.jsonl`, `metrics.csv`, the run's own
page and the trackers. A word in angle brackets stands for any: a component of
the reward, k. What is held out is in `evals.jsonl`, without `eval/`. This page
is written by `python docs/reference.py` from `saw_jax/run/glossary.py`.
"""


def main() -> int:
  for name, text in pages().items():
    path = FOLDER / name
    path.write_text(text, encoding="utf-8")
    print(path)
  return 0


def pages() -> dict[str, str]:
  """The name and the text of each page."""
  return {"configuration.md": configuration(), "metrics.md": metrics()}


def metrics() -> str:
  from saw_jax.run import glossary

  lines = [_FIGURES]
  for section in glossary.sections():
    rows = [x for x in glossary.entries() if x.section == section]
    if rows:
      lines += [f"## {section}", "", "| figure | |", "| --- | --- |"]
      lines += [f"| `{row.name}` | {row.line} |" for row in rows]
      lines.append("")
  return "\n".join(lines)


def configuration() -> str:
  from saw_jax.run import sections

  return "\n".join([_KEYS, *_section(sections.RunConfig(), "")])


def comments(cls: type) -> dict[str, str]:
  """What stands above each field of a dataclass, and beside it."""
  source = textwrap.dedent(inspect.getsource(cls))
  lines = source.splitlines()
  (tree,) = ast.parse(source).body
  found = {}
  for node in tree.body:
    if not isinstance(node, ast.AnnAssign):
      continue
    above, number = [], node.lineno - 2
    while lines[number].lstrip().startswith("#"):
      above.insert(0, lines[number])
      number -= 1
    beside = lines[node.end_lineno - 1].encode()[node.end_col_offset :]
    parts = (line.strip(" #") for line in (*above, beside.decode()))
    name = node.target.id
    said = " ".join(filter(None, parts))
    if not said and name.endswith("_options"):
      owner = next(x for x in found if x in (name[:-8], f"{name[:-8]}s"))
      said = f"arguments of the function that `{owner}` names"
    found[name] = _with_names(said)
  return found


def _with_names(comment: str) -> str:
  """A comment with the names in a table where it names the table."""
  from saw_jax import algorithms
  from saw_jax.models import config
  from saw_jax.run import registry

  def listed(found: re.Match) -> str:
    for module in (algorithms, registry, config):
      if table := getattr(module, found[1], None):
        return ", ".join(f"`{name}`" for name in table)
    return found[0]

  return re.sub(r"(?:\w+\.)?\b([A-Z_]{5,})\b", listed, comment)


def _section(section: Any, prefix: str) -> list[str]:
  """A heading, the keys of a section, and the sections below it."""
  from saw_jax import settings

  fields = dataclasses.fields(section)
  keys = [field for field in fields if settings.is_key(field)]
  below = [x for x in keys if dataclasses.is_dataclass(x.type)]
  said, lines = comments(type(section)), []
  if prefix:
    document = inspect.getdoc(section).split("\n\n")[0]
    level = "#" * (2 + prefix.count("."))
    lines += [f"{level} {prefix}", "", " ".join(document.split()), ""]

  def table(head: str, rows: list[dataclasses.Field], before: str) -> None:
    if rows:
      lines.append(f"| {head} | type | default | |")
      lines.append("| --- | --- | --- | --- |")
    for field in rows:
      default = getattr(section, field.name)
      if not dataclasses.is_dataclass(default):
        cells = f"`{_type(field)}` | `{default!r}` | {said[field.name]}"
        lines.append(f"| `{before}{field.name}` | {cells} |")
    lines.extend([""] * bool(rows))

  table("key", [x for x in keys if x not in below], f"{prefix}." * bool(prefix))
  table("no key", [x for x in fields if x not in keys], "")
  for field in below:
    place = f"{prefix}.{field.name}".lstrip(".")
    lines += _section(getattr(section, field.name), place)
  return lines


def _type(field: dataclasses.Field) -> str:
  if isinstance(field.type, type) and not getattr(field.type, "__args__", ()):
    return field.type.__name__
  text = str(field.type)
  if "Callable" in text:
    return "Choice" if "str" in text else "Schedule"
  return text.rpartition("Mapping")[1] or text


if __name__ == "__main__":
  sys.exit(main())
