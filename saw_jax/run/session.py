"""What surrounds the steps of a run: files, evaluations, bar and Ctrl-C."""

import contextlib
import logging
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from saw_jax.run import checkpoint, completions, evaluation, metrics, run_page
from saw_jax.training import hosts

LOG = logging.getLogger(__name__)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Result(NamedTuple):
  """How a run ended."""

  finished: bool  # False: it was interrupted, and can be resumed
  step: int  # steps done
  final: list[dict[str, Any]]  # held-out scores a seed; empty if not finished


def _nop(*_, **__) -> None:
  pass


class Interrupt:
  """Turns the first Ctrl-C into a request to stop after the current step.

  Among several processes SIGTERM is left to JAX's preemption service, which
  tells all of them where to stop, and Ctrl-C is handed on to it.
  """

  def __init__(self):
    self.requested = False
    self._is_shared = jax.process_count() > 1
    self._asked, self._stops = 0, False
    self._previous = {}

  def __enter__(self) -> "Interrupt":
    numbers = [signal.SIGINT] + [signal.SIGTERM] * (not self._is_shared)
    with contextlib.suppress(ValueError):  # not the main thread
      for number in numbers:
        self._previous[number] = signal.signal(number, self._request)
    return self

  def __exit__(self, *exc) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def stops(self) -> bool:
    """Whether to stop here; all processes ask equally often."""
    if not self._is_shared:
      return self.requested
    self._asked += 1  # The service names a number that must not be missed.
    self._stops |= hosts.is_sync_point(self._asked)
    return self._stops

  def _request(self, number, frame) -> None:
    del frame
    if self.requested:
      raise KeyboardInterrupt
    self.requested = True
    LOG.warning(
      "%s: the run stops after this step and saves; once more stops at once",
      signal.Signals(number).name,
    )
    if self._is_shared:
      signal.raise_signal(signal.SIGTERM)


