"""Figures: rewards and weights over steps, and paired differences.

Figures are built as objects, so that nothing touches the state of
`matplotlib.pyplot` and no display is needed.
"""

import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saw_jax.reporting import statistics
from saw_jax.reporting.runs import Curves

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which fades on white; the order
# keeps neighbours apart under the common kinds of colour blindness.
COLOURS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#56B4E9",
  "#E69F00",
  "#000000",
)
# A second cue beside colour.
DASHES = ("-", (0, (4, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 0.8)))
DPI = 150
_TITLE_INCHES = 0.13  # of a letter
_GREY = "0.35"


class Band(NamedTuple):
  """What is shaded around a mean over seeds."""

  low: np.ndarray  # [T]
  high: np.ndarray  # [T]


def deviation_band(values: np.ndarray) -> Band:
  """Shades one sample standard deviation over seeds to either side.

  Args:
    values: shape `[N, T]`.

  Returns:
    The band; without width for one seed.
  """
  mean = values.mean(axis=0)
  if len(values) == 1:
    return Band(mean, mean)
  std = values.std(axis=0, ddof=1)
  return Band(mean - std, mean + std)


def interval_band(values: np.ndarray) -> Band:
  """Shades the 95 % t interval of the mean.

  Args:
    values: shape `[N, T]`.

  Returns:
    The band; without width for one seed.
  """
  if len(values) == 1:
    return Band(values[0], values[0])
  ends = [statistics.t_interval(column) for column in values.T]
  low, high = np.array(ends).T
  return Band(low, high)


def range_band(values: np.ndarray) -> Band:
  """Shades from the least seed to the greatest.

  Args:
    values: shape `[N, T]`.

  Returns:
    The band.
  """
  return Band(values.min(axis=0), values.max(axis=0))


_BAND_MEANINGS = {
  deviation_band: "± 1 standard deviation over seeds",
  interval_band: "95 % t interval of the mean over seeds",
  range_band: "from the least seed to the greatest",
}


def reward_curves(
  rows: Mapping[str, Curves],
  components: Sequence[str],
  *,
  title: str = "",
  window: int = 1,
  band: Callable[[np.ndarray], Band] = deviation_band,
  band_meaning: str | None = None,
  path: str | os.PathLike | None = None,
) -> "Figure":
  """Draws each objective's reward over steps, and its weight below.

  Args:
    rows: curves by row of the table; metrics `reward/<component>`, and
      `weight/<component>` where the weights are to be seen.
    components: one column of panels each.
    title: above the panels.
    window: steps in the moving average of each seed.
    band: gives the ends of what is shaded from values `[N, T]`.
    band_meaning: what the caption calls the band, if it is one of your own.
    path: of a PNG to write.

  Returns:
    The figure.

  Raises:
    ImportError: Matplotlib is absent.
  """
  if not rows or not components:
    raise ValueError("nothing to draw: no rows or no components")
  if band_meaning is None and band not in _BAND_MEANINGS:
    raise ValueError("a band of your own needs a `band_meaning`")
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
      for number, (row, curves) in enumerate(rows.items()):
        metric = f"{kind}/{component}"
        if metric in curves.values:
          handles[row] = _draw(ax, curves, metric, number, window, band)
      if kind == "weight":
        ax.sharey(axes[i, 0])
        handles["equal weights"] = ax.axhline(
          1.0, color=_GREY, linewidth=0.8, zorder=0
        )
      if i == 0:
        ax.set_title(component)
      if i == len(kinds) - 1:
        ax.set_xlabel("step")
      if j == 0:
        ax.set_ylabel(kind)
      _tidy(ax)
  missing = [row for row in rows if row not in handles]
  if missing:
    raise ValueError(f"rows without a reward of {list(components)}: {missing}")
  meaning = band_meaning or _BAND_MEANINGS[band]
  _frame(figure, title, handles, _caption(rows, meaning, window))
  return _save(figure, path)


def metric_panels(
  panels: Mapping[str, Mapping[str, Curves]],
  metrics: Mapping[str, str],
  *,
  quantity: str,
  title: str = "",
  window: int = 1,
  log: bool = False,
  path: str | os.PathLike | None = None,
) -> "Figure":
  """Draws metrics over steps, in panels side by side that share their axes.

  Args:
    panels: by title of the panel, the rows that are in it.
    metrics: name of a metric by what the legend calls it; with one metric, the
      legend names the rows instead.
    quantity: labels the vertical axis.
    title: above the panels.
    window: steps in the moving average of each seed.
    log: the vertical axis is logarithmic.
    path: of a PNG to write.

  Returns:
    The figure.

  Raises:
    ImportError: Matplotlib is absent.
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
  caption = _caption(everything, _BAND_MEANINGS[band], window)
  _frame(figure, title, handles, caption)
  return _save(figure, path)


def sweep(
  rows: Mapping[str, Mapping[float, Sequence[float]]],
  *,
  swept: str,
  quantity: str,
  title: str = "",
  path: str | os.PathLike | None = None,
) -> "Figure":
  """Draws a score against what was swept: one line a row.

  Args:
    rows: by row and swept value, the scores of all seeds.
    swept: labels the horizontal axis, whose values are evenly spaced.
    quantity: labels the vertical axis.
    title: above the panel.
    path: of a PNG to write.

  Returns:
    The figure.

  Raises:
    ImportError: Matplotlib is absent.
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
  _frame(
    figure,
    title,
    handles,
    f"Means of {number} seeds; vertical lines: 95 % t intervals.",
  )
  return _save(figure, path)


