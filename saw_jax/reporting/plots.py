"""Figures as objects, and as files if a `path` or several are given."""

import math
import os
import pathlib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saw_jax import naming
from saw_jax.reporting import statistics
from saw_jax.reporting.runs import Curves

if TYPE_CHECKING:
  from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
_Path = str | os.PathLike | Sequence[str | os.PathLike] | None
_Band = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# Okabe and Ito's palette without its yellow, which fades on white; the order
# keeps neighbours apart under the common kinds of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
COLOURS += ("#000000",)
# A second cue beside colour.
_DASHES = ("-", (0, (4, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 0.8)))
_DPI = 150
_MOST = 8  # names in a legend of all panels
_DATES = {"svg": "Date", "pdf": "CreationDate"}
_TITLE_INCHES = 0.13  # of a letter
_GREY = "0.35"
_LEVEL = {"color": _GREY, "linewidth": 0.8, "zorder": 0}  # to compare with


def deviation_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """One sample standard deviation to either side of the mean over seeds."""
  mean = values.mean(axis=0)
  std = values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
  return mean - std, mean + std


def range_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """From the smallest to the largest value of the seeds that have one."""
  return np.nanmin(values, axis=0), np.nanmax(values, axis=0)


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
  """Draws each objective's `reward/...` over steps, its `weight/...` below."""
  logged = {metric for curves in rows.values() for metric in curves.values}
  has_weights = not logged.isdisjoint(f"weight/{c}" for c in components)
  kinds = ["reward", "weight"] if has_weights else ["reward"]
  shape = len(kinds), len(components)
  width, height = 1.0 + 3.1 * shape[1], 1.3 + 2.2 * shape[0]
  figure, axes = _figure(rows and components, width, height, shape, sharex=True)
  handles = {}
  for (i, j), ax in np.ndenumerate(axes):
    metric = f"{kinds[i]}/{components[j]}"
    for number, (row, curves) in enumerate(rows.items()):
      if metric in curves.values:
        handles[row] = _draw(ax, curves, metric, number, window)
    if kinds[i] == "weight":
      ax.sharey(axes[i, 0])
      handles["equal weights"] = ax.axhline(1.0, **_LEVEL)
    axes[0, j].set_title(components[j])
    axes[-1, j].set_xlabel("step")
    axes[i, 0].set_ylabel(kinds[i])
  if missing := [row for row in rows if row not in handles]:
    raise ValueError(f"rows without a reward of {list(components)}: {missing}")
  caption = _caption(rows.items(), deviation_band, window)
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
  """Draws metrics over steps; `panels` maps a panel's title to its rows.

  The legend names metrics, or, of one metric, the rows; where these are many,
  each panel has a legend of its own.
  """
  # One deviation below the mean may be below 0, which has no logarithm.
  band = range_band if log else deviation_band
  shape = _shape(panels)
  # A single panel may be narrower than what is written above it.
  width = max(1.0 + 2.6 * shape[1], _TITLE_INCHES * len(title))
  names = {row for rows in panels.values() for row in rows}
  is_split = len(metrics) == 1 and len(names) > _MOST
  longest = max((len(rows) for rows in panels.values()), default=0)
  height = 1.3 + (2.2 + 0.13 * is_split * longest) * shape[0]
  share = {"sharex": True, "sharey": True}
  figure, axes = _figure(panels and metrics, width, height, shape, **share)
  # There is one legend: a name looks the same in all panels, and two differ.
  handles, numbers = {}, {}
  for ax, (heading, rows) in zip(axes.flat, panels.items(), strict=False):
    if is_split:
      handles, numbers = {}, {}
    for row, curves in rows.items():
      for label, metric in metrics.items():
        name = label if len(metrics) > 1 else row
        number = numbers.setdefault(name, len(numbers))
        handles[name] = _draw(ax, curves, metric, number, window, band)
    ax.set(title=heading, yscale="log" if log else "linear")
    if is_split:
      place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25)}
      look = {"ncols": 2, "frameon": False, "fontsize": "x-small"}
      ax.legend(handles.values(), handles.keys(), **place, **look)
  for ax in axes[:, 0]:
    ax.set_ylabel(quantity)
  for column in axes.T:
    lowest = [ax for ax in column if ax.has_data()][-1]
    lowest.set_xlabel("step")
    lowest.tick_params(labelbottom=True)
  drawn = [
    (f"{p} {r}", c) for p, rows in panels.items() for r, c in rows.items()
  ]
  caption = _caption(drawn, band, window)
  return _finish(figure, title, {} if is_split else handles, caption, path)


def sweep(
  rows: Mapping[str, Mapping[float, statistics.Sample]],
  *,
  swept: str,
  quantity: str,
  title: str = "",
  path: _Path = None,
) -> "Figure":
  """Draws the scores of all seeds, by row and swept value: one line a row."""
  figure, ((ax,),) = _figure(rows, 7.0, 4.6)
  places = sorted({value for cells in rows.values() for value in cells})
  handles, sizes = {}, {}
  for number, (row, cells) in enumerate(rows.items()):
    # Side by side, so that the intervals of all can be seen.
    shift = 0.02 * (number - (len(rows) - 1) / 2)
    at = [places.index(value) + shift for value in sorted(cells)]
    style = _style(number)
    found = [statistics.summarise(cells[value]) for value in sorted(cells)]
    means = [one.mean for one in found]
    (handles[row],) = ax.plot(at, means, marker="o", markersize=4, **style)
    for x, one in zip(at, found, strict=True):
      sizes.setdefault(one.size)
      if one.count > 1:
        ax.vlines(x, one.low, one.high, color=style["color"], linewidth=1.0)
  ax.set_xticks(range(len(places)), [f"{place:g}" for place in places])
  ax.set(xlabel=swept, ylabel=quantity)
  ax.set_ylim(bottom=0.0)
  number = " or ".join(sizes)
  caption = f"Means of {number} seeds; vertical lines: 95 % t intervals."
  return _finish(figure, title, handles, caption, path)