class Clock:
  """Seconds of the parts of a step."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    self._start = self._last = time.perf_counter()
    self._laps: dict[str, float] = {}

  def lap(self, name: str) -> None:
    """Books the time since the last lap; a name may come several times."""
    now = time.perf_counter()
    self._laps[name] = self._laps.get(name, 0.0) + now - self._last
    self._last = now

  def seconds(self) -> dict[str, float]:
    return {**self._laps, "step": time.perf_counter() - self._start}


class Session:
  """A run from its first or last checkpoint to its end."""

  def __init__(
    self,
    evaluator: evaluation.BaseEvaluator,
    seeds: Sequence[int],
    clock: Clock,
    directory: str | os.PathLike,
    stack: contextlib.ExitStack,
    resume_step: int | None = None,
  ):
    self._evaluator, self._policy = evaluator, evaluator.policy
    self._loop, self._clock = evaluator.policy.made.loop, clock
    self._seeds, self.stack = list(seeds), stack
    self.directory = directory = pathlib.Path(directory)
    self._store = store = checkpoint.Checkpointer(directory / "checkpoints")
    stack.callback(store.close)
    self.step, self.host, self.arrays = 0, {}, {}
    if store.steps or resume_step is not None:
      found = self._policy.restore(store, resume_step)
      self.step, _, self.host, self.arrays = found
      LOG.info("resumed from step %d of %s", self.step, directory)
      store.forget_after(self.step)
    # Steps in a row whose updates were all skipped, of each seed.
    self._skipped = list(self.host.get("skipped", [0] * len(self._seeds)))
    # Files, trackers and the page; another process than the first has none.
    self._metrics, self._evals, self._samples, self._advance = [], [], [], _nop
    self._trackers, self.enter = [], _nop
    if hosts.is_first():
      self._open_files(stack)
      self._advance = stack.enter_context(
        metrics.progress("train", self._loop.num_steps, self.step)
      )
    self.interrupt = stack.enter_context(Interrupt())
    self._interrupted = False
    self._compilations = 0
    jax.monitoring.register_event_duration_secs_listener(self._count)
    unregister = jax.monitoring.unregister_event_duration_listener
    stack.callback(unregister, self._count)

  def _open_files(self, stack: contextlib.ExitStack) -> None:
    directory, step = self.directory, self.step
    if step < self._loop.num_steps:
      (directory / "final.json").unlink(missing_ok=True)  # of an earlier end
    # An evaluation has the number of steps before it. That of an earlier end
    # is removed where none is due now that the run is longer.
    is_end = step == self._loop.num_steps
    first = step + bool(step and (self._is_due or is_end))
    path = directory / "completions.jsonl"
    self._metrics = [metrics.FileWriter(directory, "metrics", first_step=step)]
    self._evals = [metrics.FileWriter(directory, "evals", first_step=first)]
    self._samples = [metrics.LineFile(path, first_step=step)]
    found = metrics.make_writers(directory, self._loop.writers, stack, step)
    page = run_page.RunPage(directory, self._loop.num_steps)
    self._trackers, self.enter = [*found, page], page.enter
    stack.enter_context(page)

  def _count(self, event: str, duration: float, **_) -> None:
    self._compilations += event == _COMPILE_EVENT

  @property
  def goes_on(self) -> bool:
    return self.step < self._loop.num_steps and not self._interrupted

  def log(self, rows: list[dict], tokens: float, faults: list[str]) -> None:
    """Counts a step, logs each seed's row, and stops at what is at fault."""
    seconds = self._clock.seconds()
    shared = {
      **{f"seconds/{name}": value for name, value in seconds.items()},
      "tokens_per_second": tokens / seconds["step"],
      "compilations": self._compilations,
    }
    for n, (seed, row) in enumerate(zip(self._seeds, rows, strict=True)):
      for writer in (*self._metrics, *self._trackers):
        writer.write(self.step, seed, {**row, **shared})
      whole = row["skipped"] == 1  # and not one of several updates
      self._skipped[n] = (self._skipped[n] + whole) * whole
    most = self._loop.max_skipped if self._loop.skip_nonfinite else 0
    for n, fault in enumerate(faults):
      if fault and (not most or self._skipped[n] > most):
        raise FloatingPointError(
          f"step {self.step} of seed {self._seeds[n]}: {fault}"
          + f"; {self._skipped[n]} steps in a row were skipped" * bool(most)
          + f"; there are checkpoints of the steps {self._store.steps}"
        )
    self.step += 1
    self._advance(
      reward=np.mean([row["reward/total"] for row in rows]),
      loss=np.mean([row["loss"] for row in rows]),
      tok_s=shared["tokens_per_second"],
    )

  @property
  def _is_due(self) -> bool:
    """Whether held-out examples are evaluated after so many steps."""
    every = self._evaluator.config.interval
    return bool(every and self.step % every == 0)

  @property
  def shows_samples(self) -> bool:
    """Whether completions of this step are kept: as often as is evaluated."""
    is_end = self.step + 1 == self._loop.num_steps
    return self._is_due or self.step == 0 or is_end

  def show(self, samples: completions.Rows) -> None:
    """Keeps some completions of each seed, of the step that is under way."""
    for seed, rows in zip(self._seeds, samples, strict=True):
      for file in self._samples:
        for row in rows:
          file.write({"step": self.step, "seed": seed, **row})
      for writer in self._trackers:
        writer.write_samples(self.step, seed, rows)

  def evaluate(self) -> float | None:
    """Scores held-out examples greedily, where it is time, and logs them."""
    is_last = self.step and self.step == self._loop.num_steps
    if not is_last and not self._is_due:
      return None
    self.enter("evaluating held-out examples")
    scores = self._evaluator.scores("greedy")
    for seed, values in zip(self._seeds, scores, strict=True):
      for writer in self._evals:
        writer.write(self.step, seed, values)
      named = {f"eval/{name}": value for name, value in values.items()}
      for writer in self._trackers:
        writer.write(self.step, seed, named)
    return float(np.mean([values["total"] for values in scores]))

  def save(self, pack: Callable[[int], tuple], score: float | None) -> None:
    """Saves where it is time; `pack` returns what the source must have."""
    done = self.step == self._loop.num_steps
    every = self._loop.checkpoint_interval
    self._interrupted = self.interrupt.stops() and not done
    if done or self._interrupted or (every and self.step % every == 0):
      host, arrays = pack(self.step)
      own = {"base": self._policy.digest, "skipped": list(self._skipped)}
      state, host = self._policy.state, {"seeds": self._seeds, **own, **host}
      self._store.save(self.step, state, host, arrays=arrays, score=score)
    if self._interrupted:
      self._store.wait()

  def result(self) -> Result:
    """Scores the finished policies, also into `final.json`."""
    evaluator, found, scores = self._evaluator, {}, None
    if not self._interrupted:
      self.enter("scoring the finished policies")
      self._store.wait()
      found = {mode: evaluator.scores(mode) for mode in evaluator.modes}
      scores = evaluation.score_benchmarks(
        evaluator,
        seeds=self._seeds,
        step=self.step,
        path=self.directory / "benchmarks.json",
        stop=self.interrupt.stops,
      )
    if scores is None:
      self.enter("stopped: the same command goes on from here")
      return Result(finished=False, step=self.step, final=[])
    every = (found | scores).items()
    final = [
      {"seed": seed, "step": self.step, **{mode: x[n] for mode, x in every}}
      for n, seed in enumerate(self._seeds)
    ]
    if hosts.is_first():
      metrics.write_json(self.directory / "final.json", final)
    self.enter("finished")
    return Result(finished=True, step=self.step, final=final)
