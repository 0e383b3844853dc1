"""The programs of a run over shapes; nothing is allocated or read.

`Policy` and `Learner` are the run's own. Only the lift differs: it keeps what
it would wrap, so that each program can be traced for devices that are not here.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from saw_jax import world_model
from saw_jax.ahead.footprint import Sizes
from saw_jax.models import decoder, lora
from saw_jax.rollout import generate, transcript
from saw_jax.run import agents, rollouts
from saw_jax.run.learner import Learner
from saw_jax.run.policy import Policy
from saw_jax.run.sections import Experiment
from saw_jax.run.session import Clock
from saw_jax.training import optimizer, parallel, sampling, update
from saw_jax.training.batch import TrainBatch
from saw_jax.types import PyTree


class Kept(NamedTuple):
  """What a lift was given to wrap; called, it also keeps the arguments."""

  jitted: Any
  mesh: Any
  rules: tuple  # from the axes of an array to those of the mesh
  inputs: tuple[str, ...] = ()
  args: tuple[PyTree, ...] = ()  # shapes and their places

  def __call__(self, *args) -> "Kept":
    """Keeps the arguments of a call; rows become shapes."""
    placed = (
      self._rows(arg) if kind == parallel.ROWS else arg
      for kind, arg in zip(self.inputs, args, strict=True)
    )
    return self._replace(args=tuple(placed))

  def _rows(self, tree: PyTree) -> PyTree:
    """The rows of one seed, split over the devices."""
    place = NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=place), tree
    )

  def replace(self, **_) -> "Kept":
    """Stands in for a result, whose later changes are not in the program."""
    return self

  def trace(self):
    """Traces it as the lift does, under its mesh and rules."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
      return self.jitted.trace(*self.args)


class Program(NamedTuple):
  """One program of a step."""

  name: str
  kept: Kept
  runs: float  # times in a step
  model_flops: float  # of one run on all devices, which no program can save
  cache: float = 0.0  # bytes of keys and values on a device
  # Of a sampler: see `loops_of`; the model's FLOPs to read prompts; see
  # `Sizes.slots`.
  loops: tuple[int, int, float] = (0, 1, 1.0)
  prefill_flops: float = 0.0
  slots: Mapping[str, Any] = MappingProxyType({})


def _keep(
  mesh, fn, inputs, _, *, takes_axis_name=False, donate=(), rules=parallel.RULES
) -> Kept:
  del takes_axis_name
  options = parallel.compiler_options(mesh)
  jitted = jax.jit(fn, donate_argnums=donate, compiler_options=options)
  return Kept(jitted, mesh, rules, inputs)


class _Weights(sampling.Weights):
  """A sampler's parameters as shapes."""

  def __init__(self, lift, config, params: PyTree):
    self.copies: dict[str, tuple[Kept, int]] = {}  # and how often they run
    whole = NamedSharding(lift.mesh, PartitionSpec())
    index = jax.ShapeDtypeStruct((), np.int32, sharding=whole)

    def copy(likes, shapes, *layer: int):
      name, runs = ("layers", layer[0] + 1) if layer else ("weights", 1)
      args = (shapes, index) if layer else (shapes,)
      kept = Kept(sampling.copier(likes), lift.mesh, parallel.RULES, args=args)
      self.copies[name] = kept, runs
      return _again(likes)

    self.whole = sampling.lay_out(lift, config, params, copy)

  def of(self, params: PyTree) -> PyTree:
    return self.whole


class Outline(Policy):
  """A policy of shapes, over devices that are not here."""

  def __init__(self, made: Experiment, devices: list):
    self.made, self.decoder, self.num_seeds = made, made.decoder, 1
    self.encoder = rollouts.encoder_of(made.tokenizer, made.rollout)
    self.optimizer = optimizer.make_optimizer(made.optimizer, 1)
    self.mesh = parallel.make_mesh(made.parallel, devices)
    lift = parallel.meshed(self.mesh, made.decoder, self.optimizer)
    keep = functools.partial(_keep, self.mesh)
    self.lift = dataclasses.replace(lift, wrap=keep)
    shapes = decoder.param_shapes(made.decoder)
    self.whole = _at(shapes, parallel.param_shardings(self.mesh, made.decoder))
    self.attach = self.base = config = None
    if made.lora.rank:
      config, self.base = made.lora, self.whole
      self.attach = functools.partial(lora.attach, config=config)
      adapt = functools.partial(
        lora.init_adapters, config=config, decoder_config=made.decoder
      )
      shapes = jax.eval_shape(adapt, shapes)
    state = jax.eval_shape(
      lambda params: update.create_state(
        params,
        self.optimizer,
        len(made.task.components),
        compares=made.method.compares,
      ),
      shapes,
    )
    places = parallel.state_shardings(
      self.mesh, made.decoder, self.optimizer, state, config
    )
    self.state = _at(state, places)
    if self.base is None:
      self.state = self.state.replace(params=self.whole)
    self.weights = _Weights(self.lift, made.decoder, self.whole)
    self._weights = self.weights

  @property
  def params(self) -> PyTree:
    return self.whole

  def reference(self) -> PyTree:
    return self.whole

  def held(self, program: str) -> PyTree:
    """What devices hold while a program runs, arguments included."""
    held = [self.state, self.base]
    if program not in ("weights", "update"):  # a sampler's parameters
      held += [self.weights.whole] + [self.whole] * (self.base is not None)
    if self.made.method.needs_reference and self.base is None:
      held.append(_again(self.whole))
    if self.made.asynchronous.protocol != "none":  # published weights
      held.append(_again(self.whole))
    return held


