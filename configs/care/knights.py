"""RLAVR on knights and knaves: which labels are worth buying.

  saw train --workdir=runs/care --seeds=0,1 \
    --config=care/knights:row=care,fraction=0.2,scale=tiny

Rows:
  truth              every label (RLVR), the upper end
  vote               no label: the majority's answer is right (TTRL)
  filtered_vote      the same without the votes that are wrong, which only an
                     oracle knows: what the released script of TTRL does here
  random, entropy, mean_probability
                     a share of the labels, by a score; the rest is dropped
  care               two probes choose the labels, and the votes to be trusted
  oracle             a share of the labels, by the true gap (CAG)
  certainty          no label: sure tokens are good (token entropy)
  self_verification  no label: the policy judges its own answers
Controls:
  random_gate, entropy_gate, oracle_gate   the same probes open a gate for votes
  care_no_gate       labels alone
  random_votes, care_votes   who is neither bought nor trusted is trained on its
                     vote, where it is dropped else

Scales:
  tiny   generated puzzles of three people, a decoder of 0.1 M
         parameters from a supervised start that is surely wrong about a part of
         the puzzles: whoever says "iff" gets the other role
  small  the public puzzles and a pretrained checkpoint that fits one GPU
  paper  Qwen3-8B-Base, the public puzzles of 3 to 7 people, 64 prompts of 8

Paper: arXiv 2605.25864. Its numbers are not available. Ours:
results/care/knights/.
"""

import dataclasses

import ml_collections

from saw_jax.reporting import sections
from saw_jax.reporting.table import A_GPU, Needs, Run, Table
from saw_jax.run import config as base

