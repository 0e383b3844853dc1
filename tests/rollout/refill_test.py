"""Tests of refilled slots: what is sampled is what is sampled at once."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest

from saw_jax.rollout import generate, refill, transcript
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig
from tests import helpers
from tests.rollout.generate_test import (
  CONFIG,
  EOS,
  IDS,
  PROMPTS,
  assert_same,
  params_of,
)

S = 5  # the longest prompt


def prompts_of(count):
  chosen = [k % len(PROMPTS) for k in range(count)]
  ids = [IDS[i] + 100 * k for k, i in enumerate(chosen)]
  return transcript.pad_prompts([PROMPTS[i] for i in chosen], ids=ids)


def at_once(num_prompts, *, config=CONFIG, sampled=None, **changes):
  """Settings, what a sampler is given, and what it gives for all at once."""
  made = {"max_new_tokens": 11, "group_size": 3, "eos_ids": EOS} | changes
  settings = GenerateConfig(**made)
  prompts = prompts_of(num_prompts).replace(sampled=sampled)
  key, size = jax.random.key(3), settings.group_size
  asked = params_of(), prompts, generate.row_keys(key, 1, prompts.ids, size)
  return settings, asked, generate.make_generate(config, settings)(*asked)


def compare(num_prompts, held, num_slots, *, config=CONFIG, **changes):
  """Samples both ways; returns the completions' lengths."""
  settings, asked, expected = at_once(num_prompts, config=config, **changes)
  few = dataclasses.replace(settings, cache_tokens=1)
  with mock.patch.object(refill, "slots", lambda *_: (num_slots, held, 0)):
    found = refill.make_generate(config, few)(*asked)
  assert_same(found, expected)
  return np.asarray(found.completion_lengths)


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


def give_many_stages(monkeypatch):
  """Has short completions sampled in as many stages as long ones are."""

  def stages(size, new):
    parts = new // 3, new // 2, new
    return sorted({min(new - 1, max(1, part)) for part in parts})

  monkeypatch.setattr(generate, "stages", stages)


def assert_lanes_are_calls(settings, seeds):
  """Each lane of three samples of four prompts is a call of its own."""
  config = dataclasses.replace(CONFIG, scan_layers=True)
  prompts = prompts_of(4)
  keys = [
    generate.row_keys(jax.random.key(seed), 0, prompts.ids, 3) for seed in seeds
  ]
  stack = lambda *own: jax.numpy.stack(own)  # noqa: E731
  lanes = jax.tree.map(
    stack, *[(helpers.stack_layers(params_of(seed)), prompts) for seed in seeds]
  )
  sample = refill.make_generate(config, settings, lanes=True)
  found = sample(*lanes, stack(*keys))
  free = dataclasses.replace(settings, cache_tokens=0)
  sample = generate.make_generate(CONFIG, free)
  for seed in seeds:
    own = jax.tree.map(lambda x, seed=seed: x[seed], found)
    assert_same(own, sample(params_of(seed), prompts, keys[seed]))


@pytest.mark.parametrize(
  ("num_prompts", "held", "num_slots", "changes"),
  [
    # Prompts come in three parts, of which the last one is filled up.
    (5, 2, 6, {"record_entropies": True}),
    # All prompts are held: the cache grows, and begins anew.
    (4, 4, 5, {"eos_ids": ()}),
    slow(4, 4, 6, {}),
    slow(5, 1, 1, {}),
    slow(7, 2, 6, {"max_new_tokens": 2}),
    slow(5, 1, 4, {"max_new_tokens": 1}),
    slow(9, 5, 5, {"group_size": 1}),
    slow(4, 4, 7, {"sampling": SamplingConfig(top_p=0.7, min_p=0.05)}),
    slow(4, 1, 3, {"sampling": SamplingConfig(greedy=True), "pad_id": 2}),
  ],
)
def test_slots_change_no_token(
  monkeypatch, num_prompts, held, num_slots, changes
):
  give_many_stages(monkeypatch)
  lengths = compare(num_prompts, held, num_slots, **changes)
  most = changes.get("max_new_tokens", 11)
  if changes.get("eos_ids", EOS) and most > 2:
    assert len(set(lengths)) > 1  # Slots are free at different times.


@pytest.mark.slow
def test_windows_are_of_tokens_and_keys_go_on_from_earlier_parts():
  config = dataclasses.replace(CONFIG, windows=(3, 0)[: CONFIG.num_layers])
  sampled = np.array([0, 4, 1, 2, 3], np.int32)
  compare(5, 1, 3, config=config, sampled=sampled, max_new_tokens=14)


def test_each_lane_is_a_call_of_its_own():
  settings = GenerateConfig(11, 3, EOS, cache_tokens=4 * 15 + 4 * 5)
  assert_lanes_are_calls(settings, seeds=(0, 1, 2))


@pytest.mark.parametrize(
  ("budget", "expected"),
  [
    (0, (12, 4)),  # no limit
    (12 * 15, (12, 4)),  # all at once
    (12 * 15 - 1, (10, 4)),  # 179 - 4 prompts of 5
    (80, (4, 4)),  # a quarter for prompts
    (79, (4, 1)),  # 16.7 tokens a row and its part of a prompt: 4 rows, 1 group
    (20, (1, 1)),
  ],
)
def test_slots_and_prompts_fill_the_room(budget, expected):
  settings = GenerateConfig(11, 3, EOS, cache_tokens=budget)
  assert refill.slots(settings, 4, S) == (*expected, 0)


def test_too_little_room_is_said():
  settings = GenerateConfig(11, 3, EOS, cache_tokens=19)
  with pytest.raises(ValueError, match="cache_tokens is 19: .* 5 tokens .* 20"):
    refill.slots(settings, 4, S)
