"""The supervised start: its data, that it learns, and its cache."""

import dataclasses
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import decoder
from saw_jax.run import checkpoint, warm_start
from saw_jax.training import objective
from saw_jax.training import optimizer as optimizer_lib
from tests import helpers

PAD, PROMPT, POLICY = 0, 1, 2
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
  return warm_start.warm_start(
    helpers.CONFIG, config, demonstrations(), cache=cache
  )


def likelihood(params):
  batch = demonstrations()
  forward = objective.make_forward(helpers.CONFIG)
  return float(
    jax.jit(lambda p: objective.likelihood(forward(p, batch), batch).value())(
      params
    )
  )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  return cache, make(cache)


@pytest.fixture
def no_training(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("it trains")

  monkeypatch.setattr(warm_start.update, "make_update", refuse)


class TestPackDemonstrations:
  def test_by_hand(self):
    found = warm_start.pack_demonstrations(
      [[5], [6, 7, 8]], [[1, 2, 0], [3]], multiple=2
    )
    assert found.prompt_size == 4
    np.testing.assert_array_equal(
      found.tokens, [[0, 0, 0, 5, 1, 2, 0, 0], [0, 6, 7, 8, 3, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
      found.roles,
      [
        [PAD, PAD, PAD, PROMPT, POLICY, POLICY, POLICY, PAD],
        [PAD, PROMPT, PROMPT, PROMPT, POLICY, PAD, PAD, PAD],
      ],
    )
    np.testing.assert_array_equal(found.starts, [3, 1])
    # The 0 that the first answer ends with is learned from.
    np.testing.assert_array_equal(
      found.completion_mask,
      [[True, True, True, False], [True, False, False, False]],
    )

  def test_what_followed_stands_behind_the_answer(self):
    found = warm_start.pack_demonstrations(
      [[5], [6, 7]], [[1, 0], [3]], [[8, 9], []], glue=[4], multiple=1
    )
    np.testing.assert_array_equal(
      found.tokens, [[0, 5, 1, 0, 4, 8, 9], [6, 7, 3, 0, 0, 0, 0]]
    )
    GLUE, SAID = 4, 3
    np.testing.assert_array_equal(
      found.roles,
      [
        [PAD, PROMPT, POLICY, POLICY, GLUE, SAID, SAID],
        [PROMPT, PROMPT, POLICY, PAD, PAD, PAD, PAD],
      ],
    )
    np.testing.assert_array_equal(found.observation_mask.sum(-1), [2, 0])


class TestWarmStart:
  def test_the_demonstrations_become_likelier(self, trained):
    key = jax.random.key(CONFIG.seed)
    start = likelihood(decoder.init_params(helpers.CONFIG, key))
    # From about log(259) to nearly sure.
    assert start > 4.5
    assert likelihood(trained[1]) < 0.2 * start

  def test_a_second_call_takes_it_from_the_cache(
    self, trained, no_training, caplog
  ):
    cache, params = trained
    caplog.set_level(logging.INFO, logger="saw_jax.run.warm_start")
    found = make(cache)
    chex.assert_trees_all_equal(found, params)
    assert any("from the cache" in line for line in caplog.messages)

  def test_another_setting_is_not_taken_from_the_cache(
    self, trained, no_training
  ):
    config = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(AssertionError, match="it trains"):
      make(trained[0], config)

  @pytest.mark.slow
  def test_a_damaged_cache_is_made_anew_with_a_warning(self, tmp_path, caplog):
    config = dataclasses.replace(CONFIG, num_steps=2)
    first = make(tmp_path, config)
    (folder,) = tmp_path.iterdir()
    # The file that holds the arrays is the largest.
    files = [path for path in folder.glob("**/*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    caplog.set_level(logging.INFO, logger="saw_jax.run.warm_start")
    chex.assert_trees_all_equal(make(tmp_path, config), first)
    (warning,) = [
      record.getMessage()
      for record in caplog.records
      if (record.name, record.levelname) == (warm_start.LOG.name, "WARNING")
    ]
    assert "made anew" in warning
    caplog.clear()
    chex.assert_trees_all_equal(make(tmp_path, config), first)
    assert any("from the cache" in line for line in caplog.messages)

  def test_no_steps_are_no_start(self, tmp_path, no_training):
    config = dataclasses.replace(CONFIG, num_steps=0)
    key = jax.random.key(config.seed)
    chex.assert_trees_all_equal(
      make(tmp_path, config), decoder.init_params(helpers.CONFIG, key)
    )
    assert list(tmp_path.iterdir()) == []


def changed(value):
  """Another value of the same type."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return 2 * value + 2
  if isinstance(value, dict):
    return {"wrong_rate": 0.5}
  return {"none": "full", "float32": "bfloat16", "constant": "cosine"}[value]


class TestKeep:
  """What two processes leave that make one start at the same time."""

  def test_the_first_is_kept_and_both_go_on_from_it(self, tmp_path):
    first, second = ({"w": jnp.full((3,), x)} for x in (1.0, 2.0))
    folder = tmp_path / "cache" / "abc"
    kept = warm_start._keep(folder, first, 0.5)
    np.testing.assert_array_equal(kept["w"], first["w"])
    found = warm_start._keep(folder, second, 0.5)
    np.testing.assert_array_equal(found["w"], first["w"])
    assert [path.name for path in folder.parent.iterdir()] == ["abc"]

  def test_a_failure_leaves_nothing(self, tmp_path, monkeypatch):
    def full(*_, **__):
      raise OSError("no room")

    monkeypatch.setattr(checkpoint.Checkpointer, "save", full)
    with pytest.raises(OSError, match="no room"):
      warm_start._keep(tmp_path / "abc", {"w": jnp.ones(3)}, 0.5)
    assert not list(tmp_path.iterdir())


class TestDigest:
  def digest(self, model=helpers.CONFIG, config=CONFIG, batch=None):
    batch = demonstrations() if batch is None else batch
    return warm_start._digest(model, config, batch)

  def test_changes_with_each_setting(self):
    def others(config, **fitting):
      for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
          changes = others(value)
        else:
          changes = [fitting.get(field.name) or changed(value)]
        for change in changes:
          yield dataclasses.replace(config, **{field.name: change})

    models = others(
      helpers.CONFIG,
      # What has to fit the other sizes.
      num_kv_heads=2,
      rope_factors=(2.0,) * (helpers.CONFIG.head_size // 2),
      windows=(4,) * helpers.CONFIG.num_layers,
    )
    digests = [self.digest(), *map(self.digest, models)]
    digests += [self.digest(config=config) for config in others(CONFIG)]
    assert len(digests) > 30
    assert len(set(digests)) == len(digests)

  @pytest.mark.parametrize("name", ["tokens", "roles", "starts"])
  def test_changes_with_the_demonstrations(self, name):
    batch = demonstrations()
    array = getattr(batch, name).copy()
    array.flat[0] += 1
    assert self.digest(batch=batch.replace(**{name: array})) != self.digest()
