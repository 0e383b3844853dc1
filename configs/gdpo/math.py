"""GDPO on math: right answers and short ones, two rewards that compete.

  saw train --workdir=runs/gdpo_math --seeds=0,1 \
    --config=gdpo/math:row=gdpo,scale=tiny

Rows: `grpo` normalises the sum of both rewards, `gdpo` each by itself. With
`_saw` they are weighted by their dispersion; with `_conditioned` only right
answers can be short enough, eq. (8).

Scales:
  tiny   generated arithmetic, whose working may be written out or left away,
         and a limit of 6 tokens, within which an answer of up to three digits
         fits without working; a decoder of 0.1 M parameters
  paper  DeepSeek-R1-Distill-Qwen-1.5B, DeepScaleR's 40,000 problems, at most
         4,000 tokens wanted of 8,000, 500 updates

Paper: arXiv 2601.05242. Published, R1-1.5B on AIME: GRPO 23.1 % right and 10.8
% over the limit, GDPO 29.4 % and 6.5 %. Ours: results/gdpo/math/.
"""

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import ACCELERATORS, Needs, Table, published
from saw_jax.run import config as base

from ..asympo import math

_CHANGES = ("", "_saw", "_conditioned")
ROWS = tuple(f"{row}{c}" for c in _CHANGES for row in ("grpo", "gdpo"))
_NAMES = {
  "math500": "MATH",
  "aime24": "AIME",
  "amc23": "AMC",
  "minerva": "Minerva",
  "olympiad": "Olympiad",
}
_FILES = {name: f"data/{name}.jsonl" for name in _NAMES}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gdpo_saw,scale=tiny`, say."""
  config, chosen = base.start("math", argument, SCALES, row=("gdpo", *ROWS))
  advantage, _, change = chosen["row"].partition("_")
  algorithm = config.algorithm
  algorithm.advantage = advantage
  algorithm.weights = "saw" if change == "saw" else "equal"
  config.task.options.conditioned = change == "conditioned"
  # As in DAPO, which the paper builds on.
  algorithm.loss = "clipped_surrogate"
  algorithm.loss_options.clip_low = 0.2
  algorithm.loss_options.clip_high = 0.28
  algorithm.aggregate = "token_mean"
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  math.set_arithmetic(config)
  config.task.options.length_limit = 6
  base.set_lengths(config, prompt=16, response=24)
  config.warm_start.num_steps = 1200
  config.warm_start.num_demonstrations = 16384
  config.warm_start.options.right_rate = 0.7
  config.warm_start.options.working_rate = 0.7
  config.optimizer.learning_rate = 1e-3
  config.loop.num_microbatches = 4  # parts that stay in a core's cache


def _paper(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.seed = 0
  options.train_path = "data/deepscaler.json"
  options.test_path = "data/math500.jsonl"
  options.benchmarks = dict(_FILES)
  options.grader = "math_verify"
  options.length_limit = 4000
  base.set_pretrained(config, "checkpoints/DeepSeek-R1-Distill-Qwen-1.5B")

  lengths = dict(prompt=(1024, 256), response=(8000, 500))
  base.set_lengths(config, **lengths, is_packed=True)
  config.rollout.long_prompts = "truncate"
  config.sampling.temperature = 1.0

  config.loop.num_steps = 500
  config.loop.prompts_per_step = 512
  config.loop.group_size = 16
  config.loop.num_minibatches = 4
  config.loop.num_microbatches = 64
  config.model.remat = "dots"
  config.loop.checkpoint_interval = 10
  # Groups whose rewards are all equal are replaced by others, without a lag.
  config.asynchronous.protocol = "fixed_lag"
  config.asynchronous.lag = 0
  config.asynchronous.dynamic_sampling = True
  config.evaluation.interval = 0
  config.evaluation.num_examples = 64  # the benchmarks are scored whole
  config.evaluation.batch_size = 64
  config.evaluation.samples = 4
  config.evaluation.temperature = 0.6
  config.evaluation.top_p = 0.95

  config.optimizer.learning_rate = 1e-6
  config.optimizer.weight_decay = 0.01


SCALES = {"tiny": _tiny, "paper": _paper}

# --- the table that `saw table` makes -----------------------------------------

_LEVELS = {"level_1": "level 1", "level_2": "level 2"}


def _columns(names: dict[str, str]) -> dict[str, str]:
  return {
    f"{what}, {heading}": f"{name}/sampled/{figure}"
    for what, figure in (("right", "right"), ("too long", "over_length"))
    for name, heading in names.items()
  }


def _cells(*benchmarks: str) -> tuple:
  return tuple(
    published(
      {f"{row}{change}": f"{row.upper()}{method}" for row in ("grpo", "gdpo")},
      paper="GDPO",
      table=table,
      model=model,
      metric=("accuracy (%)", "exceed length (%)"),
      benchmark=benchmarks,
    )
    for change, method, table, model in (
      ("", "", "Table 3", "R1-1.5B"),
      ("_conditioned", " (conditioned length)", "Table 4", "R1-7B"),
    )
  )


TABLE = Table(
  title="GDPO on math",
  get_config=get_config,
  rows=ROWS,
  needs={
    "tiny": Needs(
      data="generated arithmetic",
      scored_on="held-out problems by level",
      hours=0.2,
    ),
    "paper": Needs(
      model="DeepSeek-R1-Distill-Qwen-1.5B",
      data="DeepScaleR's 40,000 problems",
      scored_on="MATH500, AIME24, AMC23, Minerva, OlympiadBench",
      hardware=ACCELERATORS,
      extras=("report", "hf", "math"),
      files=dict.fromkeys(
        ("data/deepscaler.json", *_FILES.values()), math.OWN_PAGE
      ),
    ),
  },
  sections=sections.FIGURES,
  window=10,
  benchmarks={
    "tiny": dict.fromkeys(_LEVELS, 8),
    "paper": dict.fromkeys(_FILES, 16),
  },
  metrics_at={"tiny": _columns(_LEVELS), "paper": _columns(_NAMES)},
  curves={
    "reward/correct": "share of right answers",
    "reward/length": "reward on the length",
    "length": "tokens of a response",
    "weight/length": "weight of the length",
    "entropy": "entropy",
  },
  panels={
    "equal weights": ("grpo", "gdpo"),
    "SAW": ("grpo_saw", "gdpo_saw"),
    "conditioned length": ("grpo_conditioned", "gdpo_conditioned"),
  },
  primary=("gdpo - grpo", "right, level 2"),
  drawn=("right, level 2", "too long, level 2"),
  comparisons=(
    *((f"gdpo{c}", f"grpo{c}") for c in _CHANGES),
    *((f"{row}_saw", row) for row in ("grpo", "gdpo")),
    *((f"{row}_conditioned", row) for row in ("grpo", "gdpo")),
  ),
  compared={"reward/correct": "share of right answers"},
  published=_cells("AIME"),
  published_at={"paper": _cells(*_NAMES.values())},
)
