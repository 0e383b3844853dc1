"""The synchronous loop: generate, score, weigh, estimate, update.

This is the edge of the training room: the one module that sees text, files and
the clock together. What a step computes is in the functions that it calls.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from saw_jax import algorithms
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.tasks import data
from saw_jax.tasks.base import Example, Outcome, Task
from saw_jax.tasks.grading import Grader
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import (
  batch as batch_lib,
)
from saw_jax.training import (
  checkpoint,
  estimation,
  evaluation,
  metrics,
  objective,
  parallel,
  progress,
  rollouts,
  update,
)
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training import state as state_lib
from saw_jax.types import PyTree

LOG = logging.getLogger(__name__)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Sizes of a run."""

  num_steps: int = 100
  prompts_per_step: int = 16  # P
  group_size: int = 8  # G
  num_minibatches: int = 1  # updates per rollout
  num_microbatches: int = 1  # parts of an update that run one after the other
  chunk_size: int = 1024  # tokens whose logits exist at one time
  checkpoint_interval: int = 25  # steps; 0: only at the end
  writers: tuple[str, ...] = ()  # beside the files: tensorboard, wandb


@dataclasses.dataclass(frozen=True)
class GradingConfig:
  """How rewards are computed; see `tasks.grading`."""

  num_workers: int = 2
  limit_s: float = 5.0
  crash_tolerance: float = 0.1


class Experiment(NamedTuple):
  """All that a run is made of, past the border where configs end."""

  task: Task
  tokenizer: Tokenizer
  decoder: DecoderConfig
  params: PyTree  # where every seed starts; also the KL reference
  method: algorithms.Method
  loop: LoopConfig
  rollout: rollouts.RolloutConfig
  sampling: SamplingConfig
  optimizer: optimizer_lib.OptimizerConfig
  parallel: parallel.ParallelConfig
  evaluation: evaluation.EvaluationConfig
  grading: GradingConfig


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


