"""The sections of a config: the dataclasses that read their keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from saw_jax import algorithms, naming
from saw_jax.labels import care, selection, trajectories
from saw_jax.models.config import TINY, DecoderConfig
from saw_jax.models.lora import LoraConfig
from saw_jax.rollout import engine
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run.warm_start import WarmStartConfig
from saw_jax.settings import constant
from saw_jax.tasks import base, self_verification
from saw_jax.tasks import stops as stops_lib
from saw_jax.tasks.base import Task
from saw_jax.tasks.environments import AgentTask
from saw_jax.tokenizer import Tokenizer
from saw_jax.training.optimizer import OptimizerConfig
from saw_jax.training.parallel import ParallelConfig
from saw_jax.types import PyTree

AVERAGE = "benchmarks"  # stands in the place of a benchmark's name
# Functions of `labels.certainty`, and what field of `Observation` each reads.
CERTAINTIES = {
  "self_certainty": "certainties",
  "token_entropy": "entropies",
  "trajectory_entropy": "log_probs",
  "probability": "log_probs",
}
_CHOICES = {
  "method": tuple(selection.STRATEGIES),
  "gate": ("none", "majority", "probe"),
  "unlabelled": ("drop", "vote"),
  "certainty": tuple(CERTAINTIES),
  "source": ("truth", "annotator"),
}


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
class RolloutConfig:
  """Sizes of a rollout."""

  max_prompt_tokens: int = 128  # see long_prompts
  max_new_tokens: int = 64  # of a response
  prompt_multiple: int = 128  # prompt lengths are rounded up to it
  completion_multiple: int = 16  # so are the completions that are trained on
  # error; drop: leave such rows out; truncate: keep the end
  long_prompts: str = "error"
  # A step's prompts are sampled in so many parts, of prompts of like length;
  # must divide the prompts of a step.
  length_groups: int = constant(1)
  # Of keys and values, on a device: as many rows are sampled at one time as
  # have room, and one that ends makes room for the next; 0: all of a call.
  cache_tokens: int = 0
  # Tokens of a page of that cache, of which a row then has as many as it fills:
  # for lengths that differ much; 0: each slot has the longest row's room.
  page_size: int = constant(0)
  # Strings that end an answer, beside the tokenizer's end tokens.
  stops: tuple[str, ...] = ()
  # Servers of vLLM or SGLang that sample in our place, as http://host:port,
  # with commas between them: docs/rollouts.md. A run then repeats itself (R8 to
  # R10) only as far as their arithmetic does.
  engine: str = ""
  # Fields of `rollout.engine.EngineConfig`.
  engine_options: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )

  def __post_init__(self):
    object.__setattr__(self, "stops", stops_lib.check_stops(self.stops))
    naming.check_range(self, "[1, inf)", "rollout.length_groups")
    naming.check_options(
      [field.name for field in dataclasses.fields(engine.EngineConfig)],
      *(self.engine_options, "rollout.engine_options"),
    )
    base.check_choice(
      "rollout.long_prompts", self.long_prompts, ("error", "drop", "truncate")
    )

  @property
  def max_tokens(self) -> int:
    """Of a prompt and its response."""
    return self.max_prompt_tokens + self.max_new_tokens


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
  """How episodes are played and laid out."""

  # Prompts of a seed in one call of the sampler, at most those of a step.
  rows_per_call: int = 64
  # Of an update's rows: at most so many shapes are compiled.
  row_parts: int = constant(4)
  invalid_penalty: float = 0.1  # of a reply that does not parse
  similarity: float = 1.0  # of observations that are one anchor
  max_observation_tokens: int = 512  # that are predicted
  max_observation_chars: int = constant(20_000)  # that are passed on at all
  # Of the expert, held out, to score predictions.
  num_transitions: int = constant(256)

  def __post_init__(self):
    naming.check_range(self, "[0, inf)", "episodes.invalid_penalty")


@dataclasses.dataclass(frozen=True)
class GradingConfig:
  """How rewards are computed; see `tasks.workers.grading`."""

  num_workers: int = 2  # 0: in this process, without a time limit
  limit_s: float = 5.0  # per response, or step of an episode
  crash_tolerance: float = constant(0.1)  # share of a step that may crash
  # Share of a step that may be left without a reward, for whatever reason.
  unscored_tolerance: float = constant(0.5)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Sizes of a run."""

  num_steps: int = 100  # rollouts, each with its updates
  prompts_per_step: int = 16  # P
  group_size: int = 8  # G
  num_minibatches: int = 1  # updates per rollout
  num_microbatches: int = 1  # parts of an update that run one after the other
  chunk_size: int = 1024  # tokens of a device whose logits exist at once
  pack_length: int = 0  # tokens of a packed row; 0: rows are not packed
  checkpoint_interval: int = 25  # steps; 0: only at the end
  skip_nonfinite: bool = False  # leave out an update that is not finite: go on
  max_skipped: int = constant(10)  # steps in a row that may be left out whole
  writers: tuple[str, ...] = ()  # beside the files; saw train --log


