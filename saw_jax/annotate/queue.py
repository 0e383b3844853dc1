"""Questions that wait for a person, in the same file as the ledger.

A run asks and polls; pages lease a question, settle it, and take that back.
Each operation is one transaction, so that any number of runs and pages may be
open, and any of them killed:

  waiting   the run waits for it, or did when it was killed
  answered  kept for ever by prompt: no person is asked twice
  skipped   no label this time; a later step may ask again

A question is open while a run waits for it. When the run has taken the answer,
or has given up, it is closed, and a page can no longer take its answer back.
An answer that comes after the run gave up is kept for when it asks again.
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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax.annotate import ledger as label_ledger
from saw_jax.annotate.questions import (
  MAX_LABEL_SIZE,
  Label,
  Question,
  describe_form,
  parse_label,
)

# What is kept of a text from its beginning, and as much from its end, where the
# answer stands. A policy may write megabytes.
MAX_PROMPT_PART, MAX_RESPONSE_PART = 20_000, 4_000
MAX_CLUSTERS = 9  # one for each digit


class AnswerError(ValueError):
  """A page's answer was not counted; the message tells the annotator why."""


class Excerpt(NamedTuple):
  """A text without its middle, if it is long."""

  head: str
  left_out: int  # characters
  tail: str


class ShownCluster(NamedTuple):
  """Responses with the same answer, as a page has them."""

  answer: Excerpt | None  # None: no answer
  count: int
  response: Excerpt
  label: str | None  # what choosing it means; None: it cannot be chosen


@dataclasses.dataclass(frozen=True)
class Shown:
  """A question as a page has it.

  Attributes:
    prompt_id: which prompt.
    round: how often it was asked: an answer names the round that it is about.
    text: the prompt.
    clusters: the largest ones.
    other_clusters: number of clusters that are left out.
    other_responses: number of responses in them.
    form: of the answer.
    seed: of the run that asks.
    step: of the training.
  """

  prompt_id: int
  round: int
  text: Excerpt
  clusters: tuple[ShownCluster, ...]
  other_clusters: int
  other_responses: int
  form: str
  seed: int
  step: int


class State(NamedTuple):
  """Where a question stands; equal if nobody touched it in between."""

  status: str  # waiting, answered or skipped
  settled_at: float | None
  was_taken: bool


class Settled(NamedTuple):
  """What a page did last, and whether it can still take it back."""

  prompt_id: int
  label: str | None  # None: skipped
  can_undo: bool


class Counts(NamedTuple):
  """The queue in numbers."""

  waiting: int
  answered: int
  skipped: int
  patience: float | None  # seconds until the run gives up; None: never
  spent: Mapping[int, float]  # by seed
  budget: label_ledger.Budget


