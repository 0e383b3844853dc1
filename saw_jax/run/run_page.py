"""A run as one page, `run.html`, that is written as the run goes.

It opens without a server and loads nothing. What a policy wrote is hostile:
text is escaped, and no script runs but the page's own.
"""

import base64
import collections
import contextlib
import hashlib
import html
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saw_jax.run import glossary, metrics
from saw_jax.run.completions import shorten

EVERY_S = 30.0  # between two pages, or 100 times what one takes
MOST_POINTS, ALL_POINTS = 400, 40_000  # of a curve; of all curves
_OPEN = 4  # sections of the glossary that are shown; the others unfold
_MOST_SEEDS, _MOST_CHARS, _ALL_BYTES = 8, 1500, 250_000  # curves; text; texts
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 320, 130, 44, 112
_ASSETS = pathlib.Path(__file__).parent / "assets"
_FACTS = (
  "task.name checkpoint model.width model.num_layers algorithm.advantage "
  "algorithm.weights algorithm.loss optimizer.learning_rate "
  "loop.prompts_per_step loop.group_size seeds"
).split()


class Curve:
  """Values by step, in at most `MOST_POINTS` means of neighbours."""

  def __init__(self):
    self._steps: list[float] = []
    self._means: list[float] = []
    self._each, self._pending = 1, []
    self.newest: collections.deque[float] = collections.deque(maxlen=20)

  def add(self, step: int, value: float | None) -> None:
    value = math.nan if value is None else float(value)
    self.newest.append(value)
    self._pending.append((step, value))
    if len(self._pending) == self._each:
      for found, mean in zip(
        (self._steps, self._means), self._mean(self._pending), strict=True
      ):
        found.append(mean)
      self._pending = []
    if len(self._steps) >= MOST_POINTS:
      points = list(zip(self._steps, self._means, strict=True))
      pairs = [self._mean(points[i : i + 2]) for i in range(0, len(points), 2)]
      self._steps, self._means = map(list, zip(*pairs, strict=True))
      self._each *= 2

  def points(self) -> np.ndarray:
    """Steps and values, `[K, 2]`."""
    found = list(zip(self._steps, self._means, strict=True))
    found += [self._mean(self._pending)] if self._pending else []
    return np.array(found)

  @staticmethod
  def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    values = [value for _, value in points if math.isfinite(value)]
    step = sum(step for step, _ in points) / len(points)
    return step, sum(values) / len(values) if values else math.nan


