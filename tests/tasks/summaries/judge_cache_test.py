"""The judge's cache: kept, shared, and safe to kill."""

import concurrent.futures
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from saw_jax.tasks.summaries import judge as judge_lib
from saw_jax.tasks.summaries.judge import JudgeCache, JudgeError

WRITER = """
import sys
from saw_jax.tasks.summaries.judge import JudgeCache
cache = JudgeCache(sys.argv[1])
for number in range(10**9):
  cache.put(str(number), {"quality": number})
"""


@pytest.fixture
def path(tmp_path):
  return tmp_path / "folder" / "judge.sqlite"


def test_a_verdict_is_kept(path):
  assert JudgeCache(path).get("a") is None
  scores = {"quality": 7.5, "conciseness": 2.0}
  assert JudgeCache(path).put("a", scores) == scores
  assert JudgeCache(path).put("a", {"quality": 1.0}) == scores  # The first.
  assert JudgeCache(path).get("a") == scores
  assert JudgeCache(path).get("b") is None


def test_many_at_once(path):
  # Opening it is a race too: nobody has made the file yet.
  def work(number):
    cache = JudgeCache(path)
    cache.put(str(number % 5), {"quality": float(number)})
    return cache.get(str(number % 5))

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(work, range(40)))
  for number, scores in enumerate(found):
    assert scores == JudgeCache(path).get(str(number % 5))


def test_a_killed_writer_leaves_what_it_wrote(path):
  cache = JudgeCache(path)
  writer = subprocess.Popen(
    [sys.executable, "-c", WRITER, str(path)],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
  )
  while cache.get("20") is None:
    assert writer.poll() is None
    time.sleep(0.01)
  writer.send_signal(signal.SIGKILL)
  writer.wait()
  assert all(cache.get(str(n)) == {"quality": n} for n in range(21))
  cache.put("more", {"quality": 1.0})
  with sqlite3.connect(path) as connection:
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_place_that_is_too_late_is_left_to_others(path):
  cache = JudgeCache(path)
  first = cache.reserve("m", 60.0, time.time() + 1)
  assert cache.reserve("m", 60.0, first + 59.0) is None
  assert cache.reserve("m", 60.0, first + 61.0) == first + 60.0


@pytest.mark.parametrize(
  ("content", "word"),
  [("text", "damaged or no SQLite file"), ("table", "no judge's cache")],
)
def test_another_file_is_named_and_left_alone(path, content, word):
  path.parent.mkdir()
  if content == "text":
    path.write_bytes(b"no database at all" * 100)
  else:
    with sqlite3.connect(path) as connection:
      connection.execute("CREATE TABLE theirs (a)")
  before = path.read_bytes()
  with pytest.raises(JudgeError, match=word):
    JudgeCache(path)
  assert path.read_bytes() == before


def test_a_lock_is_named(path, monkeypatch):
  monkeypatch.setattr(judge_lib, "_BUSY_S", 0.05)
  cache = JudgeCache(path)
  with sqlite3.connect(path, isolation_level=None) as connection:
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(JudgeError, match="locked"):
      cache.get("a")
    connection.execute("ROLLBACK")
  assert cache.get("a") is None