class LabelQueue:
  """The questions in a ledger."""

  def __init__(self, path: str | os.PathLike, *, busy_s: float = 30.0):
    """Opens the queue of a ledger that is there.

    Args:
      path: of the ledger.
      busy_s: longest wait for another process, in seconds.

    Raises:
      LedgerError: it is absent, damaged, locked, or no ledger.
    """
    self.path = pathlib.Path(path)
    self._busy_s = busy_s
    label_ledger.check(self.path, busy_s)

  # What a run does.

  def ask(
    self, questions: Sequence[Question], *, patience: float = math.inf
  ) -> None:
    """Puts questions into the queue, where they have no answer yet.

    Args:
      questions: of which several may be about one prompt: it is asked once.
      patience: seconds without any answer after which the run gives up, for the
        page to show.

    Raises:
      LedgerError: the ledger has another prompt under one of their ids, or it
        fails; then nothing is asked.
      ValueError: no such form of a label.
    """
    rows: dict[int, tuple[Question, str, str]] = {}
    for q in questions:
      if q.prompt_id not in rows:
        rows[q.prompt_id] = q, *_write(q)
    now = time.time()
    seconds = patience if math.isfinite(patience) else None
    with self._transaction(writes=True) as connection:
      for prompt, (q, digest, document) in rows.items():
        row = connection.execute(
          "SELECT digest, status, seed, step, is_taken FROM questions "
          "WHERE prompt_id = ?",
          (prompt,),
        ).fetchone()
        if row is None:
          connection.execute(
            "INSERT INTO questions VALUES (?, ?, ?, ?, ?, 1, 'waiting', 1, 0, "
            "NULL, NULL, NULL, 0, ?, ?, NULL)",
            (prompt, digest, document, q.seed, q.step, now, seconds),
          )
          continue
        before, status, *asked, was_taken = row
        if before != digest:
          raise label_ledger.LedgerError(
            f"{self.path} has another prompt under the id {prompt}: it belongs "
            "to a run on other data"
          )
        is_same = asked == [q.seed, q.step] and not was_taken
        if status == "answered" or (status == "skipped" and is_same):
          continue  # The run was killed before it took it.
        connection.execute(
          "UPDATE questions SET document = ?, seed = ?, step = ?, "
          "round = round + 1, status = 'waiting', is_open = 1, is_taken = 0, "
          "page = NULL, lease_until = 0, asked_at = ?, patience = ?, "
          "settled_at = NULL WHERE prompt_id = ?",
          (document, q.seed, q.step, now, seconds, prompt),
        )

  def states(self, prompts: Sequence[int]) -> dict[int, State]:
    """Looks at questions.

    Args:
      prompts: their ids.

    Returns:
      Where each stands; those that were never asked are left out.
    """
    with self._transaction() as connection:
      rows = _rows(connection, prompts, "status, settled_at, is_taken")
      return {p: State(s, at, bool(taken)) for p, s, at, taken in rows}

  def take(self, prompts: Sequence[int]) -> dict[int, Label | None]:
    """Ends the wait for questions, and takes what was answered.

    Args:
      prompts: their ids.

    Returns:
      A label for each, or None where it was skipped or nobody came.
    """
    with self._transaction(writes=True) as connection:
      rows = _rows(connection, prompts, "status, label, who")
      connection.executemany(
        "UPDATE questions SET is_open = 0, is_taken = status != 'waiting' "
        "WHERE prompt_id = ?",
        [(prompt,) for prompt in prompts],
      )
      return {
        prompt: Label(label, who) if status == "answered" else None
        for prompt, status, label, who in rows
      }

  # What a page does.

  def lease(
    self, page: str, *, seconds: float = 30.0, now: float | None = None
  ) -> Shown | None:
    """Gives a page a question that no other page has.

    Args:
      page: names it. It gets the question that it has again, if there is one.
      seconds: how long the question is its own.
      now: the time, in seconds since 1970; the clock's by default.

    Returns:
      The oldest such question, or None.
    """
    now = time.time() if now is None else now
    with self._transaction(writes=True) as connection:
      row = connection.execute(
        "SELECT prompt_id, round, document, seed, step FROM questions "
        "WHERE is_open AND status = 'waiting' "
        "AND (page IS NULL OR page = ?1 OR lease_until <= ?2) "
        "ORDER BY page IS NOT ?1, asked_at, rowid LIMIT 1",
        (page, now),
      ).fetchone()
      if row is None:
        return None
      connection.execute(
        "UPDATE questions SET page = ?, lease_until = ? WHERE prompt_id = ?",
        (page, now + seconds, row[0]),
      )
    return _read(*row)

  def renew(self, page: str, prompt: int, *, seconds: float = 30.0) -> str:
    """Keeps a question for a page a while longer, if it still has it.

    Args:
      page: names it.
      prompt: id of the question.
      seconds: how long.

    Returns:
      "yours"; "elsewhere" when another page has it; "answered" or "skipped";
      "closed" when the run gave up; "unknown".
    """
    now = time.time()
    with self._transaction(writes=True) as connection:
      row = connection.execute(
        "SELECT status, is_open, page, lease_until FROM questions "
        "WHERE prompt_id = ?",
        (prompt,),
      ).fetchone()
      if row is None:
        return "unknown"
      status, is_open, holder, until = row
      if status != "waiting":
        return status
      if not is_open:
        return "closed"
      if holder not in (None, page) and until > now:
        return "elsewhere"
      connection.execute(
        "UPDATE questions SET page = ?, lease_until = ? WHERE prompt_id = ?",
        (page, now + seconds, prompt),
      )
      return "yours"

  def settle(
    self,
    page: str,
    prompt: int,
    round: int,
    *,
    answer: str | None = None,
    choice: int | None = None,
    who: str = "annotator",
  ) -> str | None:
    """Answers a question or, with neither answer nor choice, skips it.

    The first answer counts, whichever page it comes from.

    Args:
      page: names the page.
      prompt: id of the question.
      round: of the question that was shown.
      answer: what was typed.
      choice: number of a cluster, from 0.
      who: answered.

    Returns:
      The label that is kept, None if it was skipped.

    Raises:
      AnswerError: nothing was kept, and why.
    """
    if answer is not None and choice is not None:
      raise AnswerError("Choose an answer or type one, not both.")
    with self._transaction(writes=True) as connection:
      row = connection.execute(
        "SELECT round, document, seed, step, status, is_open, label, page "
        "FROM questions WHERE prompt_id = ?",
        (prompt,),
      ).fetchone()
      if row is None:
        raise AnswerError(f"There is no question {prompt}: nothing was kept.")
      asked, document, seed, step, status, is_open, kept, owner = row
      if asked != round:
        raise AnswerError(
          "The question was asked again meanwhile, with other responses: this "
          "answer was not counted, look at the question again."
        )
      shown = _read(prompt, asked, document, seed, step)
      label = _parse(shown, answer, choice)
      if status != "waiting":
        if owner == page and label == kept:
          return label  # A second click.
        raise AnswerError(
          f"The question was {status} already"
          + (f" with {kept!r}" if status == "answered" else "")
          + ("" if owner == page else " in another page")
          + ": this answer was not counted."
        )
      if label is None and not is_open:
        raise AnswerError("The run no longer waits for it: nothing to skip.")
      connection.execute(
        "UPDATE questions SET status = ?, label = ?, who = ?, page = ?, "
        "settled_at = ? WHERE prompt_id = ?",
        (
          "skipped" if label is None else "answered",
          label,
          who,
          page,
          time.time(),
          prompt,
        ),
      )
      return label

  def last(self, page: str) -> Settled | None:
    """Returns what a page settled last.

    Args:
      page: names it.

    Returns:
      It, or None if it settled nothing.
    """
    with self._transaction() as connection:
      row = _last(connection, page)
      return None if row is None else Settled(row[0], row[1], not row[2])

  def undo(self, page: str) -> int:
    """Takes back what a page settled last, unless a run has it.

    Args:
      page: names it. It has the question again.

    Returns:
      The id of the prompt.

    Raises:
      AnswerError: there is nothing, or it is too late.
    """
    with self._transaction(writes=True) as connection:
      row = _last(connection, page)
      if row is None:
        raise AnswerError("There is nothing to take back in this page.")
      prompt, _, is_taken = row
      if is_taken:
        raise AnswerError(
          "The run has taken the last answer: it can no longer be taken back."
        )
      connection.execute(  # A page has one question at a time.
        "UPDATE questions SET page = NULL "
        "WHERE page = ? AND status = 'waiting'",
        (page,),
      )
      connection.execute(
        "UPDATE questions SET status = 'waiting', label = NULL, who = NULL, "
        "settled_at = NULL, lease_until = ? WHERE prompt_id = ?",
        (time.time() + 30.0, prompt),
      )
      return prompt

  def counts(self) -> Counts:
    """Counts questions and spending."""
    with self._transaction() as connection:
      waiting, answered, skipped, asked, settled = connection.execute(
        "SELECT TOTAL(status = 'waiting' AND is_open), "
        "TOTAL(status = 'answered'), TOTAL(status = 'skipped'), "
        "MAX(CASE WHEN status = 'waiting' AND is_open THEN asked_at END), "
        "MAX(settled_at) FROM questions"
      ).fetchone()
      (patience,) = connection.execute(
        "SELECT MAX(patience) FROM questions "
        "WHERE status = 'waiting' AND is_open"
      ).fetchone()
      if patience is not None:
        since = max(asked, settled or 0)
        patience = max(since + patience - time.time(), 0.0)
      return Counts(
        int(waiting),
        int(answered),
        int(skipped),
        patience,
        label_ledger.read_spending(connection),
        label_ledger.read_budget(connection),
      )

  def _transaction(
    self, writes: bool = False
  ) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    return label_ledger.transaction(
      self.path, busy_s=self._busy_s, writes=writes
    )


