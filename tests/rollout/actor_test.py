"""Pools of actors, and samplers that go on with other weights."""

import dataclasses
import os
import signal
import threading
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax.models import decoder
from saw_jax.rollout import actor, generate, transcript
from tests import helpers

CONFIG = dataclasses.replace(helpers.CONFIG, vocab_size=23)
SETTINGS = generate.GenerateConfig(max_new_tokens=9, group_size=3, eos_ids=(7,))


def make_params(seed=0):
  """Two seeds of weights, far enough from uniform to differ."""
  params = decoder.init_params(CONFIG, jax.random.key(seed))
  return jax.tree.map(lambda x: jnp.stack([3 * x, 4 * x]), params)


def make_call():
  prompts = transcript.pad_prompts(
    [[1, 2, 3], [4, 5]], ids=[11, 12], multiple=4
  )
  prompts = jax.tree.map(lambda x: np.stack([x, x]), prompts)
  roots = map(jax.random.key, range(2))
  keys = [generate.row_keys(root, 0, np.array([11, 12]), 3) for root in roots]
  return prompts, jnp.stack(keys)


def here(settings):
  sample = generate.make_generate(CONFIG, settings, lanes=True)
  return lambda version, *args: sample(*args)


class TestActorPool:
  def test_does_all_work_side_by_side(self):
    barrier = threading.Barrier(2, timeout=20)

    def act(work):
      barrier.wait()  # passes only if both actors are at work
      return work * 2

    with actor.ActorPool(lambda index: act, 2) as pool:
      for work in (1, 2):
        pool.submit(work)
      found = {pool.wait().result for _ in range(2)}
    assert found == {2, 4}
    assert pool.pending == 0

  def test_a_death_is_told_and_made_good(self):
    made = []

    def make_act(index):
      made.append(index)

      def act(work):
        if work == "poison":
          raise actor.ActorDied("it was poison")
        return work

      return act

    with actor.ActorPool(make_act, 1, max_deaths=1) as pool:
      for work in ("poison", "bread", "poison"):
        pool.submit(work)
      done = pool.wait()
      assert (done.work, done.result) == ("poison", None)
      assert "poison" in str(done.error)
      assert pool.wait().result == "bread"
      assert (made, pool.deaths) == ([0, 0], 1)
      with pytest.raises(actor.ActorError, match="2 actors died, and 1 may be"):
        pool.wait()

  def test_another_error_is_raised_at_the_wait_and_the_act_is_closed(self):
    act = unittest.mock.Mock(side_effect=ZeroDivisionError("not a death"))
    with actor.ActorPool(lambda index: act, 1) as pool:
      pool.submit(1)
      with pytest.raises(ZeroDivisionError):
        pool.wait()
      assert pool.pending == 0
      act.close.assert_not_called()
    act.close.assert_called_once_with()


class TestPartialSampler:
  @pytest.mark.slow
  @pytest.mark.parametrize("part", [4, 9, 20])
  def test_is_the_whole_sampler_where_the_weights_stay(self, part):
    params = make_params()
    prompts, keys = make_call()
    whole = jax.device_get(here(SETTINGS)(0, params, prompts, keys))
    sampler = actor.partial_sampler(SETTINGS, here, lambda: (0, params), part)
    found = sampler(0, params, prompts, keys)
    size = found.tokens.shape[-1]
    kept = found.roles != 0
    assert_array_equal(found.roles, whole.roles[..., :size])
    assert_array_equal(found.tokens[kept], whole.tokens[..., :size][kept])
    assert (whole.roles[..., size:] == 0).all()
    assert_array_equal(found.ends, whole.ends)
    assert_allclose(
      found.behave_log_probs,
      whole.behave_log_probs[..., : size - whole.prompt_size],
      rtol=1e-5,
      atol=1e-6,
    )

  @pytest.mark.slow
  def test_goes_on_with_the_newest_weights(self):
    old, new = make_params(0), make_params(1)
    prompts, keys = make_call()
    settings = dataclasses.replace(SETTINGS, eos_ids=())
    sampler = actor.partial_sampler(settings, here, lambda: (1, new), 4)
    found = sampler(0, old, prompts, keys)
    before = jax.device_get(here(settings)(0, old, prompts, keys))
    first = before.prompt_size + 4
    assert_array_equal(found.tokens[..., :first], before.tokens[..., :first])
    assert (found.tokens[..., first:] != before.tokens[..., first:]).any()
    assert found.tokens.shape == before.tokens.shape
    # The second part has the log-probs of the new weights over the whole text.
    from saw_jax.training import objective
    from saw_jax.training.batch import make_batch

    forward = objective.make_forward(CONFIG)
    for n in range(2):
      one = jax.tree.map(lambda x, n=n: x[n], found)
      batch = make_batch(one, np.zeros(6, np.float32))
      params = jax.tree.map(lambda x, n=n: x[n], new)
      expected = forward(params, batch).log_probs
      assert_allclose(
        one.behave_log_probs[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-5
      )


@pytest.mark.slow
class TestProcessSampler:
  def test_samples_what_a_thread_does_and_may_be_killed(self):
    prompts, keys = make_call()
    sampler = actor.ProcessSampler(CONFIG, SETTINGS)
    with pytest.raises(actor.ActorDied, match="the sampler raised"):
      sampler(-1, {"no": np.zeros(2)}, prompts, keys)
    for version in (0, 1, 1):
      params = make_params(version)
      expected = here(SETTINGS)(version, params, prompts, keys)
      found = sampler(version, params, prompts, keys)
      assert_array_equal(found.tokens, expected.tokens)
      assert_array_equal(found.roles, expected.roles)
    os.kill(sampler.pid, signal.SIGKILL)
    with pytest.raises(actor.ActorDied, match="-9"):
      sampler(1, params, prompts, keys)
    sampler.close()
