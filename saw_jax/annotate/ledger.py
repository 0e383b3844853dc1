"""The ledger of labels: what was bought when, and the questions that wait.

One SQLite file in the run directory. Labels may have cost a person's time, so
the file is made to be killed at any moment, to be read by another process while
a run writes, and to say in one sentence what is wrong with it. Each operation
is one transaction; the journal is SQLite's rollback journal, since a
write-ahead log does not work on the network file systems of run directories.
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.resources
import json
import math
import os
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax.annotate import questions as questions_lib
from saw_jax.annotate.questions import Label, LabelSource, Question

LEDGER_NAME = "labels.sqlite"  # in a run directory
# What is kept of a text from its beginning, and as much from its end, where the
# answer stands. A policy may write megabytes.
_PROMPT_PART, _RESPONSE_PART = 20_000, 4_000
_MAX_CLUSTERS = 9  # one for each digit
_SCHEMA = importlib.resources.files(__package__) / "assets" / "ledger.sql"
_APPLICATION, _VERSION = 0x53415731, 1  # mark the file as ours
_LEASE_S = 30.0
# The standing of a purchase: 1 if it counts. Set aside: of a step that is to be
# repeated. Abandoned: the repeated step did not buy it again.
_ASIDE, _ABANDONED = 0, -1

_Sql = Callable[..., list[tuple]]  # (statement, *values) -> rows
_NAMED = "seed = ? AND step = ? AND prompt_id = ?"


class LedgerError(ValueError):
  """The ledger is absent, damaged, locked, or not of this run."""


class LedgerLockedError(LedgerError):
  """Another process holds the ledger; the same call may succeed later."""


class AnswerError(ValueError):
  """A page's answer was not counted; the message tells the annotator why."""


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much each seed may spend; None for no limit."""

  per_step: int | None = None  # most labels in a step
  total: float | None = None  # most that all labels may cost

  def __post_init__(self):
    for name, limit in dataclasses.asdict(self).items():
      if limit is not None and not limit > 0:
        raise ValueError(
          f"a budget ({name}) of {limit} buys nothing: set it above 0, or "
          "train without labels."
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


class Shown(NamedTuple):
  """A question as a page has it; a text is its head, what is cut, its tail."""

  prompt_id: int
  round: int  # how often it was asked: an answer names the one it is about
  seed: int
  step: int
  text: list  # head, number of characters, tail
  # (answer or None, count, response, label or None) of the largest ones. The
  # label is what choosing it means; None: it cannot be chosen.
  clusters: list
  form: str  # of the answer
  other_clusters: int  # that are left out
  other_responses: int  # in them


class Asked(NamedTuple):
  """A question as it stands."""

  digest: str  # of the prompt
  is_waiting: bool  # a run waits for it
  shown: Shown


class Counts(NamedTuple):
  """The questions and the spending in numbers."""

  waiting: int
  answered: int
  skipped: int
  patience: float | None  # seconds until the run gives up; None: never
  spent: Mapping[int, float]  # by seed
  total: float | None  # of the budget


class LabelLedger:
  """Purchases and questions; any number of processes may have the file open.

  An empty ledger is made where there is none, if it `creates`. The budget is
  that of each seed, from now on; by default what the file says, at first no
  limit. `busy_s` is the longest wait for another process.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    budget: Budget | None = None,
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
    with self.transaction(writes=is_new or budget is not None) as sql:
      # Another process may have been faster.
      if is_new and not sql("SELECT name FROM sqlite_master"):
        for statement in _SCHEMA.read_text("utf-8").split(";\n"):
          sql(statement)
        sql(f"PRAGMA application_id = {_APPLICATION}")
        sql(f"PRAGMA user_version = {_VERSION}")
      self._check(sql)
      if budget is not None:
        values = budget.per_step, budget.total
        sql("UPDATE budget SET per_step = ?, total = ?", *values)
      self.budget = Budget(*sql("SELECT per_step, total FROM budget")[0])

  # Purchases.

  def buy(
    self, questions: list[Question], source: LabelSource, again: bool = False
  ) -> list[Label | None]:
    """Buys labels, or finds them among what was bought.

    A purchase, named by seed, step and prompt, is decided once: with a label,
    or without one, which costs nothing. Else what this seed bought at another
    step is free, unless it is to be paid `again` as CARE does. Else the source
    is asked, the first questions first, as far as the budget goes; what it says
    is written at once, and the file is not locked while it thinks.
    """
    price = float(source.price)
    if not 0 <= price < math.inf:
      raise ValueError(f"the price of {source.name} is not a price: {price}.")
    most = self.budget.total or math.inf
    per_step = self.budget.per_step or math.inf
    asked = {(q.seed, q.step, q.prompt_id): q for q in questions}
    found, missing = {}, {}
    with self.transaction(writes=True) as sql:
      counted = _purchases(sql)
      decided = {p[:3]: _label(p) for p in counted}
      aside = {p[:3]: _label(p) for p in _purchases(sql, "standing != 1")}
      labelled = [p for p in counted if p.label is not None]
      known = {(p.seed, p.prompt_id): _label(p) for p in labelled}  # the latest
      taken = collections.Counter((p.seed, p.step) for p in labelled)
      spent = collections.Counter(_spent(counted))
      for key, question in asked.items():
        seed, step, prompt = key
        label = None if again else known.get((seed, prompt))
        if key in decided:
          found[key] = decided[key]
          continue
        if label is None:
          # What was set aside takes the room that it took the first time. Less
          # than the price: tenths do not add up to the last digit.
          is_broke = most - spent[seed] < price * (1 - 1e-9)
          if taken[seed, step] >= per_step or is_broke:
            continue
          taken[seed, step] += 1
          spent[seed] += price
        if key in aside:
          found[key] = aside[key]
          sql(f"UPDATE purchases SET standing = 1 WHERE {_NAMED}", *key)
        elif label is not None:
          found[key] = label
        else:
          missing[key] = question
    if missing:
      answers = list(source.answer(list(missing.values())))
      if len(answers) != len(missing):
        given = f"{len(answers)} answers to {len(missing)} questions"
        raise ValueError(f"{source.name} gave {given}.")
      now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
      with self.transaction(writes=True) as sql:
        for key, label in zip(missing, answers, strict=True):
          values = None, source.name, 0.0
          if label is not None:
            values = json.dumps(label.text), label.who, price
          # Another process of this run may have been faster; then that counts.
          insert = "INSERT OR IGNORE INTO purchases VALUES (?,?,?,?,?,?,?,1)"
          sql(insert, *key, *values, now)
          (kept,) = _purchases(sql, _NAMED, *key)
          found[key] = _label(kept)
    return [found.get((q.seed, q.step, q.prompt_id)) for q in questions]

  def totals(self, seed: int) -> Totals:
    """Adds up what a seed has bought; what is set aside does not count."""
    mine = [p for p in self.purchases() if p.seed == seed]
    bought = [p.prompt_id for p in mine if p.label is not None]
    spent, missing = math.fsum(p.price for p in mine), len(mine) - len(bought)
    return Totals(len(bought), len(set(bought)), missing, spent)

  def purchases(self) -> list[Purchase]:
    """What counts, by seed, step and prompt."""
    with self.transaction() as sql:
      return _purchases(sql)

  def snapshot(self, step: int) -> dict[str, Any]:
    """Describes the purchases of the steps that are done, for a checkpoint."""
    change = "UPDATE purchases SET standing = ? WHERE standing = ? AND step < ?"
    with self.transaction(writes=True) as sql:
      sql(change, _ABANDONED, _ASIDE, step)
      return _describe(sql, step)

  def restore(self, step: int, snapshot: Mapping | None = None) -> None:
    """Makes the purchases what they were when so many steps were done.

    Those of later steps are set aside: neither known nor counted until they are
    bought again, at no charge and without asking. A file that is not the one of
    the snapshot is an error, and left as it is.
    """
    change = "UPDATE purchases SET standing = (step < ?) WHERE standing != ?"
    with self.transaction(writes=True) as sql:
      sql(change, step, _ABANDONED)
      found = _describe(sql, step)
      if snapshot is not None and found != dict(snapshot):
        raise LedgerError(  # which also rolls back
          f"{self.path} is not the ledger of the checkpoint at step {step}: it "
          f"has {found['purchases']} purchases of the steps before, the "
          f"checkpoint {snapshot.get('purchases')}; put that file back, or "
          "start a new run"
        )

  # Questions: what a run does. It asks and polls. A question is open while a
  # run waits for it; an answer that comes later is kept for when it asks again.

  def ask(self, questions: list[Question], patience: float = math.inf) -> None:
    """Asks for labels of prompts that have none yet, each prompt once."""
    first: dict[int, Question] = {}
    for q in questions:
      first.setdefault(q.prompt_id, q)
    seconds = patience if math.isfinite(patience) else None
    with self.transaction(writes=True) as sql:
      known = _rows(sql, first, "digest, round, status, seed, step, is_taken")
      for prompt, q in first.items():
        digest, document = _write(q)
        before, round, *state = known.get(prompt, (digest, 0, None))
        if before != digest:
          raise LedgerError(
            f"{self.path} has another prompt under the id {prompt}: it "
            "belongs to a run on other data"
          )
        # A skip stays until it is taken: the run may have been killed.
        if state[0] == "answered" or state == ["skipped", q.seed, q.step, 0]:
          continue
        sql(
          "REPLACE INTO questions VALUES (?, ?, ?, ?, ?, ?, 'waiting', 1, 0, "
          "NULL, NULL, NULL, 0, ?, ?, NULL)",
          *(prompt, digest, document, q.seed, q.step, round + 1),
          *(_now(sql), seconds),
        )

  def states(self, prompts: Sequence[int]) -> dict[int, tuple]:
    """Status, time and whether it was taken, of prompts that were asked."""
    with self.transaction() as sql:
      return _rows(sql, prompts, "status, settled_at, is_taken")

  def take(self, prompts: Sequence[int]) -> dict[int, Label | None]:
    """Ends the wait for prompts; None where one was skipped or nobody came."""
    with self.transaction(writes=True) as sql:
      rows = _rows(sql, prompts, "status, label, who")
      for prompt in rows:
        _update(sql, prompt, "is_open = 0, is_taken = status != 'waiting'")
      return {
        prompt: Label(*answer) if status == "answered" else None
        for prompt, (status, *answer) in rows.items()
      }

  # Questions: what a page does. Pages are told apart by their names.

  def questions(self) -> list[Asked]:
    """All that were ever asked, the oldest first."""
    with self.transaction() as sql:
      rows = sql(
        "SELECT digest, status = 'waiting' AND is_open, prompt_id, round, "
        "seed, step, document FROM questions ORDER BY asked_at, rowid"
      )
    return [
      Asked(digest, bool(waits), Shown(*asked, **json.loads(document)))
      for digest, waits, *asked, document in rows
    ]

  def lease(self, page: str, *, now: float | None = None) -> Shown | None:
    """Gives a page its question again, or the oldest that no other page has."""
    now = time.time() if now is None else now
    with self.transaction(writes=True) as sql:
      rows = sql(
        "SELECT prompt_id, round, seed, step, document FROM questions "
        "WHERE is_open AND status = 'waiting' "
        "AND (page IS NULL OR page = ?1 OR lease_until <= ?2 "
        "OR lease_until > ?3) "  # of before the clock was set back
        "ORDER BY page IS NOT ?1, asked_at, rowid LIMIT 1",
        *(page, now, now + _LEASE_S),
      )
      if not rows:
        return None
      *asked, document = rows[0]
      _hold(sql, page, asked[0], now)
      return Shown(*asked, **json.loads(document))

  def renew(self, page: str, prompt: int) -> str:
    """Keeps a question for a page a while longer, if it still has it.

    Gives yours, elsewhere (another page has it), answered, skipped, closed (the
    run gave up) or unknown.
    """
    now = time.time()
    with self.transaction(writes=True) as sql:
      rows = _rows(sql, [prompt], "status, is_open, page, lease_until")
      if not rows:
        return "unknown"
      status, is_open, holder, until = rows[prompt]
      if status != "waiting":
        return status
      if not is_open:
        return "closed"
      if holder not in (None, page) and now < until <= now + _LEASE_S:
        return "elsewhere"
      _hold(sql, page, prompt, now)
      return "yours"

  def settle(
    self,
    page: str,
    prompt: int,
    round: int,
    *,
    answer: str | None = None,  # typed
    choice: int | None = None,  # the number of a cluster
    who: str = "annotator",
  ) -> str | None:
    """Answers a question or, with neither answer nor choice, skips it."""
    if answer is not None and choice is not None:
      raise AnswerError("Choose an answer or type one, not both.")
    with self.transaction(writes=True) as sql:
      columns = "round, document, status, is_open, label, page"
      rows = _rows(sql, [prompt], columns)
      if not rows:
        raise AnswerError(f"There is no question {prompt}: nothing was kept.")
      current, document, status, is_open, kept, owner = rows[prompt]
      if current != round:
        raise AnswerError(
          "The question was asked again meanwhile, with other responses: this "
          "answer was not counted, look at the question again."
        )
      label = _parse(json.loads(document), answer, choice)
      if status != "waiting":
        if owner == page and label == kept:
          return label  # A second click.
        how = f" with {kept!r}" if status == "answered" else ""
        how += "" if owner == page else " in another page"
        said = f"The question was {status} already{how}"
        raise AnswerError(f"{said}: this answer was not counted.")
      if label is None and not is_open:
        raise AnswerError("The run no longer waits for it: nothing to skip.")
      status = "skipped" if label is None else "answered"
      change = "status = ?, label = ?, who = ?, page = ?, settled_at = ?"
      _update(sql, prompt, change, status, label, who, page, _now(sql))
      return label

  def last(self, page: str) -> tuple[int, str | None, bool] | None:
    """What a page settled last: prompt, label, and whether it can be undone."""
    with self.transaction() as sql:
      return _last(sql, page)

  def undo(self, page: str) -> int:
    """Gives a page back what it settled last, unless a run has it; its id."""
    with self.transaction(writes=True) as sql:
      last = _last(sql, page)
      if last is None:
        raise AnswerError("There is nothing to take back in this page.")
      prompt, _, can_undo = last
      if not can_undo:
        raise AnswerError(
          "The run has taken the last answer: it can no longer be taken back."
        )
      # A page has one question at a time.
      free = "UPDATE questions SET page = NULL WHERE page = ? AND status = ?"
      sql(free, page, "waiting")
      change = "status = ?, label = NULL, who = NULL, settled_at = NULL"
      _update(sql, prompt, change, "waiting")
      _hold(sql, page, prompt, time.time())
      return prompt

  def counts(self) -> Counts:
    with self.transaction() as sql:
      ((*found, asked, patience, settled),) = sql(
        "SELECT TOTAL(waits), TOTAL(status = 'answered'), "
        "TOTAL(status = 'skipped'), MAX(CASE WHEN waits THEN asked_at END), "
        "MAX(CASE WHEN waits THEN patience END), MAX(settled_at) FROM "
        "(SELECT *, status = 'waiting' AND is_open AS waits FROM questions)"
      )
      if patience is not None:
        since = max(asked, settled or 0)
        patience = min(max(since + patience - time.time(), 0.0), patience)
      ((total,),) = sql("SELECT total FROM budget")
      return Counts(*map(int, found), patience, _spent(_purchases(sql)), total)

  # The file.

  @contextlib.contextmanager
  def transaction(self, writes: bool = False) -> Iterator[_Sql]:
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

  def _check(self, sql: _Sql) -> None:
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


