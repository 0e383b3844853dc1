# SPDX-License-Identifier: Apache-2.0
"""What responses are scored against, when the ground truth costs something.

Between sampling and learning, a step of RLAVR asks: which prompts are worth a
label? A `Labeller` numbers the answers of each group, has them chosen
(`labels/`), buys what was chosen (`annotate/ledger.py`), and has each
response scored against the label of its prompt or, where there is none, against
the vote of its group. What it hands on is a `Rollout` like any other, with a
multiplier for each prompt: so weights, advantages and losses know of nothing.

The scorer gets examples whose reference was replaced. The true reference of a
prompt that was not bought reaches the log alone (`audit`), and what "oracle" in
its name says that it sees.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from saw_jax.annotate import (
  ledger as label_ledger,
)
from saw_jax.annotate import (
  questions,
)
from saw_jax.annotate import (
  sources as label_sources,
)
from saw_jax.labels import care, certainty, diagnostics, probes, replay, voting
from saw_jax.labels import selection as selection_lib
from saw_jax.rollout import transcript as transcript_lib
from saw_jax.run import rollouts
from saw_jax.settings import constant
from saw_jax.tasks import self_verification
from saw_jax.tasks.base import Example, Outcome, nearest
from saw_jax.tasks.summaries import clusters
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import objective

# What a prompt is trained on, by method. "truth" is RLVR: no Labeller at all.
BUYING = ("random", "entropy", "mean_probability", "oracle", "care")
METHODS = (
  "truth",
  "vote",
  "filtered_vote",
  *BUYING,
  "certainty",
  "self_verification",
)
# What looks at the truth about prompts whose label nobody bought.
SEEING = ("oracle", "filtered_vote")
GATES = ("none", "majority", "probe")
UNLABELLED = ("drop", "vote")
CERTAINTIES = (
  "self_certainty",
  "token_entropy",
  "trajectory_entropy",
  "probability",
)
SOURCES = ("truth", "annotator")

# (examples [N][P], completions, step) -> verdicts [N, P, G] of 0 and 1
Verify = Callable[[Sequence[Sequence[Example]], list[str], int], np.ndarray]


class Laps(Protocol):
  """What takes the time of the parts of a step: `session.Clock`."""

  def lap(self, name: str) -> None:
    """Books the time since the last lap."""
    ...


@dataclasses.dataclass(frozen=True)
class LabelConfig:
  """Where rewards come from, and how labels are bought."""

  method: str = "truth"  # of METHODS
  label_fraction: float = 0.2  # of the prompts of a step
  gate: str = "none"  # whose votes are trusted: of GATES
  gate_fraction: float = constant(0.25)  # of the prompts of a step
  warm_up: int = constant(selection_lib.WARM_UP)  # steps before the gate opens
  # Of `selection.advantage_multipliers`, gate "probe".
  soft_adv: float = constant(1.0)
  unlabelled: str = "drop"  # neither bought nor gated: of UNLABELLED
  # Of method "certainty": of CERTAINTIES.
  certainty: str = constant("token_entropy")
  verify_temperature: float = constant(self_verification.TEMPERATURE)
  verify_prompt_tokens: int = 8192  # the end of longer ones is kept
  verify_new_tokens: int = self_verification.MAX_NEW_TOKENS
  source: str = "truth"  # who is asked: of SOURCES
  price: float = constant(1.0)  # of a label
  total: float = 0.0  # most that a run may spend; 0: no limit
  again: bool = False  # pay again for a prompt that was bought before
  timeout_s: float = constant(3600.0)  # of the annotator
  audit: bool = constant(True)  # log what the true references say
  probe: care.CareSettings = care.CareSettings()  # shares are those above

  def __post_init__(self):
    for name, choices in (
      ("method", METHODS),
      ("gate", GATES),
      ("unlabelled", UNLABELLED),
      ("certainty", CERTAINTIES),
      ("source", SOURCES),
    ):
      value = getattr(self, name)
      if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: {nearest(value, choices)}")
    for name in ("label_fraction", "gate_fraction"):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ValueError(
          f"labels.{name} is {value}; it is a share of the batch, from 0 to 1"
        )
    if self.method in BUYING and not self.label_fraction:
      raise ValueError(
        f"labels.method is {self.method!r} with a label_fraction of 0, which "
        "buys nothing: say labels.method='vote' to train on votes alone"
      )
    if self.total < 0:
      raise ValueError(f"labels.total is {self.total}; it must be 0 or more")
    if self.method in SEEING and self.source != "truth":
      raise ValueError(
        f"labels.method={self.method!r} looks at the ground truth: it needs "
        "labels.source='truth'"
      )

  @property
  def settings(self) -> care.CareSettings:
    """CARE's settings, with the shares of this config."""
    return dataclasses.replace(
      self.probe,
      label_fraction=self.label_fraction,
      gate_fraction=self.gate_fraction if self.gate == "probe" else 0.0,
      warm_up=self.warm_up,
      soft_adv=self.soft_adv,
    )

  @property
  def has_probes(self) -> bool:
    """Whether CARE's probes are trained."""
    return self.method == "care" or self.gate == "probe"

  @property
  def needs_log_probs(self) -> bool:
    """Whether it looks at the probabilities of tokens."""
    return self.method in ("mean_probability", "certainty")