def run(
  experiment: Experiment,
  seeds: Sequence[int],
  *,
  directory: str | os.PathLike,
  resume_step: int | None = None,
) -> Result:
  """Trains one policy per seed, all of them as one program.

  Args:
    experiment: what is trained, and how.
    seeds: of the runs; each gives its own prompts and samples.
    directory: where metrics and checkpoints go. If it holds checkpoints of
      this run, training goes on from the latest.
    resume_step: go on from this checkpoint instead.

  Returns:
    How the run ended.

  Raises:
    FloatingPointError: the loss is not finite. The update was skipped; nothing
      is stale here that would excuse it, so the run ends.
    CheckpointError: the checkpoint to go on from is damaged or does not fit.
    RewardError: a reward function misbehaved.
  """
  directory = pathlib.Path(directory)
  loop, method = experiment.loop, experiment.method
  components = experiment.task.components
  num_seeds, group = len(seeds), loop.group_size
  minima = np.array([c.minimum for c in components], np.float32)
  train_examples = experiment.task.examples("train")
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)

  # --- the functions of a step, lifted over seeds or devices ---------------
  optimizer, lift, state = start_state(experiment, num_seeds)
  forward = objective.make_forward(
    experiment.decoder,
    temperature=experiment.sampling.temperature,
    chunk_size=loop.chunk_size,
  )
  STATE, ROWS, SAME = parallel.STATE, parallel.ROWS, parallel.SAME

  evaluator = make_evaluator(experiment, lift, encoder)
  generate = rollouts.make_generate(
    lift,
    experiment.decoder,
    experiment.rollout,
    experiment.tokenizer,
    sampling=experiment.sampling,
    group_size=group,
  )
  log_probs = lift.wrap(
    lambda params, batch: forward(params, batch).log_probs,
    (STATE, ROWS),
    (ROWS,),
  )
  estimate = lift.wrap(
    estimation.make_estimate(method.advantage, method.weights, minima=minima),
    (ROWS, ROWS, ROWS, ROWS, STATE),
    (ROWS, SAME),
    takes_axis_name=True,
  )
  gradient_weights = estimation.make_gradient_weights(
    objective.make_objective(forward, {"policy": method.terms["policy"]}),
    num_microbatches=loop.num_microbatches,
    **method.gradient_options,
  )
  reweigh = lift.wrap(
    gradient_weights,
    (STATE, STATE, ROWS, ROWS, ROWS),
    (STATE,),
    takes_axis_name=True,
  )
  train = lift.wrap(
    update.make_update(
      objective.make_objective(forward, method.terms, method.diagnostics),
      optimizer,
      num_microbatches=loop.num_microbatches,
    ),
    (STATE, ROWS),
    (STATE, SAME),
    takes_axis_name=True,
    donate=(0,),
  )

  # --- where the run stands ------------------------------------------------
  reference = state.params if method.needs_reference else None
  if reference is not None:
    reference = jax.tree.map(lambda x: x.copy(), reference)
  store = checkpoint.Checkpointer(directory / "checkpoints")
  start = 0
  if store.steps:
    start, state, _ = store.restore(state, step=resume_step)
    LOG.info("resumed from step %d of %s", start, directory)
  elif resume_step is not None:
    store.restore(state, step=resume_step)  # raises: there is none
  writers = metrics.make_writers(directory, loop.writers, first_step=start)
  # An evaluation is named by the steps before it, those of `start` included.
  evals = metrics.FileWriter(
    directory, "evals", first_step=start + 1 if start else 0
  )
  _log_header(experiment, num_seeds, lift)

  def report_evaluation(step: int) -> float:
    scores = evaluator.scores(
      "greedy", state.params, grader, num_seeds=num_seeds
    )
    for seed, values in zip(seeds, scores, strict=True):
      evals.write(step, seed, values)
    return float(np.mean([values["total"] for values in scores]))

  def save(step: int, score: float | None = None) -> None:
    store.save(step, state, {"seeds": list(seeds)}, score=score)

  final: list[dict[str, Any]] = []
  step, interrupted = start, False
  with (
    Grader(experiment.task, **dataclasses.asdict(experiment.grading)) as grader,
    Interrupt() as interrupt,
    _count_compilations() as compilations,
    progress.Progress("train", loop.num_steps, start=start) as bar,
    contextlib.ExitStack() as stack,
  ):
    stack.callback(store.close)
    stack.callback(evals.close)
    for writer in writers:
      stack.callback(writer.close)
    interval = experiment.evaluation.interval
    if start == 0 and interval:
      report_evaluation(0)

    while step < loop.num_steps:
      clock = _Clock()
      examples = [
        _examples(train_examples, loop.prompts_per_step, seed, step)
        for seed in seeds
      ]
      ids = np.array([[example.key for example in row] for row in examples])
      keys = rollouts.row_keys(seeds, step, ids, group)
      transcript = rollouts.sample(
        generate,
        state.params,
        examples,
        keys,
        encoder=encoder,
        multiple=experiment.rollout.completion_multiple,
      )
      transcript = transcript.replace(
        policy_versions=np.full_like(
          transcript.policy_versions, step * loop.num_minibatches
        )
      )
      clock.lap("generate")

      # The device recomputes log-probs while the graders read the text.
      zeros = np.zeros(transcript.starts.shape, np.float32)
      batch = batch_lib.make_batch(transcript, zeros)
      if method.kl_in_reward or (method.needs_old and loop.num_minibatches > 1):
        batch = batch.replace(old_log_probs=log_probs(state.params, batch))
      if reference is not None:
        batch = batch.replace(ref_log_probs=log_probs(reference, batch))
      scores = rollouts.score(
        transcript,
        examples,
        tokenizer=experiment.tokenizer,
        grader=grader,
      )
      clock.lap("score")

      penalties = None
      if method.kl_in_reward:
        estimator, coefficient = method.kl_in_reward
        penalties = estimation.kl_penalties(
          batch, estimator, coefficient, group_size=group
        )
      if method.weights is None:
        state = state.replace(
          weights=reweigh(
            state.params, state.weights, batch, scores.rewards, scores.scored
          )
        )
        jax.block_until_ready(state.weights)
        clock.lap("weigh")
      advantages, statistics = jax.block_until_ready(
        estimate(
          scores.rewards,
          scores.scored,
          scores.lengths.astype(np.float32),
          penalties,
          state.weights,
        )
      )
      clock.lap("estimate")

      batch = batch.replace(advantages=advantages.reshape(zeros.shape))
      updates = []
      for part in range(loop.num_minibatches):
        state, values = train(
          state, batch_lib.take_rows(batch, part, loop.num_minibatches)
        )
        updates.append(values)
      updates = jax.device_get(updates)
      clock.lap("update")

      step += 1
      seconds = clock.seconds()
      rows = _rows(
        components, scores, jax.device_get(statistics), updates, num_seeds
      )
      tokens = float(scores.lengths.sum())
      shared = {
        **{f"seconds/{name}": value for name, value in seconds.items()},
        "tokens_per_second": tokens / seconds["step"],
        "compilations": compilations[0],
      }
      for seed, row in zip(seeds, rows, strict=True):
        for writer in writers:
          writer.write(step - 1, seed, {**row, **shared})
        if not np.isfinite(row["loss"]):
          raise FloatingPointError(
            f"the loss of seed {seed} is {row['loss']} at step {step - 1}; the "
            f"last checkpoint is of step {(store.steps or [None])[-1]}"
          )
      bar.advance(
        reward=np.mean([row["reward/total"] for row in rows]),
        loss=np.mean([row["loss"] for row in rows]),
        tok_s=shared["tokens_per_second"],
      )

      done = step == loop.num_steps
      score = None
      if done or (interval and step % interval == 0):
        score = report_evaluation(step)
      every = loop.checkpoint_interval
      interrupted = interrupt.requested and not done
      if done or interrupted or (every and step % every == 0):
        save(step, score)
      if interrupted:
        store.wait()
        break

    if not interrupted:
      greedy, sampled = (
        evaluator.scores(mode, state.params, grader, num_seeds=num_seeds)
        for mode in ("greedy", "sampled")
      )
      final = [
        {"seed": seed, "step": step, "greedy": g, "sampled": s}
        for seed, g, s in zip(seeds, greedy, sampled, strict=True)
      ]
      store.wait()
      _write_json(directory / "final.json", final)
  return Result(finished=not interrupted, step=step, final=final)


