"""What responses are scored against, when the ground truth costs something.

Between sampling and learning they are scored by the policy's own certainty or
verdict (`OwnRewards`), or against bought labels and the votes of groups
(`VoteLabels`), which gives a `Rollout` with a multiplier for each prompt.

The grader gets examples whose reference was replaced. The true reference of a
prompt that was not bought reaches the log alone (`audit`), and the methods that
see it by definition (`Strategy.sees_truth`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from saw_jax.annotate import ledger as ledger_lib
from saw_jax.annotate import questions, sources
from saw_jax.labels import care, certainty, gap, replay, selection, voting
from saw_jax.rollout.transcript import Transcript
from saw_jax.run import rollouts
from saw_jax.run.curves import Curves
from saw_jax.run.learner import Learner, Rows
from saw_jax.run.rollouts import Examples, Rollout
from saw_jax.run.sections import CERTAINTIES, LabelConfig
from saw_jax.run.session import Session
from saw_jax.tasks import data, self_verification
from saw_jax.tasks.base import Example
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import hosts
from saw_jax.training.objective import Observation

_INT32, _VERDICTS = 2**31 - 1, 2**30
# What a task needs to be labelled.
NEEDED = ("answer_key", "with_label", "label_form", "gold_completion")


class Labels:
  """What both kinds share; actors may call `read`.

  `score(sampled, examples, observed, step)` is for host rows `[N, P * G]`,
  before an update; `train` follows it, and `pack` is for a checkpoint.
  """

  def __init__(self, learner: Learner, grader: Grader):
    self._learner, self._clock = learner, learner.clock
    self._made, self._seeds = learner.made, learner.seeds
    self.config, self._task = self._made.labels, self._made.task
    self._encoder, self._grader = learner.policy.encoder, grader
    self._rows: Rows = []  # to log with the update that follows

  def read(self, sampled: Transcript) -> Rollout:
    """The responses, unscored."""
    sizes = self._made.loop.prompts_per_step, len(self._task.components)
    return rollouts.unscored(sampled, *sizes, self._encoder)

  def train(self, rows: Rows, step: int) -> Rows:
    """Learns from the labels of a step; adds to what each seed logs."""
    return [a | b for a, b in zip(rows, self._rows, strict=True)]

  def pack(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a checkpoint after so many steps must hold."""
    return {}, {}

  def _answers(self, read: Rollout, examples: Examples):
    """Texts and answers `[N][P][G]`, ids `[N, P, G]`, and which are true."""
    task = self._task

    def read_all(example: Example, group: Sequence[str]) -> list[str | None]:
      return [task.answer_key(text, example) for text in group]

    def match(example: Example, keys: Sequence[str | None]) -> list[bool]:
      truth = task.answer_key(task.gold_completion(example), example)
      return [key is not None and key == truth for key in keys]

    texts = np.array(read.completions, object)
    texts = texts.reshape(read.lengths.shape).tolist()
    keys, truth = _each(read_all, examples, texts), None
    if self.config.audit or self.config.strategy.sees_truth:
      truth = np.array(_each(match, examples, keys), bool)
    return texts, keys, np.stack([data.answer_ids(x) for x in keys]), truth

  def _log(self, figures: Mapping[str, Any]) -> None:
    figures = jax.device_get(figures)
    for n, row in enumerate(self._rows):
      row |= {name: float(x[n]) for name, x in figures.items()}


