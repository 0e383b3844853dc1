"""The optimizer, from its settings."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from saw_jax import naming
from saw_jax.settings import constant
from saw_jax.types import Array

SCHEDULES = ("constant", "linear", "cosine")
STATE_DTYPES = ("float32", "bfloat16")


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
  # Of both moments: float32, or bfloat16, rounded stochastically.
  state_dtype: str = "float32"

  def __post_init__(self):
    naming.check_choice("schedule", self.schedule, SCHEDULES)
    naming.check_choice("state_dtype", self.state_dtype, STATE_DTYPES)
    naming.check_range(self, "[0, inf)", "learning_rate", "weight_decay")
    naming.check_range(self, "[0, 1)", "b1", "b2")
    naming.check_range(self, "(0, inf)", "eps")
    naming.check_range(self, "(0, inf]", "clip_norm")

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
  adam = optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay)
  if c.state_dtype != "float32":
    adam = optax.chain(
      _in_bfloat16(optax.scale_by_adam(c.b1, c.b2, c.eps)),
      optax.add_decayed_weights(c.weight_decay),
      optax.scale_by_learning_rate(rate),
    )
  return optax.chain(optax.clip_by_global_norm(c.clip_norm), adam)


def _in_bfloat16(
  adam: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Keeps both moments in bfloat16; the update is computed in float32.

  A step changes the second moment by at most 1 - b2 of it, a thousandth, and
  bfloat16 has steps of a 256th: rounded to the nearest it would stand still.
  Rounded up or down at random it is right on average.
  """

  def init(params):
    state = adam.init(params)
    narrow = lambda x: x.astype(jnp.bfloat16)  # noqa: E731
    moments = jax.tree.map(narrow, (state.mu, state.nu))
    return state._replace(mu=moments[0], nu=moments[1])

  def update(updates, state, params=None):
    mu, nu = jax.tree.map(lambda x: x.astype(jnp.float32), (state.mu, state.nu))
    updates, state = adam.update(updates, state._replace(mu=mu, nu=nu), params)
    leaves, tree = jax.tree.flatten((state.mu, state.nu))
    keys = jax.random.split(
      jax.random.fold_in(jax.random.key(0), state.count), len(leaves)
    )
    mu, nu = tree.unflatten(map(round_at_random, leaves, keys))
    return updates, state._replace(mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def round_at_random(x: Array, key: Array) -> Array:
  """Rounds float32 to one of both neighbours in bfloat16, `x` on average."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits &= jnp.uint32(0xFFFF0000)
  rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
  # Rounding the bits of infinity or NaN would make another number of them.
  return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
