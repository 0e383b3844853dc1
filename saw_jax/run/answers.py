"""What a step does with sampled answers, in either loop.

Sampled by the policy itself or by an older one, answers are scored, get what
the world said behind them where there is a world model, and are learned from.
"""

from collections.abc import Sequence

import numpy as np

from saw_jax.rollout.transcript import Transcript
from saw_jax.run import observations, rollouts
from saw_jax.run.labelling import TruthLabels
from saw_jax.run.learner import Learner
from saw_jax.run.session import Clock
from saw_jax.tasks.base import Example


class Answers:
  """Learns from answers to prompts."""

  def __init__(
    self,
    learner: Learner,
    seeds: Sequence[int],
    *,
    labeller: TruthLabels,
  ):
    """Lifts the functions of a step; nothing is compiled yet.

    Args:
      learner: of all seeds.
      seeds: of the runs.
      labeller: says what they are scored against.
    """
    self._learner, self._labeller = learner, labeller
    self._appender = None
    if learner.experiment.method.world is not None:
      self._appender = observations.Appender(
        learner.experiment, learner.lift, seeds
      )

  def learn(
    self,
    sampled: Transcript,
    examples: Sequence[Sequence[Example]],
    *,
    step: int,
    clock: Clock,
    scores: rollouts.Rollout | None = None,
  ) -> tuple[list[dict], float]:
    """Has answers scored, and updates the policy.

    Args:
      sampled: host arrays, rows `[N, P * G]`.
      examples: their prompts, `[N][P]`.
      step: of the run, from 0.
      clock: takes the time of each part.
      scores: of the answers against the truth, where an actor has them; a
        labeller does not look at them.

    Returns:
      What each seed logs, and how many tokens were learned from.
    """
    learner = self._learner
    batch, observed = learner.prepare(sampled)
    scores = self._labeller.score(
      sampled, observed, examples, step=step, clock=clock, early=scores
    )
    seen: list[dict[str, float]] = [{} for _ in examples]
    if self._appender is not None:
      batch, seen = self._appender.append(
        batch, scores, examples, learner.params, step
      )
      clock.lap("lay out")
    rows = [
      {**row, **more}
      for row, more in zip(
        learner.learn(batch, scores, clock), seen, strict=True
      )
    ]
    rows = self._labeller.train(rows, step=step, clock=clock)
    return rows, float(scores.lengths.sum())

  def pack(self, step: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns what a checkpoint must hold beside the learner's state.

    Args:
      step: steps done.

    Returns:
      A document and arrays, of labels where they are bought.
    """
    return self._labeller.pack(step)