def heat_map(
  values: np.ndarray,
  *,
  across: str,
  down: str,
  quantity: str,
  title: str = "",
  path: str | os.PathLike | None = None,
) -> "Figure":
  """Draws a number for each pair of counts, with the number in its cell.

  Args:
    values: by count down and count across, from 0; NaN where a pair cannot
      occur, which is left blank. Shape `[Y, X]`.
    across: labels the horizontal axis.
    down: labels the vertical axis, which points up.
    quantity: what the numbers are; labels the scale.
    title: above the panel.
    path: of a PNG to write.

  Returns:
    The figure.

  Raises:
    ImportError: Matplotlib is absent.
    ValueError: `values` is not a matrix.
  """
  values = np.asarray(values, float)
  if values.ndim != 2:
    raise ValueError(f"a heat map is a matrix, not of shape {values.shape}")
  figure = _figure(width=6.4, height=4.8)
  ax = figure.subplots()
  image = ax.imshow(values, origin="lower", cmap="viridis")
  middle = (np.nanmin(values) + np.nanmax(values)) / 2
  for y, x in zip(*np.nonzero(~np.isnan(values)), strict=True):
    color = "white" if values[y, x] < middle else "black"
    ax.text(
      x, y, f"{values[y, x]:.2f}", ha="center", va="center", color=color,
      fontsize=8,
    )  # fmt: skip
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
  path: str | os.PathLike | None = None,
) -> "Figure":
  """Draws paired differences with both of their intervals.

  Args:
    differences: by label, drawn from top to bottom.
    quantity: what differs, with its unit; labels the axis.
    title: above the panel.
    path: of a PNG to write.

  Returns:
    The figure.

  Raises:
    ImportError: Matplotlib is absent.
  """
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
  levels = sorted({100 * d.confidence for d in differences.values()})
  caption = (
    f"{' and '.join(f'{level:g}' for level in levels)} % intervals of the mean "
    "difference; n seeds, paired."
  )
  _frame(figure, title, handles, caption)
  return _save(figure, path)


def _figure(*, width: float, height: float) -> "Figure":
  try:
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      "figures need Matplotlib: pip install 'saw_jax[report]'"
    ) from error
  figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  return figure


def _style(number: int) -> dict[str, object]:
  return {
    "color": COLOURS[number % len(COLOURS)],
    "linestyle": DASHES[number % len(DASHES)],
    "linewidth": 1.6,
  }


def _draw(
  ax,
  curves: Curves,
  metric: str,
  number: int,
  window: int,
  band: Callable[[np.ndarray], Band],
):
  """Draws one metric's mean over seeds with its band; returns the line."""
  window = min(window, len(curves.steps))  # a run of a few steps is a point
  smooth = statistics.moving_average(curves.values[metric], window)
  steps = curves.steps[window - 1 :]
  kept = np.isfinite(smooth).all(axis=0)
  steps, smooth = steps[kept], smooth[:, kept]
  style = _style(number)
  low, high = band(smooth)
  ax.fill_between(
    steps, low, high, color=style["color"], alpha=0.18, linewidth=0
  )
  (line,) = ax.plot(steps, smooth.mean(axis=0), **style)
  return line


def _caption(rows: Mapping[str, Curves], meaning: str, window: int) -> str:
  parts = [_seed_counts(rows), f"bands: {meaning}"]
  window = min([window, *(len(curves.steps) for curves in rows.values())])
  if window > 1:
    parts.append(f"moving average over {window} steps")
  return "; ".join(parts) + "."


def _tidy(ax) -> None:
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(axis="both", color="0.9", linewidth=0.6)
  ax.set_axisbelow(True)


def _seed_counts(rows: Mapping[str, Curves]) -> str:
  counts = {row: len(curves.seeds) for row, curves in rows.items()}
  if len(set(counts.values())) == 1:
    number = next(iter(counts.values()))
    return f"Lines: means of {number} seed{'s' if number > 1 else ''}"
  return "Lines: means of seeds, " + ", ".join(
    f"{n} of {row}" for row, n in counts.items()
  )


def _frame(figure, title: str, handles: Mapping, caption: str) -> None:
  """Puts title and legend above the panels, and the caption below."""
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


def _save(figure, path: str | os.PathLike | None) -> "Figure":
  if path is not None:
    figure.savefig(path, format="png", dpi=DPI)
  return figure
