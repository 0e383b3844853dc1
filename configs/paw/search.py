"""PaW on search questions: a policy that also predicts what a search brings.

  saw train --workdir=runs/search --seeds=0,1 \
    --config=paw/search:row=grpo_paw,scale=tiny

Rows are those of configs/paw/household.py.

Scales:
  tiny   120 drawn people, questions of one and two hops, four steps, compact
         prompts; a decoder of 0.1 M parameters after a short supervised start
         on an expert that errs
  paper  Qwen2.5-3B-Instruct, four steps, 256 questions x 5 episodes, three
         passages a search; the drawn corpus, or local files of NQ and HotpotQA
         with --config.task.options.corpus, .train and .test

The extra `search` has what searches: pip install 'saw_jax[search]'. The paper
searches all of Wikipedia by embeddings; here it is BM25 over what fits into the
memory of each worker process.

Paper: arXiv 2606.02388, seven sets. Published exact match on average,
Qwen2.5-3B: GRPO 43.9, with PaW 44.8; GiGPO 41.2, with PaW 44.2. Ours:
results/paw/search/, on drawn questions.
"""

import dataclasses

import ml_collections

from saw_jax.reporting.table import ACCELERATORS, Needs, published
from saw_jax.run import config as base

from . import household

BASES, CONTROLS, ROWS = household.BASES, household.CONTROLS, household.ROWS


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gigpo_paw,scale=tiny`, say."""
  config, chosen = base.start(
    "search", argument, SCALES, row=("grpo_paw", *ROWS)
  )
  config.episodes.invalid_penalty = 0.01
  household.set_packing(config, chosen["scale"])
  household.set_row(config, chosen["row"])
  if chosen["row"].startswith("gigpo"):
    # Passages are hardly ever the same twice; and it takes time.
    config.episodes.similarity = 0.9
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  household.set_tiny(config)
  options = config.task.options
  options.num_people = 120
  options.max_steps = 4
  options.num_passages = 2
  options.form = "compact"
  config.tokenizer.name = "search"
  base.set_lengths(config, prompt=64, response=(6, 32))
  config.episodes.max_observation_tokens = 24
  config.warm_start.num_demonstrations = 16384
  config.evaluation.num_examples = 96


def _paper(config: ml_collections.ConfigDict) -> None:
  household.set_paper(config)
  options = config.task.options
  options.num_people = 140
  options.max_steps = 4
  options.num_passages = 3
  options.form = "english"
  config.checkpoint = "checkpoints/Qwen2.5-3B-Instruct"
  config.rollout.max_prompt_tokens = 4096
  config.episodes.max_observation_tokens = 1024

  # 256 questions x 5 episodes; updates of some 512 steps.
  config.loop.prompts_per_step = 256
  config.loop.group_size = 5
  config.loop.num_minibatches = 8
  config.loop.num_microbatches = 32
  config.evaluation.num_examples = 96
  config.evaluation.batch_size = 96
  # The published validation is at temperature 0: the greedy score.
  config.evaluation.temperature = 1.0

  # A tenth of all updates, as in verl-agent's script.
  config.optimizer.warmup_steps = 120
  config.algorithm.kl.coefficient = 0.001
  config.algorithm.entropy_coefficient = 0.0


SCALES = {"tiny": _tiny, "paper": _paper}

# --- the table that `saw table` makes -----------------------------------------

TABLE = dataclasses.replace(
  household.TABLE,
  title="PaW on search questions",
  get_config=get_config,
  needs={
    "tiny": Needs(
      data="questions about 120 drawn people",
      scored_on="held-out questions, not the seven public sets",
      hours=1.1,
      extras=("report", "search"),
    ),
    "paper": Needs(
      model="Qwen2.5-3B-Instruct",
      data="a drawn corpus, or local files of NQ and HotpotQA",
      scored_on="held-out questions; those of the files where they are given",
      hardware=ACCELERATORS,
      extras=("report", "hf", "search"),
    ),
  },
  metrics_at={},
  published=(
    published(
      household.MAIN,
      paper="PaW",
      benchmark="search QA Avg",
      metric="exact match (%)",
      model="Qwen2.5-3B-Instruct",
      table="Table 2",
    ),
  ),
  published_at={},
)
