"""The config of a run on rows of one's own, before a method is chosen."""

import jax
import ml_collections

from saw_jax.run import config as config_lib
from saw_jax.run import sections


def make(checkpoint: str = "") -> ml_collections.ConfigDict:
  """Every key, with a value that will do for rows of one's own."""
  config = config_lib.to_config(sections.RunConfig(), type_safe=False)
  config.optimizer.weight_decay = 0.0
  config.loop.prompts_per_step = 8
  if not checkpoint:
    config_lib.set_lengths(config, prompt=(256, 32), response=32)
    config.optimizer.learning_rate = 1e-3
    return config
  config.checkpoint = checkpoint
  config_lib.set_lengths(config, prompt=(512, 64), response=(256, 64))
  config.optimizer.learning_rate = 1e-5
  config.loop.num_microbatches = 8  # of one prompt's responses each
  config.evaluation.update(num_examples=64, batch_size=32, samples=1)
  if jax.default_backend() != "cpu":
    config.model.update(scan_layers=True, remat="full", dtype="bfloat16")
  return config