class RunPage:
  """Gathers what a run logs, as a `metrics.Writer`, and writes its page.

  A context: the page at its end says of which error it was, if it was one.
  """

  def __init__(self, directory: str | os.PathLike, num_steps: int):
    self._folder, self._num_steps = pathlib.Path(directory), num_steps
    self._curves: dict[str, dict[int, Curve]] = {}
    self._samples: dict[int, dict[int, metrics.Samples]] = {}
    self._state, self._kind, self._step = "starting", "runs", 0
    self._started, self._is_urgent, self._due = time.time(), True, 0.0
    self._times: collections.deque[float] = collections.deque(maxlen=50)
    for name, prefix in (("metrics", ""), ("evals", "eval/")):
      for row in metrics.read_lines(self._folder / f"{name}.jsonl"):
        place = row.pop("step"), row.pop("seed")
        self.write(*place, {prefix + key: x for key, x in row.items()})
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in metrics.read_lines(self._folder / "completions.jsonl"):
      found[row.pop("step")][row.pop("seed")].append(row)
    for step, rows in found.items():
      for seed in rows:
        self.write_samples(step, seed, rows[seed])
    self._times.clear()

  def __enter__(self) -> "RunPage":
    self._write()
    return self

  def __exit__(self, kind, error: BaseException | None, trace) -> None:
    if error is not None:
      text = error.args[0] if error.args else type(error).__name__
      self._state, self._kind = f"stopped by an error: {text}", "failed"
    elif self._step >= self._num_steps:
      self._kind = "finished"
    else:
      self._kind = "stopped"
    self._write()

  def write(self, step: int, seed: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._curves.setdefault(name, {}).setdefault(seed, Curve()).add(
        step, value
      )
    if "loss" in values and step >= self._step:
      self._step = step + 1
      self._times.append(time.monotonic())

  def write_samples(self, step: int, seed: int, rows: metrics.Samples) -> None:
    self._samples.setdefault(step, {})[seed] = rows
    while len(self._samples) > 4:  # the first, and the newest
      del self._samples[sorted(self._samples)[1]]

  def enter(self, state: str, at_once: bool = False) -> None:
    """Says what the run does or waits for from now on."""
    self._state, was_urgent = state, self._is_urgent
    self._is_urgent = at_once
    if at_once or was_urgent or time.monotonic() >= self._due:
      self._write()

  def _write(self) -> None:
    start = time.monotonic()
    # A disk that is full stops the run by its own files, and not by this one.
    with contextlib.suppress(OSError):
      metrics.write_text(self._folder / "run.html", self.html())
    took = time.monotonic() - start
    self._due = time.monotonic() + max(EVERY_S, 100 * took)

  def html(self) -> str:
    style, script = ((_ASSETS / f"run.{x}").read_text() for x in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
      "default-src 'none'; style-src 'unsafe-inline'; "
      f"script-src 'sha256-{digest}'"
    )
    sections = glossary.sections()
    title = _text(self._folder.resolve().name)
    live = self._kind == "runs"
    return "\n".join(
      [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{title}</title><style>{style}</style></head>",
        f'<body data-live="{live:d}" data-at="{time.time():.0f}" '
        f'data-patience="{max(600, 20 * self._step_s()):.0f}">',
        f"<h1>{title}</h1>",
        *self._head(),
        *self._charts(sections[:_OPEN], "section", "h2"),
        *self._texts(),
        *self._seconds(),
        *self._charts(sections[_OPEN:], "details", "summary"),
        f"<script>{script}</script></body></html>\n",
      ]
    )

  def _step_s(self) -> float:
    times = self._times
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0

  def _head(self) -> Iterator[str]:
    """What is run, and how far it is."""
    document = {}
    with contextlib.suppress(OSError, ValueError):
      document = json.loads((self._folder / "run.json").read_text("utf-8"))
    config = dict(_flat(document.get("config", {})))
    facts = [(key, config[key]) for key in _FACTS if config.get(key)]
    facts += [("commit", document["commit"])] if "commit" in document else []
    chips = [f"<span>{_text(k)} <b>{_text(v)}</b></span>" for k, v in facts]
    yield f'<p class="facts">{"".join(chips)}</p>'
    yield f'<section class="state {self._kind}"><p><b>{_text(self._state)}</b>'
    yield f'</p><progress max="{self._num_steps}" value="{self._step}">'
    yield "</progress><p>"
    said = [f"step {self._step} of {self._num_steps}"]
    if each := self._step_s():
      said.append(f"{each:.3g} s a step")
    if each and self._kind == "runs":
      left = _duration(each * (self._num_steps - self._step))
      said.append(f"about {left} left")
    said += [f"since {_clock(self._started)}", f"page of {_clock(time.time())}"]
    yield " · ".join(said)
    yield '</p><p id="stale" hidden>Nothing was written for long: if no process'
    yield "of this run is alive, the same command goes on.</p></section>"
    if config:
      lines = [f"{key} = {_text(config[key])}" for key in sorted(config)]
      yield "<details><summary>All settings</summary><pre>"
      yield "\n".join(map(html.escape, lines)) + "</pre></details>"

  def _charts(
    self, sections: Sequence[str], tag: str, head: str
  ) -> Iterator[str]:
    places = {name: glossary.find(name) for name in self._curves}
    lines = sum(min(len(x), _MOST_SEEDS) + 1 for x in self._curves.values())
    most = max(24, min(MOST_POINTS, ALL_POINTS // max(lines, 1)))
    for section in sections:
      names = [name for name in places if places[name].section == section]
      if not names:
        continue
      names.sort(key=lambda name: (places[name].order, name))
      yield f"<{tag}><{head}>{_text(section)}</{head}><div class='charts'>"
      for name in names:
        curves = self._curves[name]
        points = [_thinned(curve.points(), most) for curve in curves.values()]
        yield _chart(name, places[name].line, points, self._newest(name))
      yield f"</div></{tag}>"

  def _newest(self, name: str, count: int = 1) -> float:
    """The mean over seeds, of the newest values."""
    curves = self._curves.get(name, {}).values()
    values = [x for curve in curves for x in list(curve.newest)[-count:]]
    values = [x for x in values if math.isfinite(x)]
    return sum(values) / len(values) if values else math.nan

  def _seconds(self) -> Iterator[str]:
    """Where the time of a step goes, over the newest steps."""
    whole = self._newest("seconds/step", 20)
    if not whole > 0:
      return
    yield "<section><h2>Seconds of a step</h2><table>"
    names = [x for x in self._curves if x.startswith("seconds/")]
    for name in sorted(names, key=lambda x: -self._newest(x, 20)):
      value = self._newest(name, 20)
      yield f"<tr><td>{_text(name[8:])}</td><td>{value:.3g}</td><td><div "
      yield f'class="bar" style="width:{100 * value / whole:.0f}%"></div></td>'
      yield "</tr>"
    yield "</table></section>"

  def _texts(self) -> Iterator[str]:
    """Completions of the newest step, and of some before it."""
    size = 0
    for number, step in enumerate(sorted(self._samples, reverse=True)):
      tag, head = ("details", "summary") if number else ("section", "h2")
      yield f"<{tag}><{head}>Completions of step {step}</{head}>"
      for seed, rows in self._samples[step].items():
        yield f"<h3>seed {seed}</h3>"
        before = None
        for row in rows:
          text = _sample(row, with_prompt=row["prompt"] != before)
          before, size = row["prompt"], size + len(text.encode())
          if size > _ALL_BYTES:
            yield "<p>More are in completions.jsonl.</p>"
            break
          yield text
      yield f"</{tag}>"


def _sample(row: Mapping[str, Any], with_prompt: bool) -> str:
  prompt = f"<pre class='prompt'>{_text(row['prompt'])}</pre>"
  figures = [
    f"<span>{_text(name)} <b>{_figure(value)}</b></span>"
    for name, value in row.items()
    if name not in metrics.TEXTS
  ]
  return (
    f"{prompt if with_prompt else ''}<pre>{_text(row['completion'])}</pre>"
    f"<p class='facts'>{''.join(figures)}</p>"
  )


def _thinned(points: np.ndarray, most: int) -> np.ndarray:
  """At most so many points, each the mean of its neighbours."""
  if len(points) <= most:
    return points
  with np.errstate(invalid="ignore"):
    return np.array([x.mean(0) for x in np.array_split(points, most)])


def _chart(
  name: str, line: str, curves: Sequence[np.ndarray], newest: float
) -> str:
  """Thin lines of seeds and their mean, as SVG."""
  caption = f"<b>{_text(name)}</b> {_figure(newest)}<i>{_text(line)}</i>"
  # Seeds log the same steps, but a run of older seeds may have fewer.
  size = min(map(len, curves))
  stacked = np.stack([curve[:size] for curve in curves])
  known = np.isfinite(stacked[..., 1])
  counts = np.maximum(known.sum(0), 1)
  mean = np.where(known, stacked[..., 1], 0).sum(0) / counts
  mean[~known.any(0)] = np.nan
  values = stacked[..., 1][known]
  if not values.size:
    return f"<figure><figcaption>{caption}</figcaption></figure>"
  low, high = float(values.min()), float(values.max())
  pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
  low, high = low - pad, high + pad
  last = max(float(stacked[..., 0].max()), 1.0)

  def x_of(step):
    return _LEFT + (_WIDTH - _LEFT - 4) * step / last

  def y_of(value):
    return _BOTTOM - (_BOTTOM - 6) * (value - low) / (high - low)

  def line_of(steps, values, kind):
    known = np.isfinite(values)
    points = " ".join(
      f"{x:.0f},{y:.1f}"
      for x, y in zip(x_of(steps[known]), y_of(values[known]), strict=True)
    )
    return f'<polyline class="{kind}" points="{points}"/>'

  parts = []
  for tick in _ticks(low, high):
    y = y_of(tick)
    parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 4}"/>')
    parts.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}">{tick:.4g}</text>')
  parts.append(f'<text x="{_WIDTH - 4}" y="{_HEIGHT - 4}">{last:.0f}</text>')
  parts.append(f'<text x="{_LEFT + 6}" y="{_HEIGHT - 4}">0</text>')
  if len(curves) > 1:
    parts += [line_of(*x.T, "seed") for x in stacked[:_MOST_SEEDS]]
  parts.append(line_of(stacked[0, :, 0], mean, "mean"))
  svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'
  return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _ticks(low: float, high: float) -> list[float]:
  raw = (high - low) / 4
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(k * power for k in (1, 2, 5, 10) if k * power >= raw)
  first, last = math.ceil(low / step), math.floor(high / step)
  return [k * step for k in range(first, last + 1)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def _text(value: Any) -> str:
  """Anything as HTML that shows it."""
  return html.escape(shorten(str(value), _MOST_CHARS), quote=False)


def _figure(value: Any) -> str:
  if value is None or value != value:
    return "null"
  return f"{value:.4g}" if isinstance(value, float | int) else _text(value)


def _clock(seconds: float) -> str:
  return time.strftime("%b %d, %H:%M:%S UTC", time.gmtime(seconds))


def _duration(seconds: float) -> str:
  for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
    if seconds >= 2 * size:
      return f"{seconds / size:.0f} {name}"
  return f"{seconds:.0f} s"
