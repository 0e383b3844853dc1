"""The page of a run: what it shows, and that nothing in it is obeyed."""

import array
import contextlib
import html.parser
import json
import math
import re

import numpy as np
import pytest

from saw_jax.run import metrics, run_page
from saw_jax.run.run_page import RunPage

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\ud800&\0"
TAGS = set(
  "html head meta title style body h1 h2 h3 p span b i section progress "
  "details summary pre div figure figcaption svg path text polyline table tr "
  "td script a".split()
)
ROW = {
  "prompt": "2+2",
  "completion": "4",
  "reward/right": 1.0,
  "outcome": "right",
}


class Reader(html.parser.HTMLParser):
  """Collects the tags of a page with their attributes, and its text."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.texts = [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append(data)


def values(step, seed):
  figures = {"loss": -step / 2, "reward/total": step + seed}
  return figures | {"seconds/step": 4.0, "seconds/generate": 3.0}


def shown(page):
  """A page without what the clock says."""
  return re.sub(r'data-at="\d+"|· (since|page) [^·<]*', "", page.html())


def test_a_page_of_the_files_is_the_page_of_the_run(tmp_path):
  (tmp_path / "run.json").write_text(
    json.dumps({"config": {"task": {"name": "rows"}, "seeds": [0, 1]}})
  )
  page = RunPage(tmp_path, 20)
  file = metrics.FileWriter(tmp_path, "metrics")
  scores = metrics.FileWriter(tmp_path, "evals")
  lines = metrics.LineFile(tmp_path / "completions.jsonl")
  for step in range(10):
    for seed in (0, 1):
      for writer in (page, file):
        writer.write(step, seed, values(step, seed))
      if step % 2 == 0:
        page.write_samples(step, seed, [ROW | {"total": None}] * 2)
        for _ in range(2):
          lines.write({"step": step, "seed": seed, **ROW, "total": None})
        scores.write(step, seed, {"right": math.nan if step < 4 else 0.5})
        page.write(step, seed, {"eval/right": math.nan if step < 4 else 0.5})
  page._times.clear()
  assert shown(RunPage(tmp_path, 20)) == shown(page)
  found = Reader(page.html())
  text = "\n".join(found.texts)
  assert re.findall(r"width:(\d+)%", page.html()) == ["100", "75"]
  for words in ("rows", "step 10 of 20", "eval/right", "null", "seconds/step"):
    assert words in text
  # The first step with completions, and the newest three.
  shown_steps = re.findall(r"Completions of step (\d+)", page.html())
  assert shown_steps == ["8", "6", "4", "0"]
  kinds = [attrs.get("class") for tag, attrs in found.tags if tag == "polyline"]
  # None is constant.
  assert kinds.count("mean") == 2 and kinds.count("seed") == 4


def test_nothing_that_a_run_writes_is_obeyed(tmp_path):
  folder = tmp_path / "<img src=x>"
  folder.mkdir()
  config = {"task": {"name": HOSTILE.replace("\ud800", "")}}
  (folder / "run.json").write_text(json.dumps({"config": config}))
  page = RunPage(folder, 3)
  for step in range(3):
    page.write(step, 0, {"loss": 1.0, f"reward/{HOSTILE}": math.inf})
    rows = [dict.fromkeys(ROW, HOSTILE * 50_000)] * 8
    for seed in range(6):
      page.write_samples(step, seed, rows)
  with contextlib.suppress(RuntimeError), page:
    raise RuntimeError(HOSTILE)
  written = (folder / "run.html").read_bytes()
  assert len(written) < 1e6
  found = Reader(written.decode())
  tags = [tag for tag, _ in found.tags]
  assert set(tags) <= TAGS and tags.count("script") == 1
  names = {name for _, attrs in found.tags for name in attrs}
  assert not {"onerror", "src"} & names
  shown = "".join(found.texts)
  assert "task.name = </pre><script>alert(1)" in shown
  assert "by an error: </pre><script>alert(1)" in shown


def test_a_long_run_of_many_seeds_stays_small(tmp_path, monkeypatch):
  monkeypatch.setattr(run_page, "MOST_POINTS", 40)
  monkeypatch.setattr(run_page, "ALL_POINTS", 4000)
  page = RunPage(tmp_path, 1000)
  for step in range(500):
    for seed in range(10):
      row = {f"reward/{i}": step * i + seed for i in range(10)}
      page.write(step, seed, row)
  lines = re.findall(r'points="([^"]*)"', page.html())
  assert len(lines) == 10 * (8 + 1)  # of ten seeds, eight are drawn
  assert sum(len(line.split()) for line in lines) <= 4000


@pytest.mark.parametrize("count", [1, 7, 400, 401, 1003])
def test_a_curve_has_few_points_each_the_mean_of_what_is_known(count):
  found = np.random.default_rng(0).normal(size=count)
  found[::3] = np.nan
  curve = array.array("d", np.stack([np.arange(count), found], 1).ravel())
  points = run_page._points(curve, 400)
  each = -(-count // 400)
  assert len(points) == -(-count // each)
  mean = np.nanmean(found[:each]) if each > 1 else np.nan
  wanted = [(each - 1) / 2, mean]
  np.testing.assert_allclose(points[0], wanted)
  np.testing.assert_allclose(
    points[-1, 0], np.arange(count)[(len(points) - 1) * each :].mean()
  )


@pytest.mark.parametrize(
  "found",
  [
    [0.0],
    [2.0, 2.0],
    [math.nan, 1.0],
    [math.inf, 1e30, -1e-30],
    [1e308, -1e308],
  ],
)
def test_odd_values_are_drawn_or_left_out(tmp_path, found):
  page = RunPage(tmp_path, 5)
  for step, value in enumerate(found):
    page.write(step, 0, {"loss": value})
  text = page.html()
  assert not re.search(r'(nan|inf)[ ,"]', text.partition("<svg")[2])
  for line in re.findall(r'points="([^"]*)"', text):
    for place in line.split():
      x, y = map(float, place.split(","))
      assert 0 <= x <= 320 and 0 <= y <= 130


def test_the_first_step_of_two_seeds_is_drawn(tmp_path):
  page = RunPage(tmp_path, 5)
  for seed in (0, 1):
    page.write(0, seed, {"loss": float(seed)})
  (place,) = re.findall(r'class="mean" points="([^"]*)"', page.html())
  assert place.split(",")[0] == "44"


def test_the_higher_value_is_the_higher_point(tmp_path):
  page = RunPage(tmp_path, 5)
  for step, value in enumerate([0.0, 1.0, 0.5]):
    page.write(step, 0, {"loss": value})
  (line,) = re.findall(r'class="mean" points="([^"]*)"', page.html())
  (_, low), (_, high), (_, half) = (p.split(",") for p in line.split())
  assert float(high) < float(half) < float(low)
  assert float(half) == pytest.approx((float(high) + float(low)) / 2, abs=0.1)


def test_it_is_written_now_and_then_and_at_every_wait(tmp_path, monkeypatch):
  now = 1000.0
  monkeypatch.setattr(run_page.time, "monotonic", lambda: now)

  def state():
    text = (tmp_path / "run.html").read_text()
    told = r"<section class=.state (\w+).><p><b>(.*?)</b>"
    return re.search(told, text).groups()

  with RunPage(tmp_path, 9) as page:
    page.enter("sampling")
    now += 10
    page.enter("grading")
    assert state() == ("runs", "sampling")
    page.enter("labels wanted: saw annotate", at_once=True)
    assert state() == ("waits", "labels wanted: saw annotate")
    now += 1
    page.enter("updating")  # what was waited for has come
    page.enter("sampling")
    assert state() == ("runs", "updating")
    for step in range(3):
      now += 60
      page.write(step, 0, {"loss": 0.0})
    page.enter("grading")
    assert state() == ("runs", "grading")
    assert "60 s a step" in page.html() and "about 6 min left" in page.html()
  assert state()[0] == "stopped"
  with pytest.raises(ValueError), page:
    raise ValueError("what was wrong")
  assert state() == ("failed", "stopped by an error: what was wrong")


def test_a_full_disk_is_left_to_the_files_of_the_run(tmp_path, monkeypatch):
  def fail(path, text):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(run_page.metrics, "write_text", fail)
  with RunPage(tmp_path, 1) as page:
    page.enter("sampling", at_once=True)


@pytest.mark.parametrize(("checkpoint", "count"), [("", 1), ("smollm2", 0)])
def test_the_sizes_of_a_checkpoint_are_its_own(tmp_path, checkpoint, count):
  config = {"checkpoint": checkpoint, "model": {"width": 64}}
  (tmp_path / "run.json").write_text(json.dumps({"config": config}))
  facts, _, _ = RunPage(tmp_path, 2).html().partition("</p>")
  assert facts.count("model.width") == count
