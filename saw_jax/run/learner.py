"""What a training loop does with scored responses, wherever they come from."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from saw_jax.models import lora
from saw_jax.run import evaluation, labelling, rollouts
from saw_jax.run import experiment as experiment_lib
from saw_jax.run.session import Clock
from saw_jax.tasks import self_verification
from saw_jax.tasks.base import Component, Example, Outcome
from saw_jax.training import batch as batch_lib
from saw_jax.training import (
  estimation,
  hosts,
  objective,
  packing,
  parallel,
  update,
)
from saw_jax.types import PyTree

_INT32 = 2**31 - 1
_VERDICTS = 2**30


class Learner:
  """The state of all seeds, and the functions of a step lifted over them.

  Attributes:
    state: what a step changes; given away to the next step (donated).
    base: what adapters sit on, which no step changes; none without adapters.
    base_digest: names what is in it; none without adapters.
    lift: how arrays are spread.
    encoder: of prompts.
    generate: the sampler, `(params, prompts, keys) -> Transcript`.
    values: what the value head says, `(params, batch) -> [N, B]`.
  """

  def __init__(
    self, experiment: experiment_lib.Experiment, num_seeds: int
  ) -> None:
    """Makes the state; nothing is compiled yet.

    Args:
      experiment: what is trained, and how.
      num_seeds: `N`.
    """
    loop, method = experiment.loop, experiment.method
    self.experiment, self.num_seeds = experiment, num_seeds
    self.encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
    optimizer, lift, self.state = experiment_lib.start_state(
      experiment, num_seeds
    )
    self.lift = lift
    self.base = experiment_lib.place_base(experiment, lift, num_seeds)
    self.base_digest = experiment_lib.base_digest(experiment)
    self._merge = experiment_lib.make_merge(experiment, lift)
    self._merged: tuple[Any, Any] = (None, None)  # parameters, and what of
    merge = None
    if experiment.lora.rank:
      merge = functools.partial(lora.merge, config=experiment.lora)
    # Else the old policy is the current one: nothing has to be recomputed.
    self._needs_old = bool(method.kl_in_reward) or (
      method.needs_old and loop.num_minibatches > 1
    )
    self._reference = None
    if method.needs_reference:
      self._reference = self.base
      if self.base is None:
        self._reference = jax.tree.map(lambda x: x.copy(), self.state.params)

    STATE, ROWS, SAME = parallel.STATE, parallel.ROWS, parallel.SAME
    forward = objective.make_forward(
      experiment.decoder,
      temperature=experiment.sampling.temperature,
      chunk_size=loop.chunk_size,
    )
    self.generate = rollouts.make_generate(
      lift,
      experiment.decoder,
      experiment.rollout,
      experiment.tokenizer,
      sampling=experiment.sampling,
      group_size=loop.group_size,
    )
    self._observe = None
    if not experiment.labels.is_truth:
      self._observe = lift.wrap(
        objective.make_observe(
          experiment.decoder,
          group_size=loop.group_size,
          temperature=experiment.sampling.temperature,
          chunk_size=loop.chunk_size,
          log_probs_too=self._needs_old
          or experiment.labels.strategy.needs_log_probs,
        ),
        (STATE, ROWS),
        (ROWS,),
      )
    self._log_probs = lift.wrap(
      objective.in_parts(
        lambda params, batch: forward(params, batch).log_probs,
        loop.num_minibatches * loop.num_microbatches,
      ),
      (STATE, ROWS),
      (ROWS,),
    )
    self.values = lift.wrap(
      lambda params, batch: forward(params, batch).values,
      (STATE, ROWS),
      (ROWS,),
    )
    minima = np.array(
      [c.minimum for c in experiment.task.components], np.float32
    )
    self._estimate = lift.wrap(
      estimation.make_estimate(method.advantage, method.weights, minima=minima),
      (ROWS, ROWS, ROWS, ROWS, STATE),
      (ROWS, SAME),
      takes_axis_name=True,
    )
    gradient_weights = estimation.make_gradient_weights(
      objective.make_objective(forward, {"policy": method.terms["policy"]}),
      num_microbatches=loop.num_microbatches,
      merge=merge,
      **method.gradient_options,
    )
    self._reweigh = lift.wrap(
      gradient_weights,
      (STATE, STATE, ROWS, ROWS, ROWS, STATE),
      (STATE,),
      takes_axis_name=True,
    )
    self._train = lift.wrap(
      update.make_update(
        objective.make_objective(forward, method.terms, method.diagnostics),
        optimizer,
        num_microbatches=loop.num_microbatches,
        merge=merge,
      ),
      (STATE, ROWS, STATE),
      (STATE, SAME),
      takes_axis_name=True,
      donate=(0,),
    )

  @property
  def params(self) -> PyTree:
    """The policies' parameters as the decoder takes them, adapters merged."""
    adapters = self.state.params
    if self._merged[1] is not adapters:
      self._merged = (self._merge(self.base, adapters), adapters)
    return self._merged[0]

  def evaluator(self) -> evaluation.Evaluator:
    """Makes the evaluation of the held-out examples.

    Returns:
      The evaluator.
    """
    return experiment_lib.make_evaluator(
      self.experiment, self.lift, self.encoder
    )

  def verifier(self, seeds: Sequence[int]) -> labelling.Verify:
    """Makes the policy a judge of its own responses.

    Args:
      seeds: of the runs.

    Returns:
      A function `(examples [N][P], completions, step) -> verdicts [N, P, G]` of
      0 and 1, each sampled once from the current policies.
    """
    experiment, labels = self.experiment, self.experiment.labels
    G = experiment.loop.group_size
    config = dataclasses.replace(
      experiment.rollout,
      max_prompt_tokens=labels.verify_prompt_tokens,
      max_new_tokens=labels.verify_new_tokens,
      long_prompts="truncate",
      stops=(),  # Those of an answer: a verdict may quote one.
    )
    generate = rollouts.make_generate(
      self.lift,
      experiment.decoder,
      config,
      experiment.tokenizer,
      sampling=dataclasses.replace(
        experiment.sampling, temperature=labels.verify_temperature
      ),
      group_size=1,
    )

    def verify(examples, completions, step) -> np.ndarray:
      asked, texts = [], iter(completions)
      for row in examples:
        asked.append(
          [
            Example(
              key=(example.key * G + g) & _INT32,
              messages=experiment.task.verification(example, next(texts)),
              reference="",
            )
            for example in row
            for g in range(G)
          ]
        )
      ids = np.array([[example.key for example in row] for row in asked])
      sampled = rollouts.sample(
        generate,
        self.params,
        asked,
        # Steps of their own: no verdict has the key of a response.
        rollouts.row_keys(seeds, step + _VERDICTS, ids, 1),
        # Nothing is asked twice, so nothing is remembered.
        encoder=rollouts.Encoder(experiment.tokenizer, config),
        multiple=config.completion_multiple,
      )
      verdicts, _, _ = rollouts.read(sampled, experiment.tokenizer)
      values = [self_verification.read_verdict(text) for text in verdicts]
      return np.array(values, np.float32).reshape(len(examples), -1, G)

    return verify

  def prepare(
    self, transcript
  ) -> tuple[batch_lib.TrainBatch, objective.Observation | None]:
    """Makes a batch, and has the device start on the log-probs it needs.

    Those of the policy before this step's updates, and of the reference: they
    need no rewards, so they are computed while the graders read the text.

    Args:
      transcript: host arrays, rows `[N, P * G]`.

    Returns:
      The batch, with advantages of 0, and what the buying of labels looks at,
      from the same forward pass; None where none are bought.
    """
    zeros = np.zeros(transcript.starts.shape, np.float32)
    batch = self._packed(batch_lib.make_batch(transcript, zeros), 1)
    observed = None
    if self._observe is not None:
      observed = self._observe(self.params, batch)
      if self._needs_old:
        batch = batch.replace(old_log_probs=observed.log_probs)
    return self.recompute(batch), observed

  def recompute(self, batch: batch_lib.TrainBatch) -> batch_lib.TrainBatch:
    """Has the device start on the log-probs that the method needs of a batch.

    Args:
      batch: rows `[N, B]`.

    Returns:
      The batch with those of the policy before this step's updates, and of the
      reference, as far as they are needed and not there.
    """
    if batch.packing is None:
      batch = self._packed(batch, 1)
    if self._needs_old and batch.old_log_probs is None:
      batch = batch.replace(old_log_probs=self._log_probs(self.params, batch))
    if self._reference is not None:
      batch = batch.replace(
        ref_log_probs=self._log_probs(self._reference, batch)
      )
    return batch

  def learn(
    self, batch: batch_lib.TrainBatch, scores: rollouts.Rollout, clock: Clock
  ) -> list[dict[str, float]]:
    """Weighs rewards, estimates advantages and updates the policy.

    Args:
      batch: from `prepare`.
      scores: of the same responses.
      clock: takes the time of each part.

    Returns:
      For each seed, what is logged of the step.
    """
    loop, method = self.experiment.loop, self.experiment.method
    penalties = None
    if method.kl_in_reward:
      estimator, coefficient = method.kl_in_reward
      penalties = estimation.kl_penalties(
        batch, estimator, coefficient, group_size=loop.group_size
      )
    if method.weights is None:
      self.state = self.state.replace(
        weights=self._reweigh(
          self.state.params,
          self.state.weights,
          self._packed(batch, loop.num_microbatches),
          scores.rewards,
          scores.scored,
          self.base,
        )
      )
      jax.block_until_ready(self.state.weights)
      clock.lap("weigh")
    advantages, statistics = jax.block_until_ready(
      self._estimate(
        scores.rewards,
        scores.scored,
        scores.lengths.astype(np.float32),
        penalties,
        self.state.weights,
      )
    )
    clock.lap("estimate")

    if scores.multipliers is not None:
      advantages = advantages * scores.multipliers[..., None]
    batch = batch.replace(advantages=advantages.reshape(batch.starts.shape))
    updates = self.fit(batch, clock)
    return _rows(
      self.experiment.task.components,
      scores,
      hosts.fetch(statistics),
      updates,
      self.num_seeds,
    )

  def fit(
    self, batch: batch_lib.TrainBatch, clock: Clock
  ) -> list[dict[str, np.ndarray]]:
    """Updates the policy on a batch that is ready for it.

    Args:
      batch: rows `[N, B]`, with advantages and whatever else the terms read.
      clock: takes the time.

    Returns:
      What each update says, by name: an array over seeds.
    """
    loop = self.experiment.loop
    self._merged = (None, None)  # Of no use any more, and as large as a model.
    updates = []
    for part in range(loop.num_minibatches):
      rows = batch_lib.take_rows(batch, part, loop.num_minibatches)
      self.state, values = self._train(
        self.state, self._packed(rows, loop.num_microbatches), self.base
      )
      updates.append(values)
    updates = hosts.fetch(updates)
    clock.lap("update")
    return updates

  def _packed(
    self, batch: batch_lib.TrainBatch, num_microbatches: int
  ) -> batch_lib.TrainBatch:
    """Packs a batch for a function of so many parts, if the run packs."""
    length = self.experiment.loop.pack_length
    if not length:
      return batch
    shards = self.lift.num_shards
    own_rows = self.lift.name == "pmapped"
    return batch_lib.pack_rows(
      batch,
      packing.Layout(
        length=length,
        num_shards=shards if own_rows else 1,
        num_microbatches=num_microbatches,
        row_multiple=1 if own_rows else shards,
        target_multiple=self.experiment.rollout.completion_multiple,
      ),
    )


def _rows(
  components: Sequence[Component],
  scores: rollouts.Rollout,
  statistics: dict[str, Any],
  updates: list[dict[str, Any]],
  num_seeds: int,
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
    rows.append(row | update_row(updates, n))
  return rows


def update_row(
  updates: Sequence[dict[str, np.ndarray]], seed: int
) -> dict[str, float]:
  """Says what the updates of a step said of one seed.

  Args:
    updates: of the step, from `Learner.fit`.
    seed: its place among the seeds.

  Returns:
    What an update says of its mini-batch, averaged over the step's.
  """
  row = {
    name: float(np.mean([values[name][seed] for values in updates]))
    for name in updates[0]
  }
  if "sampler_mismatch" in updates[0]:
    # Only the first update meets the sampler's own parameters.
    row["sampler_mismatch"] = float(updates[0]["sampler_mismatch"][seed])
  return row
