"""Tests of saw_jax/run/agents.py, with a sampler that follows a script."""

import types

import numpy as np
import pytest

from saw_jax import tokenizer as tokenizer_lib
from saw_jax.rollout.transcript import OBSERVATION, POLICY, PROMPT
from saw_jax.run import agents, episode_evaluation, rollouts, sections
from saw_jax.tasks.environments import Situation, Transition
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tasks.workers.pool import RewardError
from tests import helpers
from tests.tasks.misbehaving_environments import CounterTask

TOKENIZER = tokenizer_lib.PieceTokenizer(
  [*"abcdefghijklmnopqrstuvwxyz0123456789 >\n.!"]
)
ROLLOUT = sections.RolloutConfig(
  max_prompt_tokens=24, prompt_multiple=24, max_new_tokens=10
)
ENCODER = rollouts.Encoder(TOKENIZER, ROLLOUT)
CONFIG = sections.EpisodeConfig(rows_per_call=4, max_observation_tokens=6)
MADE = types.SimpleNamespace(
  task=CounterTask(), tokenizer=TOKENIZER, rollout=ROLLOUT, episodes=CONFIG
)
MADE.loop = sections.LoopConfig(prompts_per_step=2, group_size=2)


class Scripted:
  """Writes the next word of each seed's world, whatever it is asked.

  The world is in the prompt: the digit after the last space.
  """

  def __init__(self, words):
    self.words, self.prompts = words, []

  def __call__(self, params, prompts, keys, kept):
    size, rows, asked = prompts.tokens.shape[-1], [], []
    for n, lengths in enumerate(prompts.lengths):
      own = [prompts.tokens[n, p, -k:].tolist() for p, k in enumerate(lengths)]
      texts = [TOKENIZER.decode(ids) for ids in own]
      said = [self.words(n, text) for text in texts]
      words = [
        [] if one is None else [*TOKENIZER.encode(one), TOKENIZER.eos_ids[0]]
        for one in said
      ]
      rows.append(words)
      asked.append(own)
      self.prompts += texts
    width = ROLLOUT.max_new_tokens
    return helpers.transcript_of(rows, width, asked, prompt_size=size), None


def play(words, worlds=((1, 2), (3, 4)), group_size=2, tolerance=0.5):
  sampler = Scripted(words)
  starts = [[("train", world) for world in row] for row in worlds]
  keys = rollouts.row_keys([0] * len(worlds), 0, np.array(worlds), group_size)
  limits = dict(num_workers=0, limit_s=1.0, crash_tolerance=tolerance)
  with EnvironmentPool(CounterTask(), **limits) as pool:
    policy = types.SimpleNamespace(made=MADE, encoder=ENCODER, params=None)
    policy.lift = types.SimpleNamespace(num_shards=1)
    found = agents.play(policy, sampler, starts, keys, pool)
  return found, sampler


def count_then_stop(n, text):
  return "stop" if "at 2" in text.rpartition("\n")[2] else "count"


class TestPlay:
  def test_rewards_returns_and_what_followed(self):
    found, _ = play(count_then_stop)
    # Count, count, stop: three steps, the last of which pays.
    assert found.rewards.shape == (2, 2, 2, 4)
    assert (found.rewards == [0, 0, 1, 0]).all() and (found.returns == 1).all()
    assert (found.steps == [True, True, True, False]).all()
    assert found.over.all() and not found.failed.any()
    assert not found.invalid.any()
    # The second world of seed 0 is episodes 2 and 3.
    turns = found.turns[0][3]
    seen = [turn.observation for turn in turns]
    assert seen == ["2 at 1", "2 at 2", "2 at 3"]
    assert [turn.reply for turn in turns] == ["count", "count", "stop"]
    assert TOKENIZER.decode(found.observations[0, 3, 2]) == "2 at 3"
    # Equal observations of a world are one anchor.
    assert (found.anchors[..., :3] == [0, 1, 2]).all()

  def test_replies_begin_where_the_template_begins_them(self, monkeypatch):
    monkeypatch.setattr(type(TOKENIZER), "opening", "<think>")
    found, _ = play(count_then_stop, worlds=((1,),), group_size=1)
    assert found.turns[0][0][0].reply == "<think>count"

  def test_prompts_hold_what_was_seen_and_done(self):
    _, sampler = play(count_then_stop, worlds=((7,),), group_size=1)
    # The third would have 29 tokens with its history, and has none.
    expected = ["world 7", "world 7>count\n7 at 1", "7 at 2"]
    assert sampler.prompts[::4][:3] == expected

  def test_a_reply_that_does_not_parse_takes_a_step_and_is_counted(self):
    found, _ = play(lambda n, text: "!!" if "at 1" in text else "count")
    np.testing.assert_array_equal(found.invalid.sum(-1), 1)
    turn = found.turns[0][0][1]
    assert (turn.reply, turn.action, turn.valid) == ("!!", "", False)
    assert turn.observation == "1 at 2"

  def test_a_failed_environment_takes_its_steps_out_and_no_others(self):
    found, _ = play(lambda n, text: "raise" if "2 at 1" in text else "count")
    np.testing.assert_array_equal(
      found.failed, [[[False] * 2, [True] * 2], [[False] * 2] * 2]
    )
    assert not found.steps[0, 1].any() and found.steps[0, 0].all()
    assert found.played.steps.reshape(found.steps.shape)[0, 1, :, :2].all()

  def test_an_action_that_no_engine_brought_fails_its_episode(self):
    nothing = lambda n, text: None if "2 at 1" in text else "count"  # noqa: E731
    found, _ = play(nothing)
    np.testing.assert_array_equal(
      found.failed, [[[False] * 2, [True] * 2], [[False] * 2] * 2]
    )
    assert not found.steps[0, 1].any() and not found.observations.get((0, 2, 1))
    assert found.played.steps[0].sum(-1).tolist() == [4, 4, 2, 2]
    with pytest.raises(RewardError, match="no action was sampled"):
      play(nothing, tolerance=0.1)

  def test_too_many_failures_end_the_run(self):
    with pytest.raises(RewardError, match="boom"):
      play(lambda n, text: "raise", tolerance=0.1)

  def test_a_world_that_cannot_start_is_failed(self):
    found, _ = play(count_then_stop, worlds=((1, 666),))
    np.testing.assert_array_equal(found.failed[0], [[False] * 2, [True] * 2])
    assert not found.steps[0, 1].any()
    # It is over at once, and nobody asks it anything.
    np.testing.assert_array_equal(found.played.steps[0].sum(-1), [3, 3, 1, 1])

  def test_observations_may_be_empty_and_are_cut(self):
    found, _ = play(lambda n, text: "empty" if n else "enormous")
    size = CONFIG.max_observation_tokens
    assert len(found.observations[0, 0, 0]) == size
    assert all(n == 0 for n, *_ in found.observations)