class OwnRewards(Labels):
  """Rewards without any label: the policy's own certainty or verdict."""

  def __init__(self, learner: Learner, grader: Grader):
    super().__init__(learner, grader)
    config, policy, made = self.config, learner.policy, self._made
    if not config.strategy.needs_verdicts:
      return
    self._judge = rollouts.Encoder(
      made.tokenizer,
      dataclasses.replace(
        made.rollout,
        max_prompt_tokens=config.verify_prompt_tokens,
        max_new_tokens=config.verify_new_tokens,
        long_prompts="truncate",
        stops=(),  # They end answers, which a verdict may quote.
      ),
    )
    temperature = config.verify_temperature
    sampling = dataclasses.replace(made.sampling, temperature=temperature)
    settings = self._judge.settings(sampling, 1)
    self._generate = functools.partial(policy.engine.sample, config=settings)

  def score(self, sampled, examples, observed, step):
    """Scores responses; if the truth is logged, it is the outcome."""
    read = self.read(sampled)
    known = read.lengths > 0  # An engine could not sample the others.
    if self.config.strategy.needs_verdicts:
      values = self._verdicts(examples, read.completions, step)
      known &= ~np.isnan(values)
    else:
      name = self.config.certainty
      tokens = jnp.asarray(getattr(observed, CERTAINTIES[name]))
      fn = jax.vmap(getattr(certainty, name))
      values = np.asarray(fn(tokens, sampled.completion_mask))
    # One number stands for all components, of which there is mostly one.
    values = np.where(known, values.reshape(known.shape), 0.0)
    values = values[..., None].astype(np.float32)
    rollout = read._replace(
      rewards=np.repeat(values, read.rewards.shape[-1], -1),
      scored=read.scored | known[..., None],
    )
    _, _, answer_ids, truth = self._answers(read, examples)
    self._rows = [{} for _ in examples]
    self._clock.lap("score")
    if truth is None:
      return rollout
    self._log(_audit_figures(truth, _facts(answer_ids, truth)))
    self._clock.lap("audit")
    outcomes = np.where(truth, rollouts.RIGHT, rollouts.WRONG)
    return rollout._replace(outcomes=outcomes)

  def _verdicts(self, examples, completions, step) -> np.ndarray:
    """What the current policies say of each response: 0 or 1, `[N, P, G]`.

    NaN: an engine could not sample it.
    """
    size, texts = self._made.loop.group_size, iter(completions)
    asked = [
      [
        Example(
          key=(example.key * size + g) & _INT32,
          messages=self._task.verification(example, next(texts)),
          reference="",
        )
        for example in row
        for g in range(size)
      ]
      for row in examples
    ]
    sampled = rollouts.sample(
      self._generate,
      self._learner.policy.params,
      asked,
      # Steps of their own, so that no verdict has a response's key.
      rollouts.example_keys(self._seeds, step + _VERDICTS, asked, 1),
      # Nothing is asked twice, so nothing is remembered.
      encoder=rollouts.Encoder(self._judge.tokenizer, self._judge.config),
      multiple=self._judge.config.completion_multiple,
    )
    verdicts, lengths, _ = rollouts.read(sampled, self._judge)
    values = [self_verification.read_verdict(text) for text in verdicts]
    values = np.where(lengths > 0, np.array(values, np.float32), np.nan)
    return values.reshape(len(examples), -1, size)


