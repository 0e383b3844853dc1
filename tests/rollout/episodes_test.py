"""Tests of saw_jax/rollout/episodes.py, with a sampler that is a formula."""

import jax
import numpy as np

from saw_jax.rollout import episodes
from saw_jax.rollout.transcript import PAD, POLICY, PROMPT, Transcript

EOS, WIDTH = 9, 3


class Sampler:
  """Says the first token of the prompt, the low bits of its key, and the end.

  A row's answer depends on its own prompt, parameters and key alone.
  """

  def __init__(self):
    self.shapes = set()
    self.rows = 0

  def __call__(self, params, prompts, keys, kept):
    N, C, S = prompts.tokens.shape
    self.shapes.add((N, C, S))
    self.rows += N * C
    bits = np.asarray(jax.vmap(jax.vmap(jax.random.bits))(keys)) % 5
    tokens = np.zeros((N, C, S + WIDTH), np.int32)
    roles = np.full(tokens.shape, PAD, np.int8)
    starts = S - np.asarray(prompts.lengths)
    for n in range(N):
      for c in range(C):
        tokens[n, c, :S] = prompts.tokens[n, c]
        roles[n, c, starts[n, c] : S] = PROMPT
        first = prompts.tokens[n, c, starts[n, c]]
        tokens[n, c, S:] = [first + params[n], bits[n, c], EOS]
        roles[n, c, S:] = POLICY
    rows = Transcript(
      tokens=tokens,
      roles=roles,
      starts=starts.astype(np.int32),
      ends=np.full((N, C), S + WIDTH, np.int32),
      behave_log_probs=-tokens[..., S:].astype(np.float32),
      group_ids=np.zeros((N, C), np.int32),
      prompt_size=S,
      entropies=0.5 * tokens[..., S:],
    )
    return rows, None


class Script:
  """Episode (n, b) is over after `lengths[n][b]` steps."""

  def __init__(self, lengths):
    self.lengths = lengths
    self.time = {}
    self.heard = {}

  def prompts(self, places):
    # As many tokens as steps so far, and one.
    return [[10 * (1 + b)] * (1 + self.time.get((n, b), 0)) for n, b in places]

  def act(self, places, actions):
    over = []
    for place, action in zip(places, actions, strict=True):
      self.heard.setdefault(place, []).append(action)
      self.time[place] = self.time.get(place, 0) + 1
      n, b = place
      over.append(self.time[place] >= self.lengths[n][b])
    return over


LENGTHS = [[1, 3, 2], [2, 1, 1]]


class LongAndShort(Script):
  """Prompts of 4 tokens and of 1, in turn."""

  def prompts(self, places):
    return [[10 * (1 + b)] * (1 if b % 2 else 4) for _, b in places]


def play(
  lengths=LENGTHS, rows_per_call=2, num_steps=4, seeds=(0, 1), script=Script
):
  sampler, script = Sampler(), script(lengths)
  keys = jax.vmap(lambda key: jax.random.split(key, len(lengths[0])))(
    jax.vmap(jax.random.key)(np.array(seeds))
  )
  played = episodes.play(
    sampler,
    np.array([0, 100]),
    script,
    keys,
    num_steps=num_steps,
    rows_per_call=rows_per_call,
    max_prompt_tokens=5,
    prompt_multiple=2,
    eos_ids=(EOS,),
  )
  return played, sampler, script


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_row_is_its_prompt_and_its_action():
  played, _, script = play()
  rows = played.transcript
  assert rows.prompt_size == 6 and rows.tokens.shape == (2, 3 * 4, 6 + WIDTH)
  # Seed 1, episode 0, step 1: two tokens 10, then 10 + 100, bits, the end.
  row = (1, 0 * 4 + 1)
  np.testing.assert_array_equal(rows.tokens[row][4:7], [10, 10, 110])
  assert rows.tokens[row][8] == EOS
  np.testing.assert_array_equal(
    rows.roles[row], [PAD] * 4 + [PROMPT] * 2 + [POLICY] * 3
  )
  assert (rows.starts[row], rows.ends[row]) == (4, 9)
  chosen = rows.tokens[row][6:]
  np.testing.assert_array_equal(rows.behave_log_probs[row], -chosen)
  np.testing.assert_array_equal(rows.entropies[row], 0.5 * chosen)
  np.testing.assert_array_equal(rows.group_ids[1], np.repeat(range(3), 4))
  # The worlds heard the same, without the end.
  assert script.heard[1, 0][1] == chosen[:2].tolist()


def test_a_step_that_was_not_taken_is_padding():
  played, _, _ = play()
  rows = played.transcript
  expected = np.arange(4) < np.array(LENGTHS)[..., None]
  np.testing.assert_array_equal(played.steps, expected)
  absent = ~played.steps.reshape(2, -1)
  assert (rows.roles[absent] == PAD).all()
  assert (rows.starts[absent] == 6).all() and (rows.ends[absent] == 6).all()
  assert (rows.behave_log_probs[absent] == 0).all()


def test_finished_episodes_leave_and_no_shape_is_new():
  # Prompts of up to 4 tokens: two sizes. Calls of 2 seeds x 2 rows: two for
  # three episodes, then one a step.
  _, sampler, _ = play()
  assert sampler.shapes == {(2, 2, 2), (2, 2, 4)}
  assert sampler.rows == (2 + 1 + 1) * 4
  # What shares a call does not matter.
  equal(play(rows_per_call=1)[0], play(rows_per_call=5)[0])


def test_long_prompts_share_a_call():
  lengths = [[1, 1, 2, 1], [2, 1, 1, 2]]
  played, sampler, _ = play(lengths, script=LongAndShort)
  # Short ones, long ones, and what is left for a second step.
  assert sampler.shapes == {(2, 2, 2), (2, 2, 4)}
  assert sampler.rows == 3 * 4
  alone, sampler, _ = play(lengths, script=LongAndShort, rows_per_call=4)
  assert sampler.shapes == {(2, 4, 4)}
  equal(played, alone)


def test_the_key_of_an_action_is_its_episodes_and_its_steps():
  _, _, script = play(lengths=[[4, 4], [4, 4]])
  key = jax.random.split(jax.random.key(1), 2)[1]
  bits = [jax.random.bits(jax.random.fold_in(key, step)) for step in range(4)]
  said = [action[1] for action in script.heard[1, 1]]
  assert said == [int(one) % 5 for one in bits]
