"""How much memory a run takes on a device: arithmetic on shapes."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Self

import jax
from jax.sharding import AbstractMesh

from saw_jax.models import cache as cache_lib
from saw_jax.models import decoder, lora
from saw_jax.models import paged as paged_lib
from saw_jax.rollout import paged, refill
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.run import agents, experiment
from saw_jax.run.sections import Experiment
from saw_jax.training import optimizer, parallel
from saw_jax.types import PyTree

_SPLIT = "parallel.lift=meshed with a larger parallel.fsdp or parallel.tensor"
_LORA = "or lora.rank=16, which trains adapters alone"
# What a device holds, and what makes it less: all the time, while sampling, and
# in an update.
HELD = {
  "parameters": f"{_SPLIT}, or model.param_dtype=bfloat16",
  "moments of the optimizer": f"{_SPLIT}, {_LORA}",
  "reference for the KL": f"{_SPLIT}, {_LORA}",
}
SAMPLING = {
  "adapters merged": _SPLIT,
  "cache of keys and values": "rollout.cache_tokens, or fewer "
  "rollout.max_new_tokens",
}
UPDATING = {
  "gradients": f"{_SPLIT}, {_LORA}",
  "activations of a micro-batch": "a larger loop.num_microbatches, or "
  "model.remat=full",
  "logits of a chunk": "a smaller loop.chunk_size",
}


class Sizes(NamedTuple):
  """The most rows and tokens that the programs of a step have."""

  made: Experiment
  shards: int  # devices that share rows
  rows: int  # that a step learns from
  prompts: int  # of a call of the sampler
  group: int  # responses of a call to each
  calls: int  # of the sampler in a step

  @classmethod
  def of(cls, made: Experiment, shards: int) -> Self:
    loop, parts = made.loop, made.rollout.length_groups
    rows = loop.prompts_per_step * loop.group_size
    if not made.method.per_step:
      size = loop.prompts_per_step // parts
      return cls(made, shards, rows, size, loop.group_size, parts)
    # A step of an episode is a row.
    turns = experiment.kind_of(made).turns
    prompts = agents.rows_per_call(made, shards)
    unit = loop.num_minibatches * loop.num_microbatches * shards
    calls = turns * math.ceil(rows / prompts)
    rows = -(-rows * turns // unit) * unit
    return cls(made, shards, rows, prompts, 1, calls)

  @property
  def sampled(self) -> int:
    return self.prompts * self.group

  @property
  def width(self) -> int:
    return self.made.rollout.max_tokens

  @property
  def asked(self) -> tuple[GenerateConfig, int, int]:
    """A device's call: settings (but sampling), prompts, and their tokens."""
    rollout = self.made.rollout
    cache = dict(cache_tokens=rollout.cache_tokens, page_size=rollout.page_size)
    settings = GenerateConfig(rollout.max_new_tokens, self.group, (), **cache)
    return settings, self.prompts // self.shards, rollout.max_prompt_tokens

  @property
  def least_cache(self) -> int:
    """Tokens of the smallest cache to try: two rows, or the fewest pages."""
    has_pages = self.made.rollout.page_size > 0
    return max(2 * self.width, paged.least(*self.asked) if has_pages else 0)

  def slots(self) -> dict[str, Any]:
    """How many rows a device samples at once, and in which pages.

    `full`: the same for rows of full length. `apart`: why there are no pages,
    or why no kernel reads them.
    """
    settings, prompts, size = asked = self.asked
    slots, held, pages = refill.slots(*asked)
    p, T = settings.page_size, settings.max_new_tokens
    full, apart = slots, ""
    if p and refill.fits(*asked):
      apart = "all rows have room at once"
    elif pages:
      own = -(-(size + T - 1) // p) - size // p
      full = min(slots, (pages - prompts * -(-size // p)) // own)
      windows = self.made.decoder.windows or (0,)
      lacks = functools.partial(paged_lib.kernel_lacks, self.made.decoder, p)
      apart = max(map(lacks, windows))
    elif p:
      apart = (
        f"{prompts:,} prompts of {size:,} tokens and a response of {T:,} take "
        f"{paged.least(*asked):,} of rollout.cache_tokens, which is "
        f"{settings.cache_tokens:,}"
      )
    rows = dict(rows=prompts * self.group, slots=slots, full=full, held=held)
    return rows | dict(pages=pages, page_size=p, apart=apart)

  def forward_flops(
    self, rows: int, new: int | None = None, more: int = 0
  ) -> float:
    """FLOPs of a forward pass, with the head on `new` tokens of each row.

    A row is `more` tokens longer where an observation follows it. Two for each
    weight that a token meets, and half of attention's, which is causal.
    """
    model = self.made.decoder
    new = self.made.rollout.max_new_tokens if new is None else new
    shapes = jax.tree.leaves(decoder.param_shapes(model))
    embedding = model.vocab_size * model.width
    weights = sum(x.size for x in shapes) - embedding * (2 - model.tied_head)
    length, new = self.width + more, new + more
    inside = 2 * weights * length + 2 * new * embedding
    heads = model.num_layers * model.num_heads * model.head_size
    return float(rows * (inside + 2 * heads * length**2))

  def cache_bytes(self) -> float:
    """Of the keys and values of one call of the sampler, on a device."""
    held = math.ceil(self.sampled / self.shards) * self.width
    held = min(self.made.rollout.cache_tokens or held, held)
    model = self.made.decoder
    empty = jax.eval_shape(lambda: cache_lib.init_cache(model, 1, held))
    return float(_bytes((empty.keys, empty.values)))

  def sample_flops(self) -> tuple[float, float]:
    """FLOPs of one call: to read its prompts once, and to draw all tokens."""
    rows = self.sampled
    short = dataclasses.replace(self.made.rollout, max_new_tokens=0)
    asked = self._replace(made=self.made._replace(rollout=short))
    drawn = self.forward_flops(rows) - asked.forward_flops(rows, 0)
    return asked.forward_flops(self.prompts, 1), drawn


def per_device(made: Experiment, devices: int) -> dict[str, float]:
  """Bytes on one device by kind; each seed has its own device."""
  model, loop = made.decoder, made.loop
  lift, has_adapters = made.parallel.lift, made.lora.rank > 0
  data, fsdp, tensor = 1, 1, 1
  if lift == "meshed":
    data, fsdp, tensor = parallel.axis_sizes(made.parallel, devices)
  mesh = AbstractMesh((data, fsdp, tensor), parallel.MESH_AXES)
  shards = devices if lift == "pmapped" else data * fsdp

  def split(tree: PyTree, names: PyTree) -> int:
    places = parallel.shardings(mesh, tree, names)
    parts = jax.tree.map(lambda x, at: at.shard_shape(x.shape), tree, places)
    return _bytes(jax.tree.map(lambda x, s: x.update(shape=s), tree, parts))

  shapes = updated = decoder.param_shapes(model)
  parameters = trained = split(shapes, decoder.logical_axes(model))
  if has_adapters:
    adapt = lambda tree: lora.init_adapters(tree, made.lora, model)  # noqa: E731
    updated = jax.eval_shape(adapt, shapes)
    trained = split(updated, lora.adapter_axes(made.lora, model))
  init = optimizer.make_optimizer(made.optimizer, 1).init
  moments = _bytes(jax.eval_shape(init, updated)) * trained / _bytes(updated)

  sizes = Sizes.of(made, shards)
  cache = sizes.cache_bytes()
  cache /= tensor if model.num_kv_heads % tensor == 0 else 1
  rows, width = math.ceil(sizes.rows / shards), sizes.width
  parts = loop.num_minibatches * loop.num_microbatches
  tokens = math.ceil(rows / parts) * width
  item = jax.numpy.dtype(model.dtype).itemsize
  heads = model.head_size / tensor
  mixed = model.num_heads * heads
  products = 2 * model.width + 2 * model.mlp_size / tensor
  products += mixed + 2 * model.num_kv_heads * heads
  inside = 2 * model.width + mixed + products + model.mlp_size / tensor
  # Kept are the input of each layer, the inside of one or of all, and what
  # remat names; the first two twice, for their gradients. This is within 10 %
  # of what a small decoder's programs need on a CPU, with and without remat.
  layers = model.num_layers if model.remat == "none" else 1
  kept = {"attention": mixed, "save_weight_products": products}
  kept["dots"] = mixed + products
  floats = 2 * (model.num_layers * model.width + layers * inside)
  floats += model.num_layers * kept.get(model.remat, 0.0)
  logits = min(loop.chunk_size, tokens) * model.vocab_size / tensor
  found = (
    parameters + trained * has_adapters,
    moments,
    parameters * (made.method.needs_reference and not has_adapters),
    parameters * has_adapters,
    cache,
    trained,
    tokens * item * floats,
    2 * 4 * logits,  # and their gradient, in float32
  )
  names = [*HELD, *SAMPLING, *UPDATING]
  return dict(zip(names, map(float, found), strict=True))


def sentence(made: Experiment, devices: int) -> str:
  """The peak of a device, in words."""
  most, when = peak(per_device(made, devices))
  return (
    f"about {most / 1e9:.3f} GB on each of {devices} device(s), in {when}: "
    "arithmetic on shapes, no measurement"
  )


def peak(sizes: dict[str, float]) -> tuple[float, str]:
  """The most bytes at once, and when: sampling and updates take turns."""
  held, sampling, updating = (
    sum(sizes[name] for name in part) for part in (HELD, SAMPLING, UPDATING)
  )
  when = "sampling" if sampling > updating else "an update"
  return held + max(sampling, updating), when


def _bytes(tree: PyTree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
