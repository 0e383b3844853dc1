"""What a judge has said, and when it may be asked again: one SQLite file.

It may be killed at any moment, and is shared by all processes of several runs:
each operation opens it, makes one short transaction and closes it. The journal
is no write-ahead log, which does not work on network file systems.
"""

import contextlib
import json
import os
import pathlib
import sqlite3
import time
from collections.abc import Iterator, Mapping

_APPLICATION = 0x5341574A  # marks the file as ours
_VERSION = 1
_BUSY_S = 30.0  # the longest wait for another process
_SCHEMA = (
  "CREATE TABLE verdicts (key TEXT PRIMARY KEY, scores TEXT NOT NULL)",
  "CREATE TABLE departures (model TEXT PRIMARY KEY, next_at REAL NOT NULL)",
  f"PRAGMA application_id = {_APPLICATION}",
  f"PRAGMA user_version = {_VERSION}",
)
_FIND = "SELECT scores FROM verdicts WHERE key = ?"


class JudgeCacheError(ValueError):
  """The file is damaged, locked, or not a judge's cache."""


class JudgeCache:
  """Verdicts by key, and a queue for requests; any number may have it open."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self._transaction() as connection:
      # Another process may be making it: whoever comes second waits, and looks.
      made = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
      for statement in _SCHEMA if made == (0,) else ():
        connection.execute(statement)
      (application,) = connection.execute("PRAGMA application_id").fetchone()
      (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, version) != (_APPLICATION, _VERSION):
      raise JudgeCacheError(
        f"{self.path} is an SQLite file, but no judge's cache of version "
        f"{_VERSION}: name another file"
      )

  def get(self, key: str) -> dict[str, float] | None:
    with self._transaction() as connection:
      row = connection.execute(_FIND, (key,)).fetchone()
    return row and json.loads(row[0])

  def put(self, key: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Keeps a verdict unless there is one, and returns the one that counts."""
    row = key, json.dumps(dict(scores))
    with self._transaction() as connection:
      connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", row)
      (found,) = connection.execute(_FIND, (key,)).fetchone()
    return json.loads(found)

  def reserve(
    self, model: str, interval_s: float, latest: float
  ) -> float | None:
    """Takes the next place in the queue of requests to a model.

    Returns when the request may leave, in seconds since the epoch, or None if
    that is after `latest`.
    """
    with self._transaction() as connection:
      find = "SELECT next_at FROM departures WHERE model = ?"
      (next_at,) = connection.execute(find, (model,)).fetchone() or (0.0,)
      leaves = max(time.time(), next_at)
      if leaves > latest:
        return None
      keep = "INSERT OR REPLACE INTO departures VALUES (?, ?)"
      connection.execute(keep, (model, leaves + interval_s))
    return leaves

  @contextlib.contextmanager
  def _transaction(self) -> Iterator[sqlite3.Connection]:
    try:
      with (
        contextlib.closing(
          sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        ) as connection,
        connection,
      ):
        connection.execute("BEGIN IMMEDIATE")
        yield connection
    except sqlite3.OperationalError as error:
      raise JudgeCacheError(
        f"{self.path}: {error}; is the folder writable, and no other process "
        "stuck in it?"
      ) from error
    except sqlite3.DatabaseError as error:
      raise JudgeCacheError(
        f"{self.path} is damaged or no SQLite file ({error}): name another "
        "file, or remove it, which forgets its verdicts"
      ) from error
