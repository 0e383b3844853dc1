"""The pages: their links, their code, and what is written by a script."""

import collections
import contextlib
import inspect
import json
import pathlib
import re
import shlex
import subprocess
import unittest.mock

import pytest

from docs import paper_index, reference
from saw_jax import algorithms
from saw_jax import commands as saw_commands
from saw_jax.models.hub import config as hub_config
from saw_jax.run import command_line, registry, sections
from saw_jax.run import config as configs
from tests import budget_test, package_test

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
  path
  for pattern in ("*.md", "docs/**/*.md", "results/*.md", "notebooks/*.ipynb")
  for path in ROOT.glob(pattern)
)

DOCS = sorted(ROOT.glob("docs/**/*.md"))


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
    for path in (ROOT / "README.md", *DOCS):
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
      "docs/paper_index.md is old: run python docs/paper_index.py"
    )

  def test_a_result_is_by_its_row_or_was_not_run(self, monkeypatch, tmp_path):
    part = paper_index.page().partition("## SAW on tool calling")[2]
    (line, *_) = (x for x in part.splitlines() if x.startswith("| gdpo_saw |"))
    assert "`advantages.gdpo` | `weighting.saw_weights` |" in line
    assert re.search(r"\| 0\.\d{3} ± 0\.\d{3} \(3 × 8\) \|$", line)
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


SKIP = r"<!-- not run: [^>]+ -->\n"  # before a block that says why
RUN = [
  path
  for path in (ROOT / "README.md", *DOCS)
  if path.stem != "extending" and snippets(path)
]


