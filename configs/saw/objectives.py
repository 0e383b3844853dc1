"""SAW where it must help: four objectives, the easy ones learned early.

  saw train --workdir=runs/objectives --seeds=0,1 \
    --config=saw/objectives:row=gdpo_saw,scale=tiny

Tool calling whose reward is told apart (tasks/tool_calling/objectives.py):
  format      right in half of the start's answers, soon in nearly all; its
              reward is wrong in five answers of a hundred, to the end
  names       right in three of four of the start's calls
  parameters  the same
  values      right in half, and learned until the end; it counts three
A weight for what still varies should go to the values, and not to the format,
which goes on varying and teaches nothing.

Rows: gdpo, gdpo_saw, grpo, grpo_saw, and the controls of gdpo_saw
  gdpo_inverse   inverse coefficients: most for what varies least
  gdpo_static    weights that somebody sets who knows which is hard: .5 each,
                 and 2.5 for the values
  gdpo_coin, gdpo_saw_coin  a fifth reward, a coin that nobody can learn
By `--rows` alone, rivals of 2026: sa_mrpo, dvao, gd2po, gd2po_hard, mo_grpo,
and gdpo_schedule, whose weights go by step from equal ones to those of
gdpo_static, which they reach in the middle of the run.

No paper has this table: it is the argument of arXiv 2606.07705, where it has to
hold. Ours: results/saw/objectives/.
"""

import dataclasses

import ml_collections

from saw_jax.reporting.table import Needs
from saw_jax.run import config as base
from saw_jax.run import methods

from . import tool_calling

_COIN = "_coin"
_EQUAL = (1.0, 1.0, 1.0, 1.0)
_STATIC = (0.5, 0.5, 0.5, 2.5)
_CONTROLS = ("gdpo_inverse", "gdpo_static", "gdpo_coin", "gdpo_saw_coin")
_RIVALS = ("gdpo_schedule", "sa_mrpo", "dvao", "gd2po", "gd2po_hard", "mo_grpo")
ROWS = ("gdpo_saw", "gdpo", "grpo_saw", "grpo", *_CONTROLS, *_RIVALS)
SCALES = ("tiny",)
OBJECTIVES = ("format", "names", "parameters", "values")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gdpo_saw,scale=tiny`, say."""
  chosen = base.arguments(argument, row=ROWS, scale=SCALES)
  config = tool_calling.get_config(f"row=gdpo,scale={chosen['scale']}")
  config.task.name = "tool_objectives"
  config.task.options.update(no_call_share=0.0, error_rate=0.05)
  config.warm_start.options.update(format_rate=0.5, call_rate=0.5)
  row = chosen["row"]
  if row.endswith(_COIN):
    config.task.options.objectives = (*OBJECTIVES, "coin")
    row = row.removesuffix(_COIN)
  if row == "gdpo_inverse":
    config.algorithm.weights = "inverse_saw"
  else:
    joined = row if row in methods.METHODS else row.replace("_", "+")
    methods.set_method(config, joined)
  if row == "gdpo_static":
    config.algorithm.weights_options.values = _STATIC
  if row == "gdpo_schedule":
    config.algorithm.weights_options.update(
      steps=(0.0, config.loop.num_steps / 2), values=(_EQUAL, _STATIC)
    )
  return config


# --- the table that `saw table` makes -----------------------------------------

TABLE = dataclasses.replace(
  tool_calling.TABLE,
  title="SAW on four objectives",
  get_config=get_config,
  rows=ROWS,
  on_request=_RIVALS,
  needs={
    "tiny": Needs(
      data="generated requests",
      scored_on="held-out requests",
      extras=("report", "hf"),
    ),
  },
  components=OBJECTIVES,
  metrics={
    f"{name}, {mode}": f"{mode}/{name}"
    for mode in ("sampled", "greedy")
    for name in ("right", *OBJECTIVES)
  },
  thresholds={"reward/values": 2.0},
  primary=("gdpo_saw - gdpo", "right, sampled"),
  comparisons=(
    ("gdpo_saw", "gdpo"),
    ("gdpo_saw", "gdpo_static"),
    ("gdpo_saw", "gdpo_inverse"),
    ("gdpo_static", "gdpo"),
    ("gdpo_coin", "gdpo"),
    ("gdpo_saw_coin", "gdpo_saw"),
    ("gdpo_saw_coin", "gdpo_coin"),
    ("grpo_saw", "grpo"),
    *(("gdpo_saw", rival) for rival in _RIVALS),
  ),
  compared={f"reward/{name}": f"reward/{name}" for name in OBJECTIVES},
  benchmarks={},
  metrics_at={},
  published=(),
  published_at={},
)
