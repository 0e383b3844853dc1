"""The loop: generate, score, label, weigh, estimate, update, evaluate, save."""

import contextlib
import logging
import os
from collections.abc import Sequence

import jax
import numpy as np

from saw_jax.rollout.transcript import POLICY
from saw_jax.run import checks, run_directory
from saw_jax.run import experiment as experiment_lib
from saw_jax.run.learner import Learner
from saw_jax.run.policy import Policy
from saw_jax.run.sections import Experiment
from saw_jax.run.session import Clock, Result, Session
from saw_jax.training import hosts

LOG = logging.getLogger(__name__)


def train(
  experiment: Experiment,
  seeds: Sequence[int],
  *,
  directory: str | os.PathLike,
  resume_step: int | None = None,
) -> Result:
  """Trains one policy per seed, all of them as one program.

  A run that `directory` already holds goes on from its latest checkpoint, or
  from that of `resume_step`.

  Raises a ValueError for settings that do not go together, a RunError if
  another process trains there, a FloatingPointError for a result that is not
  finite, and a CheckpointError, RewardError or ActorError.
  """
  hosts.wait_for_all()
  checks.check(experiment, None, seeds, directory)
  policy = Policy(experiment, len(seeds), directory)
  del experiment  # and with it the parameters, which the policy has copied
  kind, clock = experiment_lib.kind_of(policy.made), Clock()
  learner = Learner(policy, seeds, clock)
  _log_header(policy, kind)
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: policy.engine.close())
    if hosts.is_first():
      stack.callback(run_directory.unlock, directory)
      run_directory.lock(directory)
    workers = stack.enter_context(kind.open_workers())
    evaluator = kind.Evaluator(policy, workers)
    session = Session(evaluator, seeds, clock, directory, stack, resume_step)
    source = kind.Source(learner, workers, session)
    traits = policy.engine.traits
    if traits.publishes == "disk" and hosts.is_first():
      run_directory.note_engine(directory, traits._asdict())
    if not session.step:
      session.evaluate()
    while session.goes_on:
      clock.restart()
      step = session.step
      session.enter("sampling")
      sampled = source.generate(step)
      session.enter("grading")
      scored = source.score(sampled, step)  # against the truth, or labels
      session.enter("updating")
      batch, rows = source.estimate(scored, step)  # weighs, and estimates
      updates = learner.update(batch)
      rows = [{**a, **b} for a, b in zip(rows, updates, strict=True)]
      rows = source.finish(rows, step)
      if session.shows_samples:
        session.show(source.samples(scored, batch))
      tokens = float((np.asarray(batch.roles) == POLICY).sum())
      session.log(rows, tokens, learner.faults)
      score = None
      try:
        score = session.evaluate()
      finally:  # Keeps what was learned even if the evaluation fails.
        session.save(source.pack, score)
    return session.result()


def _log_header(policy: Policy, kind: experiment_lib.AnswerRun) -> None:
  loop, limit = policy.made.loop, policy.made.rollout.max_new_tokens
  samples = loop.prompts_per_step * loop.group_size
  LOG.info(
    "one step: %d prompts x %d samples = %d %s of at most %d tokens "
    "(at most %d tokens sampled), %d update(s) of %d micro-batch(es); "
    "%d seed(s) at once, %s on %d %s device(s)",
    *(loop.prompts_per_step, loop.group_size, samples, kind.unit, limit),
    *(samples * kind.turns * limit, loop.num_minibatches),
    *(loop.num_microbatches, policy.num_seeds, policy.lift.name),
    *(jax.device_count(), jax.default_backend()),
  )
