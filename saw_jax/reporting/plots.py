"""Figures: metrics over steps, scores by what was swept, differences.

Each function gives the figure, and writes a PNG where it has a `path`. Figures
are objects, so that nothing touches the state of `matplotlib.pyplot`.
"""

import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saw_jax import names
from saw_jax.reporting import statistics
from saw_jax.reporting.runs import Curves

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_Path = str | os.PathLike | None
_Band = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# Okabe and Ito's palette without its yellow, which fades on white; the order
# keeps neighbours apart under the common kinds of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
COLOURS += ("#000000",)
# A second cue beside colour.
_DASHES = ("-", (0, (4, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 0.8)))
_DPI = 150
_TITLE_INCHES = 0.13  # of a letter
_GREY = "0.35"


def deviation_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """One sample standard deviation to either side of the mean over seeds."""
  mean = values.mean(axis=0)
  std = values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
  return mean - std, mean + std


def range_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """From the least seed to the greatest."""
  return values.min(axis=0), values.max(axis=0)


_MEANINGS = {
  deviation_band: "± 1 standard deviation over seeds",
  range_band: "from the least seed to the greatest",
}


def reward_curves(
  rows: Mapping[str, Curves],
  components: Sequence[str],
  *,
  title: str = "",
  window: int = 1,
  path: _Path = None,
) -> "Figure":
  """Draws each objective's `reward/...` over steps, its `weight/...` below.

  Each seed is averaged over a window of steps.
  """
  if not rows or not components:
    raise ValueError("nothing to draw: no rows or no components")
  kinds = ["reward"]
  if any(f"weight/{c}" in r.values for r in rows.values() for c in components):
    kinds.append("weight")
  figure = _figure(
    width=1.0 + 3.1 * len(components), height=1.3 + 2.2 * len(kinds)
  )
  axes = figure.subplots(
    len(kinds), len(components), sharex=True, squeeze=False
  )
  handles = {}
  for i, kind in enumerate(kinds):
    for j, component in enumerate(components):
      ax = axes[i, j]
      metric = f"{kind}/{component}"
      for number, (row, curves) in enumerate(rows.items()):
        if metric in curves.values:
          handles[row] = _draw(ax, curves, metric, number, window)
      if kind == "weight":
        ax.sharey(axes[i, 0])
        handles["equal weights"] = ax.axhline(
          1.0, color=_GREY, linewidth=0.8, zorder=0
        )
      _tidy(ax)
  for ax, component in zip(axes[0], components, strict=True):
    ax.set_title(component)
  for ax in axes[-1]:
    ax.set_xlabel("step")
  for ax, kind in zip(axes[:, 0], kinds, strict=True):
    ax.set_ylabel(kind)
  missing = [row for row in rows if row not in handles]
  if missing:
    raise ValueError(f"rows without a reward of {list(components)}: {missing}")
  caption = _caption(rows, deviation_band, window)
  return _finish(figure, title, handles, caption, path)


