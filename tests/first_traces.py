"""Takes rows of the papers' tables to the first traces of their programs.

A process of its own, with 16 devices: `first_traces_test.py` reads what it
prints, a line of JSON a row. No weight and no example is read. Models have two
layers, since all layers of one are alike; all other sizes are the real ones.
"""

import dataclasses
import functools
import gc
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.ahead import compiled, programs
from saw_jax.run import checks, experiment
from saw_jax.run import config as config_lib
from saw_jax.training import batch as batch_lib
from saw_jax.training import estimation, objective

DEVICES = jax.devices()
MESHES = 8, 16


def read(case):
  """The settings of a row, and its experiment without weights."""
  config = config_lib.load(case)
  if "judge" in config.task.options:
    config.task.options.judge.url = "http://localhost:1"
  run = config_lib.typed(config)
  # `seeded` is one run on one device.
  many = MESHES if run.parallel.lift == "meshed" else (1,)
  for count in many:
    made = compiled.experiment_of(run, count)
    jax.devices = lambda *_, n=count: DEVICES[:n]
    checks.check(made, None, [0])
  few = dataclasses.replace(made.decoder, num_layers=2)
  return run, made._replace(decoder=few), DEVICES[:count]


def trace_estimate(made) -> None:
  """From rewards to advantages."""
  method, loop = made.method, made.loop
  shape = loop.prompts_per_step, loop.group_size
  key = jax.random.key(0)
  if not method.per_step:
    shape = *shape, len(made.task.components)
    rewards, lengths = jnp.ones(shape), jnp.ones(shape[:2])
    estimate = estimation.make_estimate(
      method.advantage, method.weights, minima=jnp.zeros(shape[2:])
    )
    args = rewards, rewards > 0, lengths, None, rewards[0, 0], jnp.int32(0)
    found, _ = jax.eval_shape(estimate, *args)
    assert found.shape == shape[:2]
    return
  shape = *shape, experiment.kind_of(made).turns
  estimate = estimation.make_step_estimate(
    method.advantage,
    max_return=made.task.max_return,
    whiten=method.whiten,
    world=method.world,
  )
  zeros, ones = jnp.zeros(shape), jnp.ones(shape, bool)
  record = estimation.StepRecord(
    rewards=zeros,
    steps=ones,
    scored=ones[..., 0],
    anchors=zeros.astype(jnp.int32),
    penalties=zeros,
    values=zeros,
    ratios=zeros,
    entropies=zeros,
    observed=ones.astype(jnp.int32),
  )
  assert jax.eval_shape(estimate, record, key).advantages.shape == shape


def parts_of(run) -> dict[str, set[str]]:
  """What each program is made of: a row is traced for what is new in it.

  Of updates that is a table's sizes, and a loss with its options.
  """
  drawn = "model checkpoint loop rollout sampling parallel episodes lora"
  sizes = [vars(run)[name] for name in (*drawn.split(), "optimizer")]
  algorithm = dict(vars(run.algorithm))
  given = [algorithm.pop(x) for x in ("advantage", "weights")]
  given += [algorithm.pop(f"{x}_options") for x in ("advantage", "weights")]
  world = algorithm.pop("world_model")
  algorithm["critic"] = given[0] in ("step_gae", "brace")
  algorithm["world"] = world.loss, world.loss_options
  found = {
    "weights": [sizes],
    "layers": [sizes],
    "generate": [sizes],
    "log_probs": [[sizes, world.loss == "none"]],
    "observe": [[sizes, run.labels.method == "truth"]],
    "update": [[sizes, world.loss == "none"], algorithm],
    "estimate": [[given, world], [run.loop, run.task.name]],
  }
  return {
    name: {f"{name} {part!r}" for part in parts}
    for name, parts in found.items()
  }


def main() -> None:
  # What traces are made of is long-lived, and much: the collector looks at it
  # less often.
  gc.freeze()
  gc.set_threshold(20_000, 20, 50)
  # The parts of a batch are alike, and nothing but shapes is read.
  pack = batch_lib.pack_rows

  def pack_a_part(batch, length, *, num_microbatches, **how):
    K = num_microbatches
    part = jax.tree.map(lambda x: x[:, : x.shape[1] // K], batch)
    one = pack(part, length, **how).packing
    packing = jax.tree.map(
      lambda x: np.broadcast_to(x[:, :1], (1, K * x.shape[1], *x.shape[2:])),
      one,
    )
    return batch.replace(packing=packing)

  batch_lib.pack_rows = pack_a_part
  # The rows of a table have the same forward pass: one trace for all of them.
  make = objective.make_forward
  objective.make_forward = functools.cache(
    lambda *args, **options: jax.jit(make(*args, **options))
  )
  seen = set()
  for line in sys.stdin:
    said = {"case": line.strip(), "traced": []}
    try:
      run, made, devices = read(said["case"])
      parts = parts_of(run)
      if set().union(*parts.values()) <= seen:
        print(json.dumps(said), flush=True)
        continue
      known = programs.programs_of(programs.Outline(made, devices))
      traces = {program.name: program.kept.trace for program in known}
      traces["estimate"] = functools.partial(trace_estimate, made)
      for name, trace in traces.items():
        if not parts[name] <= seen:
          trace()
          said["traced"].append(name)
      seen = seen.union(*parts.values())
    except Exception as error:
      said["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
  main()
