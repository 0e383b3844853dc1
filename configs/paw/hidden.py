"""PaW where the dynamics are hidden and decide what to do: rooms of chests.

  saw train --workdir=runs/hidden --seeds=0,1 \
    --config=paw/hidden:row=grpo_paw,scale=tiny

Which key is of which chest is told nowhere, differs from room to room, and is
the same in all episodes of a room (saw_jax/tasks/vault/task.py). The supervised
start has seen rooms whose rules never come back, with an expert that errs in
seven actions of ten: it knows the commands and what may be seen after them, as
a language model would, and no rule. What can be done is not listed.

Why not otherwise: a start that never saw observations gives the true ones a
probability of e^-10, where the clipped error has no gradient, and in 28 steps
with eight seeds its likelihood did not move. With eight rooms in place of two,
and an expert that errs in eight of ten, GRPO won 0.01 as its start did, for
38 steps.

Rows are those of configs/paw/household.py that bear on the question, and
  paw_rho_05, paw_rho_50   the bound of the clipped error at .05 and .5, where a
                           vocabulary of 70 pieces moves the probabilities
By `--rows` alone, household's rivals of 2026.

No paper has this table: it is the argument of arXiv 2606.02388, where it has to
hold. Ours: results/paw/hidden/.
"""

import dataclasses

import ml_collections

from saw_jax.reporting.table import Needs
from saw_jax.run import config as base

from . import household

_RHOS = {"paw_rho_05": 0.05, "paw_rho_50": 0.5}
_CONTROLS = ("paw_shuffled", "paw_cross_entropy", "echo", "echo_low")
_CONTROLS += ("paw_lambda_one", "paw_all", *_RHOS)
ROWS = ("grpo", "grpo_paw", "gigpo", "gigpo_paw", *_CONTROLS)
ROWS += household.RIVALS


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gigpo_paw,scale=tiny`, say."""
  config, chosen = base.start(
    "vault", argument, SCALES, row=("grpo_paw", *ROWS)
  )
  row = chosen["row"]
  household.set_row(config, "grpo_paw" if row in _RHOS else row)
  if row in _RHOS:
    config.algorithm.world_model.loss_options.rho = _RHOS[row]
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  household.set_tiny(config)
  config.task.options.update(form="compact", shown=0, rooms=2)
  config.tokenizer.name = "vault"
  base.set_lengths(config, prompt=48, response=(4, 24))
  config.episodes.max_observation_tokens = 16
  config.warm_start.num_demonstrations = 16384
  config.warm_start.options.update(wrong_rate=0.7, rule_per_episode=True)
  config.warm_start.observation_coefficient = 0.05
  config.loop.num_steps = 60


SCALES = {"tiny": _tiny}

# --- the table that `saw table` makes -----------------------------------------

TABLE = dataclasses.replace(
  household.TABLE,
  title="PaW where the dynamics are hidden",
  get_config=get_config,
  rows=ROWS,
  needs={
    "tiny": Needs(
      data="rooms of chests, 20 steps", scored_on="held-out episodes"
    ),
  },
  metrics_at={},
  panels={
    "with and without PaW": ROWS[:4],
    "controls": ("grpo", "grpo_paw", *_CONTROLS),
  },
  comparisons=(
    ("grpo_paw", "grpo"),
    ("gigpo_paw", "gigpo"),
    *((row, "grpo") for row in ("paw_shuffled", "paw_cross_entropy", "echo")),
    *((row, "grpo_paw") for row in _CONTROLS),
    ("echo", "paw_cross_entropy"),
  ),
  published=(),
  published_at={},
)
