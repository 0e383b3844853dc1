"""The source of rows that are answers to prompts, and how they are scored."""

from typing import Any

from saw_jax.rollout.transcript import Transcript
from saw_jax.run import completions, groups, labelling, observations, rollouts
from saw_jax.run.groups import Drawn, Packed
from saw_jax.run.learner import Learner, Rows
from saw_jax.run.rollouts import Examples, Rollout
from saw_jax.run.session import Session
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import hosts
from saw_jax.training.batch import TrainBatch

# Answers with their rewards; the batch has log-probs from before the update.
Scored = tuple[TrainBatch, Rollout, Drawn]


class Answers:
  """Has answers scored, and appends what the world said to them."""

  def __init__(self, learner: Learner, grader: Grader, session: Session):
    made = learner.made
    self._learner, self._clock = learner, learner.clock
    self._grader, self._encoder = grader, learner.policy.encoder
    self._labels = labelling.make_labels(learner, grader, session)
    self._world = observations.Appender(learner) if made.method.world else None
    ahead, size = made.asynchronous, made.loop.prompts_per_step
    protocol = groups.make_protocol(ahead, size)
    self._draws: Any = groups.Fresh(learner)
    if protocol is not None:
      self._draws = groups.Queue(learner, protocol, self._early, session)

  def generate(self, step: int) -> Drawn:
    return self._draws.draw(step)

  def score(self, drawn: Drawn, step: int) -> Scored:
    """Scores the answers while the device recomputes their log-probs."""
    transcript, examples, rollout, *_ = drawn
    batch, observed = self._learner.prepare(transcript)
    if self._learner.made.method.needs_lags:
      batch = batch.replace(lags=drawn.lags)
    if self._labels is not None:
      observed = hosts.whole(observed)
      rollout = self._labels.score(transcript, examples, observed, step)
    elif rollout is None:
      rollout = self._early(transcript, examples)
      self._clock.lap("score")
    rollouts.check_scored(rollout, examples, self._grader, self._encoder)
    return batch, rollout, drawn

  def estimate(self, scored: Scored, step: int) -> tuple[TrainBatch, Rows]:
    batch, rollout, drawn = scored
    seen = [{} for _ in drawn.rows]
    if self._world is not None:
      batch, seen = self._world.append(batch, rollout, drawn.examples, step)
      self._clock.lap("lay out")
    batch, rows = self._learner.estimate(batch, rollout, step)
    parts = zip(rows, seen, drawn.rows, strict=True)
    return batch, [{**row, **more, **origin} for row, more, origin in parts]

  def samples(self, scored: Scored, batch: TrainBatch) -> completions.Rows:
    _, rollout, drawn = scored
    return completions.of_answers(
      drawn.examples,
      rollout,
      hosts.fetch(batch.advantages),
      self._learner.made.task.components,
      self._encoder,
    )

  def finish(self, rows: Rows, step: int) -> Rows:
    """Lets the labels learn from the update, and publishes its weights."""
    if self._labels is not None:
      rows = self._labels.train(rows, step)
    self._draws.advance()
    return rows

  def pack(self, step: int) -> Packed:
    host, arrays = self._draws.pack()
    more, others = self._labels.pack(step) if self._labels else ({}, {})
    return {**host, **more}, {**arrays, **others}

  def _early(self, transcript: Transcript, examples: Examples) -> Rollout:
    """What can be scored before it is the turn of the responses' step."""
    if self._labels is not None:
      return self._labels.read(transcript)
    return rollouts.score(transcript, examples, self._grader, self._encoder)
