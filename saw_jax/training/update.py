"""One update: the gradient of a sum, divided once.

Every term of the objective is a numerator and a denominator. Both are added
over micro-batches and devices before anything is divided, so that one device,
many devices and many micro-batches give the same step (R11). The natural
shortcut, a mean of the parts' means, weighs the tokens of a part with few
tokens more.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from saw_jax import reductions
from saw_jax.training.batch import TrainBatch, split_rows
from saw_jax.training.objective import Objective
from saw_jax.training.state import TrainState
from saw_jax.types import Array, PyTree

# (state, batch, *, axis_name) -> (state, metrics)
Update = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_gradient(
  objective: Objective, *, num_microbatches: int = 1
) -> Callable[..., tuple[PyTree, dict[str, Array]]]:
  """Makes the gradient of an objective over a whole batch.

  Args:
    objective: terms and diagnostics of a batch.
    num_microbatches: parts that pass through the model one after the other.

  Returns:
    A function `(params, batch, *, axis_name=None) -> (gradient, metrics)`.
    The gradient is that of `sum_k numerator_k / denominator_k`; the metrics
    hold `loss`, each term as `loss/<name>` and each diagnostic, as scalars.
  """

  def gradient(
    params: PyTree, batch: TrainBatch, *, axis_name: str | None = None
  ) -> tuple[PyTree, dict[str, Array]]:
    parts = split_rows(batch, num_microbatches)
    total = functools.partial(_over_devices, axis_name=axis_name)

    # Denominators count masks, never parameters: what computes the numerators
    # here is dead code, which the compiler removes.
    denominators = total(
      _accumulate(lambda part: _denominators(objective, params, part), parts)
    )

    def part_loss(params: PyTree, part: TrainBatch):
      terms, diagnostics = objective(params, part)
      values = {
        name: reductions.Ratio(term.numerator, denominators[name]).value()
        for name, term in terms.items()
      }
      return sum(values.values()), (values, diagnostics)

    def part_gradient(part: TrainBatch):
      (_, (values, diagnostics)), gradient = jax.value_and_grad(
        part_loss, has_aux=True
      )(params, part)
      return gradient, values, diagnostics

    gradient, values, diagnostics = total(_accumulate(part_gradient, parts))
    metrics = {f"loss/{name}": value for name, value in values.items()}
    metrics["loss"] = sum(values.values())
    for name, ratio in diagnostics.items():
      metrics[name] = ratio.value()
    return gradient, metrics

  return gradient


def make_update(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  num_microbatches: int = 1,
) -> Update:
  """Makes the one training step that every lift wraps.

  Args:
    objective: what is minimised.
    optimizer: how the parameters follow the gradient.
    num_microbatches: parts that pass through the model one after the other.

  Returns:
    A pure function `update(state, batch, *, axis_name=None) -> (state,
    metrics)`.
  """
  gradient_of = make_gradient(objective, num_microbatches=num_microbatches)

  def update(
    state: TrainState, batch: TrainBatch, *, axis_name: str | None = None
  ) -> tuple[TrainState, dict[str, Array]]:
    gradient, metrics = gradient_of(state.params, batch, axis_name=axis_name)
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
      params=params, opt_state=opt_state, step=state.step + 1
    )
    return state, metrics

  return update


def _denominators(
  objective: Objective, params: PyTree, part: TrainBatch
) -> dict[str, Array]:
  terms, _ = objective(params, part)
  return {
    name: jax.lax.stop_gradient(term.denominator)
    for name, term in terms.items()
  }


def _accumulate(fn: Callable[[TrainBatch], PyTree], parts: TrainBatch):
  """Adds up `fn` over the leading axis of `parts`, one sum in memory."""
  first = jax.tree.map(lambda x: x[0], parts)
  if parts.tokens.shape[0] == 1:
    return fn(first)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, first)
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, fn(part)), None

  return jax.lax.scan(add, zeros, parts)[0]


def _over_devices(tree: PyTree, *, axis_name: str | None) -> PyTree:
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)
