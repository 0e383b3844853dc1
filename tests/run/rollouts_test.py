"""From examples to prompts, and from tokens back to text and rewards."""

import functools
import re
import string
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import tokenizer as tokenizer_lib
from saw_jax.models import decoder
from saw_jax.rollout import transcript as transcript_lib
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import rollouts, sections
from saw_jax.tasks import base
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tasks.workers.pool import RewardError
from saw_jax.training import parallel
from tests import helpers

TOKENIZER = tokenizer_lib.ByteTokenizer()
PAD, POLICY = transcript_lib.PAD, transcript_lib.POLICY
END = TOKENIZER.eos_ids[0]


def example(text, key=7):
  return base.Example(key, ({"role": "user", "content": text},), "a")


def encoder(limit=48, **fields):
  fields |= dict(max_prompt_tokens=limit, prompt_multiple=16)
  config = sections.RolloutConfig(**fields)
  return rollouts.Encoder(TOKENIZER, config)


def transcript(rows):
  """One seed; a row is the tokens that the policy chose."""
  return helpers.transcript_of([rows], 6, pad_id=TOKENIZER.pad_id)


class TestEncoder:
  def test_a_prompt_that_is_too_long_is_an_error_that_names_it(self):
    # Markers, roles and newlines are 19 tokens.
    assert len(encoder(110).tokens(example("x" * 91))) == 110
    with pytest.raises(ValueError, match=r"example 7 .* 110 .* 48 "):
      encoder().tokens(example("x" * 91))

  def test_truncation_keeps_the_end(self):
    text = "".join(chr(ord("a") + i % 26) for i in range(91))
    whole = TOKENIZER.encode_chat(example(text).messages)
    made = encoder(long_prompts="truncate")
    for key in (1, 2):  # The second is remembered, by its text.
      assert made.tokens(example(text, key)) == list(whole[-48:])
    assert made.tokens(example("ab", 1)) != list(whole[-48:])

  def test_it_remembers_so_many_and_no_more(self, monkeypatch):
    monkeypatch.setattr(rollouts, "_HELD", 3)
    made = encoder()
    for number in range(9):
      asked = example(str(number))
      assert made.tokens(asked) == encoder().tokens(asked)
      assert len(made._ids) <= 3

  def test_prompts_of_all_seeds_have_one_padded_size(self):
    rows = [
      [example("a", 1), example("abc", 2), example("ab", 3)],
      [example("abcd", 4), example("b", 5), example("a", 1)],
    ]
    found = encoder().prompts(rows)
    assert found.tokens.shape == (2, 3, 32)  # at most 23, rounded up to 16s
    np.testing.assert_array_equal(found.ids, [[1, 2, 3], [4, 5, 1]])
    for n, p in np.ndindex(2, 3):
      tokens = encoder().tokens(rows[n][p])
      assert found.lengths[n, p] == len(tokens)
      np.testing.assert_array_equal(found.tokens[n, p, -len(tokens) :], tokens)

  def test_all_of_a_message_tells_it_from_others(self):
    made, shown = encoder(), []
    fake = lambda messages: shown.append(messages) or [1]  # noqa: E731
    made.tokenizer = types.SimpleNamespace(encode_chat=fake)
    for more in ({"calls": [1]}, {"calls": [2]}, {"content": ["a"]}):
      made.tokens(base.Example(1, ({"role": "user", **more},), ""))
    assert len(shown) == 3

  def test_a_mistake_is_named(self):
    for fields in ({"stops": "stop"}, {"length_groups": 0}):
      with pytest.raises(ValueError, match="one string|length_groups"):
        encoder(**fields)


