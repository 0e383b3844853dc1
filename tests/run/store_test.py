"""Runs in a store that has whole objects and no more."""

import contextlib
import json
import sqlite3
import time

import pytest

from saw_jax.run import loop, run_directory, store
from tests import helpers, store_fake

ADDRESS = "gs://bucket/run"


class Killed(BaseException):
  """What nothing catches."""


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(store, "BEAT_S", 0.2)
  monkeypatch.setattr(store, "SEND_S", 1e6)  # Only what is asked for is sent.
  return store_fake.install(tmp_path / "store") / "bucket"


def killed_at(name):
  """Has this process write nothing from an object of this name on."""
  is_dead = False

  def before_write(path):
    nonlocal is_dead
    is_dead = is_dead or name in path
    if is_dead:
      raise Killed

  store_fake.FakeStore.before_write = staticmethod(before_write)


def mirror(host=0, num_hosts=1):
  """One that has begun to send, of the hosts of a run."""
  made = store.of(store.local(ADDRESS, writes=True))
  made.start(host, num_hosts)
  return made


def write(folder, name, text="x"):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def objects(bucket):
  paths = (bucket / "run").rglob("*")
  return {
    p.relative_to(bucket / "run").as_posix() for p in paths if p.is_file()
  }


def claim(bucket):
  """Leaves the words of a process that trains somewhere else."""
  words = {"id": "another", "who": "process 7 on other"}
  write(bucket / "run", "lock", json.dumps(words))


def wait_for(act):
  """Calls something until it raises."""
  end = time.monotonic() + 60
  while time.monotonic() < end:
    act()
    time.sleep(0.01)


def train():
  folder = store.local(ADDRESS, writes=True)
  made = helpers.experiment()
  return loop.train(made, [0, 1], directory=folder)


