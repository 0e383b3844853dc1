"""The questions of a ledger: what a run asks, and what pages answer.

A run asks and polls. A question is open while a run waits for it; an answer
that comes later is kept for when it asks again. Pages are told apart by their
names, and each has one question at a time, for as long as it shows life.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from saw_jax.annotate import questions as questions_lib
from saw_jax.annotate.database import Database, LedgerError, Sql
from saw_jax.annotate.questions import Label, Question

# How many characters of a text are kept from its beginning, and as many from
# its end, where the answer stands: a policy may write megabytes.
_PROMPT_PART, _RESPONSE_PART = 20_000, 4_000
_MAX_CLUSTERS = 9  # one for each digit
_LEASE_S = 30.0


class AnswerError(ValueError):
  """A page's answer was not counted; the message tells the annotator why."""


class Shown(NamedTuple):
  """A question as a page has it; a text is its head, what is cut, its tail."""

  digest: str  # of the prompt
  is_waiting: bool  # a run waits for it
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


class Questions(Database):
  """The questions of a file."""

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

  def questions(self) -> list[Shown]:
    """All that were ever asked, the oldest first."""
    with self.transaction() as sql:
      return _shown(sql, "ORDER BY asked_at, rowid")

  def lease(self, page: str, *, now: float | None = None) -> Shown | None:
    """Gives a page its question again, or the oldest that no other page has."""
    now = time.time() if now is None else now
    with self.transaction(writes=True) as sql:
      found = _shown(
        sql,
        "WHERE is_open AND status = 'waiting' "
        "AND (page IS NULL OR page = ?1 OR lease_until <= ?2 "
        "OR lease_until > ?3) "  # of before the clock was set back
        "ORDER BY page IS NOT ?1, asked_at, rowid LIMIT 1",
        *(page, now, now + _LEASE_S),
      )
      for shown in found:
        _hold(sql, page, shown.prompt_id, now)
      return found[0] if found else None

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


def _shown(sql: Sql, which: str, *values: Any) -> list[Shown]:
  rows = sql(
    "SELECT digest, status = 'waiting' AND is_open, prompt_id, round, seed, "
    f"step, document FROM questions {which}",
    *values,
  )
  return [Shown(*asked, **json.loads(document)) for *asked, document in rows]


def _rows(sql: Sql, prompts: Iterable[int], columns: str) -> dict[int, tuple]:
  """Looks questions up one by one, since SQLite limits the length of a list."""
  statement = f"SELECT {columns} FROM questions WHERE prompt_id = ?"
  return {p: row for p in prompts for row in sql(statement, p)}


def _now(sql: Sql) -> float:
  """The time, or just after the latest in the file if a clock was set back."""
  ((latest,),) = sql(
    "SELECT MAX(MAX(asked_at, IFNULL(settled_at, 0))) FROM questions"
  )
  return max(time.time(), (latest or 0.0) + 1e-6)


def _hold(sql: Sql, page: str, prompt: int, now: float) -> None:
  _update(sql, prompt, "page = ?, lease_until = ?", page, now + _LEASE_S)


def _update(sql: Sql, prompt: int, change: str, *values) -> None:
  sql(f"UPDATE questions SET {change} WHERE prompt_id = ?", *values, prompt)


def _last(sql: Sql, page: str) -> tuple | None:
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
