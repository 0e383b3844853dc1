"""ASymPO and SPO on the paper's benchmarks: its Tables 2 to 4.

  saw train --workdir=runs/asympo --seeds=0 \
    --config=asympo/benchmarks:row=asympo,scale=tiny
  saw table --table=asympo/benchmarks --scale=tiny

Rows: naive, gpg, spo, asympo and grpo of configs/asympo/math.py, and the same
with `_dapo`, which learn from other problems. After the last step the table
scores every policy on each benchmark: mean@8, pass@8, and their averages.

Scales:
  tiny   generated arithmetic, a decoder of 0.1 M parameters, responses that are
         16 steps old. The benchmarks are held-out problems of levels 1, 2 and
         3; training is on levels 1 and 2, or, for `_dapo`, on level 2 alone.
         No policy has seen level 3
  paper  Qwen3-1.7B-Base, 4,000 problems of MATH or of DAPO-Math-17k, 375
         updates of 32 prompts; verl's quota of stale responses, threshold 0.5

Paper: arXiv 2606.03070. Published averages, Qwen3-1.7B-Base, mean@8 on MATH-4k:
GRPO 37.45, ASymPO 36.98, SPO 36.41; on DAPO-4k: 37.18, 38.66, 38.13; the naive
loss and GPG collapse. Ours: results/asympo/benchmarks/.
"""

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import ACCELERATORS, Needs, Table, published
from saw_jax.run import config as base

from . import math

METHODS = math.PAPER_ROWS
ROWS = (*METHODS, *(f"{row}_dapo" for row in METHODS))
_NAMES = {
  "aime24": "AIME24",
  "aime25": "AIME25",
  "math500": "MATH500",
  "amc23": "AMC23",
  "gsm8k": "GSM8K",
  "minerva": "Minerva",
}
_FILES = {name: f"data/{name}.jsonl" for name in _NAMES}
_FILES["gsm8k"] = "data/gsm8k/test.jsonl"


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=asympo_dapo,scale=tiny`, say."""
  config, chosen = base.start("math", argument, SCALES, row=("asympo", *ROWS))
  method = chosen["row"].removesuffix("_dapo")
  if method != chosen["row"]:
    config.task.options.update(_DAPO[chosen["scale"]])
  math.set_row(config, method)
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  math.set_tiny(config)
  # The policies that start are the same: what differs is what they train on.
  config.warm_start.options.levels = (1, 2)
  config.asynchronous.protocol = "fixed_lag"
  config.asynchronous.lag = 16  # the paper's mean lag is about 15


def _paper(config: ml_collections.ConfigDict) -> None:
  # A random 4,000 of the training problems; the benchmarks are local files.
  options = config.task.options
  options.seed = 0
  options.train_path = "data/math/train.jsonl"
  options.num_train = 4000
  options.test_path = "data/math500.jsonl"
  options.grader = "math_verify"
  options.benchmarks = dict(_FILES)
  base.set_pretrained(config, "checkpoints/Qwen3-1.7B-Base")

  lengths = dict(prompt=(1024, 256), response=(4096, 256))
  base.set_lengths(config, **lengths, is_packed=True)
  config.sampling.temperature = 1.0

  # 4,000 problems three times, 32 to an update.
  config.loop.num_steps = 375
  config.loop.prompts_per_step = 32
  config.loop.group_size = 8
  config.loop.num_microbatches = 4  # of 64 rows
  config.model.remat = "dots"
  config.loop.checkpoint_interval = 16
  config.loop.skip_nonfinite = True
  config.asynchronous.protocol = "quota"
  config.asynchronous.actors = 1
  config.evaluation.interval = 0
  config.evaluation.num_examples = 64  # MATH500 whole is a benchmark
  config.evaluation.batch_size = 64
  config.evaluation.samples = 8

  config.optimizer.learning_rate = 2e-6
  config.optimizer.weight_decay = 0.01


SCALES = {"tiny": _tiny, "paper": _paper}
# What the policies of `_dapo` learn from.
_DAPO = {
  "tiny": {"levels": (2,)},
  "paper": {"train_path": "data/dapo_math_17k.parquet"},
}

# --- the table that `saw table` makes -----------------------------------------

_METHODS = dict(
  zip(METHODS, ("Naive", "GPG", "SPO", "ASymPO", "GRPO"), strict=True)
)
_ON_DAPO = {f"{row}_dapo": method for row, method in _METHODS.items()}
_LEVELS = {f"level_{level}": f"level {level}" for level in (1, 2, 3)}


def _columns(names: dict[str, str]) -> dict[str, str]:
  return {
    f"{metric}, {heading}": f"{name}/sampled/{metric}"
    for metric in ("mean@8", "pass@8")
    for name, heading in ({"benchmarks": "average"} | names).items()
  }


def _cells(*benchmarks: str) -> tuple:
  return tuple(
    published(
      methods,
      paper="ASymPO",
      table=table,
      model="Qwen3-1.7B-Base",
      metric=metric,
      benchmark=benchmarks,
    )
    for methods, table, metric in (
      (_METHODS, "Table 2", "mean@8 (%)"),
      (_METHODS, "Table 3", "pass@8 (%)"),
      (_ON_DAPO, "Table 4", ("mean@8 (%)", "pass@8 (%)")),
    )
  )


TABLE = Table(
  title="ASymPO on benchmarks",
  get_config=get_config,
  rows=ROWS,
  needs={
    "tiny": Needs(
      data="generated arithmetic",
      scored_on="held-out problems by level",
      hours=0.3,
    ),
    "paper": Needs(
      model="Qwen3-1.7B-Base",
      data="4,000 problems of MATH, and of DAPO-Math-17k",
      scored_on="MATH500, AIME24, AIME25, AMC23, GSM8K, Minerva",
      hardware=ACCELERATORS,
      extras=("report", "hf", "data", "math"),
      files={
        "data/math/train.jsonl": math.OWN_PAGE,
        "data/dapo_math_17k.parquet": math.OWN_PAGE,
        **dict.fromkeys(_FILES.values(), math.OWN_PAGE),
        "data/gsm8k/test.jsonl": "github.com/openai/grade-school-math",
      },
    ),
  },
  sections=sections.FIGURES,
  window=10,
  benchmarks={
    "tiny": dict.fromkeys(_LEVELS, 8),
    "paper": dict.fromkeys(_FILES, 8),
  },
  metrics_at={"tiny": _columns(_LEVELS), "paper": _columns(_NAMES)},
  curves={
    "reward/total": "training reward",
    "nll/positive": "mean token NLL of right responses",
    "nll/negative": "mean token NLL of wrong responses",
    "entropy": "entropy",
    "length": "length",
  },
  panels={
    "MATH, or its stand-in": METHODS,
    "DAPO, or its stand-in": tuple(_ON_DAPO),
  },
  primary=("asympo - grpo", "mean@8, average"),
  comparisons=tuple(
    (f"{treated}{data}", f"{control}{data}")
    for data in ("", "_dapo")
    for treated, control in (
      ("asympo", "grpo"),
      ("spo", "grpo"),
      ("asympo", "naive"),
      ("spo", "naive"),
      ("grpo", "naive"),
      ("gpg", "naive"),
    )
  ),
  compared={"reward/total": "training reward"},
  published=_cells("Avg"),
  published_at={"paper": _cells("Avg", *_NAMES.values())},
)
