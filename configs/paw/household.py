"""PaW on a household: a policy that also predicts what its actions bring about.

  saw train --workdir=runs/paw --seeds=0,1 \
    --config=paw/household:row=grpo_paw,scale=tiny

Rows:
  grpo, gigpo, rloo, ppo                   base algorithms, over steps
  grpo_paw, gigpo_paw, rloo_paw, ppo_paw   with PaW
  paw_lambda_one, paw_cross_entropy        the paper's ablations, of grpo_paw
  and the controls that it lacks, each one change of grpo_paw:
  paw_all          every transition (alpha = 1)
  paw_random       75 % at random
  paw_lowest       75 % of lowest entropy
  paw_unclipped    absolute error of all tokens (rho = 1)
  paw_reversed     absolute error of the tokens above rho
  paw_lambda_half  lambda = 0.5 for all groups
  paw_printed      entropy as the paper's formula prints it
  paw_nll          mean negative log-likelihood in place of the entropy
  paw_flat         mean over selected transitions, not over groups
  paw_shuffled     observations change places: the placebo
  echo             cross-entropy of every observation, lambda = 0.05 (ECHO)
  echo_low         the same with 0.01
By `--rows` alone, rivals of 2026 (docs/paper_index.md):
  echo_rows, echo_tokens   ECHO divided by all rows (the paper, rLLM), and by
                           observed tokens, with prime-rl's 0.1
  grpo_actobs, echo_actobs, grpo_paw_actobs
                           from a supervised start that learned observations
                           as much as actions (ActObs)
  brace                    ppo whose critic corrects for what the policy has
                           become (BRACE)

Scales:
  tiny   four receptacles, eight steps, compact prompts; a decoder of 0.1 M
         parameters after a short supervised start on an expert that errs
  small  the paper's settings with a checkpoint that fits one GPU, 15 steps
  paper  Qwen2.5-1.5B-Instruct, 50 steps, 16 worlds x 8 episodes, 150 updates

With engine=alfworld (the extra `alfworld`) ALFWorld's own engine plays: at
`tiny` and `small` the same worlds, at `paper` the games in
config.task.options.folder (docs/reproducing.md says how to get them).

Paper: arXiv 2606.02388, on ALFWorld. Published success, Qwen2.5-1.5B: GRPO
70.0, with PaW 77.9; GiGPO 87.6, with PaW 90.4; lambda = 1 75.5; cross-entropy
68.5. Ours: results/paw/household/, on the generated household at every scale.
"""

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import A_GPU, Needs, Table, published
from saw_jax.run import config as base
from saw_jax.run import methods