class VoteLabels(Labels):
  """Scores against the labels that a method buys, and the votes of groups."""

  def __init__(self, learner: Learner, grader: Grader, session: Session):
    super().__init__(learner, grader)
    config, loop = self.config, self._made.loop
    per_step = selection.budget(loop.prompts_per_step, config.label_fraction)
    self._desk = self._probes = self._curves = None
    if config.strategy.has_curves:  # Labels belong to prompts.
      per_step = loop.prompts_per_step
      self._curves = Curves(learner, session)
    if config.strategy.buys:
      self._desk = Desk(learner, session, per_step)
    if _has_probes(config):
      self._probes = Probes(learner, session.arrays, per_step)
    choose = functools.partial(_choose, config)
    self._choose = jax.jit(jax.vmap(choose, in_axes=(0, 0, 0, 0, None)))

  def score(self, sampled, examples, observed, step):
    """Buys labels and has the responses scored; says which prompts count."""
    config, strategy = self.config, self.config.strategy
    read = self.read(sampled)
    shape = read.lengths.shape
    self._clock.lap("score")
    texts, keys, answer_ids, truth = self._answers(read, examples)
    features = state = None
    if self._probes is not None:
      state = self._probes.state
      features = self._probes.features(observed, answer_ids, read.lengths)
    likely = np.zeros(shape, np.float32)
    if strategy.needs_log_probs:
      mean, mask = certainty.mean_probability, sampled.completion_mask
      likely = np.asarray(_map(mean)(observed.log_probs, mask)).reshape(shape)
    seen = truth if strategy.sees_truth else np.zeros(shape, bool)
    groups = selection.Groups(answer_ids, likely, seen)
    if self._curves is not None:
      chosen = self._curves.select(answer_ids, examples, step)
      scores, counts = chosen.labelled.astype(np.float32), None
    else:
      draws = _keys(self._seeds, 2 * step + 1)
      found = self._choose(state, features, groups, draws, step + 1)
      chosen, scores, counts = jax.device_get(found)
    self._clock.lap("choose")
    labels = [[None] * shape[1] for _ in examples]
    if self._desk is not None:
      labels = self._desk.buy(chosen, examples, texts, step)
    bought = np.array([[x is not None for x in row] for row in labels], bool)
    chosen = chosen._replace(labelled=bought)
    self._clock.lap("buy")

    winners = np.asarray(_map(voting.majority_vote)(answer_ids).winner)
    judged = _each(self._relabel, examples, labels, winners, answer_ids, keys)
    rollout = rollouts.score(sampled, judged, self._grader, self._encoder)
    if self._probes is not None:
      correct = (rollout.outcomes == rollouts.RIGHT) & bought[..., None]
      learned = _map(replay.probe_labels)(answer_ids, correct)
      self._learn = features, learned, bought
    if self._curves is not None:
      right = (rollout.outcomes == rollouts.RIGHT).mean(-1)
      self._curves.append(examples, bought, right)
    self._clock.lap("score")
    self._rows = [{} for _ in examples]
    if self._desk is not None:
      self._rows = self._desk.spending(bought)
    if truth is not None:
      self._audit(truth, answer_ids, chosen, counts)
    self._clock.lap("audit")
    weigh = strategy.weigh
    if config.unlabelled == "vote" and strategy.buys:
      weigh = selection.every_vote
    multipliers = jax.vmap(lambda s, x: weigh(s, x, config.soft_adv))
    return rollout._replace(multipliers=np.asarray(multipliers(chosen, scores)))

  def train(self, rows, step):
    """Trains the probes on what was bought, after the policy's update."""
    if self._probes is not None:
      keys = _keys(self._seeds, 2 * step + 2)
      self._log(self._probes.train(keys, *self._learn))
      self._clock.lap("probes")
    return super().train(rows, step)

  def pack(self, step):
    """The state of the ledger, of the curves, and of the probes."""
    document, arrays = {}, {}
    if self._desk is not None:
      document["labels"] = self._desk.snapshot(step)
    if self._curves is not None:
      document["curves"] = self._curves.of_seeds
    if self._probes is not None:
      leaves = jax.tree.leaves(jax.device_get(self._probes.state))
      arrays = {f"care/{i}": np.asarray(x) for i, x in enumerate(leaves)}
    return document, arrays

  def _relabel(self, example, label, winner, ids, keys) -> Example:
    """The example to score against, never with a truth that was not bought."""
    if label is None and winner >= 0:
      label = keys[ids.tolist().index(winner)]
    if label is None:  # nobody gave an answer, so that any label will do
      label = questions.placeholder(self._task.label_form(example))
    return self._task.with_label(example, label)

  def _audit(self, truth, answer_ids, chosen, counts) -> None:
    """Logs what the true references say; nothing is trained on it."""
    told = _facts(answer_ids, truth)
    found, right = _audit_figures(truth, told), told["vote_right"]
    if self.config.gate != "none" or self.config.strategy.has_curves:
      found |= _map(selection.gate_figures)(chosen.gated, right)
    if counts is not None:
      outside, free = told["correct_outside"], ~chosen.gated
      found |= _map(selection.count_figures)(counts, outside, free)
    if self._desk is not None:
      found |= _map(selection.label_figures)(chosen, right, told["gaps"], truth)
    self._log(found)


