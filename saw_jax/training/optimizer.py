"""The optimizer, from its settings."""

import dataclasses
import math

import optax

from saw_jax.settings import constant

SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with a clipped gradient."""

  learning_rate: float = 1e-6  # after the warm-up
  # After the warm-up: constant, linear or cosine.
  schedule: str = constant("constant")
  warmup_steps: int = 0  # from 0, in a line
  # Updates until the schedule's end; 0: the run's.
  decay_steps: int = constant(0)
  b1: float = constant(0.9)
  b2: float = constant(0.999)
  eps: float = constant(1e-8)
  weight_decay: float = 0.01  # decoupled, of every parameter
  clip_norm: float = constant(1.0)  # of the whole gradient; inf: none

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(
        f"unknown schedule {self.schedule!r}; choose one of {SCHEDULES}"
      )
    for name, is_right, wanted in (
      ("learning_rate", 0 <= self.learning_rate < math.inf, "finite, from 0"),
      ("weight_decay", 0 <= self.weight_decay < math.inf, "finite, from 0"),
      ("b1", 0 <= self.b1 < 1, "from 0 to below 1"),
      ("b2", 0 <= self.b2 < 1, "from 0 to below 1"),
      ("eps", 0 < self.eps < math.inf, "above 0"),
      ("clip_norm", self.clip_norm > 0, "above 0"),
    ):
      if not is_right:
        value = getattr(self, name)
        raise ValueError(f"{name} is {value}; it must be {wanted}")

  @property
  def can_overflow(self) -> bool:
    """Whether a finite gradient may lead to parameters that are not finite.

    Adam moves a parameter by the rate times a small number where b1² < b2.
    """
    greatest = self.learning_rate * max(1.0, self.weight_decay)
    return greatest > 1 or self.b1**2 >= self.b2

  @property
  def follows_length(self) -> bool:
    """Whether the learning rate of a step depends on how many there are."""
    return self.schedule != "constant" and not self.decay_steps


def make_schedule(config: OptimizerConfig, num_updates: int) -> optax.Schedule:
  """The learning rate as a function of the update, of `num_updates` in all."""
  peak, warmup = config.learning_rate, config.warmup_steps
  rest = max((config.decay_steps or num_updates) - warmup, 1)
  after = {
    "constant": optax.constant_schedule(peak),
    "linear": optax.linear_schedule(peak, 0.0, rest),
    "cosine": optax.cosine_decay_schedule(peak, rest),
  }[config.schedule]
  if not warmup:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, warmup), after], [warmup]
  )


def make_optimizer(
  config: OptimizerConfig, num_updates: int
) -> optax.GradientTransformation:
  c = config
  rate = make_schedule(c, num_updates)
  return optax.chain(
    optax.clip_by_global_norm(c.clip_norm),
    optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay),
  )