BASES = ("grpo", "gigpo", "rloo", "ppo")
_ECHO = {
  "loss": "cross_entropy",
  "alpha": 1.0,
  "aggregate": "flat_selected",
  "coefficients": "constant",
}
# Row -> what it changes in the world model of `grpo_paw`.
_ABLATED = {
  "paw_lambda_one": {"coefficients": "constant"},
  "paw_cross_entropy": {"loss": "cross_entropy"},
}
_CONTROLLED = {
  "paw_all": {"alpha": 1.0},
  "paw_random": {"selection": "random"},
  "paw_lowest": {"selection": "lowest_entropy"},
  "paw_unclipped": {"loss": "absolute_error"},
  "paw_reversed": {"loss": "reversed_absolute_error"},
  "paw_lambda_half": {"coefficients": "constant"},
  "paw_printed": {"entropy": "printed"},
  "paw_nll": {"entropy": "nll"},
  "paw_flat": {"aggregate": "flat_selected"},
  "paw_shuffled": {"shuffled": True},
  "echo": _ECHO,
  "echo_low": _ECHO,
}
_LAMBDAS = {"paw_lambda_one": 1.0, "paw_lambda_half": 0.5}
_LAMBDAS |= {"echo": 0.05, "echo_low": 0.01}
_RATES = _LAMBDAS | {"echo_rows": 0.05, "echo_tokens": 0.1}
_ACTOBS = "_actobs"
_DIVIDED = {
  "echo_rows": {**_ECHO, "aggregate": "flat_rows"},
  "echo_tokens": {**_ECHO, "aggregate": "flat_tokens"},
}
RIVALS = ("brace", *_DIVIDED)
RIVALS += tuple(f"{row}{_ACTOBS}" for row in ("grpo", "echo", "grpo_paw"))
CONTROLS = tuple(_CONTROLLED)
# Rows that are drawn together.
_SELECTING = ("paw_all", "paw_random", "paw_lowest", "paw_printed", "paw_nll")
_LEARNING = ("paw_cross_entropy", "paw_unclipped", "paw_reversed", "paw_flat")
_LEARNING += ("paw_shuffled",)
ROWS = (
  *(f"{row}{paw}" for row in BASES for paw in ("", "_paw")),
  *_ABLATED,
  *CONTROLS,
  *RIVALS,
)
ENGINES = ("household", "alfworld")
ALFWORLD_FOLDER = "data/alfworld/json_2.1.1"


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=gigpo_paw,scale=tiny`, say."""
  config, chosen = base.start(
    "household", argument, SCALES, row=("grpo_paw", *ROWS), engine=ENGINES
  )
  set_packing(config, chosen["scale"])
  if chosen["engine"] == "alfworld":
    config.task.name = "alfworld"
    # A game is loaded in a second, and for longer on a busy machine.
    config.grading.limit_s = 60.0
    if chosen["scale"] == "paper":
      config.task.options.folder = ALFWORLD_FOLDER
  set_row(config, chosen["row"])
  return config


def set_row(config: ml_collections.ConfigDict, row: str) -> None:
  """Sets the loss, the advantage and the world model."""
  if row.endswith(_ACTOBS):
    config.warm_start.observation_coefficient = 1.0
    row = row.removesuffix(_ACTOBS)
  algorithm, world = config.algorithm, config.algorithm.world_model
  algorithm.loss_options.update(clip_low=0.2, clip_high=0.2, dual_clip=3.0)
  algorithm.aggregate = "token_mean"
  name = row.removesuffix("_paw")
  known = {"rloo": "step_rloo"} | {x: x for x in ("gigpo", "ppo", "brace")}
  methods.set_method(config, known.get(name, "step_grpo"))
  if row in (*BASES, "brace"):
    return

  world.update(loss="clipped_absolute_error", alpha=0.75)
  world.update((_ABLATED | _CONTROLLED | _DIVIDED).get(row, {}))
  if row in _RATES:
    world.coefficient_options.value = _RATES[row]
  if world.loss in ("clipped_absolute_error", "reversed_absolute_error"):
    world.loss_options.rho = 0.2


def set_tiny(config: ml_collections.ConfigDict) -> None:
  """Sets what the tiny scales of PaW's tables share: minutes on two cores."""
  config.warm_start.num_steps = 2000
  config.warm_start.learning_rate = 5e-3
  config.warm_start.observation_coefficient = 0.02
  config.warm_start.options.wrong_rate = 0.25
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.0
  config.loop.num_steps = 40
  config.loop.prompts_per_step = 8
  config.loop.num_microbatches = 16  # parts that stay in a core's cache
  config.loop.checkpoint_interval = 20
  config.loop.chunk_size = 4096
  config.evaluation.interval = 20


def _tiny(config: ml_collections.ConfigDict) -> None:
  set_tiny(config)
  options = config.task.options
  options.kinds = ("pick", "look")
  options.receptacles = 4
  options.objects = 4
  options.max_steps = 8
  options.form = "compact"
  options.shown = 3
  config.tokenizer.name = "household"
  base.set_lengths(config, prompt=40, response=(7, 24))
  config.episodes.max_observation_tokens = 16
  config.warm_start.num_demonstrations = 32768


def _small(config: ml_collections.ConfigDict) -> None:
  _paper(config)
  # One GPU: shorter episodes in smaller rooms.
  config.task.options.max_steps = 15
  config.task.options.receptacles = 8
  config.task.options.objects = 10
  config.rollout.max_new_tokens = 256
  config.loop.num_microbatches = 64
  config.model.remat = "full"


def _paper(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.receptacles = 16
  options.objects = 20
  options.max_steps = 50
  options.form = "english"
  options.shown = 2
  set_paper(config)


def set_paper(config: ml_collections.ConfigDict) -> None:
  """Sets the published training of Qwen2.5-1.5B-Instruct on ALFWorld."""
  base.set_pretrained(config, "checkpoints/Qwen2.5-1.5B-Instruct")

  base.set_lengths(config, prompt=(2048, 512), response=(512, 256))
  config.rollout.long_prompts = "truncate"
  config.sampling.temperature = 1.0
  config.episodes.rows_per_call = 128
  config.episodes.max_observation_tokens = 512
  config.grading.num_workers = 8

  # 16 worlds x 8 episodes; updates of some 256 steps, one pass over them.
  config.loop.num_steps = 150
  config.loop.prompts_per_step = 16
  config.loop.group_size = 8
  config.loop.num_minibatches = 16
  config.loop.num_microbatches = 16
  config.model.remat = "attention"
  config.loop.checkpoint_interval = 10
  config.evaluation.interval = 5
  config.evaluation.num_examples = 128
  config.evaluation.batch_size = 128
  config.evaluation.samples = 1
  config.evaluation.temperature = 0.4

  config.algorithm.kl.update(placement="loss", estimator="k3", coefficient=0.01)
  config.algorithm.entropy_coefficient = 0.001
  config.optimizer.learning_rate = 1e-6
  config.optimizer.weight_decay = 0.01


SCALES = {"tiny": _tiny, "small": _small, "paper": _paper}


def set_packing(config: ml_collections.ConfigDict, scale: str) -> None:
  """Packs rows, of a prompt, an action and what followed; not `tiny` ones."""
  sizes = config.rollout.max_prompt_tokens, config.rollout.max_new_tokens
  if scale != "tiny":
    template = 64  # The most of a chat's own tokens between the two.
    observed = config.episodes.max_observation_tokens + template
    config.loop.pack_length = sum(sizes) + observed


# --- the table that `saw table` makes -----------------------------------------

_KINDS = {"pick": "Pick", "look": "Look", "clean": "Clean", "heat": "Heat"}
_KINDS |= {"cool": "Cool", "two": "Pick2"}
MAIN = {"grpo": "GRPO", "grpo_paw": "GRPO w/ PaW"}
MAIN |= {"gigpo": "GiGPO", "gigpo_paw": "GiGPO w/ PaW"}
ABLATIONS = {
  "paw_lambda_one": "GRPO w/ PaW, no adaptive coefficient (lambda=1)",
  "paw_cross_entropy": "GRPO w/ PaW, CE instead of CMAE",
}
_CELL = {
  "paper": "PaW",
  "metric": "success (%)",
  "model": "Qwen2.5-1.5B-Instruct",
}
_TABLE_1 = {**_CELL, "table": "Table 1 / Table 5"}

TABLE = Table(
  title="PaW on the household",
  get_config=get_config,
  rows=ROWS,
  on_request=RIVALS,
  needs={
    "tiny": Needs(
      data="generated worlds, eight steps",
      scored_on="held-out worlds, not ALFWorld",
      hours=1.5,
    ),
    "small": Needs(
      model="Qwen2.5-1.5B-Instruct",
      data="generated worlds, 15 steps",
      scored_on="held-out worlds, not ALFWorld",
      hardware=A_GPU,
      extras=("report", "hf"),
    ),
    "paper": Needs(
      model="Qwen2.5-1.5B-Instruct",
      data="generated worlds, 50 steps; ALFWorld's games with engine=alfworld",
      scored_on="held-out worlds; ALFWorld with engine=alfworld",
      hardware="2 GPUs in the framework's script (not run here)",
      extras=("report", "hf"),
    ),
  },
  sections=sections.FIGURES,
  window=5,
  metrics={
    "success, sampled": "sampled/right",
    "success, greedy": "greedy/right",
    "steps, sampled": "sampled/length",
    "next-token accuracy": "greedy/observation_accuracy",
    "next-token NLL": "greedy/observation_nll",
  },
  metrics_at={
    "paper": {
      f"{heading}, sampled": f"sampled/right_{kind}"
      for kind, heading in _KINDS.items()
    }
  },
  curves={
    "success": "success",
    "lambda": "mean lambda",
    "observation_nll": "NLL of what is observed",
    "clipped_tokens": "share of clipped tokens",
  },
  panels={
    "with and without PaW": ROWS[: 2 * len(BASES)],
    "what is selected": ("grpo", "grpo_paw", *_SELECTING),
    "what is learned": ("grpo", "grpo_paw", *_LEARNING),
    "how much": ("grpo", "grpo_paw", *_LAMBDAS),
  },
  primary=("grpo_paw - grpo", "success, sampled"),
  # The placebo; and the cross-entropy at its own scale, which the paper's
  # ablation changes together with the shape.
  controls=("paw_shuffled - grpo", "echo - grpo", "echo - paw_cross_entropy"),
  comparisons=(
    *((f"{row}_paw", row) for row in BASES),
    *((row, "grpo") for row in ("paw_cross_entropy", "paw_shuffled", "echo")),
    *((row, "grpo_paw") for row in (*ABLATIONS, *CONTROLS)),
    ("echo", "paw_cross_entropy"),
  ),
  compared={"success": "success"},
  published=(
    published(MAIN, **_TABLE_1, benchmark="ALFWorld Avg"),
    published(ABLATIONS, **_CELL, table="Table 4", benchmark="ALFWorld Avg"),
  ),
  published_at={
    "paper": (
      published(
        MAIN,
        **_TABLE_1,
        benchmark=tuple(f"ALFWorld {kind}" for kind in _KINDS.values()),
      ),
    )
  },
)
