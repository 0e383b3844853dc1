"""ASymPO and SPO on math: losses that learn from stale responses, by lag.

  saw train --workdir=runs/asympo --seeds=0,1 \
    --config=asympo/math:row=asympo,lag=16,scale=tiny

Rows, and the log-probs that each needs beside the current policy's:
  naive, spo, asympo, gpg, gpg_nonzero        none
  grpo, dr_grpo, dapo, gspo, cispo, topr,
  topr_token, tis_reinforce                    the sampler's
  tis, decoupled_ppo                           the sampler's and the trainer's
  asympo_stable, asympo_negatives,
  asympo_positives, asympo_batch               none (controls)
By `--rows` alone, rivals of 2026 (docs/paper_index.md):
  opmd                                         none
  m2po (the final paper's mask), m2po_bounds
  (its authors' code), off_policy_sequence,
  vcpo, sapo, quadratic, quadratic_response
  (Kimi k1.5's equation), a3po                 the sampler's
  icepop, sequence_mask, m2po_all (AReaL's)    the sampler's and the trainer's

Protocols: `fixed_lag` (step t learns from what the weights of step t - lag
sampled; the default), `max_lag` (AReaL's admission, lag in versions), `quota`
(verl's counter, the paper's, threshold 0.5).

Scales:
  tiny   generated arithmetic, a decoder of 0.1 M parameters from a short
         supervised start that is right now and then
  small  longer generated problems and a pretrained model on one GPU, by default
         Qwen2.5-1.5B-Instruct (--config.checkpoint=DIR, docs/checkpoints.md);
         GSM8K by --config.task.options.train_path and test_path

The paper's own scale and tables are in configs/asympo/benchmarks.py.

Paper: arXiv 2606.03070. Published, mean over six benchmarks, mean@8,
Qwen3-1.7B-Base on MATH-4k: GRPO 37.45, ASymPO 36.98, SPO 36.41; the naive loss
and GPG collapse. Ours: results/asympo/math/.
"""

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import A_GPU, Needs, Run, Table, published
from saw_jax.run import config as base
from saw_jax.run import methods

