"""The supervised start: its data, that it learns, and its cache."""

import dataclasses
import logging
import time
import unittest.mock
from concurrent import futures

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import decoder
from saw_jax.run import warm_start
from saw_jax.training import objective
from saw_jax.training import optimizer as optimizer_lib
from tests import helpers

CONFIG = warm_start.WarmStartConfig(
  num_steps=25,
  batch_size=6,
  log_interval=10,
  learning_rate=1e-2,
  optimizer=optimizer_lib.OptimizerConfig(),
)


def demonstrations():
  """After an `a` comes `xyz` and the end, after a `b` comes the end."""
  end = 258
  return warm_start.pack_demonstrations(
    [[97], [98, 98], [97, 97, 97]],
    [[120, 121, 122, end], [end], [120, 121, 122, end]],
    multiple=4,
  )


def make(cache, config=CONFIG):
  given = helpers.CONFIG, config, demonstrations()
  return warm_start.warm_start(*given, cache=cache)


def likelihood(params):
  batch, forward = demonstrations(), objective.make_forward(helpers.CONFIG)
  loss = jax.jit(lambda p: objective.likelihood(forward(p, batch), batch))
  return float(loss(params).value())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  return cache, make(cache)


@pytest.fixture
def no_training(monkeypatch):
  refuse = unittest.mock.Mock(side_effect=AssertionError("it trains"))
  monkeypatch.setattr(warm_start.update, "make_update", refuse)
  # To draw parameters takes seconds of compiling, for a start that is there.
  monkeypatch.setattr(warm_start.decoder, "init_params", refuse)


