"""The display of a long job, off a terminal and on one."""

import io
import logging
import sys

import pytest

from saw_jax.run import progress


class Terminal(io.StringIO):
  """Says that it is one."""

  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Makes time stand still until a test moves it."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


class TestProgressInAFile:
  @pytest.fixture(autouse=True)
  def off_a_terminal(self, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, logger="saw_jax.run.progress")

  def test_one_line_every_interval_and_one_at_the_end(self, clock, caplog):
    with progress.Progress("train", 10, interval_s=20.0) as bar:
      for _ in range(10):
        clock[0] += 8.0
        bar.advance(loss=0.5)
    # Every third step is the first after 20 s; the tenth is the last.
    steps = [message.split()[1] for message in caplog.messages]
    assert steps == ["3/10", "6/10", "9/10", "10/10"]

  def test_nothing_is_said_in_between(self, clock, caplog):
    with progress.Progress("train", 10) as bar:
      for _ in range(9):
        bar.advance(loss=0.5)
    assert caplog.messages == []

  def test_a_line_has_the_figures(self, clock, caplog):
    with progress.Progress("train", 1) as bar:
      bar.advance(loss=1.23456789, tok_s=123456.0)
    (line,) = caplog.messages
    assert line == "train 1/1  loss 1.235  tok_s 1.235e+05"

  def test_a_job_that_goes_on_counts_from_where_it_was(self, clock, caplog):
    with progress.Progress("train", 10, start=8) as bar:
      bar.advance()
      bar.advance()
    assert [line.split()[1] for line in caplog.messages] == ["10/10"]

  def test_an_error_passes_through(self):
    with (
      pytest.raises(KeyError),
      progress.Progress("train", 10) as bar,
    ):
      bar.advance()
      raise KeyError


class TestProgressOnATerminal:
  def test_the_bar_reaches_its_total_and_shows_figures(
    self, monkeypatch, caplog
  ):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    caplog.set_level(logging.INFO, logger="saw_jax.run.progress")
    with progress.Progress("train", 3, start=1) as bar:
      bar.advance(loss=0.25)
      bar.advance(loss=0.125)
    shown = terminal.getvalue()
    assert "train" in shown
    assert "3/3" in shown
    assert "loss 0.125" in shown
    assert caplog.messages == []

  def test_the_cursor_comes_back_after_an_error(self, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyError), progress.Progress("train", 3):
      raise KeyError
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert terminal.getvalue().rfind(show) > terminal.getvalue().rfind(hide)
    assert hide in terminal.getvalue()
