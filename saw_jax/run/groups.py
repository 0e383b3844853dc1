"""Answers to the prompts of a step: sampled now, or ahead of the updates."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import advantages
from saw_jax.rollout import actor as actor_lib
from saw_jax.rollout import staleness
from saw_jax.rollout.engine import Engine
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.transcript import PAD, Transcript
from saw_jax.run import rollouts
from saw_jax.run.learner import Learner, Rows
from saw_jax.run.rollouts import Examples, Rollout
from saw_jax.run.sections import AsyncConfig
from saw_jax.run.session import Session
from saw_jax.tasks import data
from saw_jax.tasks.base import Example, check_choice
from saw_jax.training import hosts
from saw_jax.types import PyTree

LOG = logging.getLogger(__name__)
PROTOCOLS = ("none", "fixed_lag", "max_lag", "quota")
# What a group keeps of its transcript, and of its scores.
_ROWS = ("tokens", "roles", "starts", "ends", "behave_log_probs")
_SCORES = ("rewards", "scored", "outcomes", "lengths", "ended")

# What a checkpoint must hold: a document for JSON, and arrays by name.
Packed = tuple[dict[str, Any], dict[str, np.ndarray]]


class Drawn(NamedTuple):
  """The answers of a step, and what is known of them."""

  transcript: Transcript  # host arrays, rows [N, P * G]
  examples: Examples  # their prompts
  early: Rollout | None  # their scores, if an actor has them already
  rows: Rows  # what each seed logs about their origin
  lags: np.ndarray | None = None  # int32 [N, P * G], versions; None: all fresh


class Fresh:
  """Answers that the current policies sample between the updates."""

  def __init__(self, learner: Learner):
    made, self._learner = learner.made, learner
    self._examples = learner.policy.encoder.keep(made.task.examples("train"))
    settings = made.sampling, made.loop.group_size
    self._generate = learner.policy.make_generate(*settings)

  def draw(self, step: int) -> Drawn:
    learner, encoder = self._learner, self._learner.policy.encoder
    size = learner.made.loop.group_size
    examples = [
      [self._examples[int(index)] for index in indices]
      for indices in learner.batch_indices(len(self._examples), step)
    ]
    transcript = rollouts.sample(
      self._generate,
      learner.policy.params,
      examples,
      rollouts.example_keys(learner.seeds, step, examples, size),
      encoder=encoder,
      multiple=encoder.config.completion_multiple,
      length_groups=encoder.config.length_groups,
    )
    learner.clock.lap("generate")
    return Drawn(transcript, examples, None, [{} for _ in learner.seeds])

  def advance(self) -> None:
    """Nothing was sampled ahead."""

  def pack(self) -> Packed:
    """Nothing: what is sampled in a step is a function of the state."""
    return {}, {}


def make_protocol(config: AsyncConfig, batch: int) -> staleness.Protocol | None:
  """Makes the protocol, or says what is wrong; None: synchronous."""
  check_choice("protocol", config.protocol, PROTOCOLS)
  check_choice("actor_kind", config.actor_kind, ("thread", "process"))
  if config.protocol == "none":
    return None
  if min(config.actors, config.actor_devices, config.partial_tokens) < 0:
    raise ValueError("actors, actor_devices and partial_tokens are 0 or more")
  if config.actor_kind == "process" and not config.actors:
    raise ValueError("actor_kind='process' needs actors: say how many")
  if config.actor_kind == "process" and config.actor_devices:
    raise ValueError(
      "actor_devices are for actors that are threads: a process samples on the "
      "CPU, and they would be idle"
    )
  for name in ("actor_devices", "partial_tokens"):
    if getattr(config, name) and not config.actors:
      raise ValueError(f"{name} needs actors, which sample during the updates")
  if config.actors and config.actor_devices % config.actors:
    raise ValueError(
      f"actor_devices is {config.actor_devices}, which {config.actors} actors "
      "do not share evenly"
    )
  if config.partial_tokens and config.protocol == "fixed_lag":
    raise ValueError(
      "partial_tokens lets a response span versions, and fixed_lag promises "
      "that none does: choose max_lag or quota"
    )
  if 0 < jax.device_count() <= config.actor_devices:
    raise ValueError(
      f"actor_devices is {config.actor_devices} and there are "
      f"{jax.device_count()} devices: none is left for the learner"
    )
  if config.protocol == "quota":
    return staleness.Quota(
      batch, config.threshold, require=config.require, trigger=config.trigger
    )
  made = {"fixed_lag": staleness.FixedLag, "max_lag": staleness.MaxLag}
  return made[config.protocol](batch, config.lag)


class Group(NamedTuple):
  """One prompt's responses, as host arrays `[G, ...]` by name."""

  arrays: dict[str, np.ndarray]
  prompt_size: int


