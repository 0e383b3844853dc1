"""The pages: their links, their code, and what is written by a script."""

import collections
import contextlib
import importlib.util
import inspect
import json
import pathlib
import re
import subprocess
import unittest.mock

import pytest

from saw_jax import algorithms
from saw_jax.models.hub import config as hub_config
from saw_jax.reporting import paper_index
from saw_jax.run import registry

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
  path
  for pattern in ("*.md", "docs/*.md", "notebooks/*.ipynb")
  for path in ROOT.glob(pattern)
)


def _name(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def _without_code(text: str) -> str:
  return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def prose(path: pathlib.Path) -> str:
  """The text of a page, without its code."""
  text = path.read_text(encoding="utf-8")
  if path.suffix == ".ipynb":
    text = "\n\n".join(
      "".join(cell["source"])
      for cell in json.loads(text)["cells"]
      if cell["cell_type"] == "markdown"
    )
  return re.sub(r"`[^`\n]*`", lambda x: "x" * len(x[0]), _without_code(text))


def anchors(path: pathlib.Path) -> set[str]:
  """The anchors of a page's headings, as the places that show it make them."""
  text = _without_code(path.read_text(encoding="utf-8"))
  found, counts = set(), collections.Counter()
  for heading in re.findall(r"^#{1,6} +(.*?)\s*$", text, re.MULTILINE):
    slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
    counts[slug] += 1
  return found


def broken(path: pathlib.Path) -> list[str]:
  """The relative links of a page that lead nowhere."""
  found = []
  for link in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", prose(path)):
    if re.match(r"[a-z]+:", link):
      continue
    target, _, anchor = link.partition("#")
    file = (path.parent / target).resolve() if target else path
    if not file.exists():
      found.append(link)
    elif anchor and file.suffix == ".md" and anchor not in anchors(file):
      found.append(link)
  return found


class TestLinks:
  @pytest.mark.parametrize("path", PAGES, ids=_name)
  def test_relative_links_lead_somewhere(self, path):
    assert broken(path) == []

  def test_files_that_are_named_are_there(self):
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
      folders = "benchmarks|configs|experiments|saw_jax|tests"
      for name in re.findall(rf"\b(?:{folders})/[\w/]+\.py", path.read_text()):
        assert (ROOT / name).is_file(), f"{path.name}: {name}"

  def test_links_are_found_at_all(self):
    links = sum(len(re.findall(r"\]\(", prose(path))) for path in PAGES)
    assert links > 20

  @pytest.mark.parametrize(
    ("text", "links"),
    [
      ("[a](b.md)", ["b.md"]),
      ("[a](other.md#no)", ["other.md#no"]),
      ("[a](#no-such)", ["#no-such"]),
      ("![a](no.png 'title')", ["no.png"]),
      ("[a](other.md#the-end-of-it) [b](#here-1) [c](https://x.y/z)", []),
      ("`[a](b.md)`", []),
      ("```\n[a](b.md)\n```", []),
    ],
  )
  def test_broken_ones_are_seen(self, tmp_path, text, links):
    (tmp_path / "other.md").write_text("# Other\n\n## The `end` of it\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n## Here\n\n{text}\n")
    assert broken(page) == links


class TestPaperIndex:
  def test_it_is_what_configs_and_results_say(self):
    path = ROOT / "docs" / "paper_index.md"
    assert path.read_text(encoding="utf-8") == paper_index.page(), (
      "docs/paper_index.md is old: run python saw_jax/reporting/paper_index.py"
    )

  def test_a_result_stands_beside_its_row_or_was_not_run(
    self, monkeypatch, tmp_path
  ):
    part = paper_index.page().partition("## SAW on tool calling")[2]
    (line, *_) = (x for x in part.splitlines() if x.startswith("| gdpo_saw |"))
    assert "`advantages.gdpo` | `weighting.saw_weights` |" in line
    assert re.search(r"\| 0\.\d{3} ± 0\.\d{3} \|$", line)
    monkeypatch.setattr(paper_index, "ROOT", tmp_path)
    page = paper_index.page()
    assert page.count("Results: not run.") == page.count("\n## ")
    assert "| not run |" in page


def snippets(path: pathlib.Path) -> list[tuple[int, str]]:
  """Line and text of each block of Python in a page."""
  text = path.read_text(encoding="utf-8")
  return [
    (text.count("\n", 0, found.start(1)), found[1])
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
  ]


@pytest.fixture
def tables():
  """Gives tables back as they were, whatever a page puts into them."""
  with contextlib.ExitStack() as stack:
    changed = (algorithms.LOSSES, algorithms.WEIGHTS, registry.TASKS)
    for table in (*changed, hub_config.FAMILIES):
      stack.enter_context(unittest.mock.patch.dict(table))
    yield


@pytest.mark.slow
def test_the_code_of_extending_runs_with_its_tests(tables, tmp_path):
  path = ROOT / "docs" / "extending.md"
  space = {"__name__": "extending"}
  for line, text in snippets(path):
    exec(compile("\n" * line + text, str(path), "exec"), space)
  tests = {k: fn for k, fn in space.items() if k.startswith("test_")}
  # One at least for each of: loss, weighting, reward, task, model family.
  assert len(tests) >= 5
  for name, test in tests.items():
    needs_folder = "tmp_path" in inspect.signature(test).parameters
    folder = tmp_path / name
    folder.mkdir()
    test(**({"tmp_path": folder} if needs_folder else {}))


@pytest.mark.slow
def test_the_pages_of_the_api_are_made(tmp_path):
  assert importlib.util.find_spec("pdoc"), "pip install -e '.[docs]'"
  import pdoc

  listed = subprocess.run(
    ["make", "--dry-run", "docs"], cwd=ROOT, capture_output=True, text=True,
    check=True,
  ).stdout  # fmt: skip
  (command,) = (x for x in listed.splitlines() if "-m pdoc" in x)
  pdoc.render.configure(docformat="google")
  try:
    pdoc.pdoc(
      *command.partition(".cache/docs ")[2].split(), output_directory=tmp_path
    )
  finally:
    pdoc.render.configure()
  modules = {
    "/".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.glob("saw_jax/**/*.py")
    if path.stem != "__init__" and not path.stem.startswith("_")
  }
  pages = {
    path.relative_to(tmp_path).with_suffix("").as_posix()
    for path in tmp_path.glob("**/*.html")
  }
  assert modules <= pages, sorted(modules - pages)
  page = (tmp_path / "saw_jax" / "weighting.html").read_text(encoding="utf-8")
  assert "saw_weights" in page and "coefficient of variation" in page