@dataclasses.dataclass(frozen=True)
class AsyncConfig:
  """Whether, and how far, responses are sampled ahead of the updates."""

  protocol: str = "none"  # none, fixed_lag, max_lag or quota
  lag: int = 0  # of fixed_lag, in optimizer steps; of max_lag, in versions
  # Of quota: share of a window that is started ahead.
  threshold: float = constant(0.5)
  require: int = constant(4)  # of quota: optimizer steps of a learner batch
  # Of quota: learner batches between two publications.
  trigger: int = constant(4)
  actors: int = 0  # 0: sample between the updates, as fast as is allowed
  actor_kind: str = "thread"  # or "process", each with its own JAX on the CPU
  # The last devices, which the learner leaves alone; an actor has its part of
  # them as a mesh of data x tensor.
  actor_devices: int = constant(0)
  max_deaths: int = constant(3)  # actors that are restarted in a run
  # 0: a response is sampled whole; else in parts of so many tokens, and one
  # that is unfinished goes on with the newest weights.
  partial_tokens: int = constant(0)
  dynamic_sampling: bool = False  # replace groups whose rewards are all equal
  # Groups filtered per group wanted, then they stay.
  max_attempts: int = constant(10)
  # The sampler's, also for reports; a loss that reads them gets them anyway.
  carry_log_probs: bool = constant(True)


