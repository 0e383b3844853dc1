"""saw_jax as a worker: the functions that a config is made of."""

import dataclasses
import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peer_workers import protocol
from saw_jax import algorithms
from saw_jax.models import config as config_lib
from saw_jax.models import decoder, log_probs
from saw_jax.models.hub import pretrained
from saw_jax.rollout import generate, transcript
from saw_jax.training import batch as batch_lib
from saw_jax.training import objective, optimizer, update


class Ours(protocol.Worker):
  """What `training.learner` puts together, for one seed on one device."""

  def load(self, directory: str) -> None:
    source = pretrained.open_checkpoint(directory)
    self.config, self._params = source.config, source.load()
    self._state = None
    self._sampled = 0
    self._make()

  def versions(self) -> dict[str, str]:
    return {
      name: importlib.metadata.version(name)
      for name in ("jax", "flax", "optax", "numpy")
    }

  @property
  def params(self):
    return self._params if self._state is None else self._state.params

  def export(self, directory: str, data: str, shape: str) -> dict:
    """Writes the weights and the batch that all peers read."""
    self.shape = protocol.SHAPES[shape]
    config = decoder_config(self.shape)
    params = decoder.init_params(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    # Biases are drawn as 0: others say whether they are read.
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: (
        jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)
        if path[-1].key.endswith("_bias")
        else x
      ),
      params,
    )
    pretrained.save_checkpoint(directory, params, config, dtype="float32")
    self.data = protocol.random_batch(self.shape, self.shape.rows)
    self.load(directory)
    # Near enough that some ratios are clipped and others are not.
    self.data["old_log_probs"] = self.log_probs() + (
      0.2 * rng.standard_normal((self.shape.rows, self.shape.new_tokens))
    ).astype(np.float32)
    pathlib.Path(data).parent.mkdir(parents=True, exist_ok=True)
    np.savez(data, **self.data)
    return {}

  def logits(self, rows: int) -> np.ndarray:
    batch = make_batch(self.shape, self.data)

    @jax.jit
    def read(params):
      hidden, _ = decoder.Decoder(self.config).apply(
        {"params": params},
        batch.tokens[:rows],
        batch.positions[:rows],
        batch.valid[:rows],
      )
      return log_probs.head_logits(
        hidden, decoder.head_kernel(params, self.config)
      )

    return np.asarray(read(self.params))

  def log_probs(self) -> np.ndarray:
    batch = make_batch(self.shape, self.data)
    return np.asarray(self._forward(self.params, batch))

  def forward(self) -> dict[str, float]:
    return {"log_prob": float(self.log_probs().mean())}

  def train(self) -> dict[str, float]:
    if self._state is None:
      # Placed, as a lift does it: else the second step is compiled again.
      self._state = jax.device_put(
        update.create_state(self._params, self._optimizer), jax.devices()[0]
      )
      self._params = None
    batch = make_batch(self.shape, self.data)
    self._state, metrics = self._train(self._state, batch)
    metrics = jax.device_get(jax.block_until_ready((metrics, self._state))[0])
    return {name: float(metrics[name]) for name in ("loss", "entropy")} | {
      "gradient_norm": float(metrics["gradient_norm"])
    }

  def generate(self) -> dict[str, float]:
    prompts = self.data["tokens"][
      :: self.shape.group_size, : self.shape.prompt_size
    ]
    prompts = transcript.pad_prompts(prompts.tolist())
    keys = generate.row_keys(
      jax.random.key(0), self._sampled, prompts.ids, self.shape.group_size
    )
    self._sampled += 1
    record = jax.device_get(self._generate(self.params, prompts, keys))
    return {"tokens": int(record.completion_lengths.sum())}

  def temporary(self) -> dict:
    """Bytes that the compiled train step needs beside its arguments."""
    batch = make_batch(self.shape, self.data)
    compiled = self._train.lower(self._state, batch).compile()
    return {"bytes": int(compiled.memory_analysis().temp_size_in_bytes)}

  def small_train(self, rows: int, variant: str):
    self.config = dataclasses.replace(
      decoder_config(self.shape), scan_layers=variant == "scanned"
    )
    self._make()
    self.data = protocol.random_batch(self.shape, rows)
    self._params = decoder.init_params(self.config, jax.random.key(0))
    self._state = None
    return self.train

  def _make(self) -> None:
    """Makes the jitted functions, as a learner makes them."""
    method = algorithms.make_method(
      algorithms.AlgorithmConfig(
        loss_options={
          "clip_low": protocol.CLIP,
          "clip_high": protocol.CLIP,
        }
      ),
      minima=np.zeros(1, np.float32),
    )
    forward = objective.make_forward(
      self.config, chunk_size=self.shape.chunk_size
    )
    self._forward = jax.jit(
      objective.in_parts(
        lambda params, batch: forward(params, batch).log_probs,
        self.parts["forward"],
      )
    )
    chosen = optimizer.OptimizerConfig(
      learning_rate=protocol.LEARNING_RATE,
      weight_decay=protocol.WEIGHT_DECAY,
      clip_norm=protocol.CLIP_NORM,
    )
    self._optimizer = optimizer.make_optimizer(chosen, num_updates=1000)
    self._train = jax.jit(
      update.make_update(
        objective.make_objective(forward, method.terms, method.diagnostics),
        self._optimizer,
        num_microbatches=self.parts["train"],
        can_overflow=chosen.can_overflow,
      ),
      donate_argnums=0,
    )
    self._generate = generate.make_generate(
      self.config,
      generate.GenerateConfig(
        max_new_tokens=self.shape.new_tokens,
        group_size=self.shape.group_size,
        eos_ids=(protocol.EOS,),
        pad_id=protocol.PAD,
      ),
    )


def decoder_config(shape: protocol.Shape) -> config_lib.DecoderConfig:
  return config_lib.DecoderConfig(
    vocab_size=shape.vocab_size,
    width=shape.width,
    num_layers=shape.num_layers,
    num_heads=shape.num_heads,
    num_kv_heads=shape.num_kv_heads,
    head_size=shape.head_size,
    mlp_size=shape.mlp_size,
    qkv_bias=True,
  )


def make_batch(shape: protocol.Shape, data: dict) -> batch_lib.TrainBatch:
  """Lays the rows out; prompts and completions have their full length."""
  rows = data["tokens"].shape[0]
  roles = np.full((rows, shape.length), transcript.POLICY, np.int8)
  roles[:, : shape.prompt_size] = transcript.PROMPT
  return batch_lib.TrainBatch(
    tokens=jnp.asarray(data["tokens"]),
    roles=jnp.asarray(roles),
    starts=jnp.zeros(rows, jnp.int32),
    advantages=jnp.asarray(data["advantages"]),
    old_log_probs=jnp.asarray(data["old_log_probs"]),
    prompt_size=shape.prompt_size,
  )


if __name__ == "__main__":
  protocol.serve(Ours())