class Wordy(CounterTask):
  def prompts(self, situation, history):
    yield "x" * 19 + "y" + situation.observation


class TestWritePrompt:
  def write(self, observation, history=(), task=CounterTask, **fields):
    situation = Situation("", observation, (), 0.0, False)
    config = sections.RolloutConfig(max_prompt_tokens=12, **fields)
    encoder = rollouts.Encoder(TOKENIZER, config)
    return agents.write_prompt(task(), encoder, situation, history)

  def test_history_is_left_out_where_it_does_not_fit(self):
    history = [("ab", "c")]
    text, ids = self.write("xyz", history)
    assert text == "ab>c\nxyz" and len(ids) == 11
    assert self.write("xyzab", history)[0] == "xyzab"

  def test_an_observation_is_halved_until_it_fits(self):
    text, ids = self.write("abcdefgh" * 4, [("ab", "c")])
    assert text == "abcdefgh" and len(ids) == 11

  def test_what_is_too_long_without_any_is_an_error_or_cut(self):
    with pytest.raises(ValueError, match="23 tokens"):
      self.write("abc", task=Wordy)
    _, ids = self.write("abc", task=Wordy, long_prompts="truncate")
    assert len(ids) == 12 and TOKENIZER.decode(ids) == "x" * 9 + "y"


def test_a_template_that_closes_no_message_is_named():
  open_ended = types.SimpleNamespace(
    encode_chat=lambda messages, is_asked: [5, 6], eos_ids=(1,)
  )
  with pytest.raises(ValueError, match="no end token behind what a user says"):
    agents.glue_of(open_ended)


def test_the_glue_of_chatml_has_the_line_break_after_the_end():
  bytes_ = tokenizer_lib.ByteTokenizer()
  glue = agents.glue_of(bytes_)
  said = [
    {"role": role, "content": text}
    for role, text in (("assistant", "a"), ("user", "b"))
  ]
  conversation = bytes_.encode_chat(said, False)
  begin = conversation.index(bytes_.eos_ids[0]) + 1
  end = begin + len(glue)
  assert conversation[begin:end] == glue
  assert bytes_.decode(conversation[end:])[0] == "b"


def test_transitions_become_what_the_policy_would_have_had():
  before = Situation("", "xy", (), 0.0, False)
  steps = [Transition(before, (("a", "b"),), "count", "it is done now")]
  found = episode_evaluation.lay_out(steps, MADE)
  for role, text in (
    (PROMPT, "a>b\nxy"),
    (POLICY, "count"),
    (OBSERVATION, "it is "),
  ):
    tokens = found.tokens[0][found.roles[0] == role].tolist()
    assert TOKENIZER.decode(tokens) == text
    assert (tokens[-1] in TOKENIZER.eos_ids) == (role == POLICY)


def test_a_call_has_no_more_rows_than_a_step():
  for most, shards, expected in ((64, 1, 4), (64, 3, 6), (2, 1, 2)):
    config = sections.EpisodeConfig(rows_per_call=most)
    made = types.SimpleNamespace(episodes=config, loop=MADE.loop)
    assert agents.rows_per_call(made, shards) == expected
