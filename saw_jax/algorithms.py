"""The tables from names to functions, and what a config makes of them.

Strings exist because configs hold data. They end here: a name that is not in a
table stops the run with the nearest one, and so does an option that its
function does not take. What a name stands for can also be passed as a function.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from saw_jax import (
  advantages,
  component_advantages,
  losses,
  naming,
  stale_losses,
  step_advantages,
  trust_masks,
  trust_regions,
  weighting,
  world_model,
)
from saw_jax.reductions import Ratio
from saw_jax.settings import constant
from saw_jax.training import objective
from saw_jax.training.estimation import WorldModel

ADVANTAGES = {
  "grpo": advantages.grpo,
  "dr_grpo": advantages.dr_grpo,
  "rloo": advantages.rloo,
  "reinforce_plus_plus_baseline": functools.partial(
    advantages.dr_grpo, whiten=advantages.token_whiten
  ),
  "gdpo": advantages.gdpo,
  "gpg": advantages.gpg,
  "gpg_nonzero": functools.partial(advantages.gpg, counted=advantages.rewarded),
  "mo_grpo": functools.partial(advantages.gdpo, whiten=None),
  "dvao": component_advantages.dvao,
  "gd2po": component_advantages.gd2po,
  "gd2po_hard": functools.partial(component_advantages.gd2po, tau=np.inf),
  "opmd": component_advantages.opmd,
}

# Of the steps of episodes: they name an argument `steps`.
STEP_ADVANTAGES = {
  "step_grpo": step_advantages.step_grpo,
  "trajectory_grpo": step_advantages.trajectory_grpo,
  "trajectory_center": functools.partial(
    step_advantages.trajectory_grpo, eps=None
  ),
  "step_rloo": step_advantages.step_rloo,
  "gigpo": step_advantages.gigpo,
  "step_gae": step_advantages.gae,
  "brace": step_advantages.brace,
}

# "gradient" has no function of the rewards: its weights persist over steps.
WEIGHTS = {
  "equal": weighting.equal_weights,
  "static": weighting.static_weights,
  "saw": weighting.saw_weights,
  "group_saw": functools.partial(
    weighting.saw_weights, statistic=weighting.group_coefficient
  ),
  "inverse_saw": functools.partial(
    weighting.saw_weights, statistic=weighting.inverse_coefficient
  ),
  "deviation": functools.partial(
    weighting.saw_weights, statistic=weighting.deviation
  ),
  "saturation": weighting.saturation_weights,
  "schedule": weighting.scheduled_weights,
  "dual": weighting.dual_weights,
  "gradient": None,
}

AGGREGATES = {
  "token_mean": losses.token_mean,
  "sequence_mean_token_mean": losses.sequence_mean_token_mean,
  "sequence_mean_token_sum": losses.sequence_mean_token_sum,
  "sequence_mean_token_sum_const": losses.sequence_mean_token_sum_const,
}

# GPG is "policy_gradient" with advantage "gpg" and aggregate "token_mean"; the
# naive loss has advantage "dr_grpo" and "sequence_mean_token_mean".
LOSSES = {
  "clipped_surrogate": losses.clipped_surrogate_loss,
  "policy_gradient": losses.policy_gradient_loss,
  "spo": stale_losses.spo_loss,
  "asympo": stale_losses.asympo_loss,
  "batch_asympo": stale_losses.batch_asympo_loss,
  "gspo": stale_losses.gspo_loss,
  "cispo": stale_losses.cispo_loss,
  "tis_reinforce": stale_losses.tis_reinforce_loss,
  "tis": stale_losses.tis_loss,
  "topr": stale_losses.topr_loss,
  "decoupled_ppo": stale_losses.decoupled_ppo_loss,
  "a3po": trust_regions.a3po_loss,
  "dppo_kl": trust_regions.dppo_kl_loss,
  "sapo": trust_regions.sapo_loss,
  "quadratic": trust_regions.quadratic_loss,
  "importance": trust_regions.importance_loss,
}

# What an update decides of all its rows: `keep` and `step_size`, in the options
# of the loss, with options of their own. "m2po" is the final paper's.
KEEPS = {
  "m2po": trust_masks.keep_second_moment,
  "m2po_bounds": trust_masks.keep_within_bounds,
  "m2po_all": trust_masks.keep_second_moment_of_all,
  "off_policy_sequence": trust_masks.keep_likely_responses,
}
STEP_SIZES = {"effective": trust_masks.effective_step_size}

KL_ESTIMATORS = {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}

# What makes a world model: the loss of a token, ...
TOKEN_LOSSES = {
  "clipped_absolute_error": world_model.clipped_absolute_error,
  "absolute_error": world_model.absolute_error,
  "reversed_absolute_error": world_model.reversed_absolute_error,
  "hinge": world_model.hinge,
  "cross_entropy": world_model.cross_entropy,
}

# ... what an action's entropy is, ...
MEASURES = {
  "entropy": world_model.action_entropy,
  "printed": world_model.printed_action_entropy,
  "nll": stale_losses.sequence_nll,
}

# ... which transitions are learned from, ...
SELECTIONS = {
  "highest_entropy": world_model.highest_entropy,
  "lowest_entropy": world_model.lowest_entropy,
  "random": world_model.random_transitions,
}

# ... how much a group's count, and how they add up.
COEFFICIENTS = {
  "adaptive": world_model.adaptive_coefficients,
  "constant": world_model.constant_coefficients,
}
ROW_AGGREGATES = {
  "group_mean": world_model.group_mean,
  "flat_selected": world_model.flat_selected,
  "flat_rows": functools.partial(world_model.flat_selected, of_all=True),
  "flat_tokens": world_model.flat_tokens,
}

# Options whose values are names, too.
WHITENINGS = {
  "token": advantages.token_whiten,
  "sequence": advantages.sequence_whiten,
  "none": None,
}
NORMALIZATIONS = {
  "mean_std": advantages.normalize_groups,
  "mean": advantages.center_groups,
}
RATIOS = {
  "token": losses.token_ratio,
  "sequence": losses.sequence_ratio,
  "geometric": losses.geometric_ratio,
}
BOUNDS = {"truncate": stale_losses.truncate, "mask": stale_losses.drop}
OPTIONS = {
  "whiten": ("whitening", WHITENINGS),
  "normalize": ("normalization", NORMALIZATIONS),
  "ratio_of": ("ratio", RATIOS),
  "clipped_ratio": ("ratio", RATIOS),
  "measured_by": ("ratio", RATIOS),
  "outside": ("treatment of weights", BOUNDS),
}
# Where numbers lie, whatever has an option of the name.
_RANGES = {
  **dict.fromkeys(("clip_low", "clip_high", "floor", "cap"), "[0, inf]"),
  **dict.fromkeys(("r_min", "r_max", "negative_weight", "eps"), "[0, inf]"),
  **dict.fromkeys(("rho", "lambda_", "p_low", "p_high"), "[0, 1]"),
  "dual_clip": "(1, inf]",
}


# A name of a table, the place of a function (`my_losses.py:mine`), or one.
Choice = str | Callable
# A number, or a function of the step, which is traced: int32 `[]`.
Schedule = float | Callable


@dataclasses.dataclass(frozen=True)
class KLConfig:
  """Where and how the policy is kept near the reference."""

  placement: str = "none"  # none, loss or reward
  estimator: Choice = "k3"  # KL_ESTIMATORS
  coefficient: Schedule = 0.0  # what it is multiplied by
  # Allow k1 in the loss, whose gradient is zero on average.
  force: bool = constant(False)


@dataclasses.dataclass(frozen=True)
class WorldModelConfig:
  """PaW's term, or a control of it; ECHO is cross-entropy of all, constant."""

  loss: Choice = "none"  # TOKEN_LOSSES
  loss_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  entropy: Choice = "entropy"  # MEASURES
  selection: Choice = "highest_entropy"  # SELECTIONS
  alpha: float = 0.75  # share of the transitions that is selected
  coefficients: Choice = "adaptive"  # COEFFICIENTS
  coefficient_options: Mapping[str, Any] = dataclasses.field(
    default_factory=dict
  )
  aggregate: Choice = "group_mean"  # ROW_AGGREGATES
  shuffled: bool = False  # observations change places: the placebo


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """Which functions a run is made of."""

  advantage: Choice = "grpo"  # ADVANTAGES, STEP_ADVANTAGES
  advantage_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  weights: Choice = "equal"  # WEIGHTS
  weights_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  loss: Choice = "clipped_surrogate"  # LOSSES
  # And `truncated`, of responses that did not end: learn; mask: leave them out
  # of the loss; drop: also out of all statistics of rewards, as if unscored.
  # And `keep` (KEEPS) and `step_size` (STEP_SIZES), with their options, and
  # `gradient_cosine`, to log how far consecutive gradients agree, and
  # `gradient_norms`, to log each term's, at the price of a backward pass each.
  loss_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ratio_to: str = "old"  # or behave: a clipped ratio to the sampler's own
  aggregate: Choice = "token_mean"  # AGGREGATES
  aggregate_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  entropy_coefficient: Schedule = 0.0  # of a bonus; 0: none
  kl: KLConfig = KLConfig()
  value_coefficient: float = constant(0.5)  # where the advantage reads values
  world_model: WorldModelConfig = WorldModelConfig()


