"""What an update carries from step to step."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from saw_jax.types import Array, PyTree


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes; keys are functions of seed and step.

  With the `seeded` lift each array has a leading axis of `N` seeds.
  """

  params: PyTree
  opt_state: PyTree
  step: Array  # int32 [], updates done, skipped ones included
  weights: Array  # float32 [M], persistent reward weights, summing to 1


def create_state(
  params: PyTree,
  optimizer: optax.GradientTransformation,
  *,
  num_components: int = 1,
) -> TrainState:
  """Makes the state before the first step, with equal reward weights."""
  return TrainState(
    params=params,
    opt_state=optimizer.init(params),
    step=jnp.zeros((), jnp.int32),
    weights=jnp.full((num_components,), 1 / num_components, jnp.float32),
  )


def stack_states(states: list[TrainState]) -> TrainState:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def take_seed(state: PyTree, index: int) -> PyTree:
  return jax.tree.map(lambda leaf: leaf[index], state)
