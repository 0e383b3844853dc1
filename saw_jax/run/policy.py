"""The policies of all seeds: their train state, and what adapters sit on."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax

from saw_jax.models import lora as lora_lib
from saw_jax.rollout.engine import Engine
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import checkpoint, engines, rollouts
from saw_jax.run.sections import Experiment
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training import parallel, update
from saw_jax.training import sampling as sampling_lib
from saw_jax.types import PyTree


class Policy:
  """One policy for each seed, kept where the lift wants them; all start alike.

  `state` is what a step changes, and is donated to it. `base` is what adapters
  sit on, which no step changes, and `digest` is its checksum; both are None
  without adapters. The parameters that it starts from are not kept.
  """

  def __init__(
    self,
    made: Experiment,
    num_seeds: int,
    directory: str | os.PathLike | None = None,
  ):
    self.directory = directory  # where a run may leave what it publishes
    self.made = made._replace(params=None)
    self.decoder, self.num_seeds = made.decoder, num_seeds
    self.encoder = rollouts.encoder_of(made.tokenizer, made.rollout)
    loop, lora, start = made.loop, made.lora, made.params
    updates = loop.num_steps * loop.num_minibatches
    self.optimizer = optimizer_lib.make_optimizer(made.optimizer, updates)
    self.lift = parallel.make_lift(
      made.parallel,
      made.decoder,
      self.optimizer,
      num_seeds=num_seeds,
      lora=lora if lora.rank else None,
      devices=learner_devices(made),
    )
    self._weights = sampling_lib.Weights(self.lift, made.decoder)
    self.attach, self.base, self.digest = None, None, None
    self._merged = sampling_lib.Latest(lambda params: params)
    if lora.rank:
      STATE = parallel.STATE
      self.attach = functools.partial(lora_lib.attach, config=lora)
      merge = functools.partial(lora_lib.merge, config=lora)
      merge = self.lift.wrap(merge, (STATE, STATE), (STATE,))
      self.base = self.lift.place_params(self._stack(start))
      self._merged = sampling_lib.Latest(functools.partial(merge, self.base))
      self.digest = checkpoint.digest(start)
      start = lora_lib.init_adapters(start, lora, made.decoder)
    state = update.create_state(
      start,
      self.optimizer,
      num_components=len(made.task.components),
      compares=made.method.compares,
    )
    self.state = self.lift.place(self._stack(state))

  @property
  def params(self) -> PyTree:
    """The parameters as the decoder takes them, adapters merged."""
    return self._merged.of(self.state.params)

  def reference(self) -> PyTree:
    """What a KL is measured to: the base, or a copy of the current policy."""
    return self.base or jax.tree.map(lambda x: x.copy(), self.state.params)

  @property
  def attached(self) -> PyTree:
    """The parameters as the trainer takes them, adapters beside kernels."""
    if self.attach is None:
      return self.state.params
    return self.attach(self.base, self.state.params)

  def drop_merged(self) -> None:
    """Makes room for an update."""
    self._merged.drop()
    self._weights.drop()

  @functools.cached_property
  def engine(self) -> Engine:
    """What samples from the policies; its servers are checked."""
    native = rollouts.Native(self.lift, self.decoder, self._weights)
    if not self.made.rollout.engine:
      return native
    return engines.open_servers(self.made, self.lift, native, self.directory)

  def actor_engine(self, index: int) -> Engine:
    """What an actor samples with: where we do, or on its own devices."""
    if not self.made.asynchronous.actor_devices:
      return self.engine
    lift = actor_lift(self.made, self.num_seeds, index)
    weights = sampling_lib.Weights(lift, self.decoder, self.lift)
    return rollouts.Native(lift, self.decoder, weights)

  def make_generate(
    self, sampling: SamplingConfig, group_size: int, **options: bool
  ) -> rollouts.Generate:
    settings = self.encoder.settings(sampling, group_size, **options)
    return functools.partial(self.engine.sample, config=settings)

  def make_turn(self, sampling: SamplingConfig, **options: bool) -> Callable:
    """Makes what `rollout.episodes.play` samples with."""
    settings = self.encoder.settings(sampling, 1, **options)
    return functools.partial(self.engine.turn, config=settings)

  def restore(
    self, store: checkpoint.Checkpointer, step: int | None = None
  ) -> checkpoint.Restored:
    """Takes up the state in a checkpoint, by default the latest one's."""
    found = store.restore(self.state, step=step)
    if found.host.get("base") != self.digest:
      raise checkpoint.CheckpointError(
        "the checkpoint's adapters were trained on another model: give the run "
        "the model and the warm start that it began with"
      )
    self.state = found.state
    return found

  def _stack(self, tree: PyTree) -> PyTree:
    return update.stack_states([tree] * self.num_seeds)


def learner_devices(made: Experiment) -> list[jax.Device]:
  devices = jax.devices()
  return devices[: len(devices) - made.asynchronous.actor_devices]


def actor_lift(
  made: Experiment, num_seeds: int, index: int = 0
) -> parallel.Lift:
  """The lift of an actor, over its part of the devices that actors have.

  It is a mesh of `data` x `tensor`; where seeds are trained side by side, each
  device has some of them whole.
  """
  size = made.asynchronous.actor_devices // made.asynchronous.actors
  is_seeded = made.parallel.lift == "seeded"
  if is_seeded and num_seeds % size:
    raise ValueError(
      f"{size} devices of an actor do not share {num_seeds} seeds evenly: "
      "parallel.lift='meshed' spreads the rows of one"
    )
  first = len(learner_devices(made)) + index * size
  return parallel.make_lift(
    dataclasses.replace(
      made.parallel, lift="seeded" if is_seeded else "meshed", data=-1, fsdp=1
    ),
    made.decoder,
    None,  # no optimizer: nothing is trained
    num_seeds=num_seeds,
    devices=jax.devices()[first : first + size],
  )