def split(rollout: Rollout, carry_log_probs: bool) -> list[list[Group]]:
  """Copies a rollout into `[N][P]` groups, so that it can be freed."""
  transcript, shape = rollout.transcript, rollout.lengths.shape
  names = _ROWS if carry_log_probs else _ROWS[:-1]
  arrays = {name: np.asarray(getattr(transcript, name)) for name in names}
  arrays = {name: x.reshape(*shape, *x.shape[2:]) for name, x in arrays.items()}
  arrays |= {name: getattr(rollout, name) for name in _SCORES}

  def group(n: int, p: int) -> Group:
    own = {name: np.array(x[n, p]) for name, x in arrays.items()}
    return Group(own, transcript.prompt_size)

  return [[group(n, p) for p in range(shape[1])] for n in range(shape[0])]


def pack(
  groups: Sequence[Group],
  multiple: int = 1,
  max_new_tokens: int | None = None,
  pad_id: int = 0,
) -> tuple[dict[str, np.ndarray], int]:
  """Lays groups out as arrays `[K, G, ...]`; returns their prompt size too."""
  prompt_size = max(group.prompt_size for group in groups)
  longest = max(1, *(int(group.arrays["lengths"].max()) for group in groups))
  width = -(-longest // multiple) * multiple
  width = min(width, max_new_tokens or width)

  def lay_out(group: Group) -> dict[str, np.ndarray]:
    x, more = dict(group.arrays), prompt_size - group.prompt_size
    x["starts"], x["ends"] = x["starts"] + more, x["ends"] + more
    for name, before, size, filler in (
      ("tokens", more, prompt_size + width, pad_id),
      ("roles", more, prompt_size + width, PAD),
      ("behave_log_probs", 0, width, 0),
    ):
      if name in x:
        after = max(0, size - before - x[name].shape[1])
        widths = ((0, 0), (before, after))
        x[name] = np.pad(x[name], widths, constant_values=filler)[:, :size]
    return x

  found = [lay_out(group) for group in groups]
  names = [name for name in found[0] if all(name in x for x in found)]
  arrays = {name: np.stack([x[name] for x in found]) for name in names}
  return arrays, prompt_size


def unpack(
  arrays: dict[str, np.ndarray], prompt_size: int, sizes: Sequence[int]
) -> list[Group]:
  """Takes groups out of what `pack` gave, with the prompt sizes they had.

  Wider prompts would be the same responses, but an update rounds its sums by
  how they are padded.
  """
  groups = []
  for k, size in enumerate(sizes):
    more = prompt_size - size
    x = {name: np.array(own[k]) for name, own in arrays.items()}
    x["starts"], x["ends"] = x["starts"] - more, x["ends"] - more
    x["tokens"], x["roles"] = x["tokens"][:, more:], x["roles"][:, more:]
    groups.append(Group(x, size))
  return groups


def join(groups: Sequence[Sequence[Group]], **layout: int) -> Rollout:
  """Puts `[N][P]` groups together that may come from different rollouts."""
  shape = (len(groups), len(groups[0]))
  arrays, prompt_size = pack([g for row in groups for g in row], **layout)
  arrays = {name: x.reshape(*shape, *x.shape[1:]) for name, x in arrays.items()}
  rows = {name: arrays.get(name) for name in _ROWS}
  group_ids = np.arange(shape[1], dtype=np.int32)[:, None]
  rows["group_ids"] = np.broadcast_to(group_ids, arrays["lengths"].shape).copy()
  transcript = Transcript(
    **jax.tree.map(lambda x: x.reshape(shape[0], -1, *x.shape[3:]), rows),
    prompt_size=prompt_size,
  )
  return Rollout(transcript, [], **{name: arrays[name] for name in _SCORES})


class Request(NamedTuple):
  """What an actor is asked for: up to `P` groups of every seed."""

  tickets: tuple[tuple[staleness.Ticket, ...], ...]  # [N], each at most P
  examples: list[list[Example]]  # [N][P], filled up with examples to ignore
  keys: Any  # [N, P * G]
  version: int
  params: PyTree


class Queue:
  """Answers sampled ahead of the updates: started, running, queued, drawn.

  The learner's thread owns the ledgers, one a seed. Sampling itself happens
  between the updates (no actors), in threads, on other devices, or in
  processes. `early` scores a transcript as soon as it is sampled.
  """

  def __init__(
    self,
    learner: Learner,
    protocol: staleness.Protocol,
    early: Callable[[Transcript, Examples], Rollout],
    session: Session,
  ):
    made, self._early = learner.made, early
    self._config = config = made.asynchronous
    self._protocol, self._clock = protocol, learner.clock
    self._policy, self._encoder = learner.policy, learner.policy.encoder
    self._settings = self._encoder.settings(made.sampling, made.loop.group_size)
    self._near = _by_engine(self._policy.engine, self._settings)
    self._examples = self._encoder.keep(made.task.examples("train"))
    self._seeds = learner.seeds
    self._carry = config.carry_log_probs or made.method.needs_behave
    self._carry &= self._policy.engine.traits.gives_log_probs(made.sampling)
    self._shelf: list[dict[int, Group]] = [{} for _ in self._seeds]
    self._ledgers = [staleness.Ledger()] * len(self._seeds)
    self._filtered_before = [0] * len(self._seeds)
    self._publish(self._restore(session))
    self._pool: actor_lib.ActorPool | None = None
    if config.actors:
      pool = actor_lib.ActorPool(
        self._make_act, config.actors, max_deaths=config.max_deaths
      )
      self._pool = session.stack.enter_context(pool)

  def _restore(self, session: Session) -> PyTree:
    """Restores what `pack` saved; returns the weights to publish."""
    host, arrays, params = session.host, session.arrays, self._policy.params
    if not session.step:
      return params
    if "ledgers" not in host:
      raise ValueError(
        "the checkpoint is of a synchronous run: it has no queue to go on with"
      )
    self._ledgers = [staleness.from_json(found) for found in host["ledgers"]]
    start, kept = len("groups."), [x for x in arrays if x.startswith("groups.")]
    if names := host["groups"].get("names", []):
      size = host["groups"]["prompt_size"]
      sizes = host["groups"].get("prompt_sizes", [size] * len(names))  # older
      found = unpack({name[start:]: arrays[name] for name in kept}, size, sizes)
      for (n, number), group in zip(names, found, strict=True):
        self._shelf[n][number] = group
    if "published.0" not in arrays:
      return params
    leaves, treedef = jax.tree.flatten(params)
    found = [
      hosts.spread(arrays[f"published.{k}"], leaf.sharding)
      for k, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, found)

  def draw(self, step: int) -> Drawn:
    del step
    self._filtered_before = [ledger.filtered for ledger in self._ledgers]
    self._fill()
    while not self._ready():
      if self._pool is not None and self._pool.pending:
        self._receive(self._pool.wait())
        self._clock.lap("wait")
      elif not any(map(self._protocol.room, self._ledgers)):
        raise RuntimeError("the protocol has neither room nor a batch")
      self._fill()

    taken = []
    for n, ledger in enumerate(self._ledgers):
      self._ledgers[n], tickets = staleness.take(ledger, self._protocol)
      taken.append(tickets)
    config = self._encoder.config
    rollout = join(
      [
        [shelf.pop(ticket.number) for ticket in tickets]
        for shelf, tickets in zip(self._shelf, taken, strict=True)
      ],
      multiple=config.completion_multiple,
      max_new_tokens=config.max_new_tokens,
      pad_id=self._settings.pad_id,
    )
    examples = [
      [self._example(seed, ticket.number) for ticket in tickets]
      for seed, tickets in zip(self._seeds, taken, strict=True)
    ]
    self._clock.lap("queue")
    rows = list(map(_describe, self._ledgers, taken))
    lags = [
      [ledger.version - ticket.version for ticket in tickets]
      for ledger, tickets in zip(self._ledgers, taken, strict=True)
    ]
    lags = np.repeat(np.array(lags, np.int32), self._settings.group_size, 1)
    return Drawn(rollout.transcript, examples, rollout, rows, lags)

  def advance(self) -> None:
    """Counts the update, and publishes its weights if it is time."""
    version, protocol = self._ledgers[0].version, self._protocol
    self._ledgers = [staleness.advance(x, protocol) for x in self._ledgers]
    if self._ledgers[0].version != version:
      self._publish(self._policy.params)
    if self._pool is not None:
      self._fill()
    self._clock.lap("publish")

  def pack(self) -> Packed:
    """Returns what a checkpoint needs; waits for what is running."""
    while self._pool is not None and self._pool.pending:
      self._receive(self._pool.wait())
    groups = [
      ((n, number), group)
      for n, shelf in enumerate(self._shelf)
      for number, group in shelf.items()
    ]
    names, arrays = {"names": [where for where, _ in groups]}, {}
    if groups:
      own, pad_id = [group for _, group in groups], self._settings.pad_id
      packed, names["prompt_size"] = pack(own, pad_id=pad_id)
      names["prompt_sizes"] = [group.prompt_size for group in own]
      arrays = {f"groups.{name}": array for name, array in packed.items()}
    if self._ledgers[0].version_step != self._ledgers[0].step:
      leaves = jax.tree.leaves(hosts.fetch(self._newest[1]))
      arrays |= {f"published.{k}": leaf for k, leaf in enumerate(leaves)}
    ledgers = [ledger._asdict() for ledger in self._ledgers]
    return {"ledgers": ledgers, "groups": names}, arrays

  def _ready(self) -> bool:
    for n, ledger in enumerate(self._ledgers):
      self._ledgers[n], dropped = staleness.expire(ledger, self._protocol)
      for ticket in dropped:
        del self._shelf[n][ticket.number]
    return all(staleness.ready(x, self._protocol) for x in self._ledgers)

  def _fill(self) -> None:
    """Starts groups while there is room, and somebody to sample them."""
    is_ordered = self._protocol.ordered
    while any(map(self._protocol.room, self._ledgers)):
      if self._pool is None:
        request = self._start()
        transcript = self._sample(self._near, request)
        self._clock.lap("generate")
        rollout = self._early(transcript, request.examples)
        self._clock.lap("score")
        self._receive(actor_lib.Done(request, rollout, None))
      elif is_ordered or self._pool.pending < 2 * self._config.actors:
        # An ordered protocol stamps groups as soon as there is room. Others
        # wait until an actor is nearly free, for the newest weights.
        self._pool.submit(self._start())
      else:
        return

  def _start(self) -> Request:
    size = self._protocol.batch
    tickets, examples, steps = [], [], []
    for n, seed in enumerate(self._seeds):
      count = min(size, self._protocol.room(self._ledgers[n]))
      self._ledgers[n], started = staleness.start(self._ledgers[n], count)
      numbers = [ticket.number for ticket in started]
      # A seed with less room than another has rows that are thrown away.
      numbers += [numbers[0] if numbers else 0] * (size - len(numbers))
      tickets.append(started)
      examples.append([self._example(seed, number) for number in numbers])
      steps.append([number // size for number in numbers])
    size = self._settings.group_size
    keys = rollouts.example_keys(self._seeds, steps, examples, size)
    return Request(tuple(tickets), examples, keys, *self._newest)

  def _example(self, seed: int, number: int) -> Example:
    step, index = divmod(number, self._protocol.batch)
    indices = data.batch_indices(
      len(self._examples), self._protocol.batch, seed=seed, step=step
    )
    return self._examples[int(indices[index])]

  def _receive(self, done: actor_lib.Done) -> None:
    request = done.work
    if done.error is not None:
      return self._start_again(request, done.error)
    arrived = split(done.result, self._carry)
    for n, tickets in enumerate(request.tickets):
      filtered = self._constant(n, tickets, arrived[n])
      self._ledgers[n] = staleness.finish(
        self._ledgers[n], tickets, self._protocol, filtered=filtered
      )
      for ticket, group in zip(tickets, arrived[n], strict=False):
        if ticket.number not in filtered:
          self._shelf[n][ticket.number] = group

  def _start_again(self, request: Request, error: Exception) -> None:
    deaths, most = self._pool.deaths, self._config.max_deaths
    what = "its groups are started again (death %d, %d may be restarted)"
    LOG.warning(f"%s; {what}", error, deaths, most)
    for n, tickets in enumerate(request.tickets):
      ledger = self._ledgers[n]
      self._ledgers[n] = staleness.lose(ledger, tickets, self._protocol)
    if self._protocol.ordered:
      self._pool.submit(request)

  def _constant(self, n: int, tickets, arrived) -> list[int]:
    """Numbers of the groups that dynamic sampling replaces."""
    if not self._config.dynamic_sampling or not tickets:
      return []
    so_far = self._ledgers[n].filtered - self._filtered_before[n]
    if so_far >= self._config.max_attempts * self._protocol.batch:
      return []  # nothing varies any more: do not wait for ever
    rewards, scored, ended = (
      np.stack([group.arrays[name] for group in arrived[: len(tickets)]])
      for name in ("rewards", "scored", "ended")
    )
    if self._policy.made.method.truncated == "drop":
      scored = scored & ended[..., None]
    ones = np.ones(rewards.shape[-1], np.float32)
    varied = advantages.varied_groups(rewards, ones, scored=scored)
    pairs = zip(tickets, np.asarray(varied), strict=True)
    return [ticket.number for ticket, varies in pairs if not varies]

  def _publish(self, params: PyTree) -> None:
    """Copies the weights: the learner donates its own to the next update."""
    # One assignment: actors read it while it changes.
    self._newest = (self._ledgers[0].version, jax.tree.map(jnp.copy, params))

  def _make_act(self, index: int) -> actor_lib.Act:
    sampler = self._sampler(index)

    def act(request: Request) -> Rollout:
      return self._early(self._sample(sampler, request), request.examples)

    act.close = lambda: actor_lib.close(sampler)
    return act

  def _sampler(self, index: int) -> actor_lib.Sampler:
    config, policy = self._config, self._policy
    make = functools.partial(
      _by_engine, policy.actor_engine(index), newest=lambda: self._newest[1]
    )
    if config.actor_kind == "process":
      make = functools.partial(
        actor_lib.ProcessSampler, policy.decoder, fetch=policy.lift.fetch
      )
    if not config.partial_tokens:
      return make(self._settings)
    return actor_lib.partial_sampler(
      self._settings, make, lambda: self._newest, config.partial_tokens
    )

  def _sample(self, sampler: actor_lib.Sampler, request: Request) -> Transcript:
    return rollouts.sample(
      functools.partial(sampler, request.version),
      request.params,
      request.examples,
      request.keys,
      encoder=self._encoder,
      length_groups=self._encoder.config.length_groups,
    )


def _by_engine(
  engine: Engine, settings: GenerateConfig, **more: Callable[[], PyTree]
) -> actor_lib.Sampler:
  return lambda version, *args: engine.sample(*args, settings, **more)


def _describe(
  ledger: staleness.Ledger, tickets: Sequence[staleness.Ticket]
) -> dict[str, float]:
  """What is logged about the age of an update's groups."""
  steps = np.array([ledger.step - ticket.step for ticket in tickets])
  versions = np.array([ledger.version - ticket.version for ticket in tickets])
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
