"""The source of rows that are answers to prompts, and how they are scored."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.transcript import Transcript
from saw_jax.run import labelling, observations, rollouts
from saw_jax.run.learner import Learner, LoopConfig
from saw_jax.run.policy import Policy
from saw_jax.tasks import data, self_verification
from saw_jax.tasks.base import Example
from saw_jax.training.batch import TrainBatch

_INT32 = 2**31 - 1
_VERDICTS = 2**30

# What a checkpoint must hold: a document for JSON, and arrays by name.
Packed = tuple[dict[str, Any], dict[str, np.ndarray]]


class Drawn(NamedTuple):
  """The answers of a step, and what is known of them."""

  transcript: Transcript  # host arrays, rows [N, P * G]
  examples: Sequence[Sequence[Example]]  # their prompts, [N][P]
  early: rollouts.Rollout | None  # what an actor has found out already
  rows: list[dict[str, float]]  # what each seed logs of where they come from


class Scored(NamedTuple):
  """The answers of a step with their rewards."""

  batch: TrainBatch  # with the log-probs of before the update
  rollout: rollouts.Rollout
  drawn: Drawn


class Answers:
  """Has answers scored, be it against the truth or against labels.

  Where there is a world model, what the world said to them is learned too.
  """

  def __init__(
    self,
    draws: Any,  # `Fresh`, or `groups.Queue` ahead of the updates
    labels: labelling.Labeller,
    learner: Learner,
    world: observations.Appender | None,
  ):
    self._draws, self._labels = draws, labels
    self._learner, self._world = learner, world
    self._clock = learner.clock

  def generate(self, step: int) -> Drawn:
    return self._draws.draw(step)

  def score(self, drawn: Drawn, step: int) -> Scored:
    """Scores the answers while the device recomputes their log-probs."""
    batch, observed = self._learner.prepare(drawn.transcript)
    rollout = self._labels.score(
      drawn.transcript,
      observed,
      drawn.examples,
      step=step,
      clock=self._clock,
      early=drawn.early,
    )
    return Scored(batch, rollout, drawn)

  def estimate(
    self, scored: Scored, step: int
  ) -> tuple[TrainBatch, list[dict[str, float]]]:
    (batch, rollout, drawn), learner = scored, self._learner
    seen = [{} for _ in drawn.rows]
    if self._world is not None:
      batch, seen = self._world.append(
        batch, rollout, drawn.examples, learner.policy.params, step
      )
      self._clock.lap("lay out")
    learner.weigh(batch, rollout)
    batch, rows = learner.estimate(batch, rollout)
    parts = zip(rows, seen, drawn.rows, strict=True)
    return batch, [{**row, **more, **origin} for row, more, origin in parts]

  def finish(
    self, rows: list[dict[str, float]], step: int
  ) -> list[dict[str, float]]:
    """Lets the labels learn from the update, and publishes its weights."""
    rows = self._labels.train(rows, step=step, clock=self._clock)
    self._draws.advance()
    return rows

  def pack(self, step: int) -> Packed:
    (host, arrays), (more, others) = self._draws.pack(), self._labels.pack(step)
    return {**host, **more}, {**arrays, **others}


class Fresh:
  """Answers that the current policies sample between the updates."""

  def __init__(
    self,
    generate: rollouts.Generate,
    encoder: rollouts.Encoder,
    learner: Learner,
    examples: Sequence[Example],
    loop: LoopConfig,
    seeds: Sequence[int],
  ):
    self._generate, self._encoder = generate, encoder
    self._policy, self._clock = learner.policy, learner.clock
    self._examples, self._loop, self._seeds = examples, loop, seeds

  def draw(self, step: int) -> Drawn:
    loop, config = self._loop, self._encoder.config
    size, count = len(self._examples), loop.prompts_per_step
    examples = [
      [
        self._examples[int(index)]
        for index in data.batch_indices(size, count, seed=seed, step=step)
      ]
      for seed in self._seeds
    ]
    ids = [[example.key for example in row] for row in examples]
    transcript = rollouts.sample(
      self._generate,
      self._policy.params,
      examples,
      rollouts.row_keys(self._seeds, step, ids, loop.group_size),
      encoder=self._encoder,
      multiple=config.completion_multiple,
      length_groups=config.length_groups,
    )
    transcript = transcript.replace(
      policy_versions=np.full_like(
        transcript.policy_versions, step * loop.num_minibatches
      )
    )
    self._clock.lap("generate")
    return Drawn(transcript, examples, None, [{} for _ in self._seeds])

  def advance(self) -> None:
    """Nothing was sampled ahead."""

  def pack(self) -> Packed:
    """Nothing: what is sampled in a step is a function of the state."""
    return {}, {}


def make_verifier(
  policy: Policy,
  task: Any,
  encoder: rollouts.Encoder,
  sampling: SamplingConfig,
  labels: labelling.LabelConfig,
  seeds: Sequence[int],
  group_size: int,
) -> labelling.Verify:
  """Makes the policy a judge of its own responses.

  The function `(examples [N][P], completions, step) -> verdicts [N, P, G]` of 0
  and 1 samples each verdict once from the current policies.
  """
  config = dataclasses.replace(
    encoder.config,
    max_prompt_tokens=labels.verify_prompt_tokens,
    max_new_tokens=labels.verify_new_tokens,
    long_prompts="truncate",
    stops=(),  # Those of an answer: a verdict may quote one.
  )
  tokenizer, heat = encoder.tokenizer, labels.verify_temperature
  settings = rollouts.Encoder(tokenizer, config).settings(
    dataclasses.replace(sampling, temperature=heat), 1
  )
  generate = rollouts.make_generate(policy.lift, policy.decoder, settings)

  def verify(examples, completions, step) -> np.ndarray:
    texts = iter(completions)
    asked = [
      [
        Example(
          key=(example.key * group_size + g) & _INT32,
          messages=task.verification(example, next(texts)),
          reference="",
        )
        for example in row
        for g in range(group_size)
      ]
      for row in examples
    ]
    ids = [[example.key for example in row] for row in asked]
    sampled = rollouts.sample(
      generate,
      policy.params,
      asked,
      # Steps of their own: no verdict has the key of a response.
      rollouts.row_keys(seeds, step + _VERDICTS, ids, 1),
      # Nothing is asked twice, so nothing is remembered.
      encoder=rollouts.Encoder(tokenizer, config),
      multiple=config.completion_multiple,
    )
    verdicts, _, _ = rollouts.read(sampled, tokenizer)
    values = [self_verification.read_verdict(text) for text in verdicts]
    shape = (len(examples), -1, group_size)
    return np.array(values, np.float32).reshape(shape)

  return verify
