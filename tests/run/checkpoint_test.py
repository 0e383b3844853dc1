import asyncio
import contextlib
import gc
import json
import logging
import pathlib
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from orbax.checkpoint.path import atomicity

from saw_jax.run import checkpoint
from tests import helpers
from tests.helpers import flip_a_byte, halve, largest_file


def state(scale=1.0):
  return {
    "params": {"kernel": scale * jnp.arange(600.0).reshape(20, 30)},
    "count": jnp.asarray(7, jnp.int32),
    "half": jnp.full((3,), 1.5, jnp.bfloat16),
  }


def save(store, *steps, scores=None):
  for step in steps:
    score = None if scores is None else scores[step]
    store.save(step, state(step), {"step": step}, score=score)
  store.wait()


def fail_unasked(path: str) -> None:
  """Runs a task of a file that fails, and asks nobody whether it did."""
  names = {}
  source = "async def read():\n  raise ValueError('no such bytes')"
  exec(compile(source, path, "exec"), names)

  async def run():
    task = asyncio.ensure_future(names["read"]())
    await asyncio.wait([task])

  asyncio.run(run())
  gc.collect()


@pytest.fixture
def store(tmp_path):
  store = checkpoint.Checkpointer(tmp_path)
  yield store
  store.close()


def test_what_comes_back_is_bitwise_what_was_saved(store, tmp_path, caplog):
  save(store, 3)
  assert not caplog.messages  # A score that there is not is no news.
  step, found, host, arrays = store.restore(state())
  assert (step, host, arrays) == (3, {"step": 3}, {})
  chex.assert_trees_all_equal(found, state(3))
  chex.assert_trees_all_equal_dtypes(found, state(3))
  # Nothing has to be unpickled.
  for path in filter(pathlib.Path.is_file, tmp_path.rglob("*")):
    assert not path.read_bytes().startswith(b"\x80\x04"), path