def excerpt(text: str, part: int) -> Excerpt:
  """Leaves out the middle of a long text.

  Args:
    text: anything.
    part: characters that are kept at either end.

  Returns:
    The excerpt; all of the text if it has at most two parts.

  >>> excerpt("abcdefg", 2)
  Excerpt(head='ab', left_out=3, tail='fg')
  """
  if len(text) <= 2 * part:
    return Excerpt(text, 0, "")
  return Excerpt(text[:part], len(text) - 2 * part, text[-part:])


def _parse(shown: Shown, answer: str | None, choice: int | None) -> str | None:
  """Reads what was typed or chosen; None if neither."""
  if choice is not None:
    if not 0 <= choice < len(shown.clusters):
      raise AnswerError(f"There is no answer {choice + 1} to choose.")
    label = shown.clusters[choice].label
    if label is None:
      raise AnswerError("That one is no answer: type one, or skip.")
    return label
  if answer is None:
    return None
  try:
    return parse_label(shown.form, answer)
  except ValueError as error:
    raise AnswerError(f"{error} Nothing was kept.") from error


def _write(question: Question) -> tuple[str, str]:
  """Returns a digest of the prompt, and the question as JSON in ASCII.

  So NUL, half of a surrogate pair and the like come back as they were.
  """
  describe_form(question.form)  # There has to be such a form.
  shown = question.clusters[:MAX_CLUSTERS]
  hidden = question.clusters[MAX_CLUSTERS:]
  document: dict[str, Any] = {
    "text": excerpt(question.text, MAX_PROMPT_PART),
    "form": question.form,
    "clusters": [
      (
        None if c.answer is None else excerpt(c.answer, MAX_LABEL_SIZE),
        c.count,
        excerpt(c.text, MAX_RESPONSE_PART),
        _label(question.form, c.answer),
      )
      for c in shown
    ],
    "other_clusters": len(hidden),
    "other_responses": sum(c.count for c in hidden),
  }
  text = json.dumps(question.text).encode()
  return hashlib.sha256(text).hexdigest(), json.dumps(document)


