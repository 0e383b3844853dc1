"""All four methods in one run, on tool calling, and each taken away.

  saw train --workdir=runs/composed --seeds=0,1 \
    --config=composed/tool_calling:row=all,scale=tiny

The policy calls tools; the tools answer. It learns from responses of weights
that are four updates old (ASymPO's loss, current log-probs alone), with two
rewards (SAW), of which a fifth of the prompts have a label and another part the
vote of their group (CARE), and to predict what the tools say (PaW), which
needs no label.

Rows:
  all                       SAW, PaW, ASymPO and CARE on GDPO at a lag of 4
  without_saw               equal weights
  without_paw               no world model
  without_asympo            GRPO's clipped loss, to the sampler's log-probs
  without_care              as many labels, bought at random; no gate
  only_saw, only_paw, only_asympo, only_care
                            the other three taken away
  none                      GDPO with equal weights and random labels

Scales:
  tiny   the requests of saw/tool_calling, whose tools can be run

No paper has this table.
"""

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import Needs, Table
from saw_jax.run import config as base
from saw_jax.run import methods

from ..saw import tool_calling

METHODS = ("saw", "paw", "asympo", "care")
ROWS = (
  "all",
  *(f"without_{method}" for method in METHODS),
  *(f"only_{method}" for method in METHODS),
  "none",
)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=without_paw,scale=tiny`, say."""
  config, chosen = base.start("tool_calling", argument, SCALES, row=ROWS)
  set_methods(config, methods_of(chosen["row"]))
  return config


def methods_of(row: str) -> tuple[str, ...]:
  """Returns the methods of a row."""
  kind, _, method = row.partition("_")
  return {
    "all": METHODS,
    "without": tuple(m for m in METHODS if m != method),
    "only": (method,),
    "none": (),
  }[kind]


def set_methods(
  config: ml_collections.ConfigDict, chosen: tuple[str, ...]
) -> None:
  """Turns methods on, each by the keys that are its own."""
  methods.set_method(config, "+".join(("gdpo", *chosen)))
  config.asynchronous.protocol = "fixed_lag"
  config.asynchronous.lag = 4
  if "asympo" not in chosen:
    config.algorithm.aggregate = "sequence_mean_token_mean"
    config.algorithm.ratio_to = "behave"
    config.algorithm.loss_options.update(clip_low=0.2, clip_high=0.2)
  if "care" not in chosen:
    config.labels.method = "random"
  config.labels.label_fraction = 0.2


def _tiny(config: ml_collections.ConfigDict) -> None:
  tool_calling.set_tiny(config)
  config.loop.num_steps = 100
  config.loop.prompts_per_step = 20
  config.loop.num_microbatches = 20  # parts that stay in a core's cache
  config.loop.checkpoint_interval = 50
  config.episodes.max_observation_tokens = 32
  config.labels.probe.length_scale = 64.0


SCALES = {"tiny": _tiny}

# --- the table that `saw table` makes -----------------------------------------

TABLE = Table(
  title="Four methods in one run, tool calling",
  get_config=get_config,
  rows=ROWS,
  needs={
    "tiny": Needs(
      data="generated requests",
      scored_on="held-out requests",
      hours=1.8,
      extras=("report", "hf"),
    )
  },
  sections=sections.FIGURES,
  window=10,
  metrics={
    "right, greedy": "greedy/right",
    "right, sampled": "sampled/right",
    "correctness, greedy": "greedy/correctness",
    "format, greedy": "greedy/format",
  },
  curves={
    "audit/correct": "share of right calls",
    "audit/vote_right": "votes that are right",
    "weight/format": "weight of the format",
    "observation_nll": "NLL of what the tools say",
  },
  panels={
    "all or none": ("all", "none"),
    "one taken away": ("all", *(f"without_{m}" for m in METHODS), "none"),
    "one alone": ("all", *(f"only_{m}" for m in METHODS), "none"),
  },
  primary=("all - none", "right, sampled"),
  comparisons=(
    ("all", "none"),
    *(("all", f"without_{method}") for method in METHODS),
    *((f"only_{method}", "none") for method in METHODS),
  ),
  compared={"audit/correct": "share of right calls"},
)
