"""The ledger of labels: what was bought when, from whom, and at what price.

One SQLite file in the run directory. Labels may have cost a person's time, so
the file is made to be killed at any moment, to be read by another process while
a run writes, and to say in one sentence what is wrong with it.

A purchase is named by seed, step and prompt, and is decided once: with a label,
or without one, which costs nothing. It is never changed afterwards. A run that
repeats a step, since it went on from an older checkpoint, gets what is written
there, is charged nothing again, and asks nobody.

After `restore(step)` the purchases of that step and later ones are set aside:
they are not known and not counted until they are bought again. So the run that
was resumed sees at each step what it saw the first time, and its totals are
those of a run that was never interrupted.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax.annotate.questions import Label, LabelSource, Question

LEDGER_NAME = "labels.sqlite"  # in a run directory
_APPLICATION = 0x53415731  # marks the file as ours
_VERSION = 1
_BUSY_S = 30.0

# What a purchase counts for. Set aside: of a step that is to be repeated.
# Abandoned: the repeated step did not buy it again.
_COUNTED, _ASIDE, _ABANDONED = 1, 0, -1

_SCHEMA = """
CREATE TABLE budget (
  id INTEGER PRIMARY KEY CHECK (id = 0),
  per_step INTEGER,
  total REAL
);
INSERT INTO budget VALUES (0, NULL, NULL);
CREATE TABLE purchases (
  seed INTEGER NOT NULL,
  step INTEGER NOT NULL,
  prompt_id INTEGER NOT NULL,
  label TEXT,           -- as JSON; NULL where nobody gave one
  who TEXT NOT NULL,
  price REAL NOT NULL,
  bought_at TEXT NOT NULL,
  standing INTEGER NOT NULL,
  PRIMARY KEY (seed, step, prompt_id)
);
CREATE TABLE questions (
  prompt_id INTEGER PRIMARY KEY,
  digest TEXT NOT NULL, -- of the prompt
  document TEXT NOT NULL,
  seed INTEGER NOT NULL,
  step INTEGER NOT NULL,
  round INTEGER NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('waiting', 'answered', 'skipped')),
  is_open INTEGER NOT NULL,
  is_taken INTEGER NOT NULL,
  label TEXT,
  who TEXT,
  page TEXT,            -- that answered it or holds it
  lease_until REAL NOT NULL,
  asked_at REAL NOT NULL,
  patience REAL,
  settled_at REAL
);
"""


class LedgerError(ValueError):
  """The ledger is absent, damaged, locked, or not of this run."""


class LedgerLockedError(LedgerError):
  """Another process holds the ledger; the same call may succeed later."""


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much each seed may spend.

  Attributes:
    per_step: most labels in a step; None for no limit.
    total: most that all labels may cost; None for no limit.
  """

  per_step: int | None = None
  total: float | None = None

  def __post_init__(self):
    if self.per_step is not None and self.per_step < 1:
      raise ValueError(
        f"a budget of {self.per_step} labels a step buys nothing: set it to 1 "
        "or more, or train without labels."
      )
    if self.total is not None and not self.total > 0:
      raise ValueError(
        f"a total budget of {self.total} buys nothing: set it above 0, or "
        "train without labels."
      )

  def check(self, batch_size: int, price: float = 1.0) -> None:
    """Says whether a batch can be labelled with this budget.

    Args:
      batch_size: prompts in a step.
      price: of a label.

    Raises:
      ValueError: there are fewer prompts than labels a step, or not one label
        can be paid.
    """
    if self.per_step is not None and self.per_step > batch_size:
      raise ValueError(
        f"a budget of {self.per_step} labels a step is more than the batch of "
        f"{batch_size} prompts: set it to {batch_size} or less."
      )
    if self.total is not None and price > self.total:
      raise ValueError(
        f"a total budget of {self.total:g} does not pay one label at {price:g}."
      )


class Purchase(NamedTuple):
  """One line of the ledger."""

  seed: int
  step: int
  prompt_id: int
  label: str | None  # None: nobody gave one
  who: str
  price: float  # 0 without a label
  time: str


