"""CARE where the uncertain are not the wrong: which labels are worth buying.

  saw train --workdir=runs/confident --seeds=0,1 \
    --config=care/confident:row=care,fraction=0.02,scale=tiny

Arithmetic in three families, whose supervised start is of three minds:
  subtraction     surely wrong: one too many in nine of ten answers, and right
                  in the others. Its votes are wrong, and look certain.
  multiplication  right in six of ten answers, and wrong in many ways in the
                  others. Its votes are right, and look uncertain.
  the others      right.
A label of a sum buys nothing, one of a product next to nothing, and uncertainty
finds the products first. What finds the subtractions?

Rows: truth, vote, random, entropy, care, oracle, random_gate, entropy_gate and
care_no_gate of configs/care/knights.py, and `margin`, which buys where the vote
is least ahead of the next answer. `oracle` breaks ties of the gap by entropy.
By `--rows` alone `trapo`, a rival of 2026: as many labels as the others buy in
all, of a fixed part of 400 prompts that come back, and the votes of those that
are learned as the labelled ones are.

No paper has this table: it is the argument of arXiv 2605.25864, where it has
to hold. Ours: results/care/confident/.
"""

import dataclasses

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import Needs
from saw_jax.run import config as base

from . import knights, math

_FREE = ("truth", "vote")
_BUYERS = ("random", "entropy", "margin", "care", "oracle")
_CONTROLS = ("random_gate", "entropy_gate", "care_no_gate")
_POOL = 400  # prompts of `trapo`, which has to meet them again
ROWS = (*_FREE, *_BUYERS, *_CONTROLS, "trapo")
SCALES = ("tiny",)
FRACTIONS = ("0.02", "0.05", "0.1", "0.2")
_AT = "0.02"


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=care,fraction=0.02,scale=tiny`, say."""
  chosen = base.arguments(
    argument,
    row=("care", *ROWS),
    scale=SCALES,
    fraction=FRACTIONS,
  )
  config = math.get_config("row=care,scale=tiny")
  config.warm_start.options.update(
    misled_rate=0.9, dispersing=("*",), dispersed_rate=0.6
  )
  config.loop.prompts_per_step = 50  # 2 % are one label
  config.loop.num_microbatches = 50
  fraction = float(chosen["fraction"])
  if chosen["row"] == "trapo":
    config.task.options.num_train = _POOL
    asked = config.loop.num_steps * config.loop.prompts_per_step
    fraction = min(1.0, fraction * asked / _POOL)
  knights.set_row(config, chosen["row"], fraction)
  return config


# --- the table that `saw table` makes -----------------------------------------

TABLE = dataclasses.replace(
  math.TABLE,
  title="CARE where wrong votes are certain",
  caption=": held out, labels for 2 % of the prompts of a step",
  get_config=get_config,
  rows=ROWS,
  several=knights.several(
    dict.fromkeys(_FREE, ())
    | dict.fromkeys(_BUYERS, FRACTIONS)
    | dict.fromkeys(_CONTROLS, (_AT,))
    | {"trapo": FRACTIONS[:2]}
  ),
  on_request=tuple(f"trapo_{fraction}" for fraction in FRACTIONS[:2]),
  at=float(_AT),
  needs={
    "tiny": Needs(
      model="a decoder of 0.1 M parameters, trained here and misled",
      data="generated arithmetic",
      scored_on="held-out problems",
    ),
  },
  sections=(*sections.LABELS, sections.draw_choices(*_BUYERS)),
  panels={
    "no labels": _FREE,
    "2 % of the labels": _BUYERS,
    "controls": _CONTROLS,
  },
  primary=("care - entropy", "right, sampled"),
  controls=("care - entropy_gate",),
  comparisons=(
    ("care", "random"),
    ("care", "entropy"),
    ("care", "margin"),
    ("care", "random_gate"),
    ("care", "entropy_gate"),
    ("care", "care_no_gate"),
    ("care", "truth"),
    ("oracle", "entropy"),
  ),
  benchmarks={},
  metrics_at={},
)
