"""The synchronous loop: generate, score, weigh, estimate, update.

Each step learns from what its own policy sampled. What a step computes is in
the functions that it calls, and what surrounds it in `session`.
"""

import functools
import os
from collections.abc import Sequence

import numpy as np

from saw_jax.tasks import data
from saw_jax.tasks.base import Example
from saw_jax.training import rollouts
from saw_jax.training.experiment import Experiment
from saw_jax.training.learner import Learner
from saw_jax.training.session import Clock, Result, Session


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
    FloatingPointError: the loss is not finite.
    CheckpointError: the checkpoint to go on from is damaged or does not fit.
    RewardError: a reward function misbehaved.
  """
  loop = experiment.loop
  train_examples = experiment.task.examples("train")
  learner = Learner(experiment, len(seeds))
  with Session(
    learner, seeds, directory=directory, resume_step=resume_step
  ) as session:
    labeller = session.labeller()
    while session.goes_on:
      clock, step = Clock(), session.step
      examples = [
        step_examples(train_examples, loop.prompts_per_step, seed, step)
        for seed in seeds
      ]
      ids = np.array([[example.key for example in row] for row in examples])
      transcript = rollouts.sample(
        learner.generate,
        learner.state.params,
        examples,
        rollouts.row_keys(seeds, step, ids, loop.group_size),
        encoder=learner.encoder,
        multiple=experiment.rollout.completion_multiple,
      )
      transcript = transcript.replace(
        policy_versions=np.full_like(
          transcript.policy_versions, step * loop.num_minibatches
        )
      )
      clock.lap("generate")
      batch, observed = learner.prepare(transcript)
      if labeller is None:
        scores = rollouts.score(
          transcript,
          examples,
          tokenizer=experiment.tokenizer,
          grader=session.grader,
        )
        clock.lap("score")
        rows = learner.learn(batch, scores, clock)
      else:
        scores = labeller.score(
          transcript,
          observed,
          examples,
          grader=session.grader,
          step=step,
          clock=clock,
        )
        rows = learner.learn(batch, scores, clock)
        rows = labeller.train(rows, step=step, clock=clock)
      session.end_step(
        rows,
        clock,
        tokens=float(scores.lengths.sum()),
        pack=labeller and functools.partial(labeller.pack, step + 1),
      )
    return session.result()


def step_examples(
  examples: Sequence[Example], count: int, seed: int, step: int
) -> list[Example]:
  """Returns the prompts of a step, a function of seed and step alone.

  Args:
    examples: of the training split.
    count: prompts per step, `P`.
    seed: of the run.
    step: from 0.

  Returns:
    `P` examples.
  """
  indices = data.batch_indices(len(examples), count, seed=seed, step=step)
  return [examples[int(index)] for index in indices]