class Totals(NamedTuple):
  """What a seed has bought."""

  labels: int
  prompts: int  # different ones among them
  unlabelled: int  # asked for in vain
  spent: float
  remaining: float | None  # of the total budget; None without one


class LabelLedger:
  """The purchases of a run; any number of processes may have the file open."""

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    budget: Budget | None = None,
    busy_s: float = _BUSY_S,
  ):
    """Opens a ledger, or makes an empty one.

    Args:
      path: of the file, in a folder that is there.
      budget: of each seed, from now on; by default what the file says, which
        is no limit at first.
      busy_s: longest wait for another process, in seconds.

    Raises:
      LedgerError: the file is damaged, locked, no ledger, or of a newer
        version. It is left as it is.
    """
    self.path = pathlib.Path(path)
    self._busy_s = busy_s
    create(self.path, busy_s)
    if budget is None:
      with self._reading() as connection:
        budget = read_budget(connection)
    else:
      with self._writing() as connection:
        connection.execute(
          "UPDATE budget SET per_step = ?, total = ?",
          (budget.per_step, budget.total),
        )
    self.budget = budget

  def buy(
    self,
    questions: Sequence[Question],
    source: LabelSource,
    *,
    again: bool = False,
  ) -> list[Label | None]:
    """Buys labels, or finds them among what was bought.

    Looked for in this order: what was decided for this seed, step and prompt;
    what this seed bought at another step, for nothing; the source. What the
    source says is written down at once, all or nothing.

    Args:
      questions: of one step or several, of one seed or several.
      source: asked for what is not known. It may take its time: the file is
        not locked meanwhile.
      again: buy also what was bought at another step, as CARE does in a second
        epoch. A person is not asked again, but is paid again.

    Returns:
      A label for each question, or None where nobody gave one.

    Raises:
      LedgerError: the budget is exceeded, and nobody was asked; or the file
        fails, and nothing was written.
      ValueError: a question comes twice, or the source broke its contract.

    References:
      The label cache that CARE does without: https://arxiv.org/abs/2605.25864
    """
    keys = [(q.seed, q.step, q.prompt_id) for q in questions]
    if len(set(keys)) != len(keys):
      raise ValueError("a question of one seed, step and prompt comes twice.")
    price = _check_price(source)
    with self._writing() as connection:
      found = self._find(connection, keys, again=again)
      missing = [
        q for q, key in zip(questions, keys, strict=True) if key not in found
      ]
      self._check_budget(connection, missing, price)
    if missing:
      answers = list(source.answer(missing))
      if len(answers) != len(missing):
        raise ValueError(
          f"{source.name} gave {len(answers)} answers to {len(missing)} "
          "questions."
        )
      with self._writing() as connection:
        connection.executemany(
          # Another process of this run may have been faster; then that counts.
          "INSERT OR IGNORE INTO purchases VALUES (?, ?, ?, ?, ?, ?, ?, 1)",
          [
            (q.seed, q.step, q.prompt_id, None, source.name, 0.0, _now())
            if label is None
            else (
              *(q.seed, q.step, q.prompt_id),
              *(json.dumps(label.text), label.who, price, _now()),
            )
            for q, label in zip(missing, answers, strict=True)
          ],
        )
        wanted = [(q.seed, q.step, q.prompt_id) for q in missing]
        found |= self._find(connection, wanted, again=True)
    return [found[key] for key in keys]

  def known(self, seed: int, prompts: Sequence[int]) -> dict[int, Label]:
    """Returns the labels that a seed has bought.

    Args:
      seed: of the run.
      prompts: ids, of which any may be unknown.

    Returns:
      Labels by prompt; of several the one of the latest step.
    """
    wanted = set(prompts)
    with self._reading() as connection:
      rows = connection.execute(
        "SELECT prompt_id, label, who FROM purchases WHERE seed = ? "
        "AND standing = 1 AND label IS NOT NULL ORDER BY step",
        (seed,),
      )
      return {
        prompt: Label(json.loads(label), who)
        for prompt, label, who in rows
        if prompt in wanted
      }

  def room(self, seed: int, step: int, *, price: float = 1.0) -> float:
    """Says how many more labels a seed may buy.

    Args:
      seed: of the run.
      step: at which they are bought.
      price: of each.

    Returns:
      The number, `inf` without a budget. What is known costs nothing and needs
      no room.
    """
    with self._reading() as connection:
      return self._room(connection, seed, step, price)

  def totals(self, seed: int) -> Totals:
    """Adds up what a seed has bought; what is set aside does not count.

    Args:
      seed: of the run.

    Returns:
      The totals.
    """
    with self._reading() as connection:
      rows = connection.execute(
        "SELECT prompt_id, label IS NULL, price FROM purchases "
        "WHERE seed = ? AND standing = 1",
        (seed,),
      ).fetchall()
    bought = [prompt for prompt, is_unlabelled, _ in rows if not is_unlabelled]
    spent = math.fsum(price for *_, price in rows)
    total = self.budget.total
    return Totals(
      labels=len(bought),
      prompts=len(set(bought)),
      unlabelled=len(rows) - len(bought),
      spent=spent,
      remaining=None if total is None else total - spent,
    )

  def spent_by_step(self, seed: int) -> dict[int, float]:
    """Adds up what each step of a seed has cost.

    Args:
      seed: of the run.

    Returns:
      Cost by step, of the steps that asked for labels.
    """
    costs: dict[int, list[float]] = {}
    for purchase in self.purchases():
      if purchase.seed == seed:
        costs.setdefault(purchase.step, []).append(purchase.price)
    return {step: math.fsum(prices) for step, prices in costs.items()}

  def purchases(self) -> list[Purchase]:
    """Returns what counts, by seed, step and prompt."""
    with self._reading() as connection:
      return _purchases(connection)

  def snapshot(self, step: int) -> dict[str, Any]:
    """Describes the purchases of the steps that are done, for a checkpoint.

    What those steps did not buy again, though it had been set aside for them,
    is abandoned for good.

    Args:
      step: number of steps done.

    Returns:
      A small document for `restore`, as JSON can hold it.
    """
    with self._writing() as connection:
      connection.execute(
        "UPDATE purchases SET standing = ? WHERE standing = ? AND step < ?",
        (_ABANDONED, _ASIDE, step),
      )
      return _describe(connection, step)

  def restore(
    self, step: int, snapshot: Mapping[str, Any] | None = None
  ) -> None:
    """Makes the ledger what it was when a number of steps were done.

    Args:
      step: number of steps done; 0 for a run that starts anew.
      snapshot: from the checkpoint, to compare with.

    Raises:
      LedgerError: the file is not the one of the checkpoint. It is left as it
        is.
    """
    with self._writing() as connection:
      connection.execute(
        "UPDATE purchases SET standing = (step < ?) WHERE standing != ?",
        (step, _ABANDONED),
      )
      if snapshot is None:
        return
      found = _describe(connection, step)
      if found != dict(snapshot):
        raise LedgerError(  # which also rolls back
          f"{self.path} is not the ledger of the checkpoint at step {step}: it "
          f"has {found['purchases']} purchases of the steps before, the "
          f"checkpoint {snapshot.get('purchases')}; put that file back, or "
          "start a new run"
        )

  def _find(
    self,
    connection: sqlite3.Connection,
    keys: Sequence[tuple[int, int, int]],
    *,
    again: bool,
  ) -> dict[tuple[int, int, int], Label | None]:
    """Looks up what is decided, and counts it again if it was set aside."""
    found: dict[tuple[int, int, int], Label | None] = {}
    for key in keys:
      row = connection.execute(
        "SELECT label, who, standing FROM purchases "
        "WHERE seed = ? AND step = ? AND prompt_id = ?",
        key,
      ).fetchone()
      if row is not None and row[2] != _COUNTED:
        connection.execute(
          "UPDATE purchases SET standing = ? "
          "WHERE seed = ? AND step = ? AND prompt_id = ?",
          (_COUNTED, *key),
        )
      if row is None and not again:
        seed, _, prompt = key
        row = connection.execute(
          "SELECT label, who FROM purchases WHERE seed = ? AND prompt_id = ? "
          "AND standing = 1 AND label IS NOT NULL ORDER BY step DESC LIMIT 1",
          (seed, prompt),
        ).fetchone()
      if row is not None:
        label, who = row[:2]
        found[key] = None if label is None else Label(json.loads(label), who)
    return found

  def _check_budget(
    self,
    connection: sqlite3.Connection,
    questions: Sequence[Question],
    price: float,
  ) -> None:
    for seed in {q.seed for q in questions}:
      mine = [q for q in questions if q.seed == seed]
      for step in {q.step for q in mine}:
        count = sum(q.step == step for q in mine)
        room = self._room(connection, seed, step, price)
        if count > room:
          raise LedgerError(
            f"step {step} of seed {seed} asks for {count} labels at {price:g}, "
            f"and the budget has room for {room:g}"
          )
      if self.budget.total is not None:
        spent = self._spent(connection, seed)
        if spent + price * len(mine) > self.budget.total * (1 + 1e-12):
          raise LedgerError(
            f"seed {seed} asks for {len(mine)} labels at {price:g}, and "
            f"{self.budget.total - spent:g} of its budget of "
            f"{self.budget.total:g} is left"
          )

  def _room(
    self, connection: sqlite3.Connection, seed: int, step: int, price: float
  ) -> float:
    room = math.inf
    if self.budget.per_step is not None:
      (taken,) = connection.execute(
        "SELECT COUNT(label) FROM purchases "
        "WHERE seed = ? AND step = ? AND standing = 1",
        (seed, step),
      ).fetchone()
      room = max(self.budget.per_step - taken, 0)
    if self.budget.total is not None and price > 0:
      left = self.budget.total - self._spent(connection, seed)
      # Prices such as 0.1 do not add up to the last digit.
      room = min(room, max(math.floor(left / price + 1e-9), 0))
    return room

  def _spent(self, connection: sqlite3.Connection, seed: int) -> float:
    rows = connection.execute(
      "SELECT price FROM purchases WHERE seed = ? AND standing = 1", (seed,)
    )
    return math.fsum(price for (price,) in rows)

  def _reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    return transaction(self.path, busy_s=self._busy_s)

  def _writing(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    return transaction(self.path, busy_s=self._busy_s, writes=True)


def create(path: str | os.PathLike, busy_s: float = _BUSY_S) -> None:
  """Makes an empty ledger, or checks the one that is there.

  Args:
    path: of the file.
    busy_s: longest wait for another process, in seconds.

  Raises:
    LedgerError: see `LabelLedger`.
  """
  path = pathlib.Path(path)
  if not path.parent.is_dir():
    raise LedgerError(f"there is no folder {path.parent} for a ledger")
  if not path.exists() or not path.stat().st_size:
    with transaction(path, busy_s=busy_s, writes=True, creates=True) as made:
      # Another process may have been faster.
      if made.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,):
        for statement in _SCHEMA.split(";\n"):
          made.execute(statement)
        made.execute(f"PRAGMA application_id = {_APPLICATION}")
        made.execute(f"PRAGMA user_version = {_VERSION}")
  check(path, busy_s)