def _label(form: str, answer: str | None) -> str | None:
  """What it means to choose a cluster; None if that is no answer."""
  if answer is None:
    return None
  try:
    return parse_label(form, answer)
  except ValueError:
    return None


def _read(
  prompt: int, round: int, document: str, seed: int, step: int
) -> Shown:
  values = json.loads(document)
  return Shown(
    prompt_id=prompt,
    round=round,
    text=Excerpt(*values["text"]),
    clusters=tuple(
      ShownCluster(
        None if answer is None else Excerpt(*answer),
        count,
        Excerpt(*response),
        label,
      )
      for answer, count, response, label in values["clusters"]
    ),
    other_clusters=values["other_clusters"],
    other_responses=values["other_responses"],
    form=values["form"],
    seed=seed,
    step=step,
  )


def _rows(
  connection: sqlite3.Connection, prompts: Sequence[int], columns: str
) -> list[tuple]:
  """Rows of questions; one look-up each, as SQLite limits a list's length."""
  statement = f"SELECT prompt_id, {columns} FROM questions WHERE prompt_id = ?"
  found = (connection.execute(statement, (p,)).fetchone() for p in prompts)
  return [row for row in found if row is not None]


def _last(connection: sqlite3.Connection, page: str) -> tuple | None:
  """Prompt, label and whether it was taken, of what a page settled last."""
  return connection.execute(
    "SELECT prompt_id, label, is_taken FROM questions "
    "WHERE page = ? AND status != 'waiting' "
    "ORDER BY settled_at DESC, rowid DESC LIMIT 1",
    (page,),
  ).fetchone()
