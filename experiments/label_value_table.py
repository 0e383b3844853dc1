"""What labels buy, by the order in which they are bought."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

from saw_jax.reporting import statistics, tables
from saw_jax.run import command_line, run_directory

Rows = Sequence[dict[str, float]]
_SHARES = (0.02, 0.05, 0.1, 0.2)
# What is bought first. The gap of a wrong vote is one of a few numbers: what is
# equal is bought by entropy.
_ORDERS = {
  "true gap": lambda row: (-row["gap"], -row["entropy"]),
  "entropy": lambda row: (-row["entropy"],),
  "margin": lambda row: (row["margin"],),
}


def table(rows: Rows) -> str:
  """What a label is worth on average, by order and share, and by its gap."""
  starts = sorted({row["start"] for row in rows})
  of_starts = [[row for row in rows if row["start"] == s] for s in starts]
  head = ["order", *(f"first {share:.0%}" for share in _SHARES), "all"]
  orders = []
  for name, order in _ORDERS.items():
    cells = (
      _cell([_first(some, order, share) for some in of_starts])
      for share in (*_SHARES, 1.0)
    )
    orders.append([name, *cells])
  levels = []
  for level in sorted({round(row["gap"], 2) for row in rows}):
    some = [
      [row["value"] for row in own if round(row["gap"], 2) == level]
      for own in of_starts
    ]
    worth = _cell([own for own in some if own])
    levels.append([f"{level:.2f}", str(sum(map(len, some))), worth])
  numbers = ", ".join(map(str, starts))
  lines = [
    "### What one label buys",
    "",
    *tables.grid(head, orders),
    "",
    *tables.grid(["gap", "prompts", "worth of a label"], levels),
    "",
    "Thousandths of held-out reward that a policy gains by one gradient step "
    "from the label of a prompt in place of its vote; mean with its 95 % "
    "interval: over the means of starts, or of one start over labels.",
    "",
    f"{len(of_starts[0])} prompts from each supervised start ({numbers}). Made "
    f"by `{command_line.again()}` at commit {run_directory.commit()}.",
  ]
  return "\n".join(lines) + "\n"


def _first(rows: Rows, order, share: float) -> list[float]:
  ranked = sorted(rows, key=order)
  return [row["value"] for row in ranked[: max(1, round(share * len(rows)))]]


def _cell(by_start: Sequence[Sequence[float]]) -> str:
  """In thousandths of held-out reward: over labels if there is one start."""
  pooled = np.concatenate(list(map(np.asarray, by_start)))
  low, high = (
    statistics.t_interval([np.mean(values) for values in by_start])
    if len(by_start) > 1
    else statistics.bootstrap_interval(pooled)
  )
  middle = np.mean([np.mean(values) for values in by_start])
  # One label has no interval.
  known = f" [{1e3 * low:.2f}, {1e3 * high:.2f}]" if np.isfinite(low) else ""
  return f"{1e3 * middle:.2f}{known}"


def draw(rows: Rows) -> Figure:
  """Draws what the first labels of each order are worth together."""
  figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  ax = figure.subplots()
  share = np.arange(len(rows) + 1) / len(rows)
  for name, order in _ORDERS.items():
    values = [row["value"] for row in sorted(rows, key=order)]
    ax.plot(share, np.cumsum([0.0, *values]) / len(rows), label=name)
  total = np.mean([row["value"] for row in rows])
  ax.plot([0, 1], [0, total], "--", color="0.35", label="at random")
  ax.set(
    xlabel="share of the prompts that are labelled",
    ylabel="held-out reward gained, a prompt",
    xlim=(0, 1),
  )
  ax.set_title("What the first labels buy", loc="left")
  ax.legend(frameon=False)
  return figure