_CONTROLS = ("random_gate", "entropy_gate", "oracle_gate", "care_no_gate")
_CONTROLS += ("random_votes", "care_votes")
ROWS = ("truth", "vote", "filtered_vote", "random", "entropy")
ROWS += ("mean_probability", "care", "oracle", "certainty")
ROWS += ("self_verification", *_CONTROLS)
FRACTIONS = ("0.05", "0.1", "0.2", "0.4", "0.8")
CHOICES = {
  "row": ("care", *ROWS),
  "fraction": ("0.2", *FRACTIONS),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Makes the config of `row=care,fraction=0.2,scale=tiny`, say."""
  config, chosen = base.start("knights", argument, SCALES, **CHOICES)
  set_row(config, chosen["row"], float(chosen["fraction"]))
  return config


def set_row(
  config: ml_collections.ConfigDict, row: str, fraction: float
) -> None:
  """Sets what a row is trained on, and CARE's policy loss."""
  # GRPO as in the reference: dual clip, mean over tokens.
  config.algorithm.advantage = "grpo"
  config.algorithm.loss = "clipped_surrogate"
  config.algorithm.loss_options.update(
    clip_low=0.2, clip_high=0.2, dual_clip=3.0
  )
  config.algorithm.aggregate = "token_mean"

  labels = config.labels
  method, _, control = row.partition("_")
  if row in ("filtered_vote", "mean_probability", "self_verification"):
    method, control = row, ""
  labels.method = method
  labels.label_fraction = fraction
  has_gate = control == "gate" or (method == "care" and control != "no_gate")
  labels.gate = "probe" if has_gate else "none"
  if control == "votes":
    labels.unlabelled = "vote"


def _tiny(config: ml_collections.ConfigDict) -> None:
  options = config.task.options
  options.seed = 0
  options.people = (3,)  # two people have too few puzzles to learn from
  options.num_train = 65536
  options.compound_rate = 0.5
  config.tokenizer.name = "knights"
  base.set_lengths(config, prompt=48, response=16)
  config.warm_start.num_steps = 3000
  config.warm_start.num_demonstrations = 65536
  config.warm_start.learning_rate = 5e-3
  config.warm_start.options.right_rate = 0.95
  config.warm_start.options.format_rate = 0.95
  config.warm_start.options.misleading = ("iff",)
  config.warm_start.options.misled_rate = 0.6
  config.warm_start.options.verdict_rate = 0.2
  config.warm_start.options.verdict_accuracy = 0.8
  config.optimizer.learning_rate = 5e-4
  config.optimizer.weight_decay = 0.0
  config.loop.prompts_per_step = 20  # budgets are whole numbers of them
  config.loop.num_microbatches = 20  # parts that stay in a core's cache
  config.loop.checkpoint_interval = 50
  config.evaluation.interval = 20
  config.evaluation.num_examples = 256
  config.evaluation.batch_size = 256
  config.evaluation.samples = 8
  # Lengths up to a whole answer, and probes that learn in 150 steps.
  config.labels.probe.length_scale = 16.0
  config.labels.verify_prompt_tokens = 64
  config.labels.verify_new_tokens = 2


def _small(config: ml_collections.ConfigDict) -> None:
  _paper(config)
  config.checkpoint = "checkpoints/Qwen3-1.7B-Base"
  config.rollout.max_new_tokens = 2048
  config.loop.prompts_per_step = 32
  config.model.remat = "full"


def _paper(config: ml_collections.ConfigDict) -> None:
  # The public training puzzles, 900 a number of people; see
  # docs/reproducing.md for where they are. The paper's composition is unknown.
  options = config.task.options
  options.train_path = "data/knights/train_3_to_7.jsonl"
  options.test_path = "data/knights/test_3_to_7.jsonl"
  options.benchmarks = {
    f"people_{n}": f"data/knights/test_{n}.jsonl" for n in range(3, 9)
  }
  set_paper(config)
  config.loop.num_steps = 210  # three epochs of 4,500 puzzles


SCALES = {"tiny": _tiny, "small": _small, "paper": _paper}


def set_paper(config: ml_collections.ConfigDict) -> None:
  """Sets what the paper's scripts have in common: Qwen3-8B-Base, 64 prompts."""
  base.set_pretrained(config, "checkpoints/Qwen3-8B-Base")

  lengths = dict(prompt=(1024, 256), response=(4000, 256))
  base.set_lengths(config, **lengths, is_packed=True)
  config.sampling.temperature = 1.0

  # One on-policy update a step.
  config.loop.prompts_per_step = 64
  config.loop.group_size = 8
  config.loop.num_microbatches = 16  # of 32 rows
  config.model.remat = "dots"
  config.loop.checkpoint_interval = 40
  config.evaluation.interval = 20
  config.evaluation.num_examples = 500
  config.evaluation.batch_size = 64
  config.evaluation.samples = 8
  config.evaluation.temperature = 0.6
  config.evaluation.top_p = 0.95

  config.optimizer.learning_rate = 1e-6
  config.optimizer.weight_decay = 0.01


# --- the table that `saw table` makes -----------------------------------------

_AT = 0.2  # budget of the main table
_SWEPT = ("random", "entropy", "care", "oracle")
_FREE = ("truth", "vote", "certainty", "self_verification")
_BUYERS = ("random", "entropy", "mean_probability", "care", "oracle")


def several(fractions: dict[str, tuple[str, ...]]) -> dict[str, Run]:
  """The runs of rows, each with the budgets that it is run with, if any."""
  return {
    f"{row}_{fraction}" if fraction else row: Run(
      row,
      float(fraction) if fraction else None,
      f"row={row}" + (f",fraction={fraction}" if fraction else ""),
    )
    for row, some in fractions.items()
    for fraction in some or ("",)
  }


_RUNS = several(
  dict.fromkeys(_FREE, ())
  | {
    row: FRACTIONS if row in _SWEPT else (str(_AT),)
    for row in ROWS
    if row not in (*_FREE, "filtered_vote")
  }
)
_PUBLIC = Needs(
  model="Qwen3-8B-Base",
  data="the public puzzles of 3 to 7 people",
  scored_on="the public puzzles of 3 to 8 people",
  hardware="8 GPUs in the released scripts (not run here)",
  extras=("report", "hf"),
  files=dict.fromkeys(
    (
      "data/knights/train_3_to_7.jsonl",
      "data/knights/test_3_to_7.jsonl",
      *(f"data/knights/test_{n}.jsonl" for n in range(3, 9)),
    ),
    "rows with quiz and solution_text_format (docs/reproducing.md, Knights and "
    "knaves)",
  ),
)

TABLE = Table(
  title="CARE on knights and knaves",
  caption=": held out, labels for 20 % of the prompts of a step",
  get_config=get_config,
  rows=ROWS,
  several=_RUNS,
  at=_AT,
  # Budgets are swept in the table of math; here by `--rows=care_0.4,...`.
  on_request=tuple(
    name for name, run in _RUNS.items() if run.value not in (None, _AT)
  ),
  needs={
    "tiny": Needs(
      model="a decoder of 0.1 M parameters, trained here and misled",
      data="generated puzzles of three people",
      scored_on="held-out puzzles",
      hours=0.8,
    ),
    "small": dataclasses.replace(
      _PUBLIC, model="Qwen3-1.7B-Base", hardware=A_GPU
    ),
    "paper": _PUBLIC,
  },
  sections=(*sections.LABELS, sections.draw_choices(*_BUYERS)),
  window=10,
  note=(
    "`truth` has every label and `oracle` sees all of them before it chooses. "
    "Rows without `_gate` or `_votes`, but for `care`, are trained on nothing "
    "but the prompts that they bought; `care` also on the quarter of the votes "
    "that its first probe trusts most, from step 21 on."
  ),
  panels={
    "no labels": _FREE,
    "20 % of the labels": _BUYERS,
    "controls": _CONTROLS,
  },
  primary=("care - random", "right, sampled"),
  controls=("care - entropy",),
  comparisons=(
    ("care", "random"),
    ("care", "entropy"),
    ("care", "vote"),
    ("care", "random_gate"),
    ("care", "care_no_gate"),
    ("care", "truth"),
    ("oracle", "random"),
    ("care_votes", "random_votes"),
    ("vote", "truth"),
  ),
  metrics={
    "right, greedy": "greedy/right",
    "right, sampled": "sampled/right",
    "maj@8": "sampled/maj@8",
  },
  benchmarks=dict.fromkeys(
    ("small", "paper"), {f"people_{n}": 8 for n in range(3, 9)}
  ),
  metrics_at=dict.fromkeys(
    ("small", "paper"),
    {
      **{
        f"{n} people, avg@8": f"people_{n}/sampled/right" for n in range(3, 9)
      },
      "average, avg@8": "benchmarks/sampled/right",
    },
  ),
)