@pytest.mark.parametrize("path", RUN, ids=_name)
def test_the_code_of_a_page_runs(path, tables, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = path.read_text(encoding="utf-8")
  skipped = re.findall(SKIP + r"```python\n(.*?)^```$", text, re.M | re.S)
  space = {"__name__": path.stem}
  for line, block in snippets(path):
    program = compile("\n" * line + block, str(path), "exec")
    if block not in skipped:
      exec(program, space)


def test_the_first_lines_are_everywhere_the_same():
  (_, first), *_ = snippets(ROOT / "README.md")
  (_, shown), *_ = snippets(ROOT / "docs" / "index.md")
  assert first == shown
  lines = [line for line in first.splitlines() if line.strip()]
  assert len(lines) <= 14


def commands(path: pathlib.Path) -> list[list[str]]:
  """The words of each call of `saw` in a page, but for what is an ellipsis."""
  text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
  found = re.findall(r"^    (saw .+)|`(saw\s+[^`]+)`", text, re.M)
  calls = [shlex.split("".join(x), comments=True)[1:] for x in found]
  return [[w for w in words if "..." not in w] for words in calls]


def flags_of(name: str) -> set[str]:
  """The flags of a command, with those of the commands that it includes."""
  own = command_line._FLAGS[name]
  return set(own).union(*map(flags_of, own.get("+", ())))


@pytest.mark.parametrize("path", (ROOT / "README.md", *DOCS), ids=_name)
def test_commands_are_there_with_their_flags_and_configs(path):
  for name, *words in commands(path):
    assert name in saw_commands.NAMES
    config = None
    for word in words:
      flag, equals, value = word.removeprefix("--").partition("=")
      if not word.startswith("--") or flag == "help":
        continue
      section, _, key = flag.partition(".")
      assert section in flags_of(name), f"saw {name} {word}"
      if flag == "config":
        config = configs.load(value)
      elif section == "config":
        configs.override(config or configs.get_config(), key, value)


def test_make_help_has_every_target():
  text = (ROOT / "Makefile").read_text(encoding="utf-8")
  said = subprocess.check_output(["make", "-C", ROOT, "help"], text=True)
  for name in re.findall(r"^([a-z-]+):.*## ", text, re.M):
    assert f"  make {name} " in said


def test_every_page_is_in_the_contents():
  found = {ROOT / "docs" / "index.md"}
  for page in DOCS:
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```{toctree}\n(.*?)^```$", text, re.M | re.S):
      for name in re.findall(r"^(?!:)\S+$", block, re.M):
        files = list(page.parent.glob(f"{name}.md"))
        assert files or list(page.parent.glob(f"{name}.ipynb")), (page, name)
        found |= {file.resolve() for file in files}
  assert set(DOCS) <= found, sorted(set(DOCS) - found)


class TestNumbers:
  """Numbers of pages are cells of the tables that the pages link to."""

  @pytest.mark.parametrize(
    "path", (ROOT / "README.md", *ROOT.glob("docs/methods/*.md")), ids=_name
  )
  def test_differences_are_cells(self, path):
    text = path.read_text(encoding="utf-8")
    tables = re.findall(r"\]\(((?:\.\./)*results/\S+/table\.md)\)", text)
    cells = "".join((path.parent / x).read_text() for x in set(tables))
    number = r"[-+]\d+\.\d+"
    shown = re.findall(rf"({number}) (\[{number}, {number}\])", text)
    assert shown or path.stem == "index"
    for mean, interval in shown:
      assert f"| {mean} | {interval} |" in cells, (mean, interval)

  def test_means_of_the_results_are_cells(self):
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    cells = "".join(x.read_text() for x in ROOT.glob("results/*/*/*/table.md"))
    shown = set(re.findall(r"\d\.\d{3} ± \d\.\d{3}", text))
    assert len(shown) > 50
    assert not {x for x in shown if x not in cells}

  def test_claims_are_cells_and_their_words_are_their_intervals(self):
    path = ROOT / "results" / "README.md"
    lines = re.findall(
      r"^\| .* \| ([\w ]+) \| (.+): (.+) \| ([-+.\d]+) (\[.+?, .+?\]) \| "
      r"\d x \d \| \[table\]\((.+?)\)",
      path.read_text(encoding="utf-8"),
      re.M,
    )
    assert len(lines) > 20
    for word, compared, metric, mean, interval, table in lines:
      cells = (path.parent / table).read_text(encoding="utf-8")
      line = f"| {compared} | {metric} | {mean} | {interval} |"
      assert line in cells, line
      low, high = json.loads(interval.replace("+", ""))
      assert (low * high > 0) == (word in ("shown", "shown to fail")), line

  def test_the_readme_is_short(self):
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= 900


class TestReference:
  """What docs/reference.py writes of configs and metrics."""

  def test_it_is_what_the_code_says(self):
    for name, text in reference.pages().items():
      kept = (ROOT / "docs" / name).read_text(encoding="utf-8")
      assert kept == text, f"{name} is old: run python docs/reference.py"

  def test_it_has_every_key_and_what_it_means(self):
    def keys(section, prefix=""):
      for name, value in section.items():
        if hasattr(value, "items") and len(value):
          yield from keys(value, f"{prefix}{name}.")
        else:
          yield rf"\| `{prefix}{name}` \| .* \| [^|]*\w[^|]* \|\n"

    page = reference.configuration()
    for key in keys(configs.get_config()):
      assert re.search(key, page), key

  def test_a_comment_is_found_above_and_beside_its_field(self):
    assert reference.comments(sections.LoopConfig)["group_size"] == "G"
    said = reference.comments(sections.TokenizerConfig)["name"]
    assert said.startswith('"bytes"; the name of a task')
    said = reference.comments(sections.LabelConfig)["method"]
    assert [x for x in sections.selection.STRATEGIES if x not in said] == []


def test_the_api_has_the_formulas_and_what_one_extends():
  text = "".join(path.read_text() for path in ROOT.glob("docs/api/*.md"))
  shown = re.findall(r"^\.\. automodule:: (saw_jax\S+)$", text, re.M)
  places = {ROOT / f"{name.replace('.', '/')}.py" for name in shown}
  assert len(places) == len(shown) and all(x.is_file() for x in places)
  own = {ROOT / "saw_jax" / f"{x}.py" for x in ("diagnostics",)}
  own |= {
    x
    for x in budget_test.FORMULAS
    if x.stem in ("__init__", "probes", "replay")
  }
  assert set(budget_test.FORMULAS) - own <= places
  extended = {name.partition(":")[0] for name in package_test.EXTENSIONS}
  assert {f"saw_jax.{name}" for name in extended} <= set(shown)