def test_who_reads_changes_nothing_while_a_save_is_under_way(
  store, tmp_path, monkeypatch, capfd
):
  save(store, 1, 2)
  reached, go_on = threading.Event(), threading.Event()
  kind = atomicity.AtomicRenameTemporaryPath
  finalize = kind.finalize

  async def stop_short(self, *args, **options):
    reached.set()
    await asyncio.to_thread(go_on.wait)
    return await finalize(self, *args, **options)

  monkeypatch.setattr(kind, "finalize", stop_short)
  store.save(3, state(3), {"step": 3})
  assert reached.wait(60)
  before = sorted(tmp_path.rglob("*"))
  assert any("3.orbax-checkpoint-tmp" in str(path) for path in before)
  for _ in range(3):
    reader = checkpoint.Checkpointer(tmp_path, reads=True)
    assert reader.restore(state()).step == 2
    assert sorted(tmp_path.rglob("*")) == before
  go_on.set()
  save(store, 4)
  assert store.steps == [3, 4] and "read only" not in capfd.readouterr().err
  # The one that it knows has been removed meanwhile, and another as it looks.
  load, errors = ocp.CheckpointManager._load_checkpoint_infos, [OSError]

  def look(self, *args, **options):
    if errors and errors.pop():
      raise FileNotFoundError
    return load(self, *args, **options)

  monkeypatch.setattr(ocp.CheckpointManager, "_load_checkpoint_infos", look)
  assert reader.steps == [1, 2] and reader.restore(state()).step == 4
  with pytest.raises(checkpoint.CheckpointError, match=r"are \[3, 4\]"):
    reader.restore(state(), step=2)
  # Whoever writes, removes what a kill left; whoever reads makes no folder.
  (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
  with contextlib.closing(checkpoint.Checkpointer(tmp_path)) as writer:
    save(writer, 6)  # before which it is done
  assert not (tmp_path / "5.orbax-checkpoint-tmp").exists()
  checkpoint.Checkpointer(tmp_path / "none", reads=True).close()
  assert not (tmp_path / "none").exists()


def test_keeps_the_latest_two_and_the_best(store):
  save(store, 1, 2, 3, 4, 5, scores={1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4})
  assert (store.steps, store.best_step) == ([2, 4, 5], 2)


def test_a_save_leaves_the_count_of_who_asks_when_to_stop(store, monkeypatch):
  name = "reached_preemption_sync_point"
  monkeypatch.setattr(multihost_utils, name, lambda step: pytest.fail("asked"))
  save(store, 1, 2)
  assert store.steps == [1, 2]


@pytest.mark.parametrize("text", [b"{", b"", b"\xff", b"null", b"[1]", b"{}"])
def test_a_checkpoint_of_a_damaged_score_opens(store, tmp_path, caplog, text):
  save(store, 1, 2, 3, scores={1: 0.9, 2: 0.2, 3: 0.3})
  (tmp_path / "1" / "metrics" / "metrics").write_bytes(text)
  with contextlib.closing(checkpoint.Checkpointer(tmp_path)) as other:
    assert (other.steps, other.best_step) == ([1, 2, 3], 3)
    assert other.restore(state(), step=1).step == 1
  assert f"{tmp_path / '1' / 'metrics'} is damaged" in caplog.text


class TestDamage:
  def test_a_step_that_is_not_there_lists_those_that_are(self, store, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=str(tmp_path)):
      store.restore(state())
    save(store, 4)
    with pytest.raises(checkpoint.CheckpointError, match=r"there are \[4\]"):
      store.restore(state(), step=5)

  @pytest.mark.parametrize("damage", [halve, flip_a_byte, pathlib.Path.unlink])
  def test_names_the_file_and_the_last_good_step(self, store, tmp_path, damage):
    save(store, 1, 2)
    damage(largest_file(tmp_path / "2" / "state"))
    with pytest.raises(checkpoint.CheckpointError) as caught:
      store.restore(state())
    text = str(caught.value)
    assert str(tmp_path / "2") in text
    assert "the last good step is 1" in text and "\n" not in text
    step, found, *_ = store.restore(state(), step=1)
    assert step == 1
    chex.assert_trees_all_equal(found, state(1))

  def test_one_error_is_said_of_many_arrays(self, store, tmp_path, caplog):
    # Orbax reads them together and raises the first error; asyncio logs those
    # that come later, with their tracebacks, when they are collected.
    caplog.set_level(logging.WARNING, "asyncio")
    save(store, 1)
    largest_file(tmp_path / "1" / "state").write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
      store.restore(state())
    fail_unasked("/lib/orbax/checkpoint/serialization.py")
    assert [r for r in caplog.records if r.name == "asyncio"] == []
    fail_unasked("/lib/of/somebody/else.py")
    (record,) = (r for r in caplog.records if r.name == "asyncio")
    assert "never retrieved" in record.message

  def test_a_damaged_document_or_changed_number_is_named(self, store, tmp_path):
    save(store, 1)
    document = helpers.read_document(tmp_path / "1")
    # As if the bytes were whole but not those of this state.
    document["fingerprints"]["params/kernel"][0] ^= 1
    path = tmp_path / "1" / "document" / "metadata"
    whole = {**document, "digest": None}
    flipped = {**document, "host": {"step": 2}}
    cases = [(json.dumps(whole), "array params/kernel is not")]
    cases += [(json.dumps(flipped), "document is damaged .it is not what was")]
    cases += [(text, "document is damaged") for text in ("{", "null", "{}")]
    for text, word in cases:
      path.write_text(text)
      with pytest.raises(checkpoint.CheckpointError, match=word):
        store.restore(state())


def test_another_shape_is_said_in_one_sentence(store):
  save(store, 1)
  wide = {"params": {"kernel": np.zeros((20, 31), np.float32)}}
  for other, words in (
    (wide, r"is \['float32', 20, 30\] there and \['float32', 20, 31\] here"),
    ({"bias": np.zeros(3)}, "array bias is absent there"),
  ):
    with pytest.raises(checkpoint.CheckpointError, match=words):
      store.restore({**state(), **other})


def test_fingerprints_change_with_a_bit_and_not_with_the_place(monkeypatch):
  tree = state(), np.arange(-3, 4), np.pi * np.ones((3, 2)), np.eye(2) > 0
  before = checkpoint.fingerprints(tree)
  monkeypatch.setattr(checkpoint, "_LARGE", 0)  # All is left on the devices.
  assert checkpoint.fingerprints(tree) == before
  kernel = state()["params"]["kernel"]
  bits = kernel.view(jnp.uint32).at[3, 4].add(1).view(jnp.float32)
  mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(kernel, jax.NamedSharding(mesh, jax.P("x")))
  found = [
    checkpoint.fingerprints({"a": x})["a"]
    for x in (kernel, sharded, bits, kernel[:, ::-1])
  ]
  assert found[0] == found[1]
  assert len({str(one) for one in found}) == 3
