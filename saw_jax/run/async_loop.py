"""The asynchronous loop: learn from groups that older weights have sampled.

One thread owns the ledgers of `rollout.staleness`, one a seed: it starts groups
where the protocol has room, receives them complete and scored, and takes the
next batch when it is there. Sampling itself happens between the updates (no
actors: deterministic, and as fast as the protocol allows), in threads, on other
devices, or in processes. Seeds run in lockstep, as everywhere.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import advantages
from saw_jax.rollout import actor as actor_lib
from saw_jax.rollout import staleness
from saw_jax.rollout.transcript import Transcript
from saw_jax.run import groups as groups_lib
from saw_jax.run import rollouts
from saw_jax.run.answers import Answers
from saw_jax.run.experiment import AsyncConfig, Experiment
from saw_jax.run.learner import Learner
from saw_jax.run.session import Clock, Result, Session
from saw_jax.tasks import data
from saw_jax.tasks.base import Example, nearest
from saw_jax.types import PyTree

LOG = logging.getLogger(__name__)


class Request(NamedTuple):
  """What an actor is asked for: up to `P` groups of every seed."""

  tickets: tuple[tuple[staleness.Ticket, ...], ...]  # [N], each at most P
  examples: list[list[Example]]  # [N][P], filled up with examples to ignore
  keys: Any  # [N, P * G]
  version: int
  params: PyTree


def run(
  experiment: Experiment,
  seeds: Sequence[int],
  *,
  directory: str | os.PathLike,
  resume_step: int | None = None,
) -> Result:
  """Trains one policy per seed on responses of older versions of it.

  Args:
    experiment: what is trained, and how; see its `asynchronous`.
    seeds: of the runs; each gives its own prompts and samples.
    directory: where metrics and checkpoints go. If it holds checkpoints of
      this run, training goes on from the latest, with the queue as it was.
    resume_step: go on from this checkpoint instead.

  Returns:
    How the run ended.

  Raises:
    ValueError: settings that do not go together.
    FloatingPointError: a loss is not finite, and such updates are not skipped.
    CheckpointError: the checkpoint to go on from is damaged or does not fit.
    RewardError: a reward function misbehaved.
    ActorError: actors died more often than they may be restarted.
  """
  check_config(experiment.asynchronous)
  protocol = make_protocol(
    experiment.asynchronous, experiment.loop.prompts_per_step
  )
  if experiment.loop.num_minibatches != 1:
    raise ValueError(
      "an asynchronous step is one update: loop.num_minibatches is "
      f"{experiment.loop.num_minibatches} and must be 1; weights that are "
      "published after several updates are asynchronous.protocol='quota'"
    )
  learner = Learner(experiment, len(seeds))
  with (
    Session(
      learner, seeds, directory=directory, resume_step=resume_step
    ) as session,
    _Stream(protocol, learner, session) as stream,
  ):
    answers = Answers(learner, seeds, labeller=session.labeller())
    while session.goes_on:
      clock = Clock()
      scores, examples, lags = stream.next_batch(clock)
      rows, tokens = answers.learn(
        scores.transcript,
        examples,
        step=session.step,
        clock=clock,
        scores=scores,
      )
      stream.advance()
      clock.lap("publish")
      session.end_step(
        [{**row, **lag} for row, lag in zip(rows, lags, strict=True)],
        clock,
        tokens=tokens,
        pack=functools.partial(_pack, stream, answers, session.step + 1),
      )
    return session.result()


def _pack(
  stream: "_Stream", answers: Answers, step: int
) -> tuple[dict, dict[str, np.ndarray]]:
  """What a checkpoint must hold of the queue and of the labels."""
  (host, arrays), (more, others) = stream.pack(), answers.pack(step)
  return {**host, **more}, {**arrays, **others}


def make_protocol(
  config: AsyncConfig, batch: int
) -> staleness.StalenessProtocol:
  """Makes the protocol that a config names.

  Args:
    config: its name and figures.
    batch: groups per optimizer step.

  Returns:
    The protocol.

  Raises:
    ValueError: an unknown name, or figures that make no sense.
  """
  if config.protocol == "fixed_lag":
    return staleness.FixedLag(batch, config.lag)
  if config.protocol == "max_lag":
    return staleness.MaxLag(batch, config.lag)
  if config.protocol == "quota":
    return staleness.Quota(
      batch, config.threshold, require=config.require, trigger=config.trigger
    )
  raise ValueError(
    f"unknown protocol {config.protocol!r}: "
    f"{nearest(config.protocol, ('none', 'fixed_lag', 'max_lag', 'quota'))}"
  )


def check_config(config: AsyncConfig) -> None:
  """Refuses settings that do not go together.

  Args:
    config: the settings.

  Raises:
    ValueError: says which, and why.
  """
  if config.actor_kind not in ("thread", "process"):
    raise ValueError(
      f"unknown actor_kind {config.actor_kind!r}: "
      f"{nearest(config.actor_kind, ('thread', 'process'))}"
    )
  if config.partial_tokens and not config.actors:
    raise ValueError(
      "partial_tokens needs actors: without them no weights change while a "
      "response is sampled"
    )
  if config.partial_tokens and config.protocol == "fixed_lag":
    raise ValueError(
      "partial_tokens lets a response span versions, and fixed_lag promises "
      "that none does: choose max_lag or quota"
    )
  if config.actor_devices and not config.actors:
    raise ValueError("actor_devices needs actors, one or more a device")
  if config.actors < 0 or config.actor_devices < 0 or config.partial_tokens < 0:
    raise ValueError("actors, actor_devices and partial_tokens are 0 or more")
  if 0 < jax.device_count() <= config.actor_devices:
    raise ValueError(
      f"actor_devices is {config.actor_devices} and there are "
      f"{jax.device_count()} devices: none is left for the learner"
    )


class _Stream:
  """Groups on their way: started, running, queued, taken."""

  def __init__(self, protocol, learner: Learner, session: Session):
    self._protocol, self._learner, self._session = protocol, learner, session
    self._experiment = experiment = learner.experiment
    self._config = experiment.asynchronous
    self._examples = experiment.task.examples("train")
    self._carry = self._config.carry_log_probs or experiment.method.needs_behave
    # Actors that do not use the learner's own sampler, where it stands.
    self._far = bool(self._config.actor_devices) or (
      self._config.actors
      and (self._config.actor_kind == "process" or self._config.partial_tokens)
    )
    self._shelf: list[dict[int, groups_lib.Group]] = [{} for _ in session.seeds]
    self._ledgers = [staleness.Ledger()] * len(session.seeds)
    self._filtered_before = [0] * len(session.seeds)
    self._pool: actor_lib.ActorPool | None = None
    published = self._restore()
    self._publish(learner.params if published is None else published)
    if self._config.actors:
      self._pool = actor_lib.ActorPool(
        self._make_act, self._config.actors, max_deaths=self._config.max_deaths
      )

  def __enter__(self) -> "_Stream":
    self._stack = contextlib.ExitStack()
    if self._pool is not None:
      self._stack.enter_context(self._pool)
    return self

  def __exit__(self, *exc) -> None:
    self._stack.__exit__(*exc)

  # --- what the loop calls --------------------------------------------------

  def next_batch(
    self, clock: Clock
  ) -> tuple[rollouts.Rollout, list[list[Example]], list[dict[str, float]]]:
    """Returns the groups of the next update, their prompts and their age."""
    self._filtered_before = [ledger.filtered for ledger in self._ledgers]
    self._fill(clock)
    while not self._ready():
      if self._pool is not None and self._pool.pending:
        self._receive(self._pool.wait())
        clock.lap("wait")
      elif not any(map(self._protocol.room, self._ledgers)):
        raise RuntimeError("the protocol has neither room nor a batch")
      self._fill(clock)

    taken, ages = [], []
    for n, ledger in enumerate(self._ledgers):
      before = ledger
      ledger, tickets = staleness.take(ledger, self._protocol)
      self._ledgers[n] = ledger
      taken.append(tickets)
      ages.append(_describe(staleness.lags(before, tickets), ledger))
    batch = groups_lib.join(
      [
        [self._shelf[n].pop(ticket.number) for ticket in tickets]
        for n, tickets in enumerate(taken)
      ],
      multiple=self._experiment.rollout.completion_multiple,
      max_new_tokens=self._experiment.rollout.max_new_tokens,
      versions=np.array([[t.step for t in row] for row in taken], np.int32),
      pad_id=self._experiment.tokenizer.pad_id,
    )
    examples = [
      [self._example(seed, ticket.number) for ticket in tickets]
      for seed, tickets in zip(self._session.seeds, taken, strict=True)
    ]
    clock.lap("queue")
    return batch, examples, ages

  def advance(self) -> None:
    """Counts the update, and publishes its weights if it is time."""
    versions = [ledger.version for ledger in self._ledgers]
    self._ledgers = [
      staleness.advance(ledger, self._protocol) for ledger in self._ledgers
    ]
    if self._ledgers[0].version != versions[0]:
      self._publish(self._learner.params)
    if self._pool is not None:
      self._fill(Clock())

  def pack(self) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns what a checkpoint needs; waits for what is running."""
    while self._pool is not None and self._pool.pending:
      self._receive(self._pool.wait())
    names = [
      (n, number) for n, shelf in enumerate(self._shelf) for number in shelf
    ]
    document, arrays = groups_lib.pack([self._shelf[n][k] for n, k in names])
    host = {
      "ledgers": [staleness.to_json(ledger) for ledger in self._ledgers],
      "groups": {**document, "names": names},
    }
    arrays = {f"groups.{name}": array for name, array in arrays.items()}
    if self._ledgers[0].version_step != self._ledgers[0].step:
      leaves = jax.tree.leaves(jax.device_get(self._published))
      arrays |= {f"published.{k}": leaf for k, leaf in enumerate(leaves)}
    return host, arrays

  def _restore(self) -> PyTree | None:
    """Takes up what `pack` left; returns the published weights, if older."""
    host, arrays = self._session.host, self._session.arrays
    if not self._session.step:
      return None
    if "ledgers" not in host:
      raise ValueError(
        "the checkpoint is of a synchronous run: it has no queue to go on with"
      )
    self._ledgers = [staleness.from_json(found) for found in host["ledgers"]]
    prefix = "groups."
    found = groups_lib.unpack(
      host["groups"],
      {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
      },
    )
    names = host["groups"].get("names", [])
    for (n, number), group in zip(names, found, strict=True):
      self._shelf[n][number] = group
    if "published.0" not in arrays:
      return None
    params = self._learner.params
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(
      treedef,
      [
        jax.device_put(arrays[f"published.{k}"], leaf.sharding)
        for k, leaf in enumerate(leaves)
      ],
    )

  # --- the ledgers ----------------------------------------------------------

  def _ready(self) -> bool:
    for n, ledger in enumerate(self._ledgers):
      self._ledgers[n], dropped = staleness.expire(ledger, self._protocol)
      for ticket in dropped:
        del self._shelf[n][ticket.number]
    return all(
      staleness.ready(ledger, self._protocol) for ledger in self._ledgers
    )

  def _fill(self, clock: Clock) -> None:
    """Starts groups while there is room, and somebody to sample them."""
    while any(self._protocol.room(ledger) for ledger in self._ledgers):
      if self._pool is None:
        request = self._start()
        transcript = self.sample(self._near, request)
        clock.lap("generate")
        scores = self.score(transcript, request)
        clock.lap("score")
        self._receive(actor_lib.Done(request, scores, None))
      elif self._protocol.ordered or self._pool.pending < 2 * max(
        1, self._config.actors
      ):
        # An ordered protocol stamps its groups when the room opens. Others
        # take the weights of when somebody is free to use them, or nearly.
        self._pool.submit(self._start())
      else:
        return

  def _start(self) -> Request:
    size = self._protocol.batch
    tickets, examples, steps = [], [], []
    for n, (seed, ledger) in enumerate(
      zip(self._session.seeds, self._ledgers, strict=True)
    ):
      count = min(size, self._protocol.room(ledger))
      self._ledgers[n], started = staleness.start(ledger, count)
      numbers = [ticket.number for ticket in started]
      # Where a seed has less room than another, its rows are of no use.
      numbers += [numbers[0] if numbers else 0] * (size - len(numbers))
      tickets.append(started)
      examples.append([self._example(seed, number) for number in numbers])
      steps.append([number // size for number in numbers])
    ids = np.array([[example.key for example in row] for row in examples])
    return Request(
      tickets=tuple(tickets),
      examples=examples,
      keys=rollouts.row_keys(
        self._session.seeds,
        np.array(steps),
        ids,
        self._experiment.loop.group_size,
      ),
      version=self._ledgers[0].version,
      params=self._published,
    )

  def _example(self, seed: int, number: int) -> Example:
    step, index = divmod(number, self._protocol.batch)
    indices = data.batch_indices(
      len(self._examples), self._protocol.batch, seed=seed, step=step
    )
    return self._examples[int(indices[index])]

  def _receive(self, done: actor_lib.Done) -> None:
    request = done.work
    if done.error is not None:
      LOG.warning(
        "%s; its groups are started again (death %d, %d may be restarted)",
        done.error,
        self._pool.deaths,
        self._config.max_deaths,
      )
      self._ledgers = [
        staleness.lose(ledger, tickets)
        for ledger, tickets in zip(self._ledgers, request.tickets, strict=True)
      ]
      if self._protocol.ordered:
        # The same groups with the same weights: the lag is as promised.
        self._ledgers = [
          staleness.restart(ledger, tickets)
          for ledger, tickets in zip(
            self._ledgers, request.tickets, strict=True
          )
        ]
        self._pool.submit(request)
      return
    arrived = groups_lib.split(done.result, carry_log_probs=self._carry)
    for n, tickets in enumerate(request.tickets):
      filtered = self._constant(n, tickets, arrived[n])
      self._ledgers[n] = staleness.finish(
        self._ledgers[n], tickets, self._protocol, filtered=filtered
      )
      for ticket, group in zip(tickets, arrived[n], strict=False):
        if ticket.number not in filtered:
          self._shelf[n][ticket.number] = group

  def _constant(self, n: int, tickets, arrived) -> list[int]:
    """Numbers of the groups that dynamic sampling replaces."""
    if not self._config.dynamic_sampling or not tickets:
      return []
    so_far = self._ledgers[n].filtered - self._filtered_before[n]
    if so_far >= self._config.max_attempts * self._protocol.batch:
      return []  # nothing varies any more: better constant than for ever
    chosen = arrived[: len(tickets)]
    rewards = np.stack([group.rewards for group in chosen])
    scored = np.stack([group.scored for group in chosen])
    varied = np.asarray(
      advantages.varied_groups(
        rewards, np.ones(rewards.shape[-1], np.float32), scored=scored
      )
    )
    return [t.number for t, ok in zip(tickets, varied, strict=True) if not ok]

  # --- who samples ----------------------------------------------------------

  def _publish(self, params: PyTree) -> None:
    """Copies the weights: the learner gives its own away to the next update."""
    if self._far:
      params = self._learner.lift.share(params)
    self._published = jax.tree.map(jnp.copy, params)
    # One assignment: actors read it while it changes.
    self._newest = (self._ledgers[0].version, self._published)

  def _near(self, version: int, params: PyTree, *args) -> Transcript:
    del version
    return self._learner.generate(params, *args)

  def _make_act(self, index: int) -> actor_lib.Act:
    experiment = self._experiment
    if not self._far:
      return _Act(self, self._near)
    spec = actor_lib.SamplerSpec(
      decoder=experiment.decoder,
      sampling=experiment.sampling,
      max_new_tokens=experiment.rollout.max_new_tokens,
      group_size=experiment.loop.group_size,
      eos_ids=tuple(experiment.tokenizer.eos_ids),
      pad_id=experiment.tokenizer.pad_id,
    )
    config = self._config
    devices = jax.devices()
    free = devices[len(devices) - config.actor_devices :] or devices
    device = free[index % len(free)]

    def make(spec: actor_lib.SamplerSpec) -> actor_lib.Sampler:
      if config.actor_kind == "process":
        return actor_lib.ProcessSampler(spec)
      return actor_lib.DeviceSampler(spec, device)

    if config.partial_tokens:
      sampler = actor_lib.PartialSampler(
        spec, make, lambda: self._newest, part=config.partial_tokens
      )
    else:
      sampler = make(spec)
    return _Act(self, sampler)

  def sample(self, sampler: actor_lib.Sampler, request: Request) -> Transcript:
    """Samples the responses to a request."""
    return rollouts.sample(
      functools.partial(sampler, request.version),
      request.params,
      request.examples,
      request.keys,
      encoder=self._learner.encoder,
      multiple=1,
      length_groups=self._experiment.rollout.length_groups,
    )

  def score(self, transcript: Transcript, request: Request) -> rollouts.Rollout:
    """Has the responses to a request scored, if the truth may be read."""
    experiment = self._experiment
    if not experiment.labels.is_truth:
      return rollouts.unscored(
        transcript,
        len(request.examples[0]),
        len(experiment.task.components),
        tokenizer=experiment.tokenizer,
        stops=self._learner.encoder.stops,
      )
    return rollouts.score(
      transcript,
      request.examples,
      tokenizer=experiment.tokenizer,
      grader=self._session.grader,
      stops=self._learner.encoder.stops,
    )


class _Act:
  """What an actor does with a request: sample it, and have it scored."""

  def __init__(self, stream: _Stream, sampler: actor_lib.Sampler):
    self._stream, self._sampler = stream, sampler

  def __call__(self, request: Request) -> rollouts.Rollout:
    transcript = self._stream.sample(self._sampler, request)
    return self._stream.score(transcript, request)

  def close(self) -> None:
    """Ends the sampler's process, if it has one."""
    if hasattr(self._sampler, "close"):
      self._sampler.close()


def _describe(
  lags: staleness.Lags, ledger: staleness.Ledger
) -> dict[str, float]:
  """What is logged of the age of an update's groups."""
  steps, versions = np.array(lags.steps), np.array(lags.versions)
  return {
    "lag/steps": float(steps.mean()),
    "lag/steps_p95": float(np.percentile(steps, 95)),
    "lag/steps_max": float(steps.max()),
    "lag/versions": float(versions.mean()),
    "lag/versions_max": float(versions.max()),
    "lag/stale": float((versions > 0).mean()),
    "groups/queued": len(ledger.queue),
    "groups/running": len(ledger.running),
    "groups/filtered": ledger.filtered,
    "groups/expired": ledger.expired,
    "groups/lost": ledger.lost,
  }