class Method(NamedTuple):
  """The functions that a config names."""

  advantage: Callable
  weights: Callable | None  # None: gradient weighting
  gradient_options: Mapping[str, Any]
  terms: dict[str, objective.Term]
  kl_in_reward: tuple[Callable, Schedule] | None
  needs_reference: bool
  # By the policy's loss, the first of them after a rollout's first update.
  needs_old: bool = False
  needs_behave: bool = False
  needs_lags: bool = False
  keep: Callable | None = None  # of `trust_masks`, as is the step size
  step_size: Callable | None = None
  carries: bool = False  # the weights of a step into the next
  compares: bool = False  # consecutive gradients
  by_term: bool = False  # the gradient of each term is measured
  per_step: bool = False  # the advantage is of steps
  reads_values: bool = False  # the advantage is against a value head
  reads_ratios: bool = False  # and corrects for what the policy has become
  whiten: Callable | None = None  # of steps, over the batch
  world: WorldModel | None = None
  truncated: str = "learn"  # mask or drop: responses that did not end
  diagnostics: tuple[objective.DiagnosticFn, ...] = (
    objective.mean_entropy,
    objective.balance,
    objective.sampler_mismatch,
    objective.kept_share,
  )


def resolve(
  choice: str | Callable,
  options: Mapping[str, Any],
  table: Mapping[str, Callable | None],
  what: str,
  **defaults: Any,
) -> Callable:
  """The function that a name, a place or a function stands for, with options.

  `defaults` are options that it may not have.
  """
  if isinstance(choice, str) and ":" in choice:
    choice = naming.load(choice)
  fn, label = choice, what
  if not callable(choice):
    fn, label = naming.lookup(table, choice, what), f"{what} {choice!r}"
  known = naming.options(fn)
  naming.check_options(list(known), options, label)
  for name, value in options.items():
    is_number = type(known[name]) in (int, float)
    is_nan = isinstance(value, float) and value != value
    if is_number and (is_nan or isinstance(value, str)):
      raise ValueError(
        f"{label}: {name} is {value!r}; it must be a number, as {known[name]}"
      )
    if name in _RANGES and isinstance(value, int | float):
      said = f"{label}: {name}"
      given = types.SimpleNamespace(**{said: value})
      naming.check_range(given, _RANGES[name], said)
  bound = {k: x for k, x in defaults.items() if k in known}
  bound |= {k: _value(k, x) for k, x in options.items()}
  return functools.partial(fn, **bound) if bound else fn


