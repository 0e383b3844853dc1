"""One update: the gradient of a sum, divided once.

Every term of the objective is a numerator and a denominator. Both are added
over micro-batches and devices before anything is divided, so that one device,
many devices and many micro-batches give the same step: a mean of the parts'
means would weigh the tokens of a part with few tokens more.
"""

import functools
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from saw_jax import diagnostics, reductions
from saw_jax.training.batch import TrainBatch, split_rows
from saw_jax.training.objective import Objective
from saw_jax.types import Array, Numeric, PyTree


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes; keys are functions of seed and step.

  With the `seeded` lift each array has a leading axis of `N` seeds.
  """

  params: PyTree
  opt_state: PyTree
  step: Array  # int32 [], updates done, skipped ones included
  weights: Array  # float32 [M], persistent reward weights, summing to 1
  gradient: PyTree | None = None  # the last one, where it is compared


def create_state(
  params: PyTree,
  optimizer: optax.GradientTransformation,
  num_components: int = 1,
  *,
  compares: bool = False,
) -> TrainState:
  """Makes the state before the first step, with equal reward weights.

  An update of one that `compares` logs `diagnostics.gradient_cosine`.
  """
  weights = jnp.full((num_components,), 1 / num_components, jnp.float32)
  step = jnp.zeros((), jnp.int32)
  zeros = jax.tree.map(jnp.zeros_like, params) if compares else None
  return TrainState(params, optimizer.init(params), step, weights, zeros)


def stack_states(states: list[TrainState]) -> TrainState:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def take_seed(state: PyTree, index: int) -> PyTree:
  return jax.tree.map(lambda leaf: leaf[index], state)


# (state, batch, base, *, axis_name) -> (state, metrics)
Update = Callable[..., tuple[TrainState, dict[str, Array]]]
# (base, adapters) -> params
Merge = Callable[[PyTree, PyTree], PyTree]


def make_gradient(
  objective: Objective,
  *,
  num_microbatches: int = 1,
  merge: Merge | None = None,
  by_term: bool = False,
) -> Callable[..., tuple[PyTree, dict[str, Array]]]:
  """Makes `(params, batch, base, step, *, axis_name) -> (gradient, metrics)`.

  The gradient is that of `sum_k numerator_k / denominator_k`; the metrics hold
  `loss`, each term as `loss/<name>` and each diagnostic, as scalars. With
  `merge`, `params` are adapters, and the gradient is theirs; `base` is what
  they are joined with, and gets none. `step` is for schedules. With `by_term`
  the metrics have `gradient_norm/<name>`, for a backward pass each.
  """

  def gradient(params, batch, base=None, step=None, *, axis_name=None):
    whole = functools.partial(merge, base) if merge else lambda params: params
    parts = split_rows(batch, num_microbatches)

    def total(fn: Callable[[TrainBatch], PyTree]):
      return _over_devices(_accumulate(fn, parts), axis_name)

    # Denominators count masks, so that what computes the numerators here is
    # dead code, which the compiler removes. One that reads the policy, as that
    # of `batch_asympo_loss`, is right too, and costs a forward pass.
    def count(part: TrainBatch):
      terms, _ = objective(whole(params), part, step)
      return {k: jax.lax.stop_gradient(t.denominator) for k, t in terms.items()}

    denominators = total(count)

    def part_gradients(part: TrainBatch):
      def losses(params: PyTree):
        # Merged again for each part: what adds up over parts is then of the
        # adapters' size.
        terms, diagnostics = objective(whole(params), part, step)
        return {
          name: reductions.Ratio(term.numerator, denominators[name]).value()
          for name, term in terms.items()
        }, diagnostics

      values, pull, found = jax.vjp(losses, params, has_aux=True)

      def of_sum(names: list[str]) -> PyTree:
        ones = {k: jnp.full_like(x, k in names) for k, x in values.items()}
        return pull(ones)[0]

      sums = [[name] for name in values] if by_term else [[*values]]
      return [of_sum(names) for names in sums], values, found

    gradients, values, diagnostics = total(part_gradients)
    metrics = {f"loss/{name}": value for name, value in values.items()}
    if by_term:
      for name, own in zip(values, gradients, strict=True):
        metrics[f"gradient_norm/{name}"] = optax.tree.norm(own)
    gradient = functools.reduce(optax.tree.add, gradients)
    logged = {name: found.value() for name, found in diagnostics.items()}
    metrics |= {"loss": sum(values.values()), **logged}
    return gradient, metrics

  return gradient


def make_update(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  num_microbatches: int = 1,
  num_minibatches: int = 1,
  merge: Merge | None = None,
  can_overflow: bool = True,  # `OptimizerConfig.can_overflow`
  by_term: bool = False,
  decide: Callable[..., tuple[TrainBatch, Array | None]] | None = None,
) -> Update:
  """Makes `(state, batch, base=None, *, axis_name=None) -> (state, metrics)`.

  It is pure, and the one training step that every lift wraps. An update whose
  loss, gradient, new parameters or new optimizer state are not finite leaves
  parameters and optimizer as they were, and the metric `skipped` is 1 instead
  of 0. It counts in `state.step` all the same, so that the number of an update
  says which batch it had. Schedules are of the step, which has
  `num_minibatches` updates. `decide`, of `objective.make_decide`, is asked
  before the batch is split.
  """
  gradient_of = make_gradient(
    objective, num_microbatches=num_microbatches, merge=merge, by_term=by_term
  )

  def update(state, batch, base=None, *, axis_name=None):
    factor = None
    if decide is not None:
      params = merge(base, state.params) if merge else state.params
      batch, factor = decide(params, batch, axis_name)
    gradient, metrics = gradient_of(
      *(state.params, batch, base, state.step // num_minibatches),
      axis_name=axis_name,
    )
    norm = optax.tree.norm(gradient)
    # The norm of all devices' gradient: they skip together or not at all.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    old = state.params, state.opt_state
    updates, opt_state = optimizer.update(gradient, *old[::-1])
    if factor is not None:
      updates = jax.tree.map(lambda x: (factor * x).astype(x.dtype), updates)
      metrics["step_size"] = factor
    new = optax.apply_updates(state.params, updates), opt_state
    if can_overflow:
      # A parameter of 1e19, whose square overflows, is as lost as infinity.
      size = optax.tree.norm(jax.tree.map(reductions.at_least_float32, new[0]))
      looked_at = (size, *jax.tree.leaves(opt_state))
      finite &= jnp.stack([jnp.isfinite(x).all() for x in looked_at]).all()
    metrics["gradient_norm"] = norm
    metrics["skipped"] = 1 - finite.astype(jnp.float32)
    keep = functools.partial(jnp.where, finite)
    params, opt_state = jax.tree.map(keep, new, old)
    if state.gradient is not None:
      cosine = diagnostics.gradient_cosine(gradient, state.gradient)
      metrics["gradient_cosine"] = cosine
      gradient = jax.tree.map(keep, gradient, state.gradient)
      state = state.replace(gradient=gradient)
    state = state.replace(
      params=params, opt_state=opt_state, step=state.step + 1
    )
    return state, metrics

  return update


def not_finite(metrics: Mapping[str, Numeric]) -> str:
  """Names what was not finite in an update; empty: it was made."""
  if not metrics["skipped"]:
    return ""
  terms = (name for name in metrics if name.startswith("loss/"))
  for name in (*terms, "loss", "gradient_norm"):
    if not np.isfinite(metrics[name]):
      return f"{name} is {metrics[name]}"
  return "parameters or optimizer would not be finite, as updated"


def _accumulate(fn: Callable[[TrainBatch], PyTree], parts: TrainBatch):
  """Merges `fn` over the leading axis of `parts`, one result in memory."""
  first = jax.tree.map(lambda x: x[0], parts)
  if parts.tokens.shape[0] == 1:
    return fn(first)
  nothing = _map_merged(
    lambda x: reductions.Maximum(jnp.full_like(x.greatest, -jnp.inf)),
    jnp.zeros_like,
    jax.eval_shape(fn, first),
  )

  def add(total, part):
    return _map_merged(lambda x, y: x.merge(y), jnp.add, total, fn(part)), None

  return jax.lax.scan(add, nothing, parts)[0]


def _over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
  if axis_name is None:
    return tree
  return _map_merged(
    lambda x: reductions.Maximum(jax.lax.pmax(x.greatest, axis_name)),
    lambda x: jax.lax.psum(x, axis_name),
    tree,
  )


def _map_merged(of_maximum: Callable, of_sum: Callable, *trees: PyTree):
  """Maps `of_maximum` over each `Maximum`, and `of_sum` over all else."""

  def is_maximum(x):
    return isinstance(x, reductions.Maximum)

  def each(x, *rest):
    return (of_maximum if is_maximum(x) else of_sum)(x, *rest)

  return jax.tree.map(each, *trees, is_leaf=is_maximum)