class Desk:
  """Where labels are bought: the ledger of a run, and who is asked."""

  def __init__(self, learner: Learner, session: Session, per_step: int):
    config, self._task = learner.made.labels, learner.made.task
    self._seeds, self._again = learner.seeds, config.again
    # The first process has the ledger, and tells the others.
    hosts.from_first(lambda: self._open(config, session, per_step))

  def _open(self, config: LabelConfig, session: Session, per_step: int) -> None:
    session.directory.mkdir(parents=True, exist_ok=True)
    self.ledger = ledger_lib.LabelLedger(
      session.directory / ledger_lib.LEDGER_NAME,
      budget=ledger_lib.Budget(per_step, config.total or None),
    )
    if config.source == "annotator":
      self.source = sources.Annotator(
        self.ledger,
        timeout_s=config.timeout_s,
        price=config.price,
        stop=lambda: session.interrupt.requested,
        tell=functools.partial(session.enter, at_once=True),
      )
    else:
      examples = self._task.examples("train")
      self.source = sources.GroundTruth(examples, config.price)
    self.ledger.restore(session.step, session.host.get("labels"))

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

    def buy() -> list[str | None]:
      found = self.ledger.buy([*asked.values()], self.source, self._again)
      return [answer and answer.text for answer in found]

    labels: list[list[str | None]] = [[None] * len(row) for row in examples]
    for (n, p), text in zip(asked, hosts.from_first(buy), strict=True):
      labels[n][p] = text
    return labels

  def snapshot(self, step: int) -> dict[str, Any]:
    """The ledger's entry in a checkpoint after so many steps."""
    return hosts.from_first(lambda: self.ledger.snapshot(step))

  def spending(self, bought: np.ndarray) -> Rows:
    """What each seed has spent, and on how much of this step."""

    def totals() -> Rows:
      return [
        {
          "labels/bought": total.labels,
          "labels/prompts": total.prompts,
          "labels/spent": total.spent,
          "labels/unanswered": total.unlabelled,
        }
        for total in map(self.ledger.totals, self._seeds)
      ]

    pairs = zip(bought, hosts.from_first(totals), strict=True)
    return [{"labels/share": float(x.mean()), **total} for x, total in pairs]


class Probes:
  """CARE's probes of all seeds, with their state."""

  def __init__(
    self, learner: Learner, saved: Mapping[str, np.ndarray], budget: int
  ):
    made, settings = learner.made, learner.made.labels.probe
    rate = settings.learning_rate
    common = {"settings": settings, "optimizer": optax.adam(rate)}

    def lift(fn, **options):
      return jax.vmap(functools.partial(fn, **options))

    create = lift(
      care.create_state,
      group_size=made.loop.group_size,
      hidden_size=made.decoder.width,
      **common,
    )
    self.state = jax.jit(create)(_keys(learner.seeds, 0))
    if saved:
      leaves, tree = jax.tree.flatten(self.state)
      found = [jnp.asarray(saved[f"care/{i}"]) for i in range(len(leaves))]
      self.state = jax.tree.unflatten(tree, found)
    self._features = jax.jit(
      lift(replay.probe_features, length_scale=settings.length_scale)
    )
    self._train = jax.jit(
      lift(care.train_probes, budget=budget, **common), donate_argnums=0
    )

  def features(self, observed: Observation, answer_ids, lengths):
    """What the probes see of the groups of a step."""
    hidden = observed.response_hidden.reshape(*lengths.shape, -1)
    # Through the host: beside a policy that is spread over devices, the probes
    # would be compiled once for their new state and once for the one after it.
    return jax.device_get(
      self._features(observed.prompt_hidden, hidden, answer_ids, lengths)
    )

  def train(self, *batch) -> dict[str, jax.Array]:
    """Updates the probes; gives what is logged of it."""
    self.state, metrics = self._train(self.state, *batch)
    return {f"probe/{name}": x for name, x in metrics.items()}


def _has_probes(config: LabelConfig) -> bool:
  return config.strategy.has_probes or config.gate == "probe"


def _choose(config: LabelConfig, state, features, groups, key, step):
  """Which labels one seed buys, their scores `[P]`, and probable counts."""
  trust = voting.majority_share(voting.majority_vote(groups.answer_ids))
  counts = None
  if _has_probes(config):
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


def make_labels(
  learner: Learner, grader: Grader, session: Session
) -> Labels | None:
  """Makes the labels of a run; None: responses are scored by the truth."""
  config = learner.made.labels
  if config.method == "truth":
    return None
  if config.strategy.rank or config.strategy.has_curves:
    return VoteLabels(learner, grader, session)
  return OwnRewards(learner, grader)


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


@functools.cache
def _map(fn: Callable) -> Callable:
  """Over seeds, as one program."""
  return jax.jit(jax.vmap(fn))


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
    "audit/with_gap": jnp.mean(facts["gaps"] > 0, axis=-1),
  }
