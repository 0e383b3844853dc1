"""The Corrective Advantage Gap by counts, as a picture."""

import numpy as np
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from saw_jax.labels import gap


def draw(size: int) -> Figure:
  """Draws the gap of groups of a size; counts that cannot be are left blank."""
  x, y = np.mgrid[: size + 1, : size + 1]
  table = np.where(
    gap.is_possible(x, y, size), np.asarray(gap.gap_table(size)), np.nan
  )
  rows = max(1, np.flatnonzero(~np.isnan(table).all(0))[-1] + 1)
  values = table[:, :rows].T
  figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  ax = figure.subplots()
  image = ax.imshow(values, origin="lower", cmap="viridis")
  middle = (np.nanmin(values) + np.nanmax(values)) / 2
  for y, x in zip(*np.nonzero(~np.isnan(values)), strict=True):
    color = "white" if values[y, x] < middle else "black"
    look = {"color": color, "ha": "center", "va": "center", "fontsize": 8}
    ax.text(x, y, f"{values[y, x]:.2f}", **look)
  ax.set(
    xlabel="responses that gave the voted, wrong answer",
    ylabel="responses that gave the right answer",
    xticks=range(values.shape[1]),
    yticks=range(values.shape[0]),
  )
  label = "gap: how far a label moves the advantages"
  figure.colorbar(image, ax=ax, label=label)
  ax.set_title(f"What a label is worth, {size} responses", loc="left")
  return figure