ROWS = ("naive", "spo", "asympo", "grpo", "gpg", "gpg_nonzero", "dr_grpo")
ROWS += ("dapo", "gspo", "cispo", "topr", "topr_token", "tis_reinforce")
ROWS += ("tis", "decoupled_ppo", "asympo_stable", "asympo_negatives")
ROWS += ("asympo_positives", "asympo_batch")
RIVALS = ("icepop", "sequence_mask", "m2po", "m2po_bounds", "m2po_all", "sapo")
RIVALS += ("quadratic", "quadratic_response", "a3po", "vcpo")
RIVALS += ("off_policy_sequence", "opmd")
ROWS += RIVALS
PROTOCOLS = ("fixed_lag", "max_lag", "quota")
LAGS = tuple(str(lag) for lag in (0, 1, 2, 4, 8, 16, 32, 64))


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=asympo,lag=16,protocol=fixed_lag`, say."""
  kinds = {"lag": LAGS, "protocol": PROTOCOLS}
  config, chosen = base.start(
    "math", argument, SCALES, row=("asympo", *ROWS), **kinds
  )
  set_row(config, chosen["row"])
  config.asynchronous.protocol = chosen["protocol"]
  config.asynchronous.lag = int(chosen["lag"])
  return config


def set_row(config: ml_collections.ConfigDict, row: str) -> None:
  """Sets the loss, its advantage and its aggregate."""
  algorithm, options = config.algorithm, config.algorithm.loss_options
  name, _, control = row.partition("_")
  if row in ("grpo", "dr_grpo"):
    # The ratio is to the sampler's own log-probs, as in verl's default.
    algorithm.advantage, algorithm.ratio_to = row, "behave"
    algorithm.aggregate = "sequence_mean_token_mean"
    options.clip_low = options.clip_high = 0.2
    if row == "grpo":
      options.dual_clip = 3.0
    else:
      algorithm.aggregate = "sequence_mean_token_sum_const"
      algorithm.aggregate_options.length = config.rollout.max_new_tokens
    return
  methods.set_method(config, row if row in methods.METHODS else name)
  if control == "stable":
    options.p_low, options.p_high = 0.02, 0.97
  elif control in ("negatives", "positives"):
    options.scale_positives = control == "positives"
    options.scale_negatives = control == "negatives"
  elif control == "batch":
    algorithm.loss = "batch_asympo"
  elif control == "token":
    options.ratio_of = "token"


def set_tiny(config: ml_collections.ConfigDict) -> None:
  """Sets what minutes on two CPU cores are enough for."""
  set_arithmetic(config)
  config.warm_start.num_steps = 400
  config.warm_start.options.right_rate = 0.7
  config.warm_start.options.working_rate = 0.5
  config.optimizer.learning_rate = 1e-3
  config.loop.num_steps = 150
  config.loop.skip_nonfinite = True
  config.evaluation.interval = 25


def set_arithmetic(config: ml_collections.ConfigDict) -> None:
  """Sets what all tiny tables of math share, here and in other papers'."""
  config.task.options.update(seed=0, levels=(1, 2), word_share=0.0)
  config.tokenizer.name = "math"
  base.set_lengths(config, prompt=16, response=16)
  config.warm_start.update(batch_size=64, learning_rate=5e-3)
  config.optimizer.weight_decay = 0.0
  config.loop.update(num_steps=100, group_size=8, checkpoint_interval=50)
  config.evaluation.update(
    interval=20, num_examples=256, batch_size=256, samples=8
  )


def _small(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.seed = 0
  options.levels = (3, 4)
  options.word_share = 0.25
  options.template = "boxed"  # asks for steps and a box
  # Files in place of generated problems, such as GSM8K's.
  options.train_path = ""
  options.test_path = ""
  # Any model that can do some of it: --config.checkpoint=DIR.
  base.set_pretrained(config, "checkpoints/Qwen2.5-1.5B-Instruct")

  base.set_lengths(config, prompt=(512, 64), response=(512, 128))

  config.loop.num_steps = 200
  config.loop.prompts_per_step = 32
  config.loop.num_microbatches = 8
  config.loop.checkpoint_interval = 50
  config.loop.skip_nonfinite = True
  config.evaluation.interval = 25
  config.evaluation.samples = 8

  config.optimizer.learning_rate = 2e-6


SCALES = {"tiny": set_tiny, "small": _small}

# --- the table that `saw table` makes -----------------------------------------

# The five losses of the paper first; then the other baselines.
PAPER_ROWS = ("naive", "gpg", "spo", "asympo", "grpo")
OTHER_ROWS = ("gpg_nonzero", "dr_grpo", "dapo", "gspo", "cispo", "topr")
OTHER_ROWS += ("tis_reinforce", "tis", "decoupled_ppo")
OWN_PAGE = (
  "the data set's own page (docs/reproducing.md, Mathematical problems)"
)

TABLE = Table(
  title="ASymPO on math",
  caption=": held-out mean@8 by lag",
  get_config=get_config,
  rows=ROWS,
  several={
    f"{row}_lag{lag}": Run(row, lag, f"row={row},lag={lag}")
    for rows, lags in (
      (PAPER_ROWS, (0, 4, 16, 32)),
      (OTHER_ROWS + RIVALS, (0, 16)),
    )
    for lag in lags
    for row in rows
  },
  on_request=tuple(f"{row}_lag{lag}" for row in RIVALS for lag in (0, 16)),
  swept="lag",
  needs={
    "tiny": Needs(
      data="generated arithmetic",
      scored_on="held-out problems",
      hours=1.2,
    ),
    "small": Needs(
      model="Qwen2.5-1.5B-Instruct",
      data="generated problems, of several steps",
      scored_on="held-out problems",
      hardware=A_GPU,
      extras=("report", "hf"),
    ),
  },
  sections=sections.SWEEP,
  window=10,
  note=(
    "`dapo` replaces groups whose rewards are all equal: its training reward "
    "is that of the groups it kept, and it draws more responses than the "
    "others. A seed without a good or a bad response in a step has 0 for its "
    "likelihood there."
  ),
  metrics={"held-out mean@8": "sampled/mean@8"},
  panels={"paper": PAPER_ROWS, "others": OTHER_ROWS},
  primary=("asympo - naive, lag 16", "held-out mean@8"),
  comparisons=(
    ("asympo", "naive"),
    ("spo", "naive"),
    ("grpo", "naive"),
    ("gpg", "naive"),
    ("asympo", "grpo"),
    ("spo", "grpo"),
  ),
  compared={"reward/total": "reward"},
  published=(
    published(
      {"grpo": "GRPO", "spo": "SPO", "asympo": "ASymPO"}
      | {"naive": "Naive", "gpg": "GPG"},
      paper="ASymPO",
      benchmark="Avg",
      metric="mean@8 (%)",
      model="Qwen3-1.7B-Base",
    ),
  ),
)
