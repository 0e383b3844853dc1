"""The sections of a config: the dataclasses that read their keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from saw_jax.algorithms import AlgorithmConfig
from saw_jax.models.config import TINY, DecoderConfig
from saw_jax.models.lora import LoraConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run.agents import EpisodeConfig
from saw_jax.run.evaluation import EvaluationConfig
from saw_jax.run.experiment import AsyncConfig, GradingConfig, LoopConfig
from saw_jax.run.labelling import LabelConfig
from saw_jax.run.rollouts import RolloutConfig
from saw_jax.run.warm_start import WarmStartConfig
from saw_jax.training.optimizer import OptimizerConfig
from saw_jax.training.parallel import ParallelConfig


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """What is learned."""

  name: str = ""  # of registry.TASKS
  # Arguments of the task, e.g. its seed, sizes, and a path for real files.
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """How text becomes tokens."""

  # "bytes"; the name of a task for its short vocabulary at `tiny`; or the path
  # of a tokenizer.json. With a checkpoint, those names stand for the
  # checkpoint's own tokenizer.
  name: str = "bytes"


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All sections of a config."""

  task: TaskConfig = TaskConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  model: DecoderConfig = TINY
  # A pretrained model: a Hugging Face directory, a .gguf file, or "smollm2";
  # empty: start from nothing. Of config.model it leaves how it is computed
  # (scan_layers, remat, dtype, param_dtype); the rest is its own. There is no
  # warm start then. See docs/checkpoints.md.
  checkpoint: str = ""
  lora: LoraConfig = LoraConfig()
  warm_start: WarmStartConfig = WarmStartConfig()
  rollout: RolloutConfig = RolloutConfig()
  sampling: SamplingConfig = SamplingConfig()
  episodes: EpisodeConfig = EpisodeConfig()
  grading: GradingConfig = GradingConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  asynchronous: AsyncConfig = AsyncConfig()
  labels: LabelConfig = LabelConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  parallel: ParallelConfig = ParallelConfig()
