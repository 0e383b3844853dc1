"""SAW on tool calling: equal weights, SAW, gradient weights; GRPO and GDPO.

  saw train --workdir=runs/gdpo_saw \
    --config=saw/tool_calling:row=gdpo_saw,scale=tiny

Rows: grpo, grpo_saw, gdpo, gdpo_saw, grpo_gradient, gdpo_gradient. By `--rows`
alone, rivals of 2026 (docs/paper_index.md): sa_mrpo, dvao, gd2po, gd2po_hard,
mo_grpo, constrained_grpo (nine formats of ten are to be right), and
gdpo_schedule, the control with the weights that gdpo_saw had on average at each
share of the run at `tiny`, replayed without a look at the rewards.

Scales:
  tiny   generated requests, a decoder of 0.1 M parameters from a short
         supervised start; minutes on two CPU cores
  small  ToolRL's own rows and a pretrained model on one GPU, by default
         Qwen2.5-1.5B-Instruct (--config.checkpoint=DIR, docs/checkpoints.md)
  paper  Qwen2.5-1.5B-Instruct, batch and data of the released scripts

KL: the released code gives the `grpo` row a KL of 0.001 in the reward and the
other rows none. By default no row has one, so that rows differ in their weights
alone; `kl=released` is the released code's difference.

SAW: by default (`form=paper`) the paper's formula, with a delta of 1e-8 and
equal weights where no reward varies. `form=code` is what the released code
computes, to the epsilon: no delta, 1e-8 on the sum, and weights of 0 there.

Paper: arXiv 2606.07705 (SAW), arXiv 2601.05242 (GDPO). Published, Overall Acc
on BFCL, Qwen2.5-1.5B-Instruct (from secondary sources): GRPO 32.55, with SAW
33.53; GDPO 33.82, with SAW 34.02. Ours: results/saw/tool_calling/.
"""

import dataclasses

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import A_GPU, Needs, Table, published
from saw_jax.run import config as base
from saw_jax.run import methods

