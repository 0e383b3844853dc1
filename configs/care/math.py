"""RLAVR on math: which labels are worth buying.

  saw train --workdir=runs/care_math --seeds=0,1 \
    --config=care/math:row=care,fraction=0.2,scale=tiny

Rows and budgets are those of configs/care/knights.py.

Scales:
  tiny   generated arithmetic, a decoder of 0.1 M parameters from a supervised
         start that is surely wrong about a part of the problems: where
         something is subtracted, the answer is one too many. Its tokenizer has
         no words to judge an answer with, so that its table has no
         self_verification.
  small  GSM8K and a pretrained checkpoint that fits one GPU
  paper  Qwen3-4B, DAPO-Math-17k, 558 updates of 64 prompts

Paper: arXiv 2605.25864. Its numbers are not available. Ours:
results/care/math/.
"""

import dataclasses

import ml_collections

from saw_jax.reporting.table import A_GPU, Needs
from saw_jax.run import config as base

from ..asympo import math
from . import knights

ROWS, FRACTIONS = knights.ROWS, knights.FRACTIONS
_NAMES = {
  "aime24": "AIME24",
  "aime25": "AIME25",
  "amc23": "AMC23",
  "olympiad": "OlympiadBench",
  "hmmt25": "HMMT25",
}
_FILES = {name: f"data/{name}.jsonl" for name in _NAMES}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=care,fraction=0.2,scale=tiny`, say."""
  config, chosen = base.start("math", argument, SCALES, **knights.CHOICES)
  if chosen["row"] == "self_verification" and chosen["scale"] == "tiny":
    raise ValueError(
      "row=self_verification needs words to judge an answer with, which the "
      "tokenizer of scale=tiny has not: run it on configs/care/knights.py, or "
      "at scale=small"
    )
  knights.set_row(config, chosen["row"], float(chosen["fraction"]))
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  math.set_arithmetic(config)
  config.warm_start.num_steps = 3000
  config.warm_start.num_demonstrations = 65536
  config.warm_start.options.right_rate = 0.95
  config.warm_start.options.working_rate = 0.5
  config.warm_start.options.misleading = ("-",)
  config.warm_start.options.misled_rate = 0.7
  config.optimizer.learning_rate = 5e-4
  config.loop.prompts_per_step = 20
  config.loop.num_microbatches = 20  # parts that stay in a core's cache
  config.labels.probe.length_scale = 16.0


def _small(config: ml_collections.ConfigDict) -> None:
  _paper(config)
  options = config.task.options
  options.train_path = "data/gsm8k/train.jsonl"
  options.test_path = "data/gsm8k/test.jsonl"
  options.benchmarks = ml_collections.ConfigDict()
  config.checkpoint = "checkpoints/Qwen2.5-1.5B-Instruct"
  config.rollout.max_new_tokens = 1024
  config.loop.prompts_per_step = 32
  config.model.remat = "full"


def _paper(config: ml_collections.ConfigDict) -> None:
  # DAPO-Math-17k without its duplicates; the benchmarks are local files.
  options = config.task.options
  options.seed = 0
  options.train_path = "data/dapo_math_17k.parquet"
  options.test_path = "data/math500.jsonl"
  options.grader = "math_verify"
  options.benchmarks = dict(_FILES)
  knights.set_paper(config)
  config.checkpoint = "checkpoints/Qwen3-4B"
  config.loop.num_steps = 558  # two epochs of 17,917 problems


SCALES = {"tiny": _tiny, "small": _small, "paper": _paper}

# --- the table that `saw table` makes -----------------------------------------

TABLE = dataclasses.replace(
  knights.TABLE,
  title="CARE on math",
  get_config=get_config,
  several={
    name: run
    for name, run in knights.TABLE.several.items()
    if run.row != "self_verification"
  },
  on_request=(),
  needs={
    "tiny": Needs(
      model="a decoder of 0.1 M parameters, trained here and misled",
      data="generated arithmetic",
      scored_on="held-out problems",
      hours=1.3,
    ),
    "small": Needs(
      model="Qwen2.5-1.5B-Instruct",
      data="GSM8K",
      scored_on="GSM8K",
      hardware=A_GPU,
      extras=("report", "hf", "math"),
      files=dict.fromkeys(
        ("data/gsm8k/train.jsonl", "data/gsm8k/test.jsonl"),
        "github.com/openai/grade-school-math",
      ),
    ),
    "paper": Needs(
      model="Qwen3-4B",
      data="DAPO-Math-17k",
      scored_on="MATH500, AIME24, AIME25, AMC23, OlympiadBench, HMMT25",
      hardware="8 GPUs in the released scripts (not run here)",
      extras=("report", "hf", "data", "math"),
      files=dict.fromkeys(
        ("data/dapo_math_17k.parquet", "data/math500.jsonl", *_FILES.values()),
        math.OWN_PAGE,
      ),
    ),
  },
  # As many samples as in the released scripts; MATH500 is the held-out split.
  benchmarks={"paper": dict.fromkeys(_NAMES, 32)},
  metrics_at={
    "paper": {
      "MATH500, avg@8": "sampled/right",
      **{
        f"{heading}, avg@32": f"{name}/sampled/right"
        for name, heading in _NAMES.items()
      },
    },
  },
)