def _taken(
  options: dict[str, Any], table: Mapping[str, Callable], what: str
) -> Callable | None:
  """Takes a choice, and its own options, out of those of a loss."""
  choice = options.pop(what, "none")
  if choice == "none":
    return None
  known = naming.options(resolve(choice, {}, table, what))
  own = {name: options.pop(name) for name in known if name in options}
  return resolve(choice, own, table, what)


def schedule(given: str | Schedule) -> Schedule:
  """A number, or a function of the step, also by its place."""
  return naming.load(given) if isinstance(given, str) else given


def _value(option: str, value: Any) -> Any:
  """What the value of an option stands for: a function, or an array."""
  if option in OPTIONS and isinstance(value, str):
    what, table = OPTIONS[option]
    return naming.lookup(table, value, what)
  if isinstance(value, list | tuple):
    return np.asarray(value, np.float32)
  return value


def make_method(
  config: AlgorithmConfig, minima: np.ndarray, maxima: np.ndarray | float = 1.0
) -> Method:
  """Turns names into functions; a weighting that reads bounds gets these."""
  table = ADVANTAGES | STEP_ADVANTAGES
  options, whiten = dict(config.advantage_options), None
  plain = resolve(config.advantage, {}, table, "advantage")
  per_step = "steps" in naming.arguments(plain)
  if per_step:  # No advantage of steps whitens by itself.
    whiten = _value("whiten", options.pop("whiten", None))
  advantage = resolve(config.advantage, options, table, "advantage")
  reads = naming.arguments(advantage)

  weights, gradient_options = None, config.weights_options
  if config.weights != "gradient":
    options, gradient_options = gradient_options, {}
    bounds = {"minima": minima, "maxima": maxima}
    bounds = {k: np.asarray(x, np.float32) for k, x in bounds.items()}
    weights = resolve(config.weights, options, WEIGHTS, "weighting", **bounds)
  carries = weights is not None and "persistent" in naming.arguments(weights)
  options = config.aggregate_options
  aggregate = resolve(config.aggregate, options, AGGREGATES, "aggregate")
  if needed := naming.needed(aggregate):
    said = f"aggregate {naming.name_of(aggregate)!r} needs aggregate_options"
    raise TypeError(f"{said}: {', '.join(needed)}")
  options = dict(config.loss_options)
  if "aggregate" in options:
    raise TypeError("the aggregate is a field of its own, not a loss_option")
  truncated = options.pop("truncated", "learn")
  naming.lookup(dict(learn=0, mask=0, drop=0), truncated, "truncated")
  keep = _taken(options, KEEPS, "keep")
  step_size = _taken(options, STEP_SIZES, "step_size")
  compares = bool(options.pop("gradient_cosine", False))
  by_term = bool(options.pop("gradient_norms", False))
  loss = resolve(config.loss, options, LOSSES, "loss", aggregate=aggregate)

  kl, in_reward, term = config.kl, None, objective.Term
  terms: dict[str, objective.Term] = {}  # beside the policy's
  if config.entropy_coefficient:
    size = schedule(config.entropy_coefficient)
    terms["entropy"] = term(objective.entropy, size)
  if "values" in reads:
    terms["value"] = term(objective.value, config.value_coefficient)
  world = make_world_model(config.world_model)
  if world is not None:
    terms["world_model"] = objective.world(world.token_loss)
  # A KL stands where its gradient does something.
  estimator = resolve(kl.estimator, {}, KL_ESTIMATORS, "KL estimator")
  if kl.placement == "loss":
    if estimator is losses.kl_k1 and not kl.force:
      raise ValueError(
        "k1 in the loss has the gradient of log π, whose mean is 0: noise that "
        "holds nothing near the reference. Put k1 in the reward, take k2 or k3 "
        "in the loss, or force it."
      )
    fn = objective.kl(estimator, aggregate=aggregate)
    terms["kl"] = term(fn, schedule(kl.coefficient))
  elif kl.placement == "reward":
    in_reward = estimator, schedule(kl.coefficient)
    if per_step or "penalties" not in reads:
      raise ValueError(
        f"KL in the reward has no place in {naming.name_of(advantage)}, which "
        "compares steps or normalises each component: set kl.placement='loss'"
      )
  elif kl.placement != "none":
    raise ValueError(f'KL placement {kl.placement!r} is not "loss" or "reward"')
  method = Method(
    *(advantage, weights, gradient_options, terms, in_reward),
    needs_reference=kl.placement != "none",
    per_step=per_step,
    reads_values="values" in reads,
    reads_ratios="ratios" in reads,
    whiten=whiten,
    world=world,
    truncated=truncated,
    keep=keep,
    step_size=step_size,
    carries=carries,
    compares=compares,
    by_term=by_term,
  )
  return with_loss(method, loss, ratio_to=config.ratio_to)