ROWS = ("gdpo_saw", "gdpo", "grpo_saw", "grpo")
ROWS += ("grpo_gradient", "gdpo_gradient")
RIVALS = ("sa_mrpo", "dvao", "gd2po", "gd2po_hard", "gdpo_schedule")
RIVALS += ("mo_grpo", "constrained_grpo")
ROWS += RIVALS
# Share of the run -> SAW's weights, means of five seeds of gdpo_saw at tiny.
_REPLAYED = {
  0.0: (0.51, 1.49),
  0.02: (0.2, 1.8),
  0.08: (0.48, 1.52),
  0.2: (0.86, 1.14),
  0.33: (1.0, 1.0),
  0.5: (1.05, 0.95),
  1.0: (1.11, 0.89),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gdpo_saw,scale=tiny,kl=none,form=paper`, say."""
  kinds = {"kl": ("none", "released"), "form": ("paper", "code")}
  config, chosen = base.start(
    "tool_calling", argument, SCALES, row=ROWS, **kinds
  )
  row = chosen["row"]
  joined = row if row in methods.METHODS else row.replace("_", "+")
  methods.set_method(config, joined)
  if row == "constrained_grpo":
    config.algorithm.weights_options.targets = (None, 0.9)
  if row == "gdpo_schedule":
    last = config.loop.num_steps - 1
    config.algorithm.weights_options.update(
      steps=tuple(last * share for share in _REPLAYED),
      values=tuple(_REPLAYED.values()),
    )
  if chosen["kl"] == "released" and row == "grpo":
    config.algorithm.kl.update(
      placement="reward", estimator="k1", coefficient=0.001
    )
  if chosen["form"] == "code" and config.algorithm.weights == "saw":
    config.algorithm.weights_options.update(
      delta=0.0, sum_eps=1e-8, flat_weight=0.0
    )
  return config


def set_tiny(config: ml_collections.ConfigDict) -> None:
  """Sets what minutes on two CPU cores are enough for."""
  config.task.options.seed = 0
  config.rollout.update(max_prompt_tokens=88, prompt_multiple=88)
  config.tokenizer.name = "tool_calling"
  config.warm_start.num_steps = 400
  config.warm_start.learning_rate = 5e-3
  config.warm_start.options.format_rate = 0.02
  config.warm_start.options.call_rate = 0.7
  config.optimizer.learning_rate = 3e-4
  config.optimizer.weight_decay = 0.0
  config.loop.num_steps = 60
  config.evaluation.interval = 20
  config.algorithm.entropy_coefficient = 0.001


def _small(config: ml_collections.ConfigDict) -> None:
  _paper(config)
  # One GPU: a smaller batch of the same data, the same number of updates.
  config.loop.prompts_per_step = 64
  config.loop.num_microbatches = 4
  config.model.remat = "full"


def _paper(config: ml_collections.ConfigDict) -> None:
  # ToolRL's rows (parquet or JSON); see docs/reproducing.md for where they are.
  config.task.options.train_path = "data/toolrl/train.parquet"
  config.task.options.test_path = "data/toolrl/test.parquet"
  base.set_pretrained(config, "checkpoints/Qwen2.5-1.5B-Instruct")

  lengths = dict(prompt=(2048, 256), response=(1024, 128))
  base.set_lengths(config, **lengths, is_packed=True)
  config.rollout.long_prompts = "truncate"  # left-truncated, not filtered
  config.sampling.temperature = 1.0

  config.loop.num_steps = 104  # 15 epochs of 7 steps; the loop ends at 104
  config.loop.prompts_per_step = 512
  config.loop.group_size = 4
  config.loop.num_minibatches = 4  # of 128 prompts
  config.loop.num_microbatches = 16
  config.model.remat = "attention"
  config.loop.checkpoint_interval = 5
  config.evaluation.interval = 10
  config.evaluation.num_examples = 80
  config.evaluation.batch_size = 80

  config.optimizer.learning_rate = 1e-6
  config.optimizer.weight_decay = 0.01
  config.algorithm.entropy_coefficient = 0.001
  config.algorithm.aggregate = "token_mean"


SCALES = {"tiny": set_tiny, "small": _small, "paper": _paper}

# --- the table that `saw table` makes -----------------------------------------

_BENCHMARKED = Needs(
  model="Qwen2.5-1.5B-Instruct",
  data="ToolRL's rows",
  scored_on="ToolRL's 80 test rows; BFCL's single turns",
  hardware="4 to 8 GPUs of 80 GB in the papers (not run here)",
  extras=("report", "hf", "data"),
  packages={
    "bfcl-eval": "pip install --no-deps 'bfcl-eval==2026.3.23' "
    "(docs/reproducing.md, BFCL)"
  },
  files=dict.fromkeys(
    ("data/toolrl/train.parquet", "data/toolrl/test.parquet"),
    "rlla_4k of github.com/qiancheng0/ToolRL (docs/reproducing.md)",
  ),
)
# Of the paper's table, and of its table of summaries.
PUBLISHED_ROWS = {
  f"{row}{saw.replace('+', '_').lower()}": f"{row.upper()}{saw}"
  for row in ("grpo", "gdpo")
  for saw in ("", "+SAW")
}
_PAPER = {"paper": "GDPO", "model": "Qwen2.5-1.5B-Instruct"}
_BFCL = tuple(f"BFCL-v3 {part}" for part in ("Live", "Non-Live"))
_BFCL += tuple(f"BFCL-v3 {part}" for part in ("Multi-Turn", "Avg"))
_SINGLE = {"live": "live", "non-live": "non_live"}
_SINGLE |= {"single turns": "single_turn"}

TABLE = Table(
  title="SAW on tool calling",
  get_config=get_config,
  rows=ROWS,
  on_request=RIVALS,
  needs={
    "tiny": Needs(
      data="generated requests",
      scored_on="held-out requests, not BFCL",
      hours=0.8,
      extras=("report", "hf"),
    ),
    "small": dataclasses.replace(_BENCHMARKED, hardware=A_GPU),
    "paper": _BENCHMARKED,
  },
  sections=sections.REWARDS,
  components=("correctness", "format"),
  metrics={
    f"{name}, {mode}": f"{mode}/{name}"
    for mode in ("greedy", "sampled")
    for name in ("right", "correctness", "format")
  },
  thresholds={"reward/correctness": 1.8, "reward/format": 0.8},
  window=5,
  primary=("gdpo_saw - gdpo", "right, sampled"),
  comparisons=(
    ("gdpo_saw", "gdpo"),
    ("grpo_saw", "grpo"),
    ("gdpo_gradient", "gdpo"),
    ("grpo_gradient", "grpo"),
  ),
  compared={name: name for name in ("reward/correctness", "reward/format")},
  # BFCL v4's single turns: its other turns run tools, and "Overall Acc" has
  # them too.
  benchmarks={"small": {"bfcl": 4}, "paper": {"bfcl": 4}},
  metrics_at=dict.fromkeys(
    ("small", "paper"),
    {
      f"BFCL {heading}, {mode}": f"bfcl/{mode}/{name}"
      for mode in ("greedy", "sampled")
      for heading, name in _SINGLE.items()
    },
  ),
  published=(
    published(
      PUBLISHED_ROWS,
      paper="SAW",
      benchmark="BFCL-v4",
      metric="Overall Acc (%)",
      model="Qwen2.5-1.5B-Instruct",
    ),
    published(
      {"grpo": "GRPO", "gdpo": "GDPO"},
      **_PAPER,
      benchmark=_BFCL,
      metric="accuracy (%)",
    ),
    published(
      {"grpo": "GRPO", "gdpo": "GDPO"},
      **_PAPER,
      benchmark="BFCL-v3",
      metric="correct format (%)",
    ),
  ),
)