def check(path: str | os.PathLike, busy_s: float = _BUSY_S) -> None:
  """Says whether a file is a ledger, and whole.

  Args:
    path: of the file.
    busy_s: longest wait for another process, in seconds.

  Raises:
    LedgerError: it is absent, damaged, locked, no ledger, or of a newer
      version.
  """
  with transaction(path, busy_s=busy_s) as connection:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
  if application != _APPLICATION:
    raise LedgerError(f"{path} is an SQLite file, but no ledger of labels")
  if version != _VERSION:
    raise LedgerError(
      f"{path} is a ledger of version {version}, and this code reads version "
      f"{_VERSION}: use the saw_jax that wrote it"
    )
  if found != "ok":
    raise LedgerError(_damaged(path, found))


def read_budget(connection: sqlite3.Connection) -> Budget:
  """Reads the budget that the run has set.

  Args:
    connection: in a transaction.

  Returns:
    The budget of each seed.
  """
  return Budget(
    *connection.execute("SELECT per_step, total FROM budget").fetchone()
  )


def read_spending(connection: sqlite3.Connection) -> dict[int, float]:
  """Adds up what each seed has spent.

  Args:
    connection: in a transaction.

  Returns:
    Cost by seed, of those that asked for labels.
  """
  costs: dict[int, list[float]] = {}
  for seed, price in connection.execute(
    "SELECT seed, price FROM purchases WHERE standing = 1 ORDER BY seed"
  ):
    costs.setdefault(seed, []).append(price)
  return {seed: math.fsum(prices) for seed, prices in costs.items()}


