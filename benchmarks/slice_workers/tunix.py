"""Tunix's GRPO step for a slice: its trainer's jitted step, over shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as model_lib
from tunix.rl import algo_core, common, trainer
from tunix.rl.grpo import grpo_learner
from tunix.sft import peft_trainer

from benchmarks.slice_workers import protocol


def step_of(shape: protocol.Shape, devices: list, remat: str):
  """The step of `GRPOLearner`'s trainer, its arguments, and the mesh.

  Layers are computed again (`remat=DECODER`) and attention is splash, which by
  default they are not.
  """
  jax.devices = lambda *_: devices  # It asks for what platform it is traced.
  mesh = jax.sharding.Mesh(np.array(devices).reshape(-1, 1), ("fsdp", "tp"))
  config = model_lib.ModelConfig.qwen2p5_1p5b()
  config.dtype, config.use_flash_attention = jnp.bfloat16, True
  config.remat_config = model_lib.RematConfig[remat]
  # 3,072 tokens are three blocks of it, 2,048 are two.
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.01)
  )
  # The trainer allocates what it is made with: a model of no size.
  small = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
  made = trainer.Trainer(
    small,
    optimizer,
    peft_trainer.TrainingConfig(eval_every_n_steps=1_000_000),
    custom_checkpoint_metadata_fn=dict,
  )

  def abstract():
    model = model_lib.Qwen2(config, rngs=nnx.Rngs(params=0))
    return model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)

  graph, state = nnx.split(nnx.eval_shape(abstract))
  places = nnx.get_named_sharding(state, mesh)
  state = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    state,
    places,
  )
  made.model, made.optimizer = nnx.merge(graph, state)
  algorithm = grpo_learner.GRPOConfig(
    num_generations=4, beta=0.0, epsilon=0.2, loss_agg_mode="token-mean"
  )
  algorithm.temperature = 1.0
  made.with_loss_fn(
    lambda model, train_example, algo_config: algo_core.grpo_loss_fn(
      model, train_example, algo_config=algo_config, pad_id=0, eos_id=1
    ),
    has_aux=True,
  )
  made.with_gen_model_input_fn(
    lambda x: {"train_example": x, "algo_config": algorithm}
  )
  step, _ = made.jit_train_and_eval_step()
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))

  def filled(dtype, *sizes):
    sizes = (shape.rows, *sizes)
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

  example = common.TrainExample(
    prompt_ids=filled(jnp.int32, shape.prompt),
    prompt_mask=filled(jnp.bool_, shape.prompt),
    completion_ids=filled(jnp.int32, shape.new),
    completion_mask=filled(jnp.bool_, shape.new),
    advantages=filled(jnp.float32),
    ref_per_token_logps=None,
    old_per_token_logps=filled(jnp.float32, shape.new),
  )

  def trace():
    with mesh:
      return step.func.trace(*step.args, example).traced

  return trace, (state, example), mesh


if __name__ == "__main__":
  protocol.answer(step_of)