def programs_of(policy: Outline) -> Iterator[Program]:
  """The programs of a step, in order, for rows of the greatest length."""
  made = policy.made
  learner, loop = Learner(policy, [0], Clock()), made.loop
  sizes = Sizes.of(made, policy.lift.num_shards)

  for name, (kept, runs) in policy.weights.copies.items():
    yield Program(name, kept, runs, 0.0)
  prompts = transcript.PromptBatch(
    np.zeros((1, sizes.prompts, made.rollout.max_prompt_tokens), np.int32),
    *np.zeros((2, 1, sizes.prompts), np.int32),
  )
  keys = jax.eval_shape(
    lambda: jax.random.split(jax.random.key(0), (1, sizes.sampled))
  )
  sampler = policy.make_generate(
    made.sampling, sizes.group, record_entropies=made.method.world is not None
  )
  kept = sampler(policy.params, prompts, keys)
  first, rest = sizes.sample_flops()
  more = first + rest, sizes.cache_bytes(), loops_of(sizes), first
  yield Program("generate", kept, sizes.calls, *more, sizes.slots())

  batch, known = batch_of(sizes, learner), learner.programs
  passes = int(learner.needs_old) + made.method.needs_reference
  more = batch.tokens.shape[-1] - sizes.width
  flops = sizes.forward_flops(sizes.rows, more=more)
  parted = policy.params, learner.in_parts(batch)
  if made.labels.method != "truth":
    passes -= int(learner.needs_old)
    yield Program("observe", known["observe"](*parted), 1, flops)
  if passes:
    yield Program("log_probs", known["log_probs"](*parted), passes, flops)
  rows = sizes.rows // loop.num_minibatches
  part = jax.tree.map(lambda x: x[:, :rows], batch)
  part = learner.packed(part, loop.num_microbatches)
  # Forward, and backward to activations and to weights; adapters need no
  # gradients of whole weights.
  flops = (2 if made.lora.rank else 3) * sizes.forward_flops(rows, more=more)
  kept = known["update"](policy.state, part, policy.base)
  yield Program("update", kept, loop.num_minibatches, flops)


def loops_of(sizes: Sizes) -> tuple[int, int, float]:
  """What `hlo.Module` has to know of a sampler's loops; rows have full length.

  How many tokens a slot draws in each loop that draws; how often each reads
  prompts, or begins rows; and the share of all pages that is read.
  """
  rollout, slots = sizes.made.rollout, sizes.slots()
  rows = slots["rows"]
  S, T = rollout.max_prompt_tokens, rollout.max_new_tokens
  drawn = math.ceil(rows / slots["full"]) * max(1, T - 1)
  parts = math.ceil(rows / (slots["held"] * sizes.group))
  is_staged = slots["apart"] if slots["pages"] else parts == 1
  loops = len(generate.stages(S, T)) if is_staged else 1
  if not slots["pages"]:
    return math.ceil(drawn / loops), parts, 1.0
  share = slots["full"] * (S + T / 2) / (slots["pages"] * slots["page_size"])
  return math.ceil(drawn / loops), math.ceil(rows / loops), share


def batch_of(sizes: Sizes, learner: Learner) -> TrainBatch:
  """A step's rows of the greatest length, in hardly any memory."""
  made = sizes.made
  method, prompt = made.method, made.rollout.max_prompt_tokens
  shape, width = (1, sizes.rows), made.rollout.max_new_tokens
  if method.world is not None:  # Glue and an observation follow a response.
    width += made.episodes.max_observation_tokens
    width += len(agents.glue_of(made.tokenizer))

  def filled(value: float, *more: int, dtype=np.float32) -> np.ndarray:
    return np.broadcast_to(np.array(value, dtype), (*shape, *more))

  ones, log_probs = filled(1), filled(0, width)
  return TrainBatch(
    tokens=filled(1, prompt + width, dtype=np.int32),
    roles=filled(transcript.POLICY, prompt + width, dtype=np.int8),
    starts=filled(0, dtype=np.int32),
    advantages=ones,
    old_log_probs=log_probs if learner.needs_old else None,
    behave_log_probs=log_probs,
    ref_log_probs=log_probs if method.needs_reference else None,
    value_targets=ones if method.reads_values else None,
    world=method.world and world_model.RowWeights(ones, ones),
    prompt_size=prompt,
  )


def _again(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.update(), tree)


def _at(tree: PyTree, places: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    places,
  )
