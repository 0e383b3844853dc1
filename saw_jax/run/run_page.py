"""A run as one page, `run.html`, written while it runs.

It opens without a server and loads nothing. Whatever a policy wrote is hostile:
text is escaped, and only the page's own script may run.
"""

import array
import base64
import collections
import contextlib
import hashlib
import html
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saw_jax.run import glossary, metrics, run_directory
from saw_jax.run.completions import shorten

LOG = logging.getLogger(__name__)
EVERY_S = 30.0  # between two pages, or 100 times what one takes
MOST_POINTS, ALL_POINTS = 400, 40_000  # of a curve; of all
_HELD = 1000  # points of a curve, then older ones are thinned out
_OPEN = 4  # sections of the glossary that are open; the others unfold
_MOST_SEEDS, _MOST_CHARS, _ALL_BYTES = 8, 1500, 250_000  # curves; text; texts
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 320, 130, 44, 112
_ASSETS = pathlib.Path(__file__).parent / "assets"
_FACTS = (
  "task.name checkpoint model.width model.num_layers algorithm.advantage "
  "algorithm.weights algorithm.loss optimizer.learning_rate "
  "loop.prompts_per_step loop.group_size seeds"
).split()


class RunPage:
  """Gathers what a run logs, as a `metrics.Writer`, and writes its page."""

  def __init__(self, directory: str | os.PathLike, num_steps: int):
    self._folder, self._num_steps = pathlib.Path(directory), num_steps
    # By name and seed: step, value, step, value ...
    self._curves: dict[str, dict[int, array.array]] = {}
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
    else:
      self._kind = "finished" if self._step >= self._num_steps else "stopped"
    self._write()

  def write(self, step: int, seed: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      curves = self._curves.setdefault(name, {})
      curve = curves.setdefault(seed, array.array("d"))
      curve.extend((step, value))
      if len(curve) == 2 * _HELD:
        older = _points(curve[:_HELD], _HELD // 4)
        curve[:_HELD] = array.array("d", older.ravel())
    if "loss" in values and step >= self._step:
      self._step = step + 1
      self._times.append(time.monotonic())

  def write_samples(self, step: int, seed: int, rows: metrics.Samples) -> None:
    self._samples.setdefault(step, {})[seed] = rows
    while len(self._samples) > 4:  # the first, and the newest
      del self._samples[sorted(self._samples)[1]]

  def enter(self, state: str, at_once: bool = False) -> None:
    """Says what the run does, or waits for, from now on."""
    self._state, was_urgent = state, self._is_urgent
    self._is_urgent, self._kind = at_once, "waits" if at_once else "runs"
    if at_once or was_urgent or time.monotonic() >= self._due:
      self._write()

  def _write(self) -> None:
    start, path = time.monotonic(), self._folder / "run.html"
    try:
      metrics.write_text(path, self.html())
    except Exception as error:  # No run should end for its page.
      LOG.warning("%s could not be written: %s", path, error)
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
    return "\n".join(
      [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{title}</title><style>{style}</style></head>",
        f'<body data-live="{self._is_live:d}" data-at="{time.time():.0f}" '
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

  @property
  def _is_live(self) -> bool:
    return self._kind in ("runs", "waits")

  def _step_s(self) -> float:
    times = self._times
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0

  def _head(self) -> Iterator[str]:
    """What runs, and how far it is."""
    document = {}
    with contextlib.suppress(run_directory.RunError):
      document = run_directory.read_run(self._folder)
    config = run_directory.flatten(document.get("config", {}))
    if config.get("checkpoint"):  # The sizes are its own.
      config |= {"model.width": None, "model.num_layers": None}
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
      left = _duration(each * (self._num_steps - self._step))
      said += [f"about {left} left"] * self._is_live
    said += [f"since {_clock(self._started)}", f"page of {_clock(time.time())}"]
    yield " · ".join(said)
    yield '</p><p id="stale" hidden>Nothing was written for long: if no process'
    yield "of this run is alive, the same command goes on.</p></section>"
    if self._samples:
      yield f'<p><a href="#step{max(self._samples)}">Completions</a></p>'
    if config:
      yield "<details><summary>All settings</summary><pre>"
      yield "\n".join(_text(f"{key} = {config[key]}") for key in sorted(config))
      yield "</pre></details>"

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
        curves = self._curves[name].values()
        points = [_points(curve, most) for curve in curves]
        newest = float(_mean(np.array([curve[-1] for curve in curves])))
        caption = f"<b>{_text(name)}</b> {_figure(newest)}"
        caption += f"<i>{_text(places[name].line)}</i>"
        yield f"<figure><figcaption>{caption}</figcaption>"
        yield _chart(points, max(curve[-2] for curve in curves)) + "</figure>"
      yield f"</div></{tag}>"

  def _seconds(self) -> Iterator[str]:
    """Where the time of a step goes: medians of the latest steps."""
    found: dict[str, float] = {}
    for name, curves in self._curves.items():
      if name.startswith("seconds/"):
        newest = next(iter(curves.values()))[1::2][-20:]
        found[name.partition("/")[2]] = float(np.median(newest))
    if not found.get("step"):
      return
    yield "<section><h2>Seconds of a step</h2><table>"
    for name, value in sorted(found.items(), key=lambda x: -x[1]):
      share = 100 * value / found["step"]
      yield f"<tr><td>{_text(name)}</td><td>{value:.3g}</td><td>"
      yield f'<div class="bar" style="width:{share:.0f}%"></div></td></tr>'
    yield "</table></section>"

  def _texts(self) -> Iterator[str]:
    """Completions of the latest step and of some earlier ones."""
    size = 0
    for number, step in enumerate(sorted(self._samples, reverse=True)):
      tag, head = ("details", "summary") if number else ("section", "h2")
      title = f"Completions of step {step}"
      yield f'<{tag} id="step{step}"><{head}>{title}</{head}>'
      for place, (seed, rows) in enumerate(self._samples[step].items()):
        part, name = ("details", "summary") if place else ("div", "h3")
        yield f"<{part}><{name}>seed {seed}</{name}>"
        before = None
        for row in rows:
          text = _sample(row, with_prompt=row["prompt"] != before)
          before, size = row["prompt"], size + len(text.encode())
          if size > _ALL_BYTES:
            yield "<p>More are in completions.jsonl.</p>"
            break
          yield text
        yield f"</{part}>"
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


def _points(curve: array.array, most: int) -> np.ndarray:
  """At most so many points of a curve `[K, 2]`, each a mean of neighbours."""
  points = np.array(curve).reshape(-1, 2)
  each = -(-len(points) // most)
  more = (0, -len(points) % each), (0, 0)
  points = np.pad(points, more, constant_values=np.nan)
  return _mean(points.reshape(-1, each, 2), axis=1)


def _mean(x: np.ndarray, axis: int = 0) -> np.ndarray:
  """The mean of the finite values; NaN where there are none."""
  known = np.isfinite(x)
  counts = np.where(known.any(axis), known.sum(axis), np.nan)
  return np.where(known, x, 0).sum(axis) / counts


def _chart(curves: Sequence[np.ndarray], last: float) -> str:
  """Seeds as thin lines, and their mean, as SVG; empty if all is constant."""
  # Seeds log the same steps, but some may be further on than others.
  size = min(map(len, curves))
  stacked = np.stack([curve[:size] for curve in curves])
  values = stacked[..., 1][np.isfinite(stacked[..., 1])]
  low = float(values.min(initial=math.inf))
  high = float(values.max(initial=-math.inf))
  if not 1e-300 < high - low < math.inf:
    return ""
  pad = 0.06 * (high - low)
  low, high = low - pad, high + pad

  def x_of(step):
    return _LEFT + (_WIDTH - _LEFT - 4) * step / max(last, 1.0)

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
  parts.append(line_of(stacked[0, :, 0], _mean(stacked[..., 1]), "mean"))
  return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
  raw = (high - low) / 4
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(k * power for k in (1, 2, 5, 10) if k * power >= raw)
  first, last = math.ceil(low / step), math.floor(high / step)
  return [k * step for k in range(first, last + 1)]


def _text(value: Any) -> str:
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