class TestRead:
  def read(self, made, stops=()):
    texts, lengths, ended = rollouts.read(made, encoder(stops=stops))
    return texts, lengths.tolist(), ended.tolist()

  def test_drops_the_end_token_and_keeps_what_looks_like_padding(self):
    # Byte 0 is a letter here: a policy may choose any id. A pad that it chose
    # is one of its tokens, and has no text.
    rows = [[104, 105, END], [97, 0, 98], [END], [], [97, TOKENIZER.pad_id, 98]]
    texts, lengths, ended = self.read(transcript(rows))
    assert texts == ["hi", "a\0b", "", "", "ab"]
    assert lengths == [3, 3, 1, 0, 3]
    assert ended == [True, False, True, False, False]

  def test_reads_roles_and_not_tokens(self):
    made = transcript([[104, 105, 106]])
    made.tokens[..., 5:] = 120  # garbage on padding, end tokens among it
    made.tokens[..., -1] = END
    made.roles[0, 0, 3] = transcript_lib.OBSERVATION  # not the policy's
    assert self.read(made) == (["hj"], [2], [False])

  def test_the_text_ends_before_a_stop_string(self):
    rows = [TOKENIZER.encode(text) for text in ("5 and", "5", "and")]
    made = transcript([*rows, [53, END]])
    texts, lengths, ended = self.read(made, ["and"])
    assert texts == ["5 ", "5", "", "5"]
    # What the policy wrote of the string is its own, as an end token is.
    assert lengths == [5, 1, 3, 2]
    assert ended == [True, False, True, True]

  def test_the_text_begins_where_the_template_begins_it(self, monkeypatch):
    monkeypatch.setattr(tokenizer_lib.ByteTokenizer, "opening", "<think>;")
    made = transcript([[97, 59, 98], [END]])
    assert self.read(made, [";"])[0] == ["<think>;a", "<think>;"]


class TestCut:
  def test_what_follows_a_stop_string_is_padding(self):
    made = transcript([[97, 59, 98, 59], [97, 98, END], [59], []])
    assert encoder().cut(made) is made
    found = encoder(stops=(";", "zz")).cut(made)
    np.testing.assert_array_equal(found.ends, [[4, 5, 3, 2]])
    np.testing.assert_array_equal(found.tokens[0, 0, 2:4], [97, 59])
    assert (found.tokens[0, 0, 4:] == TOKENIZER.pad_id).all()
    np.testing.assert_array_equal(found.completion_lengths, [[2, 3, 1, 0]])
    before, after = made.behave_log_probs[0], found.behave_log_probs[0]
    np.testing.assert_array_equal(after[0, :2], before[0, :2])
    assert not after[0, 2:].any() and not after[3].any()
    np.testing.assert_array_equal(after[1, :3], before[1, :3])
    assert made.ends[0, 0] == 6  # The argument stays as it is.

  def test_an_end_token_is_no_text(self):
    shown, names = tokenizer_lib.ByteTokenizer(), {97: "a", END: "<end>"}
    shown.decode = lambda ids: "".join(names[i] for i in ids)
    config = sections.RolloutConfig(stops=("<end>",))
    found = rollouts.Encoder(shown, config).cut(transcript([[97, END]]))
    np.testing.assert_array_equal(found.ends, [[4]])


class TestTrim:
  @pytest.mark.parametrize(
    ("rows", "multiple", "width"),
    [
      *(([[1] * used], 4, 4 if used <= 4 else 6) for used in range(7)),
      ([[], []], 1, 1),  # Empty answers have a position left.
      ([[97, TOKENIZER.pad_id]], 1, 2),  # A pad that was chosen is used.
    ],
  )
  def test_sizes_are_multiples_and_not_too_long(self, rows, multiple, width):
    made = transcript(rows)
    found = rollouts.trim(made, multiple)
    assert found.prompt_size == 2
    for name, size in (
      *(("tokens", 2 + width), ("roles", 2 + width)),
      ("behave_log_probs", width),
    ):
      expected = getattr(made, name)[..., :size]
      np.testing.assert_array_equal(getattr(found, name), expected)