@dataclasses.dataclass(frozen=True)
class LabelConfig:
  """Where rewards come from, and how labels are bought."""

  # truth: of the data set. vote: of the group. filtered_vote: right votes only.
  # random, entropy, margin, mean_probability, oracle or care buy labels;
  # certainty and self_verification need none. trapo: of a fixed set of prompts,
  # and votes of those that are learned as these are.
  method: str = "truth"
  label_fraction: float = 0.2  # of the prompts of a step; of trapo, of all
  gate: str = "none"  # whose votes are trusted: majority, probe
  gate_fraction: float = constant(0.25)  # of the prompts of a step
  warm_up: int = constant(selection.WARM_UP)  # steps before the gate opens
  # Times the expected gap, of a prompt that the gate trusts.
  soft_adv: float = constant(1.0)
  unlabelled: str = "drop"  # or vote: neither bought nor gated, train on it
  # self_certainty, token_entropy, trajectory_entropy or probability
  certainty: str = constant("token_entropy")
  verify_temperature: float = constant(self_verification.TEMPERATURE)
  verify_prompt_tokens: int = 8192  # the end of longer ones is kept
  verify_new_tokens: int = self_verification.MAX_NEW_TOKENS  # of a verdict
  source: str = "truth"  # or annotator: saw annotate
  price: float = constant(1.0)  # of a label
  total: float = 0.0  # most that a run may spend; 0: no limit
  again: bool = constant(False)  # pay again for what was bought before
  timeout_s: float = constant(3600.0)  # the annotator's
  audit: bool = constant(True)  # log what the true references say
  probe: care.CareSettings = care.CareSettings()
  curves: trajectories.CurveSettings = constant(trajectories.CurveSettings())

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      base.check_choice(name, getattr(self, name), choices)
    for name in ("label_fraction", "gate_fraction"):  # of the batch
      naming.check_range(self, "[0, 1]", f"labels.{name}")
    if self.strategy.buys and not self.label_fraction:
      raise ValueError(
        f"labels.method is {self.method!r} with a label_fraction of 0, which "
        "buys nothing: say labels.method='vote' to train on votes alone"
      )
    naming.check_range(self, "[0, inf)", "labels.total")
    if self.strategy.buys and 0 < self.total < self.price:
      raise ValueError(
        f"labels.total is {self.total:g}, which does not pay one label at "
        f"{self.price:g}"
      )
    if self.strategy.sees_truth and self.source != "truth":
      raise ValueError(
        f"labels.method={self.method!r} looks at the ground truth: it needs "
        "labels.source='truth'"
      )

  @property
  def strategy(self) -> selection.Strategy:
    return selection.STRATEGIES[self.method]


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """What is evaluated, and how often."""

  split: str = constant("test")
  num_examples: int = 128  # of the held-out split
  batch_size: int = 128  # prompts at a time
  samples: int = 4  # per prompt, in the final sampled evaluation
  temperature: float = 1.0  # of those samples
  top_p: float = 1.0  # likewise
  interval: int = 10  # steps between greedy evaluations; 0: only at the end
  # Splits that the finished policies are scored on, whole -> samples an
  # example; 0: greedily alone.
  benchmarks: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, samples in self.benchmarks.items():
      if type(samples) is not int or samples < 0:
        raise ValueError(
          f"evaluation.benchmarks.{name} is a number of samples, 0 or more, "
          f"not {samples!r}"
        )
      if name == AVERAGE:
        raise ValueError(
          f"a benchmark is called {AVERAGE!r}, as their average is: rename it"
        )
    if self.samples or any(self.benchmarks.values()):
      naming.check_range(self, "(0, inf]", "evaluation.temperature")
      naming.check_range(self, "(0, 1]", "evaluation.top_p")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All sections of a config."""

  task: TaskConfig = TaskConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  model: DecoderConfig = TINY
  # A pretrained model: a Hugging Face directory, a .gguf file, or "smollm2";
  # empty: start from nothing. Of config.model it leaves how it is computed
  # (scan_layers, remat, attention, dtype, param_dtype); the rest is its own.
  # There is no warm start then. See docs/checkpoints.md.
  checkpoint: str = ""
  # Arguments of its chat template, e.g. enable_thinking.
  chat_template_options: Mapping[str, Any] = dataclasses.field(
    default_factory=dict
  )
  lora: LoraConfig = LoraConfig()
  warm_start: WarmStartConfig = WarmStartConfig()
  rollout: RolloutConfig = RolloutConfig()
  sampling: SamplingConfig = SamplingConfig()
  episodes: EpisodeConfig = EpisodeConfig()
  grading: GradingConfig = GradingConfig()
  algorithm: algorithms.AlgorithmConfig = algorithms.AlgorithmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  asynchronous: AsyncConfig = AsyncConfig()
  labels: LabelConfig = LabelConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  parallel: ParallelConfig = ParallelConfig()


class Experiment(NamedTuple):
  """All that a run is made of: the record that `build.build` returns."""

  task: Task | AgentTask
  tokenizer: Tokenizer
  decoder: DecoderConfig
  params: PyTree  # where every seed starts; also the KL reference
  method: algorithms.Method
  loop: LoopConfig
  rollout: RolloutConfig
  sampling: SamplingConfig
  optimizer: OptimizerConfig
  parallel: ParallelConfig
  evaluation: EvaluationConfig
  grading: GradingConfig
  asynchronous: AsyncConfig = AsyncConfig()
  episodes: EpisodeConfig = EpisodeConfig()
  labels: LabelConfig = LabelConfig()
  lora: LoraConfig = LoraConfig()
