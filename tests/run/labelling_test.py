"""Labels between sampling and learning: who is scored against what."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import tokenizer
from saw_jax.annotate import questions
from saw_jax.annotate.ledger import LEDGER_NAME, LabelLedger
from saw_jax.annotate.questions import Label
from saw_jax.labels import care, certainty, trajectories
from saw_jax.models import decoder, log_probs
from saw_jax.rollout import transcript
from saw_jax.run import labelling, loop
from saw_jax.tasks import base
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import batch as batch_lib
from saw_jax.training import objective, parallel
from tests import helpers
from tests.helpers import curves

TOKENIZER = tokenizer.ByteTokenizer()
PROBE = care.CareSettings(
  length_scale=5.0,
  prompt_width=4,
  joint_width=4,
  response_hidden_width=4,
  response_width=4,
  replay_size=8,
  replay_batch=4,
)


class Guesses:
  """One of three answers, which is what is left of a text's last letter."""

  name = "guesses"
  components = (base.Component("right", 0.0, 1.0),)

  def __init__(self, poisoned=()):
    self.poisoned = frozenset(poisoned)

  def examples(self, split):
    first = 0 if split == "train" else 1000
    return [
      base.Example(
        key=first + i,
        messages=({"role": "user", "content": "?" * (1 + i % 3)},),
        # Nothing that anybody could answer.
        reference="poison" if first + i in self.poisoned else "xyz"[i % 3],
      )
      for i in range(29)
    ]

  def score(self, example, completion):
    answer = self.answer_key(completion, example)
    if answer is None:
      return base.Score((0.0,), base.Outcome.UNPARSABLE)
    right = answer == example.reference
    outcome = base.Outcome.RIGHT if right else base.Outcome.WRONG
    return base.Score((float(right),), outcome)

  def answer_key(self, completion, example=None):
    return "xyz"[ord(completion[-1]) % 3] if completion else None

  def gold_completion(self, example):
    return example.reference

  def label_form(self, example):
    return "text"

  def with_label(self, example, label):
    return dataclasses.replace(example, reference=label)

  def verification(self, example, completion):
    return ({"role": "user", "content": completion + "?"},)


def experiment(labels, **sections):
  return helpers.experiment(
    task=Guesses(),
    algorithm={"advantage": "grpo"},
    labels={"label_fraction": 0.25, "probe": PROBE, **labels},
    **sections,
  )


def say(texts):
  """A transcript of one seed in which these texts were sampled."""
  ids = [[*TOKENIZER.encode(text), *TOKENIZER.eos_ids[:1]] for text in texts]
  return helpers.transcript_of([ids], max(map(len, ids)))


class Asked:
  """A source that remembers, and may stay silent."""

  name, price = "asked", 1.0

  def __init__(self, labels):
    self.labels, self.questions = labels, []

  def answer(self, questions):
    self.questions += questions
    found = [self.labels.get(q.prompt_id) for q in questions]
    return [label and Label(label, self.name) for label in found]


@pytest.fixture(scope="module")
def grader():
  with Grader(Guesses(), num_workers=0, limit_s=1.0) as made:
    yield made


@pytest.fixture
def make(tmp_path, grader):
  def make(num_prompts=2, **config):
    made = experiment(config, loop={"prompts_per_step": num_prompts})
    one = helpers.make_learner(made)
    return labelling.make_labels(one, grader, helpers.begun(tmp_path))

  return make


# Prompt 0 is answered by x and votes y; prompt 1 by y and votes y.
TEXTS = ["y", "x", "y", "z", "y", "y", "", "x"]
VOTES, TRUTH_OF_0 = [[1, 0, 1, 0], [1, 1, 0, 0]], [[0, 1, 0, 0], [1, 1, 0, 0]]


