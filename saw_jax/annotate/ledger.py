"""The ledger of labels: what was bought when, beside the questions that wait.

A purchase is named by seed, step and prompt, and is decided once, so that a
step that a run repeats is charged once and sees what it saw.
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from saw_jax.annotate.asking import Questions
from saw_jax.annotate.database import LedgerError, Sql
from saw_jax.annotate.questions import Label, LabelSource, Question

LEDGER_NAME = "labels.sqlite"  # in a run directory
# The standing of a purchase: 1 if it counts. Set aside: of a step that is to be
# repeated. Abandoned: the repeated step did not buy it again.
_ASIDE, _ABANDONED = 0, -1

_NAMED = "seed = ? AND step = ? AND prompt_id = ?"


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


class Counts(NamedTuple):
  """The questions and the spending in numbers."""

  waiting: int
  answered: int
  skipped: int
  patience: float | None  # seconds until the run gives up; None: never
  spent: Mapping[int, float]  # by seed
  total: float | None  # of the budget


class LabelLedger(Questions):
  """Purchases and questions, in one file.

  The budget is that of each seed, from now on; by default what the file says,
  at first no limit.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    budget: Budget | None = None,
    **options: Any,  # of `Database`
  ):
    super().__init__(path, **options)
    with self.transaction(writes=budget is not None) as sql:
      if budget is not None:
        values = budget.per_step, budget.total
        sql("UPDATE budget SET per_step = ?, total = ?", *values)
      self.budget = Budget(*sql("SELECT per_step, total FROM budget")[0])

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
          # A purchase set aside takes up its budget again. Tenths do not add up
          # to the last digit, so that a little less than the price will do.
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
          # If another process of this run was faster, its purchase counts.
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


def _label(p: Purchase) -> Label | None:
  return None if p.label is None else Label(p.label, p.who)


def _spent(purchases: Iterable[Purchase]) -> dict[int, float]:
  """What each seed has spent, as an exact sum."""
  prices = collections.defaultdict(list)
  for purchase in purchases:
    prices[purchase.seed].append(purchase.price)
  return {seed: math.fsum(some) for seed, some in prices.items()}


def _purchases(
  sql: Sql, where: str = "standing = 1", *values: Any
) -> list[Purchase]:
  rows = sql(
    "SELECT seed, step, prompt_id, label, who, price, bought_at FROM purchases "
    f"WHERE {where} ORDER BY seed, step, prompt_id",
    *values,
  )
  found = map(Purchase._make, rows)
  return [p._replace(label=p.label and json.loads(p.label)) for p in found]


def _describe(sql: Sql, step: int) -> dict[str, Any]:
  """Counts and digests the purchases before a step, but not their times."""
  before = _purchases(sql, "standing = 1 AND step < ?", step)
  rows = [purchase[:-1] for purchase in before]
  digest = hashlib.sha256(json.dumps(rows).encode())
  return {"step": step, "purchases": len(rows), "digest": digest.hexdigest()}