def start_state(
  experiment: Experiment, num_seeds: int
) -> tuple[optax.GradientTransformation, parallel.Lift, Any]:
  """Makes the state of all seeds before the first step.

  Args:
    experiment: what is trained.
    num_seeds: `N`.

  Returns:
    The optimizer, the lift, and the state where the lift keeps it.
  """
  loop = experiment.loop
  optimizer = optimizer_lib.make_optimizer(
    experiment.optimizer, loop.num_steps * loop.num_minibatches
  )
  lift = parallel.make_lift(
    experiment.parallel, experiment.decoder, optimizer, num_seeds=num_seeds
  )
  initial = state_lib.create_state(
    experiment.params,
    optimizer,
    num_components=len(experiment.task.components),
  )
  return (
    optimizer,
    lift,
    lift.place(state_lib.stack_states([initial] * num_seeds)),
  )


def make_evaluator(
  experiment: Experiment, lift: parallel.Lift, encoder: rollouts.Encoder
) -> evaluation.Evaluator:
  """Makes the evaluation of an experiment.

  Args:
    experiment: what is evaluated.
    lift: how arrays are spread.
    encoder: of the prompts.

  Returns:
    The evaluator.
  """
  return evaluation.Evaluator(
    experiment.task,
    experiment.tokenizer,
    encoder,
    experiment.evaluation,
    lambda sampling, group_size: rollouts.make_generate(
      lift,
      experiment.decoder,
      experiment.rollout,
      experiment.tokenizer,
      sampling=sampling,
      group_size=group_size,
    ),
  )