def test_demonstrations_and_what_followed_are_packed_by_hand():
  found = warm_start.pack_demonstrations(
    [[5], [6, 7, 8]], [[1, 2, 0], [3]], multiple=2
  )
  assert found.prompt_size == 4
  np.testing.assert_array_equal(
    found.tokens, [[0, 0, 0, 5, 1, 2, 0, 0], [0, 6, 7, 8, 3, 0, 0, 0]]
  )
  # The 0 that the first answer ends with is learned from.
  expected = [[0, 0, 0, 1, 2, 2, 2, 0], [0, 1, 1, 1, 2, 0, 0, 0]]
  np.testing.assert_array_equal(found.roles, expected)
  np.testing.assert_array_equal(found.starts, [3, 1])

  found = warm_start.pack_demonstrations(
    [[5], [6, 7]], [[1, 0], [3]], [[8, 9], []], glue=[4], multiple=1
  )
  np.testing.assert_array_equal(
    found.tokens, [[0, 5, 1, 0, 4, 8, 9], [6, 7, 3, 0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(  # 4: glue, 3: what was observed
    found.roles, [[0, 1, 2, 2, 4, 3, 3], [1, 1, 2, 0, 0, 0, 0]]
  )


class TestWarmStart:
  def test_the_demonstrations_become_likelier(self, trained):
    key = jax.random.key(CONFIG.seed)
    start = likelihood(decoder.init_params(helpers.CONFIG, key))
    # From about log(259) to nearly sure.
    assert start > 4.5
    assert likelihood(trained[1]) < 0.2 * start

  def test_the_same_again_is_taken_from_the_cache_and_another_is_not(
    self, trained, no_training, caplog
  ):
    cache, params = trained
    caplog.set_level(logging.INFO, logger="saw_jax.run.warm_start")
    chex.assert_trees_all_equal(make(cache), params)
    assert any("from the cache" in line for line in caplog.messages)
    with pytest.raises(AssertionError, match="it trains"):
      make(cache, dataclasses.replace(CONFIG, options={"seed": 1}))

  @pytest.mark.slow
  def test_a_damaged_cache_is_made_anew_with_a_warning(self, tmp_path, caplog):
    config = dataclasses.replace(CONFIG, num_steps=2)
    first = make(tmp_path, config)
    (file,) = tmp_path.iterdir()
    helpers.flip_a_byte(file)
    caplog.set_level(logging.INFO, logger="saw_jax.run.warm_start")
    chex.assert_trees_all_equal(make(tmp_path, config), first)
    assert "made anew" in caplog.text and "WARNING" in caplog.text
    caplog.clear()
    chex.assert_trees_all_equal(make(tmp_path, config), first)
    assert any("from the cache" in line for line in caplog.messages)

  def test_who_wants_what_another_makes_waits(self, tmp_path, monkeypatch):
    made = []

    def train(params, *_):
      made.append(params)
      time.sleep(0.5)
      return params

    monkeypatch.setattr(warm_start, "_train", train)
    with futures.ThreadPoolExecutor() as pool:
      found = [*pool.map(make, [tmp_path] * 3)]
    assert len(made) == 1
    for one in found:
      chex.assert_trees_all_equal(one, made[0])
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]

  def test_one_of_the_configs_comes_first(self, trained, no_training, tmp_path):
    cache, params = trained
    found = warm_start.warm_start(
      helpers.CONFIG, CONFIG, demonstrations(), cache=tmp_path, kept=cache
    )
    chex.assert_trees_all_equal(found, params)
    assert not list(tmp_path.iterdir())


class TestKeep:
  """What two processes leave that make one start at the same time."""

  def test_the_first_is_kept_and_both_go_on_from_it(self, tmp_path):
    path = tmp_path / "abc.npz"
    for scale in (1.0, 2.0):
      kept = warm_start._keep(path, {"w": jnp.full((3,), scale)})
      np.testing.assert_array_equal(kept["w"], np.ones(3))
    assert list(path.parent.iterdir()) == [path]

  def test_half_precision_comes_back(self, tmp_path):
    half = {"w": jnp.full((3,), 1 / 3, jnp.bfloat16)}
    kept = warm_start._keep(tmp_path / "abc.npz", half)
    chex.assert_trees_all_equal(kept, half)

  def test_a_failure_leaves_nothing(self, tmp_path, monkeypatch):
    def full(path, **arrays):
      path.write_bytes(b"half")
      raise OSError("no room")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no room"):
      warm_start._keep(tmp_path / "abc.npz", {"w": jnp.ones(3)})
    assert not list(tmp_path.iterdir())


def changed(value):
  """Another value of the same type."""
  words = {"none": "full", "float32": "bfloat16", "constant": "cosine"}
  if isinstance(value, str):
    return words[value]
  if isinstance(value, dict):
    return {"wrong_rate": 0.5}
  return not value if isinstance(value, bool) else 2 * value + 2


def digest(model=helpers.CONFIG, config=CONFIG, batch=None):
  return warm_start._digest(model, config, batch or demonstrations())


def test_a_digest_changes_with_each_setting():
  def others(config, **fitting):
    for field in dataclasses.fields(config):
      value = getattr(config, field.name)
      if dataclasses.is_dataclass(value):
        changes = others(value, **fitting)
      else:
        changes = [fitting.get(field.name) or changed(value)]
      for change in changes:
        yield dataclasses.replace(config, **{field.name: change})

  models = others(
    helpers.CONFIG,
    # What has to fit the other sizes.
    num_kv_heads=2,
    attention="bands",
    rope_factors=(2.0,) * (helpers.CONFIG.head_size // 2),
    windows=(4,) * helpers.CONFIG.num_layers,
    rotated=(False, *[True] * (helpers.CONFIG.num_layers - 1)),
  )
  fitting = dict(b1=0.5, b2=0.5, state_dtype="bfloat16")
  found = [digest(), *map(digest, models)]
  found += [digest(config=config) for config in others(CONFIG, **fitting)]
  for name in ("tokens", "roles", "starts"):
    array = getattr(demonstrations(), name).copy()
    array.flat[0] += 1
    found.append(digest(batch=demonstrations().replace(**{name: array})))
  assert len(set(found)) == len(found) > 33
