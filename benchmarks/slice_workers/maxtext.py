"""MaxText's train step for a slice, by its own ahead-of-time compile."""

import contextlib
import tempfile

import jax
from maxtext.trainers.pre_train import train_compile

from benchmarks.slice_workers import protocol


class _Found(Exception):
  """Ends its command where it would compile."""


def step_of(shape: protocol.Shape, devices: list, tiles: str):
  """What `maxtext.trainers.pre_train.train_compile` is about to compile.

  It trains cross-entropy on every token. The logits are made in so many `tiles`
  (`num_vocab_tiling`), which by default are one.
  """
  found = {}

  def keep(fn, args, kwargs, mesh, inputs, outputs, static, donated, _, rules):
    found.update(mesh=mesh, args=args)

    def trace():
      with jax.set_mesh(mesh), rules:
        return jax.jit(
          fn,
          in_shardings=inputs,
          out_shardings=outputs,
          static_argnums=static,
          donate_argnums=donated,
        ).trace(*args, **kwargs)

    found["trace"] = trace
    raise _Found

  train_compile.jit_and_compile = keep
  words = dict(
    model_name="qwen2.5-1.5b",
    compile_topology=f"v5e-{len(devices)}",
    compile_topology_num_slices=1,
    per_device_batch_size=shape.rows // len(devices),
    max_target_length=shape.length,
    num_vocab_tiling=tiles,
    dataset_type="synthetic",
    enable_checkpointing=False,
    learning_rate=1e-6,
    run_name="slice",
    base_output_directory=tempfile.gettempdir(),
  )
  base = train_compile.__file__.rsplit("/trainers", 1)[0] + "/configs/base.yml"
  with contextlib.suppress(_Found):
    train_compile.main(["", base, *(f"{k}={v}" for k, v in words.items())])
  return found["trace"], found["args"], found["mesh"]


if __name__ == "__main__":
  protocol.answer(step_of)
