"""PaW in a shop: a policy that also predicts the pages that it gets to.

  saw train --workdir=runs/shop --seeds=0,1 \
    --config=paw/shop:row=grpo_paw,scale=tiny

Rows are those of configs/paw/household.py. The table has those of the paper,
and paw_random as a control; the other controls run by name, as
`--rows=paw_shuffled`.

Scales:
  tiny   60 drawn products, four on a page, six steps, compact prompts; a
         decoder of 0.1 M parameters after a short supervised start on an expert
         that errs
  paper  Qwen2.5-1.5B-Instruct, 15 steps, 16 instructions x 8 episodes, 150
         updates; the drawn shop, or WebShop's with
         --config.task.options.products, .attributes and .instructions, of
         which verl-agent takes 1000 products (.num_products=1000)

The extra `search` has what searches: pip install 'saw_jax[search]'.

Paper: arXiv 2606.02388, on WebShop. Published success, Qwen2.5-1.5B: GRPO 60.6,
with PaW 68.6; GiGPO 66.2, with PaW 75.3; RLOO 56.7, 61.2; PPO 59.1, 65.2;
lambda = 1 67.0; cross-entropy 57.2. Ours: results/paw/shop/, in the drawn shop.
"""

import dataclasses

import ml_collections

from saw_jax.reporting.table import Needs, published
from saw_jax.run import config as base

from . import household

BASES, CONTROLS, ROWS = household.BASES, household.CONTROLS, household.ROWS


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gigpo_paw,scale=tiny`, say."""
  config, chosen = base.start("shop", argument, SCALES, row=("grpo_paw", *ROWS))
  household.set_packing(config, chosen["scale"])
  household.set_row(config, chosen["row"])
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  household.set_tiny(config)
  options = config.task.options
  options.num_products = 60
  options.per_page = 4
  options.max_steps = 6
  options.form = "compact"
  # What is chosen shows in the actions alone: all of a purchase's.
  options.shown = 4
  options.shows_instruction = False
  config.tokenizer.name = "shop"
  base.set_lengths(config, prompt=96, response=(7, 56))
  config.episodes.max_observation_tokens = 48
  config.warm_start.num_demonstrations = 16384


def _paper(config: ml_collections.ConfigDict) -> None:
  household.set_paper(config)
  options = config.task.options
  options.num_products = 150
  options.max_steps = 15
  options.form = "english"
  options.shown = 2
  # verl-agent cuts the instruction off every page.
  options.shows_instruction = False
  config.rollout.max_prompt_tokens = 4096
  config.episodes.max_observation_tokens = 1024
  # Updates of some 64 steps, where episodes take eight.
  config.loop.num_minibatches = 16
  config.evaluation.num_examples = 128


SCALES = {"tiny": _tiny, "paper": _paper}

# --- the table that `saw table` makes -----------------------------------------

_CELL = {
  "paper": "PaW",
  "benchmark": "WebShop",
  "metric": "success (%)",
  "model": "Qwen2.5-1.5B-Instruct",
}
_OTHER_BASES = {
  f"{row}{paw}": row.upper() + method
  for row in ("rloo", "ppo")
  for paw, method in (("", ""), ("_paw", " w/ PaW"))
}

TABLE = dataclasses.replace(
  household.TABLE,
  title="PaW in the shop",
  get_config=get_config,
  # Controls that the tables of the household and of the questions have.
  on_request=tuple(row for row in CONTROLS if row != "paw_random")
  + household.RIVALS,
  needs={
    "tiny": Needs(
      data="60 drawn products",
      scored_on="held-out instructions, not WebShop",
      hours=1.3,
      extras=("report", "search"),
    ),
    "paper": Needs(
      model="Qwen2.5-1.5B-Instruct",
      data="a drawn shop, or WebShop's files",
      scored_on="held-out instructions; WebShop's with its files",
      hardware="2 GPUs in the framework's script (not run here)",
      extras=("report", "hf", "search"),
    ),
  },
  metrics_at={},
  published=(
    published(household.MAIN, **_CELL, table="Table 1 / Table 5"),
    published(_OTHER_BASES, **_CELL, table="Table 3"),
    published(household.ABLATIONS, **_CELL, table="Table 4"),
  ),
  published_at={},
)
