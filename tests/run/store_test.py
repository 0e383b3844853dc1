"""Runs in a store that has whole objects and no more."""

import contextlib
import json
import sqlite3
import sys
import threading
import time

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import saw_jax
from saw_jax.commands import train as train_command
from saw_jax.run import loop, run_directory, store
from tests import api_test, helpers, store_fake
from tests.run import labelling_test, script_runs, two_processes_test

ADDRESS = "gs://bucket/run"


def right(completion, row):
  return float(row["answer"] in completion)


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
  run = bucket / "run"
  paths = (path for path in run.rglob("*") if path.is_file())
  return {path.relative_to(run).as_posix() for path in paths}


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


def train(place=ADDRESS):
  """Trains with labels that are bought, each of them once."""
  labels = {"method": "care", "gate": "probe", "warm_up": 1}
  made = labelling_test.experiment(labels)
  folder = store.local(place, writes=True)
  return loop.train(made, [0, 1], directory=folder)


@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_a_run_killed_while_it_sends_ends_as_one_in_a_folder(bucket, tmp_path):
  train(tmp_path / "folder")
  # All is sent of the last checkpoint but the word that it is, and the rows
  # are there.
  killed_at("4.0of1.json")
  with pytest.raises(Killed):
    train()
  assert "checkpoints/2.0of1.json" in objects(bucket)
  assert any(name.startswith("checkpoints/4/state") for name in objects(bucket))
  assert "checkpoints/4.0of1.json" not in objects(bucket)
  rows = (bucket / "run" / "metrics.jsonl").read_text().splitlines()
  assert len(rows) == 8
  store_fake.FakeStore.before_write = staticmethod(lambda name: None)
  assert train().finished
  helpers.assert_same_run(bucket / "run", tmp_path / "folder")
  assert "lock" not in objects(bucket)
  bought = [
    [one._replace(time="") for one in labelling_test.purchases(folder)]
    for folder in (bucket / "run", tmp_path / "folder")
  ]
  assert bought[0] == bought[1] and bought[0]
  # Whoever reads has it all but the arrays, which are brought when asked for.
  folder = store.local(ADDRESS)
  helpers.assert_same_run(folder, tmp_path / "folder")
  assert not (folder / "checkpoints" / "4" / "state").exists()
  store.of(folder).bring_step(4)
  assert any((folder / "checkpoints" / "4" / "state").iterdir())


def test_what_cannot_be_used_is_said_before_it_is_read(bucket, monkeypatch):
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


def test_the_door_reads_and_lengthens_what_another_machine_has_trained(bucket):
  config = saw_jax.config(**eval(f"dict({api_test.TINY})"))
  config.loop.update(num_steps=2, checkpoint_interval=1)
  config.optimizer.schedule = "constant"
  rows = [{"prompt": f"say e, {n}", "answer": "e"} for n in range(20)]
  task = saw_jax.task(rows, rewards=[right])
  saw_jax.train(config, task, [0, 1], ADDRESS)
  run = saw_jax.open_run(ADDRESS)  # with rows that are where it was trained
  scores = run.evaluate(samples=0)["seeds"][0]["greedy"]
  final = json.loads((bucket / "run" / "final.json").read_text())
  assert scores["right"]["mean"] == pytest.approx(final[0]["greedy"]["right"])
  assert "evaluation.json" in objects(bucket)
  config.loop.num_steps = 3
  longer = saw_jax.train(config, task, [0, 1], ADDRESS)
  assert longer.result.step == 3 and longer.metrics("loss").shape == (2, 3)
  assert "loop.num_steps 3 -> 2" in str(longer.compare(run))


@pytest.mark.slow
def test_hosts_go_on_from_parts_of_others(bucket, tmp_path, tmp_path_factory):
  pair = two_processes_test.pair(tmp_path_factory)
  before = (sys.executable, "-m", "tests.store_fake", tmp_path / "store")
  how = script_runs.TOOLS, {**two_processes_test.FIELDS, "before": before}
  both = two_processes_test.start(ADDRESS, *how)
  said = {f"checkpoints/1.{host}of2.json" for host in range(2)}
  script_runs.wait_for(both, lambda: said <= objects(bucket))
  script_runs.kill(*both)
  assert "resumed from step" in two_processes_test.finish(ADDRESS, *how)
  helpers.assert_same_run(bucket / "run", pair)


def test_compiled_programs_are_kept_beside_the_run(bucket, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  try:
    train_command._keep_programs(None, ADDRESS)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.jit(lambda x: x * 3.25 + 1).lower(1.0).compile()
    assert list((bucket / ".compiled").glob("*-cache"))
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


class TestMirror:
  def test_a_checkpoint_counts_when_all_hosts_sent_their_part(self, bucket):
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

  def test_sends_what_is_new_and_drops_what_has_gone(self, bucket, monkeypatch):
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

  def test_a_folder_may_have_the_name_of_the_one_it_is_in(self, bucket):
    write(bucket / "run", "run/picture")
    assert (store.local(ADDRESS) / "run" / "picture").exists()
    assert store.copy_of(f"{ADDRESS}/run/picture").read_text() == "x"

  def test_no_checkpoint_is_replaced_before_it_was_sent(self, bucket):
    one = mirror()
    for step in (2, 4):
      write(one.folder, f"checkpoints/{step}/document/metadata")
      one.check()  # as a save of the next one does
      assert len(objects(bucket)) == 2 * (step - 2)

  def test_a_ledger_is_sent_as_it_is_between_two_purchases(self, bucket):
    one = mirror()
    ledger = sqlite3.connect(
      one.folder / "labels.sqlite",
      isolation_level=None,
      check_same_thread=False,
    )
    ledger.execute("create table bought (label)")
    first, second = [("first" * 200,)] * 50, ("other" * 200,)
    ledger.executemany("insert into bought values (?)", first)
    # One that is larger than what SQLite holds back is partly in the file.
    ledger.execute("pragma cache_size = 1")
    ledger.execute("begin")
    ledger.execute("update bought set label = ?", second)
    threading.Timer(0.5, lambda: ledger.execute("rollback")).start()
    one.send()
    ledger.close()
    found = store.local(ADDRESS) / "labels.sqlite"
    with contextlib.closing(sqlite3.connect(found)) as ledger:
      assert ledger.execute("select * from bought").fetchall() == first
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
