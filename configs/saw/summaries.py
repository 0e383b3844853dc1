r"""SAW on summaries: equal weights, SAW, static and gradient weights.

  saw train --workdir=runs/summaries \
    --config=saw/summaries:row=gdpo_saw,scale=tiny

Rows: grpo, grpo_saw, gdpo, gdpo_saw, grpo_static, gdpo_static, grpo_gradient,
gdpo_gradient. Two rewards, quality and conciseness, each from 0 to 10; the
static weights are 1.5 for quality and 0.5 for conciseness.

Scales:
  tiny   the first 100 characters of each piece of documentation (docsum), a
         decoder of 0.1 M parameters from a short supervised start; rule rewards
         in the judge's place
  small  docsum and SmolLM2-135M-Instruct on two CPU cores; rule rewards in the
         judge's place (--config.checkpoint=DIR for another model)
  paper  Reddit TL;DR, Qwen2.5-1.5B-Instruct and a judge; say where it is with
         --config.task.options.judge.url=https://.../v1 and put its key into the
         environment variable OPENAI_API_KEY

Numbers of rule rewards are a stand-in, and are labelled as such.

Paper: arXiv 2606.07705 (SAW). Published, total of 20 by the judge, Reddit
TL;DR, Qwen2.5-1.5B-Instruct (from secondary sources): GRPO 18.2, with SAW 18.8;
GDPO 18.8, with SAW 19.07. Batch, group, steps, learning rate and lengths of
this task are not known: `paper` has those of the released tool-calling scripts.
"""

import dataclasses

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import ACCELERATORS, Needs, Table, published
from saw_jax.run import config as base
from saw_jax.run import methods

from . import tool_calling