def with_loss(
  method: Method, loss: Callable[..., Ratio], *, ratio_to: str = "old"
) -> Method:
  """Puts another policy loss into a method: one of your own, in no table.

  What the loss reads beside the current policy's log-probs, the names of its
  arguments say (`objective.policy`, also for `ratio_to`), and it is recorded.
  All else of the method stays: advantages, weights, and the other terms.
  """
  terms = {"policy": objective.policy(loss, ratio_to=ratio_to)}
  terms |= {k: x for k, x in method.terms.items() if k != "policy"}
  needs = objective.recorded_log_probs(loss)
  if ratio_to == "behave":
    needs = ("behave_log_probs",)
  return method._replace(
    terms=terms,
    needs_old="old_log_probs" in needs,
    needs_behave=any(
      ("behave_log_probs" in needs, method.keep, method.step_size)
    ),
    needs_lags="lags" in needs,
  )


def make_world_model(config: WorldModelConfig) -> WorldModel | None:
  """Turns the names of a world model into functions; None if there is none."""
  if config.loss == "none":
    return None
  if not 0 < config.alpha <= 1:
    raise ValueError(f"world_model.alpha is no share in (0, 1]: {config.alpha}")
  table, options = {"none": None, **TOKEN_LOSSES}, config.coefficient_options
  measure = resolve(config.entropy, {}, MEASURES, "entropy of an action")
  return WorldModel(
    resolve(config.loss, config.loss_options, table, "world-model loss"),
    functools.partial(naming.supply, measure),
    resolve(config.selection, {}, SELECTIONS, "selection", alpha=config.alpha),
    resolve(config.coefficients, options, COEFFICIENTS, "coefficient"),
    resolve(config.aggregate, {}, ROW_AGGREGATES, "aggregate of rows"),
    config.shuffled,
  )