class Choice(NamedTuple):
  """What was decided about the prompts of a step."""

  selection: selection_lib.Selection
  scores: jax.Array  # [P], what prompts were ranked by
  gate_scores: jax.Array  # [P], how much each vote is trusted
  count_probabilities: jax.Array | None  # [P, G + 1], of the second probe


def make_choose(config: LabelConfig) -> Callable[..., Choice]:
  """Makes the function that decides which labels are bought.

  Args:
    config: the method, its gate and its shares.

  Returns:
    A function of one seed, `(state, features, answer_ids [P, G],
    mean_probabilities [P, G], correct [P, G], key, step) -> Choice`. `state`
    and `features` are None without probes; `correct` is read by the oracle
    and the filter alone. Steps count from 1.
  """
  settings = config.settings

  def choose(
    state, features, answer_ids, mean_probabilities, correct, key, step
  ) -> Choice:
    votes = voting.majority_vote(answer_ids)
    gate_scores, counts, gaps = voting.majority_share(votes), None, None
    if config.has_probes:
      found = care.select_prompts(state, features, step, settings=settings)
      counts, gaps = found.count_probabilities, found.expected_gaps
      if config.gate == "probe":
        gate_scores = found.vote_probabilities
    scores = {
      "care": lambda: gaps,
      "random": lambda: selection_lib.random_scores(key, answer_ids.shape[0]),
      "entropy": lambda: selection_lib.entropy_scores(answer_ids),
      # From 0 up, as a gated prompt ranks below 0.
      "mean_probability": lambda: (
        1 + selection_lib.unlikeliness_scores(mean_probabilities)
      ),
      "oracle": lambda: selection_lib.oracle_scores(votes.for_winner, correct),
      "vote": lambda: jnp.zeros(answer_ids.shape[0]),
      # As TTRL's released script for knights and knaves: no vote that is wrong.
      "filtered_vote": lambda: voting.is_vote_right(answer_ids, correct).astype(
        jnp.float32
      ),
    }[config.method]()
    chosen = selection_lib.care_selection(
      scores,
      gate_scores,
      step,
      label_fraction=config.label_fraction if config.method in BUYING else 0.0,
      gate_fraction=0.0 if config.gate == "none" else config.gate_fraction,
      warm_up=config.warm_up,
    )
    return Choice(chosen, scores, gate_scores, counts)

  return choose


def multipliers(config: LabelConfig, choice: Choice) -> jax.Array:
  """Says how much each prompt counts in the update.

  Args:
    config: what becomes of unlabelled prompts.
    choice: with the labels that were in fact bought.

  Returns:
    From 0 to 1. Shape `[P]`.
  """
  if config.method == "filtered_vote":
    return choice.scores
  if config.method == "vote" or config.unlabelled == "vote":
    return jnp.ones_like(choice.scores)
  if config.method == "care":
    return selection_lib.advantage_multipliers(
      choice.selection, choice.scores, soft_adv=config.soft_adv
    )
  # Another score is no gap: a trusted vote counts fully.
  return selection_lib.advantage_multipliers(
    choice.selection, jnp.ones_like(choice.scores)
  )