def test_row_keys_are_functions_of_seed_step_example_and_sample_alone():
  def keys(seeds=(0, 1), step=3, ids=((5, 9), (9, 6)), group_size=3):
    found = rollouts.row_keys(seeds, step, np.array(ids), group_size)
    return jax.random.key_data(found).reshape(len(seeds), -1, group_size, 2)

  found = keys()
  assert found.shape == (2, 2, 3, 2)
  assert len({tuple(key) for key in found.reshape(-1, 2).tolist()}) == 12
  assert (found != keys(step=4)).any(-1).all()
  np.testing.assert_array_equal(found, keys(ids=((9, 5), (6, 9)))[:, ::-1])
  alone = keys(seeds=(1,), ids=((9,),), group_size=2)
  np.testing.assert_array_equal(alone[0, 0], found[1, 0, :2])


TEXTS = ("a", "b" * 40, "c" * 20, "dd", "e" * 39, "f" * 3)


@pytest.fixture(scope="module")
def sampling():
  """A function that samples for two seeds, and their examples."""
  sizes = dict(max_new_tokens=5, completion_multiple=1)
  prompts = encoder(64, **sizes)
  settings = prompts.settings(SamplingConfig(), 2, record_entropies=True)
  engine = rollouts.Native(parallel.seeded(), helpers.CONFIG)
  generate = functools.partial(engine.sample, config=settings)
  params = decoder.init_params(helpers.CONFIG, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  every = [
    base.Example(key, example(text).messages, "ab"[key % 2])
    for key, text in enumerate(TEXTS)
  ]
  examples = [every, every[::-1]]

  def sample(order=slice(None), length_groups=1, shapes=None, **fields):
    def watched(params, prompts, keys):
      if shapes is not None:
        shapes.append(prompts.tokens.shape)
      return generate(params, prompts, keys)

    rows = [row[order] for row in examples]
    keys = rollouts.example_keys((3, 4), 0, rows, 2)
    prompts, how = encoder(64, **sizes, **fields), length_groups
    return rollouts.sample(
      watched, params, rows, keys, encoder=prompts, length_groups=how
    )

  return sample, examples


class TestSample:
  def test_rows_follow_their_key_and_not_their_place(self, sampling):
    sample, _ = sampling
    forward, backward = sample(), sample(slice(None, None, -1))

    def said(one, n, row):
      return one.tokens[n, row, one.prompt_size : one.ends[n, row]].tolist()

    for n, b in np.ndindex(2, 12):
      assert said(forward, n, b) == said(backward, n, (11 - b) ^ 1)
    # The two seeds, and the two samples of a prompt, differ.
    tokens = forward.tokens.reshape(2, 6, 2, -1)
    assert (tokens[:, :, 0] != tokens[:, :, 1]).any(-1).all()
    assert (tokens[0, 0] != tokens[1, 5]).any()

  def test_a_stop_string_ends_a_row_and_changes_nothing_before(self, sampling):
    sample, _ = sampling
    letters = tuple(string.ascii_letters)
    whole, found = sample(), sample(stops=letters)
    kept = found.roles != PAD
    own = kept[..., found.prompt_size :]
    for name, where in (("tokens", kept), ("behave_log_probs", own)):
      expected = getattr(whole, name)[..., : where.shape[-1]][where]
      np.testing.assert_array_equal(getattr(found, name)[where], expected)
    texts, _, before = rollouts.read(whole, encoder())
    cut, _, ended = rollouts.read(found, encoder(stops=letters))
    assert cut == [re.split("[a-zA-Z]", text)[0] for text in texts] != texts
    assert ended.sum() > before.sum()

  @pytest.mark.parametrize(
    "count", [2, pytest.param(3, marks=pytest.mark.slow)]
  )
  def test_by_length_is_what_is_sampled_at_once(self, sampling, count):
    sample, _ = sampling
    shapes = []
    whole, parts = sample(), sample(length_groups=count, shapes=shapes)
    # Short prompts are padded to less.
    overhead = len(TOKENIZER.encode_chat(example("").messages))
    short, long = (-(-(overhead + size) // 16) * 16 for size in (3, 40))
    assert shapes[0] == (2, 6 // count, short)
    assert shapes[-1] == (2, 6 // count, long) and short < long
    exact = ("tokens", "roles", "starts", "ends", "group_ids", "prompt_size")
    for name in (*exact, "behave_log_probs", "entropies"):
      found, expected = getattr(parts, name), getattr(whole, name)
      atol = 0 if name in exact else 1e-5
      np.testing.assert_allclose(found, expected, 0, atol, err_msg=name)


class TestScore:
  def test_every_row_is_an_answer_to_its_own_prompt(self, sampling):
    sample, examples = sampling
    found, task = sample(), helpers.Letters()
    with Grader(task, num_workers=0, limit_s=1.0) as grader:
      result = rollouts.score(found, examples, grader, encoder())
    assert result.scored.all() and result.scored.shape == (2, 6, 2, 2)
    assert len(result.completions) == result.outcomes.size == 24
    texts = iter(result.completions)
    for n, p, g in np.ndindex(2, 6, 2):
      expected = task.score(examples[n][p], next(texts)).values
      np.testing.assert_allclose(result.rewards[n, p, g], expected, rtol=1e-6)
    lengths = found.completion_mask.sum(-1).reshape(2, 6, 2)
    np.testing.assert_array_equal(result.lengths, lengths)
    assert result.ended.shape == (2, 6, 2)

  def test_a_limited_component_is_0_where_a_response_is_longer(self):
    sampled = transcript([[97] * size for size in (5, 3, 4, 6)])
    task = helpers.Letters()
    score = base.Score((0.5, 0.25), base.Outcome.WRONG)
    task.score = lambda example, completion: score
    task.token_limits = {"small": 4}
    asked = [[example("a"), example("b")]]
    with Grader(task, num_workers=0, limit_s=1.0) as grader:
      result = rollouts.score(sampled, asked, grader, encoder())
    assert (result.rewards[..., 0] == 0.5).all()
    assert result.rewards[..., 1].ravel().tolist() == [0, 0.25, 0.25, 0]
    assert result.scored.all()


class TestCheckScored:
  def check(self, outcomes, texts=None):
    """A step of two prompts whose four responses ended in these outcomes."""
    task, outcome = helpers.Letters(), base.Outcome
    sampled = transcript([[97], [98], [99], [100]])
    ends = dict(zip("abcd", outcomes, strict=True))
    values = {outcome.WRONG: (0.5, None), outcome.RIGHT: (None, None)}
    task.score = lambda example, text: base.Score(
      values.get(ends[text], (1.0, 1.0)), ends[text]
    )
    asked = [[example("x"), example("y")]]
    with Grader(task, num_workers=0, limit_s=7.0) as grader:
      result = rollouts.score(sampled, asked, grader, encoder())
      if texts is not None:
        result = result._replace(completions=texts)
      rollouts.check_scored(result, asked, grader, encoder())

  def test_half_may_be_lost_and_a_part_of_a_reward_is_one(self):
    slow, crashed = base.Outcome.TIMED_OUT, base.Outcome.CRASHED
    part, none = base.Outcome.WRONG, base.Outcome.RIGHT  # see `check`
    self.check([slow, part, part, crashed])
    for outcomes in ([slow, slow, part, slow], [part, crashed, none, slow]):
      with pytest.raises(RewardError, match="3 of 4"):
        self.check(outcomes)

  @pytest.mark.parametrize("texts", [None, []])  # what a queue keeps has none
  def test_the_first_is_told_with_the_limits(self, texts):
    slow, part = base.Outcome.TIMED_OUT, base.Outcome.WRONG
    with pytest.raises(RewardError) as caught:
      self.check([part, slow, slow, slow], texts)
    for word in ("'letters'", "'b'", "timed_out", "7 s", "unscored_tolerance"):
      assert word in str(caught.value)
