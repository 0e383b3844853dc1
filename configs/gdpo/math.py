"""GDPO on math: right answers and short ones, two rewards that compete.

  python experiments/train.py --workdir=runs/gdpo_math --seeds=0,1 \
    --config=configs/gdpo/math.py:row=gdpo,scale=tiny

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
from saw_jax.reporting.table import Needs, Table, published
from saw_jax.run import arguments
from saw_jax.run import config as base

ROWS = (
  "grpo",
  "gdpo",
  "grpo_saw",
  "gdpo_saw",
  "grpo_conditioned",
  "gdpo_conditioned",
)
SCALES = ("tiny", "paper")
_FILES = {
  "math500": "data/math500.jsonl",
  "aime24": "data/aime24.jsonl",
  "amc23": "data/amc23.jsonl",
  "minerva": "data/minerva.jsonl",
  "olympiad": "data/olympiad.jsonl",
}
_NAMES = {
  "math500": "MATH",
  "aime24": "AIME",
  "amc23": "AMC",
  "minerva": "Minerva",
  "olympiad": "Olympiad",
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config of one row at one scale.

  Args:
    argument: e.g. `row=gdpo_saw,scale=tiny`.

  Returns:
    The config.
  """
  chosen = arguments.parse(
    argument,
    row=("gdpo", *(row for row in ROWS if row != "gdpo")),
    scale=SCALES,
  )
  config = base.get_config()
  config.task.name = "math"
  {"tiny": _tiny, "paper": _paper}[chosen["scale"]](config)
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
  options = config.task.options
  options.seed = 0
  options.levels = (1, 2)
  options.word_share = 0.0
  options.length_limit = 6
  config.tokenizer.name = "math"
  config.rollout.max_prompt_tokens = 16
  config.rollout.prompt_multiple = 16
  config.rollout.max_new_tokens = 24
  config.rollout.completion_multiple = 24
  config.warm_start.num_steps = 1200
  config.warm_start.num_demonstrations = 16384
  config.warm_start.batch_size = 64
  config.warm_start.learning_rate = 5e-3
  config.warm_start.options.right_rate = 0.7
  config.warm_start.options.working_rate = 0.7
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.0
  config.loop.num_steps = 100
  config.loop.prompts_per_step = 16
  config.loop.group_size = 8
  config.loop.num_microbatches = 4  # parts that stay in a core's cache
  config.loop.checkpoint_interval = 50
  config.evaluation.interval = 20
  config.evaluation.num_examples = 256
  config.evaluation.batch_size = 256
  config.evaluation.samples = 8


def _paper(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.seed = 0
  options.train_path = "data/deepscaler.json"
  options.test_path = "data/math500.jsonl"
  options.benchmarks = dict(_FILES)
  options.grader = "math_verify"
  options.length_limit = 4000
  config.checkpoint = "checkpoints/DeepSeek-R1-Distill-Qwen-1.5B"
  config.model.scan_layers = True
  config.model.remat = "full"
  config.model.dtype = "bfloat16"

  config.rollout.max_prompt_tokens = 1024
  config.rollout.prompt_multiple = 256
  config.rollout.long_prompts = "truncate"
  config.rollout.max_new_tokens = 8000
  config.rollout.completion_multiple = 500
  config.sampling.temperature = 1.0

  config.loop.num_steps = 500
  config.loop.prompts_per_step = 512
  config.loop.group_size = 16
  config.loop.num_minibatches = 4
  config.loop.num_microbatches = 64
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

  config.parallel.lift = "meshed"
  config.parallel.fsdp = -1


# --- the table that experiments/reproduce.py makes ---------------------------

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
      model="a decoder of 0.1 M parameters, trained here",
      data="generated arithmetic",
      scored_on="held-out problems by level",
      hours=0.2,
    ),
    "paper": Needs(
      model="DeepSeek-R1-Distill-Qwen-1.5B",
      data="DeepScaleR's 40,000 problems",
      scored_on="MATH500, AIME24, AMC23, Minerva, OlympiadBench",
      hardware="GPUs or a TPU slice (not run here; the paper does not say)",
      accelerators=1,
      extras=("report", "hf", "math"),
      files=dict.fromkeys(
        ("data/deepscaler.json", *_FILES.values()),
        "the data set's own page (docs/reproducing.md, Mathematical problems)",
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
  comparisons=(
    *((f"gdpo{c}", f"grpo{c}") for c in ("", "_saw", "_conditioned")),
    *((f"{row}_saw", row) for row in ("grpo", "gdpo")),
    *((f"{row}_conditioned", row) for row in ("grpo", "gdpo")),
  ),
  compared={"reward/correct": "share of right answers"},
  published=_cells("AIME"),
  published_at={"paper": _cells(*_NAMES.values())},
)
