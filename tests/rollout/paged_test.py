"""Tests of a cache in pages: what is sampled is what is sampled at once."""

import dataclasses

import jax
import numpy as np
import pytest

from saw_jax.rollout import paged, pages, refill
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig
from tests.rollout import refill_test
from tests.rollout.generate_test import CONFIG, EOS
from tests.rollout.refill_test import S, slow

WINDOWS = dataclasses.replace(CONFIG, windows=(3, 0))


class Watched(paged.Paged):
  """Keeps the book of the end, and how many rows were turned out."""

  def _run(self):
    loop = super()._run()
    self.book = loop.book
    return loop

  def _leave(self, loop, is_over_N, state):
    if state == paged.WAITING:
      jax.debug.callback(lambda x: self.out.append(int(x)), is_over_N.sum())
    return super()._leave(loop, is_over_N, state)


def compare(num_prompts, held, num_slots, num_pages, **changes):
  """Samples both ways; returns lengths, and how many rows were turned out."""
  config = changes.get("config", CONFIG)
  changes = {"page_size": 4} | changes
  settings, asked, expected = refill_test.at_once(num_prompts, **changes)
  sampler = Watched(config, settings, num_slots, held, num_pages)
  sampler.out = []

  @jax.jit
  def sample(*args):
    return sampler(*args), sampler.book

  found, book = jax.block_until_ready(sample(*asked))
  jax.effects_barrier()
  refill_test.assert_same(found, expected)
  assert int(book.count) == num_pages  # All pages are free again, once.
  assert sorted(np.asarray(book.free_X)) == list(range(num_pages))
  return np.asarray(found.completion_lengths), sum(sampler.out)


@pytest.mark.parametrize(
  ("num_prompts", "held", "num_slots", "num_pages", "is_turned", "changes"),
  [
    # 56 tokens in place of 6 rows' 90; the last three prompts are filled up.
    (5, 2, 6, 14, True, {"record_entropies": True}),
    # Rows of one length are never turned out: there is room for two.
    (4, 4, 5, 16, False, {"eos_ids": ()}),
    slow(4, 4, 12, 16, None, {}),
    slow(5, 1, 3, 10, None, {}),  # the least that is safe
    slow(5, 2, 4, 32, True, {"page_size": 1}),
    slow(5, 2, 4, 9, False, {"page_size": 16}),
    slow(7, 2, 6, 15, False, {"max_new_tokens": 2}),
    slow(5, 1, 4, 9, False, {"max_new_tokens": 1}),
    slow(9, 5, 5, 18, None, {"group_size": 1}),
    slow(4, 1, 3, 9, None, {"sampling": SamplingConfig(greedy=True)}),
    slow(5, 2, 4, 12, None, {"config": WINDOWS, "max_new_tokens": 14}),
  ],
)
def test_pages_change_no_token(
  monkeypatch, num_prompts, held, num_slots, num_pages, is_turned, changes
):
  refill_test.give_many_stages(monkeypatch)
  lengths, turned = compare(num_prompts, held, num_slots, num_pages, **changes)
  if is_turned is not None:
    assert bool(turned) == is_turned
  if changes.get("eos_ids", EOS) and changes.get("max_new_tokens", 11) > 2:
    assert len(set(lengths)) > 1


def test_each_lane_is_a_call_of_its_own():
  settings = GenerateConfig(11, 3, EOS, cache_tokens=70, page_size=4)
  assert paged.room(settings, 4, S) == (3, 1, 16)
  refill_test.assert_lanes_are_calls(settings, seeds=(0, 1))


@pytest.mark.parametrize(
  ("budget", "size", "expected"),
  [
    (12 * 15 - 1, 4, (12, 4, 39)),  # 179 - 4 prompts of 5, in whole pages
    (80, 4, (3, 2, 17)),  # 36 / (5.5 + 4) beside 8 pages of prompts
    (80, 1, (7, 2, 70)),  # 50 / (5.5 + 1)
    (53, 4, (1, 1, 12)),  # 8 pages of prompts, 4 of a response, 5 to read one
    (52, 4, None),
  ],
)
def test_slots_and_pages_fill_the_room(budget, size, expected):
  settings = GenerateConfig(11, 3, EOS, cache_tokens=budget, page_size=size)
  assert paged.room(settings, 4, S) == expected
  # Without room for all prompts, slots are what they are without pages.
  assert refill.slots(settings, 4, S) == (expected or (3, 1, 0))


def test_a_page_has_one_owner():
  """A walk of chance: prompts are shared, all else is a slot's alone."""
  rng, num_pages, rows, most = np.random.default_rng(0), 30, 2, 5
  wholes, rests = np.array([1, 2, 0, 2]), np.array([1, 0, 3, 1])
  sizes = wholes + (rests > 0)
  book = pages.start(num_pages, 3, sizes, most, rows)
  left, slots, copies = list(range(4)) * rows, {}, 0
  while left or slots:
    if left and len(slots) < 3:
      slot = next(n for n in range(3) if n not in slots)
      slots[slot] = prompt = left.pop(rng.integers(len(left)))
      book, (source, target) = pages.begin(
        book, slot, prompt, wholes[prompt], rests[prompt]
      )
      own, asked = book.table_NM[slot], book.prompts_PM[prompt]
      whole = wholes[prompt]
      np.testing.assert_array_equal(own[:whole], asked[:whole])
      if rests[prompt]:
        assert (source, target) == (asked[whole], own[whole])
        copies += 1
      else:
        assert source == target == num_pages  # Nothing is copied.
    wanted = np.zeros(3, np.int32)
    for slot in slots:
      wanted[slot] = min(most, book.held_N[slot] + rng.integers(3))
    book = pages.reach(book, wanted)
    np.testing.assert_array_equal(book.held_N, wanted)
    own = [book.table_NM[n, wholes[p] : wanted[n]] for n, p in slots.items()]
    own = np.concatenate([*own, book.free_X[: int(book.count)]])
    asked = np.asarray(book.prompts_PM)
    assert sorted([*own, *asked[asked < num_pages]]) == list(range(num_pages))
    assert (asked < num_pages).sum() == sizes @ (np.asarray(book.left_P) > 0)
    if len(slots) == 3 or not left:
      slot = rng.choice(list(slots))
      is_out, prompt = np.arange(3) == slot, slots.pop(slot)
      ids = np.where(is_out, prompt, 3)
      book = pages.leave(book, is_out, wholes[ids])
      if left and rng.integers(2):
        left.append(prompt)  # It begins anew, later.
      else:
        book = pages.end(book, ids, is_out)
  assert copies > 6
  assert int(book.count) == num_pages
