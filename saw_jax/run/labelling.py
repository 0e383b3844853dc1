"""What responses are scored against, when the ground truth costs something.

Between sampling and learning a labeller has responses scored: against the truth
(`Labeller`), by the policy's own certainty or verdict (`OwnRewards`), or
against labels that were bought and the votes of groups (`VoteLabels`). It hands
on a `Rollout` like any other, with a multiplier for each prompt, so that
weights, advantages and losses know of nothing.

The grader gets examples whose reference was replaced. The true reference of a
prompt that was not bought reaches the log alone (`audit`), and the methods that
see it by definition (`Strategy.sees_truth`).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from saw_jax.annotate import ledger as ledger_lib
from saw_jax.annotate import questions, sources
from saw_jax.labels import care, certainty, gap, replay, selection, voting
from saw_jax.labels import strategies as strategies_lib
from saw_jax.rollout.transcript import Transcript
from saw_jax.run import rollouts
from saw_jax.settings import constant
from saw_jax.tasks import clusters, self_verification
from saw_jax.tasks.base import Example, Outcome, nearest
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tokenizer import Tokenizer
from saw_jax.training.objective import Observation

# What a certainty is computed from: its function, and a field of `Observation`.
CERTAINTIES = {
  "self_certainty": (certainty.self_certainty, "certainties"),
  "token_entropy": (certainty.token_entropy, "entropies"),
  "trajectory_entropy": (certainty.trajectory_entropy, "log_probs"),
  "probability": (certainty.probability, "log_probs"),
}
_CHOICES = {
  "method": tuple(strategies_lib.STRATEGIES),
  "gate": ("none", "majority", "probe"),
  "unlabelled": ("drop", "vote"),
  "certainty": tuple(CERTAINTIES),
  "source": ("truth", "annotator"),
}

Examples = Sequence[Sequence[Example]]  # [N][P]
Rows = list[dict[str, float]]  # what each seed logs
# (examples, completions, step) -> verdicts [N, P, G] of 0 and 1
Verify = Callable[[Examples, list[str], int], np.ndarray]


class Laps(Protocol):
  """What takes the time of the parts of a step: `session.Clock`."""

  def lap(self, name: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class LabelConfig:
  """Where rewards come from, and how labels are bought."""

  # truth: of the data set. vote: of the group. filtered_vote: right votes only.
  # random, entropy, mean_probability, oracle or care buy labels; certainty and
  # self_verification need none.
  method: str = "truth"
  label_fraction: float = 0.2  # of the prompts of a step
  gate: str = "none"  # whose votes are trusted: majority, probe
  gate_fraction: float = constant(0.25)  # of the prompts of a step
  warm_up: int = constant(selection.WARM_UP)  # steps before the gate opens
  # Times the expected gap, of a prompt that the gate trusts.
  soft_adv: float = constant(1.0)
  unlabelled: str = "drop"  # or vote: neither bought nor gated, train on it
  # self_certainty, token_entropy, trajectory_entropy or probability
  certainty: str = constant("token_entropy")
  verify_temperature: float = constant(self_verification.TEMPERATURE)
  verify_prompt_tokens: int = 8192  # the end of longer ones is kept
  verify_new_tokens: int = self_verification.MAX_NEW_TOKENS
  source: str = "truth"  # or annotator: experiments/annotate.py
  price: float = constant(1.0)  # of a label
  total: float = 0.0  # most that a run may spend; 0: no limit
  again: bool = False  # pay again for a prompt that was bought before
  timeout_s: float = constant(3600.0)  # the annotator's
  audit: bool = constant(True)  # log what the true references say
  probe: care.CareSettings = care.CareSettings()

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      value = getattr(self, name)
      if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: {nearest(value, choices)}")
    for name in ("label_fraction", "gate_fraction"):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ValueError(
          f"labels.{name} is {value}; it is a share of the batch, from 0 to 1"
        )
    if self.strategy.buys and not self.label_fraction:
      raise ValueError(
        f"labels.method is {self.method!r} with a label_fraction of 0, which "
        "buys nothing: say labels.method='vote' to train on votes alone"
      )
    if self.total < 0:
      raise ValueError(f"labels.total is {self.total}; it must be 0 or more")
    if self.strategy.sees_truth and self.source != "truth":
      raise ValueError(
        f"labels.method={self.method!r} looks at the ground truth: it needs "
        "labels.source='truth'"
      )

  @property
  def strategy(self) -> strategies_lib.Strategy:
    return strategies_lib.STRATEGIES[self.method]

  @property
  def is_truth(self) -> bool:
    """Whether all rewards are true: nothing is observed, voted or bought."""
    return self.method == "truth"

  @property
  def has_probes(self) -> bool:
    return self.strategy.has_probes or self.gate == "probe"


class Scorer(NamedTuple):
  """What reads responses, and has them scored."""

  task: Any
  tokenizer: Tokenizer
  grader: Grader
  stops: Sequence[str] = ()  # strings that end a response

  def read(self, sampled: Transcript, num_prompts: int) -> rollouts.Rollout:
    """The responses, unscored."""
    options = {"tokenizer": self.tokenizer, "stops": self.stops}
    components = len(self.task.components)
    return rollouts.unscored(sampled, num_prompts, components, **options)

  def score(self, sampled: Transcript, examples: Examples) -> rollouts.Rollout:
    """The responses, scored against the references of the examples."""
    options = {"tokenizer": self.tokenizer, "stops": self.stops}
    return rollouts.score(sampled, examples, grader=self.grader, **options)


class Labeller:
  """Scores against the true references; the base of all labellers.

  `early` may be called by actors, `score` and `train` before and after an
  update, `pack` for a checkpoint and `restore` once before the first step.
  """

  def __init__(self, scorer: Scorer):
    self._scorer = scorer

  def restore(
    self, step: int, document: Mapping, arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Takes up what `pack` gave at a number of steps; both empty at 0."""

  def early(self, sampled: Transcript, examples: Examples) -> rollouts.Rollout:
    """What may be known of responses before it is their step's turn."""
    return self._scorer.score(sampled, examples)

  def score(
    self,
    sampled: Transcript,
    observed: Observation | None,
    examples: Examples,
    step: int,
    clock: Laps,
    early: rollouts.Rollout | None = None,
  ) -> rollouts.Rollout:
    """Scores host rows `[N, P * G]`, sampled by the policy that `observed`."""
    if early is None:
      early = self._scorer.score(sampled, examples)
      clock.lap("score")
    return early

  def train(self, rows: Rows, step: int, clock: Laps) -> Rows:
    """Learns from the labels of a step; adds to what each seed logs."""
    return rows

  def pack(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a checkpoint after so many steps must hold."""
    return {}, {}


class _Labels(Labeller):
  """What both labellers share that do not score against the truth."""

  def __init__(self, config: LabelConfig, scorer: Scorer):
    super().__init__(scorer)
    self.config, self._task = config, scorer.task
    self._rows: Rows = []  # to log with the update that follows

  def early(self, sampled, examples):
    return self._scorer.read(sampled, len(examples[0]))

  def train(self, rows, step, clock):
    return [a | b for a, b in zip(rows, self._rows, strict=True)]

  def _answers(self, read: rollouts.Rollout, examples: Examples):
    """Texts and answers `[N][P][G]`, ids `[N, P, G]`, and which are true."""
    task, (N, P, G) = self._task, read.lengths.shape
    texts = np.array(read.completions, object).reshape(N, P, G).tolist()
    keys = _each(
      lambda example, group: [task.answer_key(x, example) for x in group],
      examples,
      texts,
    )
    truth = None
    if self.config.audit or self.config.strategy.sees_truth:
      truth = np.array(_each(self._matches, examples, keys), bool)
    return texts, keys, np.stack([clusters.answer_ids(x) for x in keys]), truth

  def _matches(self, example: Example, keys: Sequence[str | None]):
    truth = self._task.answer_key(self._task.gold_completion(example), example)
    return [key is not None and key == truth for key in keys]

  def _log(self, figures: Mapping[str, Any]) -> None:
    figures = jax.device_get(figures)
    for n, row in enumerate(self._rows):
      row |= {name: float(x[n]) for name, x in figures.items()}


class OwnRewards(_Labels):
  """Rewards without any label: the policy's own certainty or verdict."""

  def __init__(self, config: LabelConfig, scorer: Scorer, verify: Verify):
    super().__init__(config, scorer)
    self._verify = verify

  def score(self, sampled, observed, examples, step, clock, early=None):
    """Judges responses; their truth, if it is logged, is the outcome."""
    read = self._scorer.read(sampled, len(examples[0]))
    if self.config.strategy.needs_verdicts:
      values = self._verify(examples, read.completions, step)
    else:
      fn, field = CERTAINTIES[self.config.certainty]
      tokens = jnp.asarray(getattr(observed, field))
      values = np.asarray(jax.vmap(fn)(tokens, sampled.completion_mask))
    # One number stands for all components, of which there is mostly one.
    values = values.reshape(*read.lengths.shape, 1).astype(np.float32)
    rollout = read._replace(
      rewards=np.repeat(values, read.rewards.shape[-1], -1),
      scored=np.ones_like(read.scored),
    )
    _, _, answer_ids, truth = self._answers(read, examples)
    self._rows = [{} for _ in examples]
    clock.lap("score")
    if truth is None:
      return rollout
    self._log(_audit_figures(truth, _facts(answer_ids, truth)))
    clock.lap("audit")
    return rollout._replace(
      outcomes=[Outcome.RIGHT if x else Outcome.WRONG for x in truth.flat]
    )


class VoteLabels(_Labels):
  """Scores against the labels that a method buys, and the votes of groups."""

  def __init__(
    self,
    config: LabelConfig,
    scorer: Scorer,
    seeds: Sequence[int],
    desk: "Desk | None",
    probe: "Probes | None",
  ):
    super().__init__(config, scorer)
    self._seeds, self._desk, self._probes = list(seeds), desk, probe
    choose = functools.partial(_choose, config)
    self._choose = jax.jit(jax.vmap(choose, in_axes=(0, 0, 0, 0, None)))

  def restore(self, step, document, arrays):
    if self._desk is not None:
      self._desk.ledger.restore(step, document.get("labels"))
    if self._probes is not None:
      self._probes.restore(arrays)

  def score(self, sampled, observed, examples, step, clock, early=None):
    """Buys labels and has the responses scored; says which prompts count."""
    config, strategy = self.config, self.config.strategy
    read = self._scorer.read(sampled, len(examples[0]))
    shape = read.lengths.shape
    clock.lap("score")
    texts, keys, answer_ids, truth = self._answers(read, examples)
    features = state = None
    if self._probes is not None:
      state = self._probes.state
      features = self._probes.features(observed, answer_ids, read.lengths)
    likely = np.zeros(shape, np.float32)
    if strategy.needs_log_probs:
      mean, mask = certainty.mean_probability, sampled.completion_mask
      likely = np.asarray(jax.vmap(mean)(observed.log_probs, mask))
      likely = likely.reshape(shape)
    seen = truth if strategy.sees_truth else np.zeros(shape, bool)
    groups = strategies_lib.Groups(answer_ids, likely, seen)
    keys_of_step = _keys(self._seeds, 2 * step + 1)
    chosen, scores, counts = jax.device_get(
      self._choose(state, features, groups, keys_of_step, step + 1)
    )
    clock.lap("choose")
    labels = [[None] * shape[1] for _ in self._seeds]
    if self._desk is not None:
      labels = self._desk.buy(chosen, examples, texts, step)
    bought = np.array([[x is not None for x in row] for row in labels], bool)
    chosen = chosen._replace(labelled=bought)
    clock.lap("buy")

    winners = np.asarray(_winners(answer_ids))
    judged = _each(self._relabel, examples, labels, winners, answer_ids, keys)
    rollout = self._scorer.score(sampled, judged)
    if self._probes is not None:
      right = [outcome is Outcome.RIGHT for outcome in rollout.outcomes]
      correct = np.reshape(right, shape) & bought[..., None]
      learned = jax.vmap(replay.probe_labels)(answer_ids, correct)
      self._learn = features, learned, bought
    clock.lap("score")
    self._rows = [{} for _ in examples]
    if self._desk is not None:
      self._rows = self._desk.spending(bought)
    if truth is not None:
      self._audit(truth, answer_ids, chosen, counts)
    clock.lap("audit")
    weigh = strategy.weigh
    if config.unlabelled == "vote" and strategy.buys:
      weigh = strategies_lib.every_vote
    multipliers = jax.vmap(lambda s, x: weigh(s, x, config.soft_adv))
    return rollout._replace(multipliers=np.asarray(multipliers(chosen, scores)))

  def train(self, rows, step, clock):
    """Trains the probes on what was bought, after the policy's update."""
    if self._probes is not None:
      keys = _keys(self._seeds, 2 * step + 2)
      self._log(self._probes.train(keys, *self._learn))
      clock.lap("probes")
    return super().train(rows, step, clock)

  def pack(self, step):
    """What the ledger says of itself, and the probes with their replay."""
    document = arrays = {}
    if self._desk is not None:
      document = {"labels": self._desk.ledger.snapshot(step)}
    if self._probes is not None:
      arrays = self._probes.pack()
    return document, arrays

  def _relabel(self, example, label, winner, ids, keys) -> Example:
    """The example to score against, never with a truth that was not bought."""
    if label is None and winner >= 0:
      label = keys[ids.tolist().index(winner)]
    if label is None:  # nobody gave an answer, so that any label will do
      label = questions.placeholder(self._task.label_form(example))
    return self._task.with_label(example, label)

  def _audit(self, truth, answer_ids, chosen, counts) -> None:
    """What the true references say, which nothing is trained on."""
    facts = _facts(answer_ids, truth)
    found, right = _audit_figures(truth, facts), facts["vote_right"]
    if self.config.gate != "none":
      found |= jax.vmap(selection.gate_figures)(chosen.gated, right)
    if counts is not None:
      found |= jax.vmap(selection.count_figures)(
        counts, facts["correct_outside"], ~chosen.gated
      )
    if self._desk is not None:
      found |= jax.vmap(selection.label_figures)(
        chosen, right, facts["gaps"], truth
      )
    self._log(found)


class Desk:
  """Where labels are bought: the ledger of a run, and who is asked."""

  def __init__(
    self,
    config: LabelConfig,
    task: Any,
    directory: str | os.PathLike,
    seeds: Sequence[int],
    per_step: int,
    stop: Callable[[], bool] | None,
  ):
    self._task, self._seeds, self._again = task, list(seeds), config.again
    if config.total and config.price > config.total:
      raise ValueError(
        f"labels.total is {config.total:g}, which does not pay one label at "
        f"{config.price:g}"
      )
    path = pathlib.Path(directory) / ledger_lib.LEDGER_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    budget = ledger_lib.Budget(per_step, config.total or None)
    self.ledger = ledger_lib.LabelLedger(path, budget=budget)
    if config.source == "annotator":
      self.source = sources.Annotator(
        self.ledger, timeout_s=config.timeout_s, price=config.price, stop=stop
      )
    else:
      self.source = sources.GroundTruth(task.examples("train"), config.price)

  def buy(
    self, chosen: selection.Selection, examples: Examples, texts, step: int
  ) -> list[list[str | None]]:
    """Labels `[N][P]`; None where there is none."""
    asked = {
      (n, p): questions.make_question(
        self._task, examples[n][p], texts[n][p], step=step, seed=seed
      )
      for n, seed in enumerate(self._seeds)
      for p in chosen.order[n].tolist()
      if chosen.labelled[n, p]
    }
    answers = self.ledger.buy(
      list(asked.values()), self.source, again=self._again
    )
    labels: list[list[str | None]] = [[None] * len(row) for row in examples]
    for (n, p), answer in zip(asked, answers, strict=True):
      labels[n][p] = answer and answer.text
    return labels

  def spending(self, bought: np.ndarray) -> Rows:
    """What each seed has spent, and on how much of this step."""
    totals = [self.ledger.totals(seed) for seed in self._seeds]
    return [
      {
        "labels/share": float(of_seed.mean()),
        "labels/bought": total.labels,
        "labels/prompts": total.prompts,
        "labels/spent": total.spent,
        "labels/unanswered": total.unlabelled,
      }
      for of_seed, total in zip(bought, totals, strict=True)
    ]


class Probes:
  """CARE's probes of all seeds, with their state."""

  def __init__(
    self,
    settings: care.CareSettings,
    seeds: Sequence[int],
    group_size: int,
    width: int,
    budget: int,
  ):
    def lift(fn, **options):
      return jax.vmap(functools.partial(fn, **options))

    made = {
      "settings": settings,
      "optimizer": optax.adam(settings.learning_rate),
    }
    sizes = {"group_size": group_size, "hidden_size": width}
    self.state = jax.jit(lift(care.create_state, **sizes, **made))(
      _keys(seeds, 0)
    )
    self._features = jax.jit(
      lift(replay.probe_features, length_scale=settings.length_scale)
    )
    self._train = jax.jit(
      lift(care.train_probes, budget=budget, **made), donate_argnums=0
    )

  def features(self, observed: Observation, answer_ids, lengths):
    """What the probes see of the groups of a step."""
    hidden = observed.response_hidden.reshape(*lengths.shape, -1)
    # By the host: where the policy is spread over devices, the probes would
    # be compiled once for their new state and once for the one after it.
    return jax.device_get(
      self._features(observed.prompt_hidden, hidden, answer_ids, lengths)
    )

  def train(self, *batch) -> dict[str, jax.Array]:
    """Updates the probes; gives what is logged of it."""
    self.state, metrics = self._train(self.state, *batch)
    return {f"probe/{name}": x for name, x in metrics.items()}

  def pack(self) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(jax.device_get(self.state))
    return {f"care/{i}": np.asarray(x) for i, x in enumerate(leaves)}

  def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
    if arrays:
      leaves, tree = jax.tree.flatten(self.state)
      found = [jnp.asarray(arrays[f"care/{i}"]) for i in range(len(leaves))]
      self.state = jax.tree.unflatten(tree, found)


def _choose(config: LabelConfig, state, features, groups, key, step):
  """Which labels one seed buys, and why; steps count from 1.

  Gives the selection, the scores `[P]` that prompts were ranked by and, of the
  second probe, the probabilities `[P, G + 1]` of counts or None.
  """
  trust = voting.majority_share(voting.majority_vote(groups.answer_ids))
  counts = None
  if config.has_probes:
    right, counts = care.care_probabilities(state, features, config.probe)
    gaps = gap.expected_gap(counts, features.voted_count)
    groups = groups._replace(gaps=gaps)
    trust = right if config.gate == "probe" else trust
  scores = config.strategy.rank(groups, key)
  chosen = selection.care_selection(
    scores,
    trust,
    step,
    label_fraction=config.label_fraction if config.strategy.buys else 0.0,
    gate_fraction=0.0 if config.gate == "none" else config.gate_fraction,
    warm_up=config.warm_up,
  )
  return chosen, scores, counts


def make_labeller(
  config: LabelConfig,
  scorer: Scorer,
  *,
  seeds: Sequence[int],
  prompts_per_step: int,
  group_size: int,
  width: int,
  directory: str | os.PathLike,
  stop: Callable[[], bool] | None = None,
  verify: Verify | None = None,
) -> Labeller:
  """Makes the labeller of a run; the ledger of bought labels is in its folder.

  `width` is that of the policy's hidden states; `stop` is asked while an
  annotator is waited for; `verify` gives the policy's verdicts.
  """
  if config.is_truth:
    return Labeller(scorer)
  task, strategy = scorer.task, config.strategy
  needed = ["answer_key", "with_label", "label_form", "gold_completion"]
  for name in needed + ["verification"] * strategy.needs_verdicts:
    if not hasattr(task, name):
      raise ValueError(
        f"task {task.name!r} cannot be trained with labels.method="
        f"{config.method!r}: it has no {name}; math and knights have all"
      )
  if strategy.rank is None:
    return OwnRewards(config, scorer, verify)
  desk = probe = None
  per_step = selection.budget(prompts_per_step, config.label_fraction)
  if strategy.buys:
    desk = Desk(config, task, directory, seeds, per_step, stop)
  if config.has_probes:
    probe = Probes(config.probe, seeds, group_size, width, per_step)
  return VoteLabels(config, scorer, seeds, desk, probe)


def _each(fn: Callable, *nested: Sequence[Sequence]) -> list[list]:
  """Applies a function to each prompt of each seed."""
  return [
    [fn(*of_prompt) for of_prompt in zip(*of_seed, strict=True)]
    for of_seed in zip(*nested, strict=True)
  ]


def _keys(seeds: Sequence[int], number: int) -> jax.Array:
  """A key for each seed; even numbers are the probes', odd ones choose."""
  fold = jax.random.fold_in
  roots = jnp.stack([jax.random.key(seed) for seed in seeds])
  # A stream of its own: those of the samples are folded by step alone.
  return jax.vmap(lambda root: fold(fold(root, 0x6C6162), number))(roots)


_winners = jax.jit(jax.vmap(lambda ids: voting.majority_vote(ids).winner))


@jax.jit
@jax.vmap
def _facts(answer_ids, truth) -> dict[str, jax.Array]:
  """What is true of the groups of one seed."""
  votes = voting.majority_vote(answer_ids)
  return {
    "vote_right": voting.is_vote_right(answer_ids, truth),
    "correct_outside": voting.correct_outside(answer_ids, truth),
    "gaps": selection.oracle_scores(votes.for_winner, truth),
    "majority": jnp.mean(voting.majority_share(votes)),
  }


def _audit_figures(truth: np.ndarray, facts) -> dict[str, Any]:
  return {
    "audit/correct": truth.mean((1, 2)),
    "audit/vote_right": jnp.mean(facts["vote_right"], axis=-1),
    "audit/majority": facts["majority"],
    "audit/gap": jnp.mean(facts["gaps"], axis=-1),
  }