def metric_panels(
  panels: Mapping[str, Mapping[str, Curves]],
  metrics: Mapping[str, str],
  *,
  quantity: str,
  title: str = "",
  window: int = 1,
  log: bool = False,
  path: _Path = None,
) -> "Figure":
  """Draws metrics over steps, rows by title of the panel that they are in.

  `metrics` are by what the legend calls them; with one metric, the legend names
  the rows instead. `quantity` labels the vertical axis.
  """
  if not panels or not metrics:
    raise ValueError("nothing to draw: no panels or no metrics")
  # One deviation below the mean may be below 0, which a logarithm has not.
  band = range_band if log else deviation_band
  columns = min(len(panels), 3)
  lines = -(-len(panels) // columns)
  # A single panel may be narrower than what is written above it.
  width = max(1.0 + 2.6 * columns, _TITLE_INCHES * len(title))
  figure = _figure(width=width, height=1.3 + 2.2 * lines)
  axes = figure.subplots(
    lines, columns, sharex=True, sharey=True, squeeze=False
  )
  # There is one legend: a name looks the same in all panels, and two differ.
  handles, numbers = {}, {}
  for ax, (heading, rows) in zip(axes.flat, panels.items(), strict=False):
    for row, curves in rows.items():
      for label, metric in metrics.items():
        name = label if len(metrics) > 1 else row
        number = numbers.setdefault(name, len(numbers))
        handles[name] = _draw(ax, curves, metric, number, window, band)
    ax.set_title(heading)
    if log:
      ax.set_yscale("log")
    _tidy(ax)
  for ax in axes.flat[len(panels) :]:
    ax.set_visible(False)
  for ax in axes[:, 0]:
    ax.set_ylabel(quantity)
  for column in axes.T:
    lowest = [ax for ax in column if ax.get_visible()][-1]
    lowest.set_xlabel("step")
    lowest.tick_params(labelbottom=True)
  everything = {
    f"{p} {r}": c for p, rs in panels.items() for r, c in rs.items()
  }
  caption = _caption(everything, band, window)
  return _finish(figure, title, handles, caption, path)


def sweep(
  rows: Mapping[str, Mapping[float, Sequence[float]]],
  *,
  swept: str,
  quantity: str,
  title: str = "",
  path: _Path = None,
) -> "Figure":
  """Draws the scores of all seeds, by row and swept value: one line a row.

  `swept` labels the horizontal axis, whose values are evenly spaced.
  """
  if not rows:
    raise ValueError("nothing to draw: no rows")
  places = sorted({value for cells in rows.values() for value in cells})
  figure = _figure(width=7.0, height=4.6)
  ax = figure.subplots()
  handles = {}
  for number, (row, cells) in enumerate(rows.items()):
    values = sorted(cells)
    # Side by side, so that the intervals of all can be seen.
    shift = 0.02 * (number - (len(rows) - 1) / 2)
    at = [places.index(value) + shift for value in values]
    means = [float(np.mean(cells[value])) for value in values]
    style = _style(number)
    (handles[row],) = ax.plot(at, means, marker="o", markersize=4, **style)
    for x, value in zip(at, values, strict=True):
      if len(cells[value]) > 1:
        low, high = statistics.t_interval(cells[value])
        ax.vlines(x, low, high, color=style["color"], linewidth=1.0)
  ax.set_xticks(range(len(places)), [f"{place:g}" for place in places])
  ax.set_xlabel(swept)
  ax.set_ylabel(quantity)
  ax.set_ylim(bottom=0.0)
  _tidy(ax)
  counts = {len(seeds) for cells in rows.values() for seeds in cells.values()}
  number = " or ".join(map(str, sorted(counts)))
  caption = f"Means of {number} seeds; vertical lines: 95 % t intervals."
  return _finish(figure, title, handles, caption, path)


def heat_map(
  values: np.ndarray,
  *,
  across: str,
  down: str,
  quantity: str,
  title: str = "",
  path: _Path = None,
) -> "Figure":
  """Draws a number for each pair of counts, `[Y, X]`, with it in its cell.

  NaN, where a pair cannot occur, is left blank. `down` labels the vertical
  axis, which points up.
  """
  values = np.asarray(values, float)
  if values.ndim != 2:
    raise ValueError(f"a heat map is a matrix, not of shape {values.shape}")
  figure = _figure(width=6.4, height=4.8)
  ax = figure.subplots()
  image = ax.imshow(values, origin="lower", cmap="viridis")
  middle = (np.nanmin(values) + np.nanmax(values)) / 2
  for y, x in zip(*np.nonzero(~np.isnan(values)), strict=True):
    look = {"color": "white" if values[y, x] < middle else "black"}
    look |= {"ha": "center", "va": "center", "fontsize": 8}
    ax.text(x, y, f"{values[y, x]:.2f}", **look)
  ax.set_xticks(range(values.shape[1]))
  ax.set_yticks(range(values.shape[0]))
  ax.set_xlabel(across)
  ax.set_ylabel(down)
  figure.colorbar(image, ax=ax, label=quantity)
  if title:
    ax.set_title(title, loc="left")
  return _save(figure, path)


def difference_forest(
  differences: Mapping[str, statistics.PairedDifference],
  *,
  quantity: str,
  title: str = "",
  path: _Path = None,
) -> "Figure":
  """Draws paired differences from top to bottom, with both intervals."""
  if not differences:
    raise ValueError("nothing to draw: no differences")
  figure = _figure(width=7.0, height=1.9 + 0.45 * len(differences))
  ax = figure.subplots()
  ax.axvline(0.0, color=_GREY, linewidth=0.8, zorder=0)
  handles = {}
  for place, difference in enumerate(differences.values()):
    t, boot = difference.t, difference.bootstrap
    handles["t interval"] = ax.hlines(
      place, *t, color=COLOURS[0], linewidth=1.6
    )
    handles["bootstrap interval"] = ax.hlines(
      place, *boot, color=COLOURS[4], linewidth=6, alpha=0.6
    )
    (handles["mean difference"],) = ax.plot(
      difference.mean, place, "o", color=COLOURS[0], markersize=6
    )
    ax.annotate(
      f"n = {difference.count}",
      (1.01, place),
      xycoords=("axes fraction", "data"),
      va="center",
      color=_GREY,
    )
  ax.set_yticks(range(len(differences)), list(differences))
  ax.set_ylim(len(differences) - 0.5, -0.5)
  ax.set_xlabel(f"difference in {quantity}")
  ax.locator_params(axis="x", nbins=6)
  _tidy(ax)
  caption = "95 % intervals of the mean difference; n seeds, paired."
  return _finish(figure, title, handles, caption, path)


def _figure(*, width: float, height: float) -> "Figure":
  with names.needs_extra("report", "figures need Matplotlib"):
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure
  figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  return figure


def _style(number: int) -> dict[str, object]:
  return {
    "color": COLOURS[number % len(COLOURS)],
    "linestyle": _DASHES[number % len(_DASHES)],
    "linewidth": 1.6,
  }


def _draw(
  ax,
  curves: Curves,
  metric: str,
  number: int,
  window: int,
  band: _Band = deviation_band,
):
  """Draws one metric's mean over seeds with its band; gives the line."""
  window = min(window, len(curves.steps))  # a run of a few steps is a point
  smooth = statistics.moving_average(curves.values[metric], window)
  steps = curves.steps[window - 1 :]
  kept = np.isfinite(smooth).all(axis=0)
  steps, smooth = steps[kept], smooth[:, kept]
  style = _style(number)
  ax.fill_between(
    steps, *band(smooth), color=style["color"], alpha=0.18, linewidth=0
  )
  (line,) = ax.plot(steps, smooth.mean(axis=0), **style)
  return line


def _caption(rows: Mapping[str, Curves], band: _Band, window: int) -> str:
  counts = {row: len(curves.seeds) for row, curves in rows.items()}
  if len(set(counts.values())) == 1:
    number = next(iter(counts.values()))
    seeds = f"Lines: means of {number} seed{'s' if number > 1 else ''}"
  else:
    by_row = ", ".join(f"{n} of {row}" for row, n in counts.items())
    seeds = f"Lines: means of seeds, {by_row}"
  parts = [seeds, f"bands: {_MEANINGS[band]}"]
  window = min([window, *(len(curves.steps) for curves in rows.values())])
  if window > 1:
    parts.append(f"moving average over {window} steps")
  return "; ".join(parts) + "."


def _tidy(ax) -> None:
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(axis="both", color="0.9", linewidth=0.6)
  ax.set_axisbelow(True)


def _finish(
  figure: "Figure", title: str, handles: Mapping, caption: str, path: _Path
) -> "Figure":
  """Adds title and legend above the panels, and the caption below."""
  width = figure.get_figwidth()
  entry = 0.8 + 0.09 * max(len(name) for name in handles)  # inches
  columns = min(len(handles), max(1, int(width / entry)))
  caption = textwrap.fill(caption, width=int(15 * width))
  # The panels keep their height, however many lines stand around them.
  lines = math.ceil(len(handles) / columns) - 1 + caption.count("\n")
  figure.set_figheight(figure.get_figheight() + 0.21 * lines)
  figure.legend(
    handles.values(),
    handles.keys(),
    loc="outside upper center",
    ncols=columns,
    frameon=False,
    title=title or None,
    title_fontproperties={"weight": "bold", "size": "large"},
  )
  figure.supxlabel(caption, fontsize="small", color=_GREY)
  return _save(figure, path)


def _save(figure: "Figure", path: _Path) -> "Figure":
  if path is not None:
    figure.savefig(path, format="png", dpi=_DPI)
  return figure
