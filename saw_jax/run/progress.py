"""A progress bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time

from rich import progress as rich_progress

LOG = logging.getLogger(__name__)


class Progress:
  """Shows how far a long job is, with a few figures.

  On a terminal this is a bar with the time left; into a file it is one line
  every `interval_s` seconds.
  """

  def __init__(
    self, title: str, total: int, *, start: int = 0, interval_s: float = 20.0
  ):
    """Starts the display.

    Args:
      title: what the job is.
      total: steps in all.
      start: steps that an earlier run has done.
      interval_s: seconds between lines, off a terminal.
    """
    self._title, self._total, self._done = title, total, start
    self._interval_s, self._last = interval_s, time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      from rich.console import Console

      self._bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
      )
      self._bar.start()
      self._task = self._bar.add_task(
        title, total=total, completed=start, figures=""
      )

  def advance(self, **figures: float) -> None:
    """Counts one step.

    Args:
      **figures: what to show beside the bar.
    """
    self._done += 1
    text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    if self._bar is not None:
      self._bar.update(self._task, completed=self._done, figures=text)
      return
    now = time.monotonic()
    if now - self._last >= self._interval_s or self._done == self._total:
      self._last = now
      LOG.info("%s %d/%d  %s", self._title, self._done, self._total, text)

  def __enter__(self) -> "Progress":
    """Returns the display."""
    return self

  def __exit__(self, *exc) -> None:
    """Ends the display and gives the terminal back."""
    if self._bar is not None:
      self._bar.stop()