def score(one, texts=TEXTS, step=0, observed=None):
  """Rewards and multipliers of four responses to each of the first prompts."""
  examples = [Guesses().examples("train")[: len(texts) // 4]]
  found = one.score(say(texts), examples, observed, step)
  return found.rewards[0, ..., 0].tolist(), (
    None if found.multipliers is None else found.multipliers.tolist()
  )


def logged(one, step=0):
  return one.train([{}], step)[0]


class TestCurves:
  """TraPO with four prompts a step, of 29: an epoch has seven steps."""

  EPOCH = 7

  def make(self, make, **settings):
    curves = trajectories.CurveSettings(**{"warm_up": 2, "top": 0.0} | settings)
    one = make(4, method="trapo", label_fraction=0.4, curves=curves)
    (known,) = one._curves.labelled
    return one, [int(key in known) for key in range(4)]

  def play(self, one, epoch, rights):
    """A step of the first four prompts, of which so many answers are alike."""
    texts = [
      text
      for key, right in enumerate(rights)
      for text in ["x" if key % 3 == 0 else "yz"[key % 3 - 1]] * right
      + ["y" if key % 3 == 0 else "x"] * (4 - right)
    ]
    return score(one, texts, step=epoch * self.EPOCH)

  def test_votes_count_that_are_learned_as_labels_are(self, make):
    one, known = self.make(make)
    assert sum(map(len, one._curves.labelled)) == 12  # 11.6 rounded up
    assert known == [0, 0, 1, 1]
    for epoch, right in enumerate((3, 4, 4, 3)):
      rewards, (multipliers,) = self.play(one, epoch, [right] * 4)
      want = [1] * 4 if epoch >= 2 else known
      assert multipliers == want, epoch
      row = logged(one)
      assert row["labels/share"] == sum(known) / 4
      # A label is bought once, and the second visit is free.
      assert row["labels/bought"] == sum(known)
      assert ("gate/precision" in row) and row["gate/precision"] == (epoch > 1)

  def test_a_curve_that_goes_otherwise_is_not_trusted(self, make):
    one, known = self.make(make)
    strange = known.index(0)
    for epoch, right in enumerate((3, 4, 3, 4)):
      rights = [right] * 4
      rights[strange] = 7 - right
      _, (multipliers,) = self.play(one, epoch, rights)
    want = [1] * 4
    want[strange] = 0
    assert multipliers == want
    curves = one.pack(1)[0]["curves"][0]
    assert curves["others"][strange] == [1.0, 0.75, 1.0, 0.75]
    assert strange not in curves["chosen"]

  def test_it_goes_on_from_a_checkpoint(self, make, tmp_path, grader):
    one, known = self.make(make)
    for epoch, right in enumerate((3, 4, 3)):
      self.play(one, epoch, [right] * 4)
    document, _ = one.pack(21)
    session = helpers.begun(tmp_path)
    session.host, session.step = json.loads(json.dumps(document)), 21
    other = labelling.make_labels(one._learner, grader, session)
    assert other.pack(21)[0] == document
    found = [self.play(x, 3, [4, 3, 4, 4]) for x in (one, other)]
    assert found[0] == found[1]
    assert other.pack(22)[0]["curves"] == one.pack(22)[0]["curves"]


class TestScore:
  def test_labels_are_scored_at_their_step_alone(self, make):
    assert make() is None  # the truth is nobody's label
    early = make(method="vote").read(say(TEXTS))
    assert not early.scored.any() and early.completions == TEXTS

  @pytest.mark.parametrize(
    ("config", "rewards", "multipliers"),
    [
      ({"method": "vote"}, VOTES, [[1, 1]]),
      # No vote that is wrong.
      ({"method": "filtered_vote"}, VOTES, [[0, 1]]),
      # The gap of the first prompt is larger: there the vote is wrong.
      ({"method": "oracle"}, TRUTH_OF_0, [[1, 0]]),
      ({"method": "oracle", "unlabelled": "vote"}, TRUTH_OF_0, [[1, 1]]),
      ({"method": "entropy"}, TRUTH_OF_0, [[1, 0]]),
    ],
  )
  def test_scores_by_method(self, make, config, rewards, multipliers, tmp_path):
    one = make(label_fraction=0.5, **config)
    assert score(one) == (rewards, multipliers)
    buys = config["method"] in ("oracle", "entropy")
    assert any(tmp_path.iterdir()) == buys

  def test_what_is_logged(self, make):
    one = make(method="oracle", label_fraction=0.5)
    score(one)
    row = logged(one)
    assert row["labels/bought"] == row["labels/spent"] == 1
    assert row["labels/wasted"] == 0 and row["labels/share"] == 0.5
    assert row["overlap/labelled"] == 1
    assert row["audit/vote_right"] == 0.5
    assert row["audit/correct"] == 3 / 8
    assert not any(name.startswith(("gate/", "count/")) for name in row)

  def test_a_trusted_vote_counts(self, make):
    # Two of four and three of four: the second is trusted, once the gate is
    # open, and the first is bought.
    texts = ["y", "x", "y", "z", "y", "y", "y", "x"]
    gate = dict(gate="majority", gate_fraction=0.5, warm_up=1)
    one = make(method="random", label_fraction=0.5, **gate)
    assert np.sum(score(one, texts)[1]) == 1
    for step in (1, 2, 3):
      assert score(one, texts, step=step)[1] == [[1, 1]]
      assert logged(one, step)["gate/precision"] == 1

  def test_who_is_asked_sees_the_clusters_and_may_stay_silent(self, make):
    one = make(method="oracle", label_fraction=1.0)
    one._desk.source = source = Asked({0: "z"})
    # Prompt 1 was asked about in vain: it has its vote, and does not count.
    assert score(one) == ([[0, 0, 0, 1], [1, 1, 0, 0]], [[1, 0]])
    assert [q.prompt_id for q in source.questions] == [0, 1]
    assert [c.count for c in source.questions[0].clusters] == [2, 1, 1]
    row = logged(one)
    assert row["labels/spent"] == 1 and row["labels/unanswered"] == 1

  def test_a_known_label_is_free_and_an_empty_purse_buys_none(self, make):
    one = make(method="oracle", label_fraction=0.5, total=1.0)
    score(one)
    assert score(one, step=1)[1] == [[1, 0]]
    other_wrong = [*TEXTS[4:], *["x", "x", "x", "y"]]
    assert score(one, other_wrong, step=2)[1] == [[0, 0]]
    assert logged(one, 2)["labels/spent"] == 1

  def test_paid_again_if_that_is_asked_for(self, make):
    one = make(method="oracle", label_fraction=0.5, again=True)
    for step in (0, 1):
      score(one, step=step)
      row = logged(one, step)
    assert row["labels/spent"] == 2 and row["labels/prompts"] == 1

  @pytest.mark.parametrize("method", ["vote", "entropy"])
  def test_a_prompt_without_any_answer(self, make, method):
    one = make(method=method, label_fraction=0.5)
    rewards, _ = score(one, ["", "", "", "", "y", "x", "y", "z"])
    assert rewards[0] == [0, 0, 0, 0]

  @pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
      ("self_certainty", "certainties", [1.5, 2.0]),
      ("token_entropy", "entropies", [-1.5, -2.0]),
      ("trajectory_entropy", "log_probs", [1.5, 2.0]),
      ("probability", "log_probs", np.exp([3.0, 2.0])),
    ],
  )
  def test_certainty_is_a_reward(self, make, kind, field, expected):
    one = make(num_prompts=1, method="certainty", certainty=kind)
    tokens = np.tile([[1.0, 2.0]], (4, 1))[None]
    tokens[0, 1] = [2.0, 99.0]  # an empty text: only its end
    observed = objective.Observation(None, None).replace(**{field: tokens})
    (rewards,), multipliers = score(one, ["y", "", "x", "z"], 0, observed)
    np.testing.assert_allclose(rewards[:2], expected, rtol=1e-6)
    assert multipliers is None
    assert logged(one)["audit/correct"] == 1 / 4

  def test_a_response_that_no_engine_brought_is_unscored(self, make):
    one = make(num_prompts=1, method="certainty", certainty="probability")
    tokens = np.zeros((1, 4, 2), np.float32)
    observed = objective.Observation(None, None, log_probs=tokens)
    sampled = helpers.transcript_of([[[], [1], [1, 2], [2]]], 2)
    examples = [Guesses().examples("train")[:1]]
    found = one.score(sampled, examples, observed, 0)
    assert found.scored.ravel().tolist() == [False, True, True, True]

  def test_nor_is_one_without_a_verdict(self, make):
    one = make(num_prompts=1, method="self_verification")
    # Two verdicts came, and "Yes" is one of them.
    ids = [[], [1], [], [2]]
    one._generate = lambda *_: helpers.transcript_of([ids], 2)
    found = one.score(
      say(TEXTS[:4]), [Guesses().examples("train")[:1]], None, 0
    )
    assert found.scored.ravel().tolist() == [False, True, False, True]
    assert np.isfinite(found.rewards).all()

  def test_so_is_the_policys_own_verdict(self, make):
    one = make(method="self_verification")
    verdicts = np.array(TEXTS).reshape(1, 2, 4) == "x"
    one._verdicts = lambda examples, texts, step: verdicts
    assert score(one) == ([[0, 1, 0, 0], [0, 0, 0, 1]], None)


