"""Turns that go on from what was read: the same rows, fewer tokens read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import decoder
from saw_jax.rollout import transcript, turns
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.run import rollouts
from saw_jax.training import parallel
from tests import helpers

CONFIG = dataclasses.replace(helpers.CONFIG, scan_layers=False)
SETTINGS = GenerateConfig(max_new_tokens=5, group_size=1, eos_ids=(0, 1, 2))


def asked(*rows, size, count=1):
  batch = transcript.pad_prompts(rows, multiple=size)
  return jax.tree.map(lambda x: np.stack([x] * count), batch)


def some(*sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(3, CONFIG.vocab_size, size).tolist() for size in sizes]


def test_what_is_shared_is_counted_in_tokens_that_were_read():
  last = helpers.transcript_of(
    [[[7, 8, 9], [5]]], 3, [[[1, 2, 3], [1, 2, 4, 4]]], prompt_size=4
  )
  new = asked([1, 2, 3, 7, 8, 9, 9], [1, 2, 4, 4, 5, 6], size=8)
  found = turns.share(last, new)
  # 9 and 5 were drawn last: nobody has read them.
  np.testing.assert_array_equal(found.counts, [[5, 4]])
  np.testing.assert_array_equal(found.sources, [[0, 1]])
  # Rows began at places 1 and 0, and at 1 and 2 now.
  np.testing.assert_array_equal(found.shifts, [[0, -2]])
  assert found.unread(new.lengths) == 2
  # A row that has moved, and one that begins anew.
  moved = asked([1, 2, 4, 4], [3], size=4)
  found = turns.share(last, moved)
  np.testing.assert_array_equal(found.counts, [[3, 0]])  # The last is read.
  assert found.sources[0, 0] == 1
  # What another device has read is not at hand.
  np.testing.assert_array_equal(turns.share(last, moved, 2).counts, [[2, 0]])


def mesh_lift():
  sizes = parallel.ParallelConfig("meshed", fsdp=2, tensor=2)
  return parallel.meshed(parallel.make_mesh(sizes), CONFIG, None)


@pytest.mark.parametrize(
  ("make", "count", "order"),
  [
    (parallel.seeded, 2, [0, 3, 2, 0]),
    (mesh_lift, 1, [1, 0, 2, 3]),
    pytest.param(
      lambda: parallel.seeded(jax.devices()[:2]), 2, [0, 3, 2, 0],
      marks=pytest.mark.slow,
    ),
    pytest.param(parallel.pmapped, 1, [0, 1, 2, 3], marks=pytest.mark.slow),
  ],
)  # fmt: skip
def test_rows_are_those_of_whole_prompts(make, count, order, monkeypatch):
  monkeypatch.setattr(turns, "PART", 5)  # 24 are one less than five of them.
  lift = make()
  engine = rollouts.Native(lift, CONFIG)
  params = [
    decoder.init_params(CONFIG, jax.random.key(n)) for n in range(count)
  ]
  params = lift.place_params(jax.tree.map(lambda *x: jnp.stack(x), *params))
  keys = jnp.stack([jax.random.split(jax.random.key(1), 4)] * count)
  ask = functools.partial(engine.turn, params, config=SETTINGS)
  prompts = asked(*some(15, 17, 20, 14), size=24, count=count)
  sampled, kept = ask(prompts, keys, kept=turns.Kept())

  # They begin as those rows did, and some as they went on, if they did.
  size, more = prompts.lengths[0], some(4, 3, 2, 2, seed=1)
  rows = [
    sampled.tokens[0, i][24 - size[i] : 24 + less].tolist() + extra
    for i, less, extra in zip(order, (0, 2, -3, -2), more, strict=True)
  ]
  again = asked(*rows, size=24, count=count)
  expected, nothing = ask(again, keys, kept=None)
  found, after = ask(again, keys, kept=kept)
  assert nothing is None and after.transcript is found
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  near = functools.partial(np.testing.assert_allclose, atol=1e-5)
  near(found.behave_log_probs, expected.behave_log_probs)

  # What was kept is read: if it is lost, that shows.
  lost = kept._replace(cache=jax.tree.map(jnp.zeros_like, kept.cache))
  wrong, _ = ask(again, keys, kept=lost)
  apart = abs(wrong.behave_log_probs - expected.behave_log_probs)
  assert apart.max((1, 2)).min() > 1e-3
  # Prompts that share nothing are read as if nothing had been kept.
  found, after = ask(
    asked(*some(20, 20, 20, 20), size=24, count=count), keys, kept=kept
  )
  assert after is None