ROWS = ("gdpo_saw", "gdpo", "grpo_saw", "grpo", "gdpo_static", "grpo_static")
ROWS += ("gdpo_gradient", "grpo_gradient")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gdpo_saw,scale=tiny`, say."""
  config, chosen = base.start("summaries", argument, SCALES, row=ROWS)
  config.task.options.seed = 0
  methods.set_method(config, chosen["row"].replace("_", "+"))
  if chosen["row"].endswith("static"):
    config.algorithm.weights_options.values = (1.5, 0.5)
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.reward = "rules"
  options.template = "plain"
  options.cut_source_chars = 100
  options.target_chars, options.limit_chars = 40, 120
  config.tokenizer.name = "summaries"
  base.set_lengths(config, prompt=96, response=32)
  config.warm_start.num_steps = 400
  config.warm_start.batch_size = 32
  config.warm_start.learning_rate = 5e-3
  config.warm_start.num_demonstrations = 6368  # each training row twice
  config.warm_start.options.reference_rate = 0.5
  config.warm_start.options.words = (3, 14)
  config.optimizer.learning_rate = 3e-4
  config.optimizer.weight_decay = 0.0
  config.loop.num_steps = 60
  config.evaluation.interval = 20
  config.algorithm.entropy_coefficient = 0.001


def _small(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.reward = "rules"
  options.template = "sentence"
  options.max_source_chars = 350
  config.checkpoint = "smollm2"
  config.model.dtype = "bfloat16"  # twice as fast where the CPU has it
  base.set_lengths(config, prompt=168, response=48)
  config.optimizer.learning_rate = 1e-5
  config.optimizer.weight_decay = 0.0
  config.loop.num_steps = 40
  config.loop.prompts_per_step = 8
  config.loop.group_size = 4
  config.loop.num_microbatches = 4  # of 8 rows: 2 GB of activations each
  config.loop.checkpoint_interval = 10
  config.evaluation.batch_size = 64
  config.evaluation.samples = 2
  config.evaluation.interval = 20


def _paper(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.reward = "judge"
  options.template = "sentence"
  # Rows with post and summary; see docs/reproducing.md for where they are.
  options.train_path = "data/tldr/train.jsonl"
  options.test_path = "data/tldr/test.jsonl"
  options.num_train, options.num_test = 2560, 256
  options.judge = ml_collections.ConfigDict()
  options.judge.url = ""  # has to be said
  options.judge.model = "Gemini-3-flash-preview-nothinking"
  options.judge.temperature = 0.1
  options.judge.limit_s = 60.0
  options.judge.requests_per_minute = 0.0  # no limit of our own
  # A judge is waited for: many at once, and longer than it takes itself.
  config.grading.num_workers = 32
  config.grading.limit_s = 90.0
  base.set_pretrained(config, "checkpoints/Qwen2.5-1.5B-Instruct")

  lengths = dict(prompt=(1024, 256), response=(256, 64))
  base.set_lengths(config, **lengths, is_packed=True)
  config.rollout.long_prompts = "truncate"
  config.sampling.temperature = 1.0

  config.loop.num_steps = 75  # 15 epochs of 5 steps
  config.loop.prompts_per_step = 512
  config.loop.group_size = 4
  config.loop.num_minibatches = 4
  # 32 parts with remat=dots compute a fifth less, send eight times as much and
  # are slower on v5e-8 (compiled).
  config.loop.num_microbatches = 4
  config.loop.checkpoint_interval = 5
  config.evaluation.num_examples = 256
  config.evaluation.batch_size = 64
  config.evaluation.samples = 4  # averaged for each example, as in the paper
  config.evaluation.interval = 15

  config.optimizer.learning_rate = 1e-6
  config.optimizer.weight_decay = 0.01
  config.algorithm.entropy_coefficient = 0.001
  config.algorithm.aggregate = "token_mean"


SCALES = {"tiny": _tiny, "small": _small, "paper": _paper}

# --- the table that `saw table` makes -----------------------------------------

_REWARDS = ("quality", "conciseness")
_BY_RULES = Needs(
  model="SmolLM2-135M-Instruct",
  data="docsum, which comes along",
  scored_on="held-out texts, by rules and not by a judge",
  extras=("report", "hf", "gguf", "summaries"),
)

TABLE = Table(
  title="SAW on summaries",
  get_config=get_config,
  rows=ROWS,
  needs={
    "tiny": dataclasses.replace(
      _BY_RULES,
      model=Needs.model,
      data="docsum, which comes along, cut to 100 characters",
      hours=0.7,
      extras=("report", "hf", "summaries"),
    ),
    "small": _BY_RULES,
    "paper": Needs(
      model="Qwen2.5-1.5B-Instruct and a judge",
      data="Reddit TL;DR",
      scored_on="256 held-out posts, by the judge",
      hardware=ACCELERATORS,
      extras=("report", "hf", "judge"),
      files=dict.fromkeys(
        ("data/tldr/train.jsonl", "data/tldr/test.jsonl"),
        "Reddit TL;DR as filtered by github.com/openai/summarize-from-feedback,"
        " rows with post and summary (docs/reproducing.md)",
      ),
      settings={
        "task.options.judge.url": "the address of an endpoint with a judge "
        "(docs/reproducing.md)"
      },
    ),
  },
  sections=sections.REWARDS,
  components=_REWARDS,
  stand_ins=dict.fromkeys(
    ("tiny", "small"), "stand-in: rule rewards, not the judge"
  ),
  metrics={
    f"{name}, {mode}": f"{mode}/{name}"
    for mode in ("greedy", "sampled")
    for name in (*_REWARDS, "total", "length")
  },
  thresholds={"reward/quality": 1.5, "reward/conciseness": 8.0},
  window=5,
  primary=("gdpo_saw - gdpo", "total, sampled"),
  # Weights that are fixed do what SAW's do on the way.
  controls=("gdpo_static - gdpo", "gdpo_saw - gdpo_static"),
  comparisons=(
    *(
      (f"{advantage}_saw", f"{advantage}{weights}")
      for weights in ("", "_static", "_gradient")
      for advantage in ("gdpo", "grpo")
    ),
    *((f"{advantage}_static", advantage) for advantage in ("gdpo", "grpo")),
  ),
  compared={f"reward/{name}": f"reward/{name}" for name in _REWARDS},
  published=(
    published(
      tool_calling.PUBLISHED_ROWS,
      paper="SAW",
      benchmark="Reddit TL;DR",
      metric="total score (0-20)",
      model="Qwen2.5-1.5B-Instruct",
    ),
  ),
)