@contextlib.contextmanager
def transaction(
  path: str | os.PathLike,
  *,
  busy_s: float = _BUSY_S,
  writes: bool = False,
  creates: bool = False,
) -> Iterator[sqlite3.Connection]:
  """Opens the file for one transaction, which an error takes back.

  Args:
    path: of the file.
    busy_s: longest wait for another process, in seconds.
    writes: whether it is going to write; then others wait.
    creates: whether to make the file.

  Yields:
    The connection, which is closed afterwards.

  Raises:
    LedgerError: SQLite fails; the message says why in a sentence.
  """
  mode = "rwc" if creates else "rw"
  uri = f"{pathlib.Path(path).absolute().as_uri()}?mode={mode}"
  try:
    with contextlib.closing(
      sqlite3.connect(uri, uri=True, timeout=busy_s, isolation_level=None)
    ) as connection:
      # The commit is on the disk when it returns: labels cost more than time.
      connection.execute("PRAGMA synchronous = FULL")
      connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
      try:
        yield connection
      except BaseException:
        connection.rollback()
        raise
      connection.commit()
  except sqlite3.Error as error:
    raise _explain(path, error, busy_s) from error


def _explain(
  path: str | os.PathLike, error: sqlite3.Error, busy_s: float
) -> LedgerError:
  """Says in a sentence what SQLite means."""
  code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
  if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
    return LedgerLockedError(
      f"{path} is locked by another process for more than {busy_s:g} s: find "
      "who holds it open, and try again"
    )
  if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
    return LedgerError(_damaged(path, str(error)))
  if code == sqlite3.SQLITE_CANTOPEN and not pathlib.Path(path).exists():
    return LedgerError(
      f"there is no ledger {path}: it is made by a run that asks for labels"
    )
  return LedgerError(f"{path} cannot be used: {error}")