class _Pending(NamedTuple):
  """What the probes learn from once the policy has been updated."""

  features: probes.ProbeFeatures | None
  labels: replay.ProbeLabels | None
  bought: np.ndarray | None  # bool [N, P]
  rows: list[dict[str, float]]  # to log, a seed each


class Labeller:
  """Decides, buys, has scored and learns, for all seeds of a run."""

  def __init__(
    self,
    config: LabelConfig,
    task: Any,
    tokenizer: Tokenizer,
    *,
    seeds: Sequence[int],
    group_size: int,
    prompts_per_step: int,
    hidden_size: int,
    directory: str | pathlib.Path,
    step: int = 0,
    host: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    stop: Callable[[], bool] | None = None,
    verify: Verify | None = None,
    stops: Sequence[str] = (),
  ):
    """Opens the ledger, and takes up what a checkpoint held.

    Args:
      config: how labels are bought.
      task: with `answer_key`, `with_label` and `label_form`.
      tokenizer: of the policy.
      seeds: of the runs.
      group_size: responses per prompt, `G`.
      prompts_per_step: prompts per step, `P`.
      hidden_size: of the policy, `D`.
      directory: of the run; the ledger goes there.
      step: steps done.
      host: from the checkpoint, as `pack` made it.
      arrays: from the checkpoint, as `pack` made them.
      stop: asked while an annotator is waited for.
      verify: `(examples [N][P], completions, step) -> [N, P, G]`, the policy's
        verdicts on its own responses, for `self_verification`.
      stops: strings that end a response.

    Raises:
      ValueError: the task cannot be labelled, or the budget does not fit.
      LedgerError: the ledger is damaged, or not that of the checkpoint.
    """
    needed = ["answer_key", "with_label", "label_form", "gold_completion"]
    if config.method == "self_verification":
      needed.append("verification")
    for name in needed:
      if not hasattr(task, name):
        raise ValueError(
          f"task {task.name!r} cannot be trained with labels.method="
          f"{config.method!r}: it has no {name}; math and knights have all"
        )
    self.config, self._task, self._tokenizer = config, task, tokenizer
    self._seeds, self._group_size = list(seeds), group_size
    self._verify, self._stops = verify, tuple(stops)
    self._pending: _Pending | None = None
    self._ledger, self._source = None, None
    if config.method in BUYING:
      self._open_ledger(prompts_per_step, directory, step, host or {}, stop)
    self._choose = jax.jit(
      jax.vmap(make_choose(config), in_axes=(0,) * 6 + (None,))
    )
    self._winners = jax.jit(
      jax.vmap(lambda ids: voting.majority_vote(ids).winner)
    )
    self._care = None
    if config.has_probes:
      settings = config.settings
      self._optimizer = optax.adamw(
        settings.learning_rate,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
      )
      self._care = _restore(
        jax.jit(
          jax.vmap(
            lambda key: care.create_state(
              key,
              group_size,
              hidden_size,
              settings=settings,
              optimizer=self._optimizer,
            )
          )
        )(self._keys(0)),
        arrays or {},
      )
      self._features = jax.jit(
        jax.vmap(
          functools.partial(
            probes.probe_features, length_scale=settings.length_scale
          )
        )
      )
      self._train_probes = jax.jit(
        jax.vmap(
          functools.partial(
            care.train_probes, settings=settings, optimizer=self._optimizer
          )
        ),
        donate_argnums=0,
      )
    self._audit = jax.jit(jax.vmap(_audit))

  def score(
    self,
    sampled: transcript_lib.Transcript,
    observed: objective.Observation,
    examples: Sequence[Sequence[Example]],
    *,
    grader: Grader,
    step: int,
    clock: Laps,
  ) -> rollouts.Rollout:
    """Buys labels and has the responses scored.

    Args:
      sampled: host arrays, rows `[N, P * G]`.
      observed: of the policy that is to be updated, with a leading axis of
        seeds.
      examples: prompts of each seed, `[N, P]`; true references may be in them.
      grader: scores.
      step: of the training, from 0.
      clock: takes the time of each part: `choose`, `buy` and `score`.

    Returns:
      The rollout, whose rewards are those of labels and votes, and whose
      `multipliers` say which prompts count.

    Raises:
      LedgerError: the ledger failed; nothing was learned yet.
    """
    config, task = self.config, self._task
    N, P, G = len(examples), len(examples[0]), self._group_size
    completions, lengths, ended = rollouts.read(
      sampled, self._tokenizer, self._stops
    )
    shape = (N, P, G)
    lengths, ended = lengths.reshape(shape), ended.reshape(shape)
    clock.lap("score")
    texts = [
      [completions[(n * P + p) * G :][:G] for p in range(P)] for n in range(N)
    ]
    keys = [
      [
        [task.answer_key(text, example) for text in group]
        for example, group in zip(row, groups, strict=True)
      ]
      for row, groups in zip(examples, texts, strict=True)
    ]
    answer_ids = np.stack([clusters.answer_ids(row) for row in keys])
    truth = None
    if config.audit or config.method in SEEING:
      truth = np.array(
        [
          [
            _matches(task, example, group)
            for example, group in zip(*pair, strict=True)
          ]
          for pair in zip(examples, keys, strict=True)
        ],
        bool,
      ).reshape(shape)
    rows = [{} for _ in range(N)]

    if config.method in ("certainty", "self_verification"):
      rollout = self._score_itself(
        sampled, observed, examples, completions, lengths, ended, step
      )
      if truth is not None:
        rollout = rollout._replace(
          outcomes=[
            Outcome.RIGHT if right else Outcome.WRONG for right in truth.flat
          ]
        )
      clock.lap("score")
      self._pending = _Pending(None, None, None, rows)
      if truth is not None:
        self._log_truth(rows, answer_ids, truth, None)
        clock.lap("audit")
      return rollout

    features = None
    if config.has_probes:
      # By the host: where the policy is spread over devices, the probes would
      # be compiled once for their new state and once for the one after it.
      features = jax.device_get(
        self._features(
          observed.prompt_hidden,
          observed.response_hidden.reshape(*shape, -1),
          answer_ids,
          lengths,
        )
      )
    mean_probabilities = np.zeros(shape, np.float32)
    if config.method == "mean_probability":
      mean_probabilities = np.asarray(
        jax.vmap(certainty.mean_probability)(
          observed.log_probs, sampled.completion_mask
        )
      ).reshape(shape)
    seen = truth if config.method in SEEING else np.zeros(shape, bool)
    choice = self._choose(
      self._care, features, answer_ids, mean_probabilities, seen,
      self._keys(2 * step + 1), step + 1,
    )  # fmt: skip
    choice = jax.device_get(choice)
    clock.lap("choose")
    labels = self._buy(choice.selection, examples, texts, step)
    bought = np.array([[x is not None for x in row] for row in labels], bool)
    clock.lap("buy")
    choice = choice._replace(
      selection=choice.selection._replace(labelled=bought)
    )

    winners = np.asarray(self._winners(answer_ids))
    judged = [
      [
        _relabel(task, example, label, _text_of(winner, ids, group))
        for example, label, winner, ids, group in zip(*of_seed, strict=True)
      ]
      for of_seed in zip(
        examples, labels, winners, answer_ids, keys, strict=True
      )
    ]
    rollout = rollouts.score(
      sampled,
      judged,
      tokenizer=self._tokenizer,
      grader=grader,
      stops=self._stops,
    )
    outcomes = np.array([o is Outcome.RIGHT for o in rollout.outcomes])
    correct = outcomes.reshape(shape) & bought[..., None]
    learned = None
    if config.has_probes:
      learned = jax.vmap(replay.probe_labels)(answer_ids, correct)
    clock.lap("score")
    self._log_spending(rows, bought)
    if truth is not None:
      self._log_truth(rows, answer_ids, truth, choice)
    clock.lap("audit")
    self._pending = _Pending(features, learned, bought, rows)
    return rollout._replace(
      multipliers=np.asarray(
        jax.vmap(functools.partial(multipliers, config))(choice)
      )
    )

  def train(
    self, rows: Sequence[Mapping[str, float]], *, step: int, clock: Laps
  ) -> list[dict[str, float]]:
    """Trains the probes on what was bought, after the policy's update.

    Args:
      rows: what each seed logs of its update.
      step: of the training, from 0.
      clock: takes the time, as `probes`.

    Returns:
      The rows, with what is logged of labels.
    """
    pending, self._pending = self._pending, None
    rows = [
      {**row, **more} for row, more in zip(rows, pending.rows, strict=True)
    ]
    if pending.features is not None:
      self._care, metrics = self._train_probes(
        self._care,
        self._keys(2 * step + 2),
        pending.features,
        pending.labels,
        pending.bought,
      )
      metrics = jax.device_get(metrics)
      for n, row in enumerate(rows):
        row |= {f"probe/{name}": float(x[n]) for name, x in metrics.items()}
      clock.lap("probes")
    return rows

  def pack(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns what a checkpoint must hold.

    Args:
      step: steps done.

    Returns:
      What the ledger says of itself, and the probes with their replay.
    """
    host, arrays = {}, {}
    if self._ledger is not None:
      host["labels"] = self._ledger.snapshot(step)
    if self._care is not None:
      leaves = jax.tree.leaves(jax.device_get(self._care))
      arrays = {f"care/{i}": np.asarray(x) for i, x in enumerate(leaves)}
    return host, arrays

  def _open_ledger(self, prompts_per_step, directory, step, host, stop) -> None:
    config = self.config
    path = pathlib.Path(directory) / label_ledger.LEDGER_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    budget = label_ledger.Budget(
      per_step=selection_lib.budget(prompts_per_step, config.label_fraction),
      total=config.total or None,
    )
    budget.check(prompts_per_step, config.price)
    self._ledger = label_ledger.LabelLedger(path, budget=budget)
    self._ledger.restore(step, host.get("labels"))
    if config.source == "truth":
      self._source = label_sources.GroundTruth(
        self._task.examples("train"), price=config.price
      )
    else:
      self._source = label_sources.Annotator(
        path, timeout_s=config.timeout_s, price=config.price, stop=stop
      )

  def _keys(self, number: int) -> jax.Array:
    """A key for each seed; even numbers are the probes', odd ones choose."""
    roots = jnp.stack([jax.random.key(seed) for seed in self._seeds])
    # A stream of its own: those of the samples are folded by step alone.
    return jax.vmap(
      lambda root: jax.random.fold_in(
        jax.random.fold_in(root, 0x6C6162), number
      )
    )(roots)

  def _buy(self, selection, examples, texts, step):
    """Labels of each seed, in the order of the prompts; None where there is
    none."""
    N, P = selection.labelled.shape
    labels: list[list[str | None]] = [[None] * P for _ in range(N)]
    if self._ledger is None:
      return labels
    asked, places = [], []
    for n, seed in enumerate(self._seeds):
      room = self._ledger.room(seed, step, price=self.config.price)
      known = self._ledger.known(seed, [e.key for e in examples[n]])
      for p in selection.order[n].tolist():
        if not selection.labelled[n, p]:
          continue
        # What was bought before costs nothing, unless it is paid again.
        free = examples[n][p].key in known and not self.config.again
        if not free and room < 1:
          continue
        room -= not free
        places.append((n, p))
        asked.append(
          questions.make_question(
            self._task, examples[n][p], texts[n][p], step=step, seed=seed
          )
        )
    # A prompt may come twice in a step; it is bought once.
    unique = {(q.seed, q.prompt_id): q for q in asked}
    answers = dict(
      zip(
        unique,
        self._ledger.buy(
          list(unique.values()), self._source, again=self.config.again
        ),
        strict=True,
      )
    )
    for (n, p), question in zip(places, asked, strict=True):
      answer = answers[(question.seed, question.prompt_id)]
      labels[n][p] = None if answer is None else answer.text
    return labels

  def _score_itself(
    self, sampled, observed, examples, completions, lengths, ended, step
  ) -> rollouts.Rollout:
    """Rewards without any label: the policy's own certainty or verdict."""
    shape = lengths.shape
    if self.config.method == "certainty":
      values = _certainty(
        self.config.certainty, observed, sampled.completion_mask
      ).reshape(shape)
    else:
      values = self._verify(examples, completions, step)
    count = len(self._task.components)
    return rollouts.Rollout(
      transcript=sampled,
      completions=completions,
      # One number stands for all components, of which there is mostly one.
      rewards=np.repeat(values[..., None], count, axis=-1).astype(np.float32),
      scored=np.ones((*shape, count), bool),
      outcomes=[Outcome.WRONG] * len(completions),
      lengths=lengths,
      ended=ended,
    )

  def _log_spending(self, rows, bought) -> None:
    if self._ledger is None:
      return
    for n, (row, seed) in enumerate(zip(rows, self._seeds, strict=True)):
      totals = self._ledger.totals(seed)
      row["labels/share"] = float(bought[n].mean())
      row["labels/bought"] = totals.labels
      row["labels/prompts"] = totals.prompts
      row["labels/spent"] = totals.spent
      row["labels/unanswered"] = totals.unlabelled

  def _log_truth(self, rows, answer_ids, truth, choice) -> None:
    """What the true references say, which nothing is trained on."""
    figures = self._audit(answer_ids, truth)
    if choice is not None:
      counts = choice.count_probabilities
      if counts is None:
        counts = np.zeros((*answer_ids.shape[:2], self._group_size + 1))
      found = jax.vmap(diagnostics.care_figures)(
        choice.selection,
        counts,
        figures["vote_right"],
        figures["correct_outside"],
        figures["gaps"],
        jnp.asarray(truth, jnp.float32),
      )
      if choice.count_probabilities is None:
        found = {k: v for k, v in found.items() if not k.startswith("count/")}
      if self.config.method not in BUYING:
        found = {
          k: v
          for k, v in found.items()
          if not k.startswith(("labels/", "overlap/"))
        }
      if self.config.gate == "none":
        found = {k: v for k, v in found.items() if not k.startswith("gate/")}
    else:
      found = {}
    found = jax.device_get(
      found
      | {
        "audit/correct": truth.mean((1, 2)),
        "audit/vote_right": jnp.mean(figures["vote_right"], axis=-1),
        "audit/majority": figures["majority"],
        "audit/gap": jnp.mean(figures["gaps"], axis=-1),
      }
    )
    for n, row in enumerate(rows):
      row |= {name: float(x[n]) for name, x in found.items()}


def _audit(answer_ids, truth) -> dict[str, jax.Array]:
  """What is true of the groups of one seed."""
  votes = voting.majority_vote(answer_ids)
  return {
    "vote_right": voting.is_vote_right(answer_ids, truth),
    "correct_outside": voting.correct_outside(answer_ids, truth),
    "gaps": selection_lib.oracle_scores(votes.for_winner, truth),
    "majority": jnp.mean(voting.majority_share(votes)),
  }


def _certainty(name: str, observed, mask) -> np.ndarray:
  """The reward of each response. Shape `[N, P * G]`."""
  values = {
    "self_certainty": (certainty.self_certainty, observed.certainties),
    "token_entropy": (certainty.token_entropy, observed.entropies),
    "trajectory_entropy": (certainty.trajectory_entropy, observed.log_probs),
    "probability": (certainty.probability, observed.log_probs),
  }
  fn, tokens = values[name]
  return np.asarray(jax.vmap(fn)(jnp.asarray(tokens), mask))


def _matches(task, example: Example, keys: Sequence[str | None]) -> list[bool]:
  """Whether each answer of a group is that of the reference."""
  truth = task.answer_key(task.gold_completion(example), example)
  return [key is not None and key == truth for key in keys]


def _text_of(winner: int, ids: np.ndarray, keys: Sequence[str | None]):
  """The answer that a group voted for; None where nobody gave one."""
  return None if winner < 0 else keys[ids.tolist().index(winner)]


def _relabel(
  task, example: Example, label: str | None, vote: str | None
) -> Example:
  """The example to score against, never with a truth that was not bought."""
  if label is None:
    label = vote
  if label is None:  # nobody gave an answer, so that any label will do
    label = questions.placeholder(task.label_form(example))
  return task.with_label(example, label)


def _restore(state, arrays: Mapping[str, np.ndarray]):
  """Puts the arrays of a checkpoint in place of those of a new state."""
  if not arrays:
    return state
  leaves, tree = jax.tree.flatten(state)
  found = [arrays[f"care/{i}"] for i in range(len(leaves))]
  return jax.tree.unflatten(tree, [jnp.asarray(x) for x in found])
