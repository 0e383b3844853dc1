"""What every training loop does around its steps: files, bar, Ctrl-C."""

import contextlib
import logging
import os
import pathlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from saw_jax.run import (
  benchmarks,
  checkpoint,
  labelling,
  metrics,
  progress,
  run_directory,
)
from saw_jax.run import experiment as experiment_lib
from saw_jax.training import hosts

LOG = logging.getLogger(__name__)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Result(NamedTuple):
  """How a run ended."""

  finished: bool  # False: it was interrupted, and can be resumed
  step: int  # steps done
  final: list[
    dict[str, Any]
  ]  # per seed, held-out scores; empty if not finished


class Interrupt:
  """Turns the first Ctrl-C into a request to stop after the current step."""

  def __init__(self):
    self.requested = False
    self._previous = {}

  def __enter__(self) -> "Interrupt":
    """Listens to SIGINT and SIGTERM, where the thread may."""
    with contextlib.suppress(ValueError):  # not the main thread
      for number in (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, self._request)
    return self

  def __exit__(self, *exc) -> None:
    """Gives the signals back."""
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _request(self, number, frame) -> None:
    del frame
    if self.requested:
      raise KeyboardInterrupt
    self.requested = True
    LOG.warning(
      "%s: the run stops after this step and saves; once more stops at once",
      signal.Signals(number).name,
    )


class Clock:
  """Seconds of the parts of a step."""

  def __init__(self):
    self._start = self._last = time.perf_counter()
    self._laps: dict[str, float] = {}

  def lap(self, name: str) -> None:
    """Books the time since the last lap; a name may come several times."""
    now = time.perf_counter()
    self._laps[name] = self._laps.get(name, 0.0) + now - self._last
    self._last = now

  def seconds(self) -> dict[str, float]:
    """Returns the laps, and all of it as `step`."""
    return {**self._laps, "step": time.perf_counter() - self._start}