def test_a_run_that_is_killed_while_it_sends_ends_as_one_in_a_folder(
  bucket, tmp_path
):
  loop.train(helpers.experiment(), [0, 1], directory=tmp_path / "folder")
  # All is sent of the last checkpoint but the word that it is, and the rows
  # are there; then not all of it.
  for name, count in (("4.0of1.json", 8), ("checkpoints/4/state", 8)):
    killed_at(name)
    with pytest.raises(Killed):
      train()
    assert "checkpoints/2.0of1.json" in objects(bucket)
    assert "checkpoints/4.0of1.json" not in objects(bucket)
    rows = (bucket / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == count
    store_fake.FakeStore.before_write = staticmethod(lambda name: None)
  assert train().finished
  helpers.assert_same_run(bucket / "run", tmp_path / "folder")
  assert "lock" not in objects(bucket)
  # Whoever reads has it all but the arrays, which are brought when asked for.
  folder = store.local(ADDRESS)
  helpers.assert_same_run(folder, tmp_path / "folder")
  assert not (folder / "checkpoints" / "4" / "state").exists()
  store.of(folder).bring_step(4)
  assert any((folder / "checkpoints" / "4" / "state").iterdir())


def test_what_cannot_be_used_is_said_before_anything_is_read(
  bucket, monkeypatch
):
  for address, said in (
    ("gs://bucket", "name a folder, as gs://bucket/run"),
    ("gcs://bucket/run", "gcs://bucket/run cannot be used: there is no such"),
  ):
    with pytest.raises(store.StoreError, match=said):
      store.local(address)

  def refuse(name):
    raise PermissionError("you may not\nwrite here")

  store_fake.FakeStore.before_write = staticmethod(refuse)
  said = f"{ADDRESS} cannot be used: PermissionError you may not$"
  with pytest.raises(store.StoreError, match=said):
    store.local(ADDRESS, writes=True)
  store.local(ADDRESS)  # which may be read
  with pytest.raises(run_directory.RunError) as raised:
    run_directory.read_run(store.local(ADDRESS))
  assert store.named(raised.value).startswith(f"{ADDRESS} is no run")


class TestMirror:
  def test_a_checkpoint_counts_when_all_hosts_have_sent_their_part(
    self, bucket
  ):
    first, second = mirror(0, 2), mirror(1, 2)
    for host, one in enumerate((first, second)):
      write(one.folder, f"checkpoints/3/state/part_{host}")
      write(one.folder, "checkpoints/3/document/metadata")
    write(first.folder, "metrics.jsonl")
    write(second.folder, "metrics.jsonl", "not the first's")
    first.send()
    assert not (store.local(ADDRESS) / "checkpoints").exists()
    second.send()
    found = store.local(ADDRESS)
    assert (found / "metrics.jsonl").read_text() == "x"
    assert (found / "checkpoints" / "3" / "document").exists()
    store.of(found).bring_step(3)
    parts = (found / "checkpoints" / "3" / "state").iterdir()
    assert {path.name for path in parts} == {"part_0", "part_1"}

  def test_sends_what_is_new_and_takes_away_what_has_gone(
    self, bucket, monkeypatch
  ):
    monkeypatch.setattr(store, "SEND_S", 0.05)
    one = mirror()
    for name in ("run.json", "final.json", "lock", "a.tmp", "tb/seed_0/events"):
      write(one.folder, name)
    write(one.folder, "weights-1-1/model.safetensors")
    write(one.folder, "checkpoints/2/document/metadata")
    write(one.folder, "checkpoints/4.orbax-checkpoint-tmp/document/metadata")
    end = time.monotonic() + 60
    while len(objects(bucket)) < 5 and time.monotonic() < end:
      time.sleep(0.01)
    sent = {"run.json", "final.json", "tb/seed_0/events"}
    of_two = {"checkpoints/2.0of1.json", "checkpoints/2/document/metadata"}
    assert objects(bucket) == sent | of_two
    for name in ("final.json", "checkpoints/2/document/metadata"):
      (one.folder / name).unlink()
    (one.folder / "checkpoints" / "2" / "document").rmdir()
    (one.folder / "checkpoints" / "2").rmdir()
    write(one.folder, "checkpoints/4/document/metadata")
    one.close()
    assert objects(bucket) == {
      *(sent - {"final.json"}),
      *(name.replace("2", "4") for name in of_two),
    }
    one.forget([4])
    assert objects(bucket) == sent - {"final.json"}

  def test_a_ledger_is_sent_as_it_is_between_two_purchases(self, bucket):
    one = mirror()
    with contextlib.closing(
      sqlite3.connect(one.folder / "labels.sqlite", isolation_level=None)
    ) as ledger:
      ledger.execute("create table bought (label)")
      ledger.execute("insert into bought values ('first')")
      ledger.execute("begin")
      ledger.execute("insert into bought values ('second')")
      one.send()
      ledger.execute("rollback")
    found = store.local(ADDRESS) / "labels.sqlite"
    with contextlib.closing(sqlite3.connect(found)) as ledger:
      assert ledger.execute("select * from bought").fetchall() == [("first",)]
      assert ledger.execute("pragma integrity_check").fetchone() == ("ok",)

  def test_one_process_trains(self, bucket):
    first, second = mirror(), mirror()
    first.take()
    with pytest.raises(store.StoreError, match=r"in use: process \d+ on "):
      second.take()
    first.release()
    assert "lock" not in objects(bucket)
    second.take()
    assert "lock" in objects(bucket)
    # It was not heard for a while, and somebody has taken the run over.
    claim(bucket)
    with pytest.raises(store.StoreError, match="process 7 on other trains"):
      wait_for(second.check)
    with pytest.raises(store.StoreError, match="process 7 on other trains"):
      second.send()
    second.release()
    assert json.loads((bucket / "run" / "lock").read_text())["id"] == "another"

  def test_whoever_was_killed_is_waited_for_no_longer_than_needed(self, bucket):
    write(bucket / "run", "checkpoints/3/state/half")
    write(bucket / "run", "checkpoints/3.0of2.json", "[]")
    claim(bucket)
    one, begin = mirror(), time.monotonic()
    one.take()
    assert time.monotonic() - begin >= 2.5 * store.BEAT_S
    assert objects(bucket) == {"lock"}  # and no half of a checkpoint
    one.release()