def difference_forest(
  panels: Mapping[str, Mapping[str, statistics.PairedDifference]],
  *,
  title: str = "",
  path: _Path = None,
) -> "Figure":
  """Draws paired differences from top to bottom, with both intervals.

  Panels, by what stands below them, have scales of their own.
  """
  names = list(dict.fromkeys(name for of in panels.values() for name in of))
  shape = _, columns = _shape(panels)
  size = 4.0 + 3.0 * columns, 0.9 + (1.0 + 0.45 * len(names)) * shape[0]
  figure, axes = _figure(panels, *size, shape, sharey=True)
  thin = {"color": COLOURS[0], "linewidth": 1.6}
  thick = {"color": COLOURS[4], "linewidth": 6, "alpha": 0.6}
  beside = {"xycoords": ("axes fraction", "data"), "va": "center"}
  handles = {}
  for ax, (heading, of) in zip(axes.flat, panels.items(), strict=False):
    ax.axvline(0.0, **_LEVEL)
    for name, found in of.items():
      place = names.index(name)
      handles["t interval"] = ax.hlines(place, *found.t, **thin)
      ends = found.bootstrap
      handles["bootstrap interval"] = ax.hlines(place, *ends, **thick)
      dot = ax.plot(found.mean, place, "o", color=COLOURS[0], markersize=6)
      (handles["mean difference"],) = dot
      ax.annotate(f"n = {found.size}", (1.01, place), color=_GREY, **beside)
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"difference in {heading}")
    ax.locator_params(axis="x", nbins=7 - columns)
  caption = "95 % intervals of the mean difference; n seeds, paired."
  return _finish(figure, title, handles, caption, path)


def _shape(panels: Mapping) -> tuple[int, int]:
  """Rows and columns, three at most, of panels side by side."""
  return math.ceil(len(panels) / 3), min(len(panels), 3)


def _figure(
  given: object, width: float, height: float, shape=(1, 1), **share: bool
) -> tuple["Figure", np.ndarray]:
  """Makes a figure and its panels; refuses an empty `given`."""
  if not given:
    raise ValueError("nothing to draw")
  with naming.needs_extra("report", "figures need Matplotlib"):
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure
  figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  return figure, figure.subplots(*shape, squeeze=False, **share)


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
  # On a logarithmic axis some seeds may have no value to draw.
  has = np.isfinite(smooth)
  kept = has.any(axis=0) if band is range_band else has.all(axis=0)
  steps, smooth = curves.steps[window - 1 :][kept], smooth[:, kept]
  style = _style(number)
  shade = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
  if len(smooth) > 1:
    ax.fill_between(steps, *band(smooth), **shade)
  (line,) = ax.plot(steps, np.nanmean(smooth, axis=0), **style)
  return line


def _caption(
  rows: Iterable[tuple[str, Curves]], band: _Band, window: int
) -> str:
  counts = {row: len(curves.seeds) for row, curves in rows}
  number = min(counts.values())
  if number == max(counts.values()):
    seeds = f"Lines: means of {number} seed{'s' if number > 1 else ''}"
  else:
    by_row = ", ".join(f"{n} of {row}" for row, n in counts.items())
    seeds = f"Lines: means of seeds, {by_row}"
  window = min([window, *(len(curves.steps) for _, curves in rows)])
  average = f"; moving average over {window} steps" if window > 1 else ""
  bands = f"; bands: {_MEANINGS[band]}" if max(counts.values()) > 1 else ""
  return f"{seeds}{bands}{average}."


def _finish(
  figure: "Figure", title: str, handles: Mapping, caption: str, path: _Path
) -> "Figure":
  """Adds title and legend above the panels, and the caption below."""
  for ax in figure.axes:
    ax.set_visible(ax.has_data())  # of the last row some may be left over
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="both", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
  width = figure.get_figwidth()
  longest = max(map(len, handles), default=0)
  entry = 0.8 + 0.09 * longest  # inches
  columns = max(1, min(len(handles), int(width / entry)))
  caption = textwrap.fill(caption, width=int(15 * width))
  # Lines of legend and caption add to the height of the figure.
  lines = math.ceil(len(handles) / columns) - 1 + caption.count("\n")
  figure.set_figheight(figure.get_figheight() + 0.21 * lines)
  look = {"weight": "bold", "size": "large"}
  if handles:
    figure.legend(
      handles.values(),
      handles.keys(),
      loc="outside upper center",
      ncols=columns,
      frameon=False,
      title=title or None,
      title_fontproperties=look,
    )
  else:
    figure.suptitle(title, **look)
  figure.supxlabel(caption, fontsize="small", color=_GREY)
  one = isinstance(path, str | os.PathLike)
  for file in [path] if one else path or ():
    ending = pathlib.Path(file).suffix.removeprefix(".").lower()
    kind = ending if ending in FORMATS else "png"
    # No date: the same numbers give the same file.
    about = {_DATES[kind]: None} if kind in _DATES else None
    figure.savefig(file, format=kind, dpi=_DPI, metadata=about)
  return figure