class TestObserve:
  @pytest.mark.slow
  def test_is_what_whole_logits_say(self):
    batch, params = helpers.batch(), helpers.start()
    how = dict(group_size=4, temperature=0.7, chunk_size=16)
    observe = jax.jit(objective.make_observe(helpers.CONFIG, **how))
    found = observe(params, batch)
    hidden, _ = decoder.Decoder(helpers.CONFIG).apply(
      {"params": params}, batch.tokens, batch.positions, batch.valid
    )
    logits = log_probs.head_logits(
      hidden, decoder.head_kernel(params, helpers.CONFIG), 0.7
    )[:, batch.prompt_size - 1 : -1]
    targets = batch.tokens[:, batch.prompt_size :]
    taken, entropies = log_probs.log_probs_of(logits, targets)
    mask = batch.completion_mask
    expected = {"log_probs": taken, "entropies": entropies}
    expected["certainties"] = certainty.token_self_certainty(logits)
    for name, value in expected.items():
      here = getattr(found, name)[mask]
      np.testing.assert_allclose(here, value[mask], 1e-5, 1e-5)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    near(found.prompt_hidden, hidden[::4, batch.prompt_size - 1])
    last = batch.prompt_size - 1 + mask.sum(1)
    near(found.response_hidden, hidden[jnp.arange(8), last])

    # Some rows at a time say the same: of the fourth part are rows 3 and 7.
    parts = objective.make_observe(helpers.CONFIG, num_parts=4, **how)
    chex.assert_trees_all_close(parts(params, batch), found, rtol=1e-4)

    # Packed rows say the same, of an empty response too.
    roles = batch.roles.at[2, batch.prompt_size :].set(transcript.PAD)
    empty = batch.replace(roles=roles)
    expected = observe(params, empty)
    rows = jax.tree.map(lambda x: np.asarray(x)[None], empty)
    packed = batch_lib.pack_rows(rows, 24, target_multiple=8)
    found = observe(params, jax.tree.map(lambda x: jnp.asarray(x[0]), packed))
    for name in ("prompt_hidden", "response_hidden"):
      near(getattr(found, name), getattr(expected, name))
    near(expected.response_hidden[2], hidden[2, batch.prompt_size - 1])
    chosen = empty.completion_mask
    near(found.certainties[chosen], expected.certainties[chosen])


