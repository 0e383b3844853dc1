"""The file of the ledger: one SQLite database that may be killed at any moment.

Labels may have cost a person's time, so the file can be read by another process
while a run writes, and says in one sentence what is wrong with it. Each
operation is one transaction; the journal is SQLite's rollback journal, since a
write-ahead log does not work on the network file systems of run directories.
"""

import contextlib
import importlib.resources
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterator

_SCHEMA = importlib.resources.files(__package__) / "assets" / "ledger.sql"
_APPLICATION, _VERSION = 0x53415731, 1  # mark the file as ours

Sql = Callable[..., list[tuple]]  # (statement, *values) -> rows


class LedgerError(ValueError):
  """The ledger is absent, damaged, locked, or not of this run."""


class LedgerLockedError(LedgerError):
  """Another process holds the ledger; the same call may succeed later."""


class Database:
  """One file; any number of processes may have it open.

  An empty one is made where there is none, if it `creates`. `busy_s` is the
  longest wait for another process.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    busy_s: float = 30.0,
    creates: bool = True,
  ):
    self.path, self._busy_s = pathlib.Path(path), busy_s
    try:
      has_content = self.path.exists() and self.path.stat().st_size
      is_new = creates and not has_content
      if is_new:
        self.path.touch()
    except OSError as error:
      where = f"in the folder {self.path.parent}: {error.strerror}"
      raise LedgerError(f"no ledger can be opened {where}") from None
    with self.transaction(writes=is_new) as sql:
      # Another process may have been faster.
      if is_new and not sql("SELECT name FROM sqlite_master"):
        for statement in _SCHEMA.read_text("utf-8").split(";\n"):
          sql(statement)
        sql(f"PRAGMA application_id = {_APPLICATION}")
        sql(f"PRAGMA user_version = {_VERSION}")
      self._check(sql)

  @contextlib.contextmanager
  def transaction(self, writes: bool = False) -> Iterator[Sql]:
    """Gives a function that executes a statement of one transaction."""
    uri = f"{self.path.absolute().as_uri()}?mode=rw"
    try:
      db = sqlite3.connect(uri, self._busy_s, isolation_level=None, uri=True)
      with contextlib.closing(db), db:  # which commits or rolls back
        # The commit is on the disk when it returns: labels cost more than time.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        yield lambda command, *values: db.execute(command, values).fetchall()
    except sqlite3.Error as error:
      raise self._explain(error) from error

  def _check(self, sql: Sql) -> None:
    names = "application_id", "user_version", "quick_check(1)"
    application, version, found = (sql(f"PRAGMA {n}")[0][0] for n in names)
    if application != _APPLICATION:
      other = "an SQLite file, but no ledger of labels"
      raise LedgerError(f"{self.path} is {other}")
    if version != _VERSION:
      raise LedgerError(
        f"{self.path} is a ledger of version {version}, and this code reads "
        f"version {_VERSION}: use the saw_jax that wrote it"
      )
    if found != "ok":
      raise self._damaged(found)

  def _explain(self, error: sqlite3.Error) -> LedgerError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
      return LedgerLockedError(
        f"{self.path} is locked by another process for more than "
        f"{self._busy_s:g} s: find who holds it open, and try again"
      )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
      return self._damaged(str(error))
    if code == sqlite3.SQLITE_CANTOPEN and not self.path.exists():
      return LedgerError(
        f"there is no ledger {self.path}: it is made by a run that asks for "
        "labels"
      )
    return LedgerError(f"{self.path} cannot be used: {error}")

  def _damaged(self, what: str) -> LedgerError:
    reason = what.splitlines()[-1]  # SQLite says where on a line of its own.
    return LedgerError(
      f"{self.path} is damaged ({reason}), and is left as it is: put a copy "
      "back, or save what is in it with sqlite3's .recover"
    )