def _damaged(path: str | os.PathLike, what: str) -> str:
  reason = what.splitlines()[-1]  # SQLite says where on a line of its own.
  return (
    f"{path} is damaged ({reason}), and is left as it is: put a copy back, or "
    "save what is in it with sqlite3's .recover"
  )


def _purchases(
  connection: sqlite3.Connection, before: int | None = None
) -> list[Purchase]:
  rows = connection.execute(
    "SELECT seed, step, prompt_id, label, who, price, bought_at FROM purchases "
    "WHERE standing = 1 AND (?1 IS NULL OR step < ?1) "
    "ORDER BY seed, step, prompt_id",
    (before,),
  )
  return [
    Purchase(*key, None if label is None else json.loads(label), *rest)
    for *key, label, who, price, at in rows
    for rest in [(who, price, at)]
  ]


def _describe(connection: sqlite3.Connection, step: int) -> dict[str, Any]:
  """Counts and digests the purchases before a step, but not their times."""
  rows = [list(purchase[:-1]) for purchase in _purchases(connection, step)]
  digest = hashlib.sha256(json.dumps(rows).encode())
  return {"step": step, "purchases": len(rows), "digest": digest.hexdigest()}


def _check_price(source: LabelSource) -> float:
  price = float(source.price)
  if not 0 <= price < math.inf:
    raise ValueError(f"the price of {source.name} is not a price: {price}.")
  return price


def _now() -> str:
  return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
