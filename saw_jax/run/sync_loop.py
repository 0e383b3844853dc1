"""The synchronous loop: generate, score, weigh, estimate, update.

Each step learns from what its own policy sampled: answers to prompts, or
episodes. Where the rows of a step come from is a source; what surrounds a step
is in `session`.
"""

import functools
import os
from collections.abc import Sequence

import numpy as np

from saw_jax.run import rollouts
from saw_jax.run.answers import Answers
from saw_jax.run.episode_source import Episodes
from saw_jax.run.experiment import Experiment
from saw_jax.run.learner import Learner
from saw_jax.run.session import Clock, Result, Session
from saw_jax.tasks import data
from saw_jax.tasks.base import Example
from saw_jax.tasks.environments import AgentTask


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
  learner = Learner(experiment, len(seeds))
  with Session(
    learner, seeds, directory=directory, resume_step=resume_step
  ) as session:
    if isinstance(experiment.task, AgentTask):
      source = Episodes(learner, seeds, session.grader)
    else:
      answers = Answers(learner, seeds, labeller=session.labeller())
      source = Responses(learner, seeds, answers)
    while session.goes_on:
      clock, step = Clock(), session.step
      rows, tokens = source.learn(step, clock)
      session.end_step(
        rows,
        clock,
        tokens=tokens,
        pack=functools.partial(source.pack, step + 1),
      )
    return session.result()


class Responses:
  """The source of rows that are answers to prompts."""

  def __init__(self, learner: Learner, seeds: Sequence[int], answers: Answers):
    """Takes the training examples.

    Args:
      learner: of all seeds.
      seeds: of the runs.
      answers: learns from what is sampled.
    """
    self._learner, self._seeds, self._answers = learner, list(seeds), answers
    self._examples = learner.experiment.task.examples("train")

  def learn(self, step: int, clock: Clock) -> tuple[list[dict], float]:
    """Samples and scores the answers of a step, and updates the policy.

    Args:
      step: of the run, from 0; with state and seeds it decides everything.
      clock: takes the time of each part.

    Returns:
      What each seed logs, and how many tokens were learned from.
    """
    learner, experiment = self._learner, self._learner.experiment
    loop = experiment.loop
    examples = [
      step_examples(self._examples, loop.prompts_per_step, seed, step)
      for seed in self._seeds
    ]
    ids = np.array([[example.key for example in row] for row in examples])
    transcript = rollouts.sample(
      learner.generate,
      learner.params,
      examples,
      rollouts.row_keys(self._seeds, step, ids, loop.group_size),
      encoder=learner.encoder,
      multiple=experiment.rollout.completion_multiple,
      length_groups=experiment.rollout.length_groups,
    )
    transcript = transcript.replace(
      policy_versions=np.full_like(
        transcript.policy_versions, step * loop.num_minibatches
      )
    )
    clock.lap("generate")
    return self._answers.learn(transcript, examples, step=step, clock=clock)

  def pack(self, step: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns what a checkpoint must hold beside the learner's state.

    Args:
      step: steps done.

    Returns:
      A document and arrays, of labels where they are bought.
    """
    return self._answers.pack(step)


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