def _label(p: Purchase) -> Label | None:
  return None if p.label is None else Label(p.label, p.who)


def _spent(purchases: Iterable[Purchase]) -> dict[int, float]:
  """What each seed has spent, where tenths add up to the last digit."""
  prices = collections.defaultdict(list)
  for purchase in purchases:
    prices[purchase.seed].append(purchase.price)
  return {seed: math.fsum(some) for seed, some in prices.items()}


def _purchases(
  sql: _Sql, where: str = "standing = 1", *values: Any
) -> list[Purchase]:
  rows = sql(
    "SELECT seed, step, prompt_id, label, who, price, bought_at FROM purchases "
    f"WHERE {where} ORDER BY seed, step, prompt_id",
    *values,
  )
  found = map(Purchase._make, rows)
  return [p._replace(label=p.label and json.loads(p.label)) for p in found]


def _describe(sql: _Sql, step: int) -> dict[str, Any]:
  """Counts and digests the purchases before a step, but not their times."""
  before = _purchases(sql, "standing = 1 AND step < ?", step)
  rows = [purchase[:-1] for purchase in before]
  digest = hashlib.sha256(json.dumps(rows).encode())
  return {"step": step, "purchases": len(rows), "digest": digest.hexdigest()}


def _rows(sql: _Sql, prompts: Iterable[int], columns: str) -> dict[int, tuple]:
  """Questions; one look-up each, as SQLite limits a list's length."""
  statement = f"SELECT {columns} FROM questions WHERE prompt_id = ?"
  return {p: row for p in prompts for row in sql(statement, p)}