class Session:
  """A run from its first or last checkpoint to its end; a context manager.

  Attributes:
    step: steps done.
    grader: scores completions while the session is open, or plays episodes.
    host: what the loop put into the checkpoint that was resumed from.
    arrays: the arrays beside it.
  """

  def __init__(
    self,
    learner,
    seeds: Sequence[int],
    *,
    directory: str | os.PathLike,
    resume_step: int | None = None,
  ):
    """Finds out where the run stands, and restores the learner's state.

    Args:
      learner: a `Learner`.
      seeds: of the runs.
      directory: where metrics and checkpoints go.
      resume_step: go on from this checkpoint; the latest by default.

    Raises:
      CheckpointError: the checkpoint is damaged or does not fit.
    """
    self.learner, self.seeds = learner, list(seeds)
    self._experiment = experiment = learner.experiment
    self._directory = directory = pathlib.Path(directory)
    self._store = store = checkpoint.Checkpointer(directory / "checkpoints")
    self.step, self.host, self.arrays = 0, {}, {}
    if store.steps or resume_step is not None:
      self.step, learner.state, self.host, self.arrays = store.restore(
        learner.state, step=resume_step
      )
      experiment_lib.check_base(self.host, learner.base_digest)
      LOG.info("resumed from step %d of %s", self.step, directory)
    start = self.step
    self._writers, self._evals = [], []
    if hosts.is_first():
      self._writers = metrics.make_writers(
        directory, experiment.loop.writers, first_step=start
      )
      # An evaluation is named by the steps before it, `start`'s included.
      first = start + 1 if start else 0
      self._evals = [metrics.FileWriter(directory, "evals", first_step=first)]
    self._evaluator = learner.evaluator()
    self._benchmarks = {
      name: self._evaluator.on(name, samples)
      for name, samples in experiment.evaluation.benchmarks.items()
    }
    self._interrupted = False
    self._stack = contextlib.ExitStack()
    _log_header(experiment, len(self.seeds), learner.lift)

  def __enter__(self) -> "Session":
    """Starts graders and bar, and scores a policy that has learned nothing."""
    experiment, stack = self._experiment, self._stack
    with contextlib.ExitStack() as opening:
      opening.callback(self._store.close)
      for writer in [*self._evals, *self._writers]:
        opening.callback(writer.close)
      self.grader = opening.enter_context(
        experiment_lib.open_workers(experiment)
      )
      self._interrupt = opening.enter_context(Interrupt())
      self._compilations = opening.enter_context(_count_compilations())
      self._bar = None
      if hosts.is_first():
        self._bar = opening.enter_context(
          progress.Progress("train", experiment.loop.num_steps, start=self.step)
        )
      if self.step == 0 and experiment.evaluation.interval:
        self._evaluate()
      stack.push(opening.pop_all())
    return self

  def __exit__(self, *exc) -> None:
    """Closes everything; what was saved is on disk after this."""
    self._stack.__exit__(*exc)

  def labeller(self) -> labelling.TruthLabels:
    """Makes the labeller, as it was when the run was saved."""
    experiment = self._experiment
    labeller = labelling.make_labeller(
      experiment.labels,
      labelling.Scorer(
        experiment.task,
        experiment.tokenizer,
        self.grader,
        experiment.rollout.stops,
      ),
      seeds=self.seeds,
      prompts_per_step=experiment.loop.prompts_per_step,
      group_size=experiment.loop.group_size,
      width=experiment.decoder.width,
      directory=self._directory,
      stop=lambda: self._interrupt.requested,
      verify=self.learner.verifier(self.seeds)
      if experiment.labels.strategy.needs_verdicts
      else None,
    )
    labeller.restore(self.step, self.host, self.arrays)
    return labeller

  @property
  def goes_on(self) -> bool:
    """Whether there is another step to do."""
    return self.step < self._experiment.loop.num_steps and not self._interrupted

  def end_step(
    self,
    rows: Sequence[Mapping[str, float]],
    clock: Clock,
    *,
    tokens: float,
    pack: Callable[[], tuple[dict, dict[str, np.ndarray]]] | None = None,
  ) -> None:
    """Counts a step, logs it, and scores and saves where it is time.

    Args:
      rows: what each seed logs.
      clock: of the step.
      tokens: that the step learned from, over all seeds.
      pack: called before a save: what the loop itself must have to go on, as
        JSON and as arrays.

    Raises:
      FloatingPointError: a loss is not finite and the run does not skip such
        updates.
    """
    experiment, store = self._experiment, self._store
    self.step += 1
    seconds = clock.seconds()
    shared = {
      **{f"seconds/{name}": value for name, value in seconds.items()},
      "tokens_per_second": tokens / seconds["step"],
      "compilations": self._compilations[0],
    }
    for seed, row in zip(self.seeds, rows, strict=True):
      for writer in self._writers:
        writer.write(self.step - 1, seed, {**row, **shared})
      if not np.isfinite(row["loss"]) and not experiment.loop.skip_nonfinite:
        raise FloatingPointError(
          f"the loss of seed {seed} is {row['loss']} at step {self.step - 1}; "
          f"the last checkpoint is of step {(store.steps or [None])[-1]}"
        )
    if self._bar is not None:
      self._bar.advance(
        reward=np.mean([row["reward/total"] for row in rows]),
        loss=np.mean([row["loss"] for row in rows]),
        tok_s=shared["tokens_per_second"],
      )

    done = self.step == experiment.loop.num_steps
    score, interval = None, experiment.evaluation.interval
    if done or (interval and self.step % interval == 0):
      score = self._evaluate()
    every = experiment.loop.checkpoint_interval
    # A signal to one process stops all of them after the same step.
    self._interrupted = hosts.any_of(self._interrupt.requested) and not done
    if done or self._interrupted or (every and self.step % every == 0):
      host, arrays = pack() if pack else ({}, {})
      store.save(
        self.step,
        self.learner.state,
        {"seeds": self.seeds, "base": self.learner.base_digest, **host},
        arrays=arrays,
        score=score,
      )
    if self._interrupted:
      store.wait()

  def result(self) -> Result:
    """Scores the finished policies, and says how the run ended.

    Returns:
      The result; a finished run's is also in `final.json`.
    """
    unfinished = Result(finished=False, step=self.step, final=[])
    if self._interrupted:
      return unfinished
    self._store.wait()
    found = {
      mode: self._evaluator.scores(
        mode,
        self.learner.params,
        self.grader,
        num_seeds=len(self.seeds),
      )
      for mode in self._evaluator.modes
    }
    scores = benchmarks.score(
      self._benchmarks,
      self.learner.params,
      self.grader,
      seeds=self.seeds,
      step=self.step,
      path=self._directory / "benchmarks.json",
      stop=lambda: self._interrupt.requested,
    )
    if scores is None:
      return unfinished
    found |= scores
    final = [
      {
        "seed": seed,
        "step": self.step,
        **{mode: scores[index] for mode, scores in found.items()},
      }
      for index, seed in enumerate(self.seeds)
    ]
    if hosts.is_first():
      run_directory.write_json(self._directory / "final.json", final)
    return Result(finished=True, step=self.step, final=final)

  def _evaluate(self) -> float:
    scores = self._evaluator.scores(
      "greedy",
      self.learner.params,
      self.grader,
      num_seeds=len(self.seeds),
    )
    for seed, values in zip(self.seeds, scores, strict=True):
      for writer in self._evals:
        writer.write(self.step, seed, values)
    return float(np.mean([values["total"] for values in scores]))


def _log_header(experiment, num_seeds: int, lift) -> None:
  """Says how large a step is (R16)."""
  loop = experiment.loop
  samples = loop.prompts_per_step * loop.group_size
  turns, what = 1, "responses"
  if experiment.method.per_step:
    turns = experiment.task.max_steps
    what = f"episodes of at most {turns} actions"
  LOG.info(
    "one step: %d prompts x %d samples = %d %s of at most %d tokens "
    "(at most %d tokens sampled), %d update(s) of %d micro-batch(es); "
    "%d seed(s) at once, %s on %d %s device(s)",
    loop.prompts_per_step,
    loop.group_size,
    samples,
    what,
    experiment.rollout.max_new_tokens,
    samples * turns * experiment.rollout.max_new_tokens,
    loop.num_minibatches,
    loop.num_microbatches,
    num_seeds,
    lift.name,
    jax.device_count(),
    jax.default_backend(),
  )


@contextlib.contextmanager
def _count_compilations():
  """Counts the programs that are compiled while it is open (R14)."""
  count = [0]

  def listen(event: str, duration: float, **kwargs) -> None:
    del duration, kwargs
    count[0] += event == _COMPILE_EVENT

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield count
  finally:
    with contextlib.suppress(AttributeError, ValueError):
      jax.monitoring.unregister_event_duration_listener(listen)