def evaluate_checkpoint(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  step: int | None = None,
) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
  """Evaluates the policies in a checkpoint.

  Args:
    experiment: as the run was made.
    num_seeds: seeds of the run, `N`.
    directory: of the run.
    step: which checkpoint; the latest by default.

  Returns:
    The step, and for `greedy` and `sampled` what `Evaluator.run` returns.

  Raises:
    CheckpointError: it is absent, damaged or of another shape.
  """
  _, lift, state = start_state(experiment, num_seeds)
  store = checkpoint.Checkpointer(pathlib.Path(directory) / "checkpoints")
  step, state, _ = store.restore(state, step=step)
  store.close()
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
  evaluator = make_evaluator(experiment, lift, encoder)
  with Grader(
    experiment.task, **dataclasses.asdict(experiment.grading)
  ) as grader:
    return step, {
      mode: evaluator.run(mode, state.params, grader, num_seeds=num_seeds)
      for mode in ("greedy", "sampled")
    }


def _examples(
  examples: Sequence[Example], count: int, seed: int, step: int
) -> list[Example]:
  indices = data.batch_indices(len(examples), count, seed=seed, step=step)
  return [examples[int(index)] for index in indices]


def _rows(
  components, scores: rollouts.Rollout, statistics, updates, num_seeds: int
) -> list[dict[str, float]]:
  """Collects what is logged for each seed."""
  rows = []
  outcomes = np.array([o.value for o in scores.outcomes]).reshape(num_seeds, -1)
  for n in range(num_seeds):
    row: dict[str, float] = {}
    means = statistics["mean"][n]
    for m, component in enumerate(components):
      row[f"reward/{component.name}"] = float(means[m])
    row["reward/total"] = float(sum(means))
    for name in ("weight", "cv", "std", "constant_groups"):
      for m, component in enumerate(components):
        row[f"{name}/{component.name}"] = float(statistics[name][n][m])
    for outcome in Outcome:
      row[f"outcome/{outcome.value}"] = float(
        (outcomes[n] == outcome.value).mean()
      )
    row["unscored"] = float(1 - scores.scored[n].mean())
    row["length"] = float(scores.lengths[n].mean())
    row["ended"] = float(scores.ended[n].mean())
    for name in updates[0]:
      # What an update says of its mini-batch, averaged over the rollout's.
      row[name] = float(np.mean([values[name][n] for values in updates]))
    # Only the first update meets the sampler's own parameters.
    row["sampler_mismatch"] = float(updates[0]["sampler_mismatch"][n])
    rows.append(row)
  return rows


def _log_header(
  experiment: Experiment, num_seeds: int, lift: parallel.Lift
) -> None:
  """Says how large a step is (R16)."""
  loop = experiment.loop
  samples = loop.prompts_per_step * loop.group_size
  LOG.info(
    "one step: %d prompts x %d samples = %d responses of at most %d tokens "
    "(at most %d tokens sampled), %d update(s) of %d micro-batch(es); "
    "%d seed(s) at once, %s on %d %s device(s)",
    loop.prompts_per_step,
    loop.group_size,
    samples,
    experiment.rollout.max_new_tokens,
    samples * experiment.rollout.max_new_tokens,
    loop.num_minibatches,
    loop.num_microbatches,
    num_seeds,
    lift.name,
    jax.device_count(),
    jax.default_backend(),
  )


class _Clock:
  """Seconds of the parts of a step."""

  def __init__(self):
    self._start = self._last = time.perf_counter()
    self._laps: dict[str, float] = {}

  def lap(self, name: str) -> None:
    now = time.perf_counter()
    self._laps[name] = now - self._last
    self._last = now

  def seconds(self) -> dict[str, float]:
    return {**self._laps, "step": time.perf_counter() - self._start}


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


def _write_json(path: pathlib.Path, document: Any) -> None:
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(document, indent=2) + "\n")
  temporary.replace(path)