def _now(sql: _Sql) -> float:
  """The time, but after all that was asked or settled, if clocks are set."""
  ((latest,),) = sql(
    "SELECT MAX(MAX(asked_at, IFNULL(settled_at, 0))) FROM questions"
  )
  return max(time.time(), (latest or 0.0) + 1e-6)


def _hold(sql: _Sql, page: str, prompt: int, now: float) -> None:
  _update(sql, prompt, "page = ?, lease_until = ?", page, now + _LEASE_S)


def _update(sql: _Sql, prompt: int, change: str, *values) -> None:
  sql(f"UPDATE questions SET {change} WHERE prompt_id = ?", *values, prompt)


def _last(sql: _Sql, page: str) -> tuple | None:
  rows = sql(
    "SELECT prompt_id, label, NOT is_taken FROM questions "
    "WHERE page = ? AND status != 'waiting' "
    "ORDER BY settled_at DESC, rowid DESC LIMIT 1",
    page,
  )
  return rows[0] if rows else None


def _parse(document, answer: str | None, choice: int | None) -> str | None:
  """Reads what was typed or chosen; None if neither."""
  if choice is not None:
    if not 0 <= choice < len(document["clusters"]):
      raise AnswerError(f"There is no answer {choice + 1} to choose.")
    *_, label = document["clusters"][choice]
    if label is None:
      raise AnswerError("That one is no answer: type one, or skip.")
    return label
  if answer is None:
    return None
  try:
    return questions_lib.parse_label(document["form"], answer)
  except ValueError as error:
    raise AnswerError(f"{error} Nothing was kept.") from error


def _excerpt(text: str, part: int) -> tuple[str, int, str]:
  """Keeps so many characters at either end of a text."""
  if len(text) <= 2 * part:
    return text, 0, ""
  return text[:part], len(text) - 2 * part, text[-part:]


def _write(question: Question) -> tuple[str, str]:
  """A digest of the prompt, and what a page shows as JSON in ASCII."""
  form, clusters = question.form, []
  questions_lib.describe_form(form)  # There has to be such a form.
  for given, count, text in question.clusters[:_MAX_CLUSTERS]:
    answer = label = None
    if given is not None:
      answer = _excerpt(given, questions_lib.MAX_LABEL_SIZE)
      with contextlib.suppress(ValueError):
        label = questions_lib.parse_label(form, given)
    clusters.append((answer, count, _excerpt(text, _RESPONSE_PART), label))
  hidden = question.clusters[_MAX_CLUSTERS:]
  document = {
    "text": _excerpt(question.text, _PROMPT_PART),
    "form": form,
    "clusters": clusters,
    "other_clusters": len(hidden),
    "other_responses": sum(c.count for c in hidden),
  }
  text = json.dumps(question.text).encode()
  return hashlib.sha256(text).hexdigest(), json.dumps(document)