def purchases(directory):
  return LabelLedger(directory / LEDGER_NAME).purchases()


@pytest.mark.slow
class TestRun:
  def test_packed_rows_are_labelled(self, tmp_path):
    fields = {"num_steps": 2, "pack_length": 53}
    made = experiment({"method": "mean_probability"}, loop=fields)
    assert loop.train(made, [0, 1], directory=tmp_path).finished
    assert np.isfinite(curves(tmp_path)["loss"]).all()

  def test_other_lifts_buy_the_same(self, tmp_path):
    found, four = [], {"num_examples": 4, "batch_size": 4}
    for lift in parallel.LIFTS:
      made = experiment(
        {"method": "care", "gate": "probe", "warm_up": 1},
        parallel={"lift": lift},
        loop={"num_steps": 3},
        evaluation={"interval": 0, "samples": 0, **four},
      )
      loop.train(made, [0], directory=tmp_path / lift)
      bought = purchases(tmp_path / lift)
      found.append([(p.step, p.prompt_id) for p in bought])
    assert found[0] and found[0] == found[1] == found[2]


def test_the_page_of_the_run_says_at_once_that_a_person_is_waited_for(tmp_path):
  labels = {"method": "random", "source": "annotator", "timeout_s": 0.01}
  made, session, told = experiment(labels), helpers.begun(tmp_path), []
  session.enter = lambda text, at_once: told.append((text, at_once))
  desk = labelling.Desk(helpers.make_learner(made), session, 1)
  example = Guesses().examples("train")[0]
  asked = questions.make_question(made.task, example, TEXTS[:4], step=0, seed=0)
  assert desk.source.answer([asked]) == [None]
  ((text, at_once),) = told
  assert f"--ledger={tmp_path / LEDGER_NAME}" in text and at_once


class TestConfig:
  @pytest.mark.parametrize(
    ("changes", "word"),
    [
      ({"method": "carre"}, "'care'"),
      ({"gate": "prob"}, "'probe'"),
      ({"method": "care", "label_fraction": 0.0}, "buys nothing"),
      ({"label_fraction": 1.5}, "label_fraction"),
      ({"total": -1.0}, "total"),
      ({"method": "oracle", "source": "annotator"}, "source"),
      ({"method": "random", "total": 0.5}, "does not pay"),
    ],
  )
  def test_a_mistake_is_named(self, changes, word, make):
    with pytest.raises(ValueError, match=word):
      make(**changes)

  def test_a_task_without_answers_is_named(self, tmp_path):
    made = helpers.experiment(labels={"method": "vote"})
    with pytest.raises(ValueError, match="answer_key"):
      loop.train(made, [0], directory=tmp_path)
