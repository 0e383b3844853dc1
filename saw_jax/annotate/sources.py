"""Who answers questions for labels: the data set, or a person."""

import logging
import math
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence

from saw_jax.annotate import ledger as label_ledger
from saw_jax.annotate import queue as label_queue
from saw_jax.annotate.questions import (
  Cluster,
  Label,
  LabelSource,
  Question,
  make_question,
  parse_label,
)
from saw_jax.tasks import base

__all__ = [
  "Annotator",
  "Cluster",
  "GroundTruth",
  "Label",
  "LabelSource",
  "Question",
  "make_question",
  "parse_label",
]

_LOG = logging.getLogger(__name__)


class GroundTruth:
  """Answers with the references of the data set."""

  name = "ground truth"

  def __init__(
    self,
    examples: Sequence[base.Example] | Mapping[int, base.Example],
    *,
    price: float = 1.0,
  ):
    """Looks at nothing yet.

    Args:
      examples: of a task, which may be lazy, or examples by key.
      price: of a label.
    """
    self.price = price
    self._examples = examples

  def answer(self, questions: Sequence[Question]) -> list[Label | None]:
    """Returns the reference of each prompt.

    Args:
      questions: about examples of the data set.

    Returns:
      A label for each.

    Raises:
      ValueError: the data set has no example of that key.
    """
    return [
      Label(self._find(q.prompt_id).reference, self.name) for q in questions
    ]

  def _find(self, key: int) -> base.Example:
    examples = self._examples
    if not isinstance(examples, Mapping):
      # Keys count up from the first one, unless the examples are a subset: then
      # all of them are looked at, once.
      place = key - examples[0].key if examples else -1
      if 0 <= place < len(examples) and examples[place].key == key:
        return examples[place]
      self._examples = examples = {example.key: example for example in examples}
    if key not in examples:
      raise ValueError(
        f"there is no example {key} whose label could be bought."
      )
    return examples[key]


class Annotator:
  """Asks a person, who answers in a page of another process, and waits.

  What was answered is in the ledger before this process has it: when the run is
  killed while it waits, and asks again, it gets at once what is there.
  """

  name = "annotator"

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    timeout_s: float,
    poll_s: float = 0.5,
    undo_s: float = 3.0,
    price: float = 1.0,
    stop: Callable[[], bool] | None = None,
  ):
    """Opens the queue in a ledger, which is made if absent.

    Args:
      path: of the ledger.
      timeout_s: seconds without any answer after which the run goes on with
        what there is; `inf` waits for ever.
      poll_s: seconds between two looks.
      undo_s: seconds after the last answer in which it can be taken back.
      price: of a label.
      stop: asked at each look; when it says so, the wait ends with
        KeyboardInterrupt, and the questions stay.

    Raises:
      LedgerError: see `label_ledger.LabelLedger`.
      ValueError: a time is not positive.
    """
    for what, value in (("timeout_s", timeout_s), ("poll_s", poll_s)):
      if not value > 0:
        raise ValueError(f"{what} is not above 0: {value}.")
    if not undo_s >= 0:
      raise ValueError(f"undo_s is negative: {undo_s}.")
    self.price = price
    self._path = pathlib.Path(path)
    self._timeout_s, self._poll_s, self._undo_s = timeout_s, poll_s, undo_s
    self._stop = stop
    label_ledger.create(self._path)
    self._queue = label_queue.LabelQueue(self._path)

  def answer(self, questions: Sequence[Question]) -> list[Label | None]:
    """Returns what a person answered.

    Args:
      questions: several of them may be about one prompt, which is asked once.

    Returns:
      A label for each; None where it was skipped, or nobody came in time.

    Raises:
      LedgerError: the ledger fails. Answers that are in it stay there.
      KeyboardInterrupt: `stop` said so.
    """
    prompts = list(dict.fromkeys(q.prompt_id for q in questions))
    self._queue.ask(questions, patience=self._timeout_s)
    self._wait(prompts)
    labels = self._queue.take(prompts)
    missing = sum(label is None for label in labels.values())
    if missing:
      _LOG.warning(
        "%d of %d questions have no label: skipped, or not answered in time",
        missing,
        len(prompts),
      )
    return [labels[q.prompt_id] for q in questions]

  def _wait(self, prompts: Sequence[int]) -> None:
    """Returns when all is settled, or nothing was for too long."""
    before: dict[int, label_queue.State] = {}
    changed = time.monotonic()
    is_first, was_locked = True, False
    while True:
      try:
        states, was_locked = self._queue.states(prompts), False
      except label_ledger.LedgerLockedError as error:
        if not was_locked:
          _LOG.warning("%s; the run waits", error)
        states, was_locked = before, True
      now = time.monotonic()
      open_count = sum(s.status == "waiting" for s in states.values())
      if states != before or is_first:
        changed = now
        if open_count:
          self._say(open_count, len(prompts), is_first)
      is_done = bool(states) and not open_count
      # Known from the start: nobody is there who could take it back.
      if is_done and (is_first or now - changed >= self._undo_s):
        return
      if now - changed >= self._timeout_s:
        return
      if self._stop is not None and self._stop():
        raise KeyboardInterrupt("stopped while it waited for labels")
      before, is_first = states, False
      time.sleep(self._poll_s)

  def _say(self, open_count: int, count: int, is_first: bool) -> None:
    if not is_first:
      _LOG.info("%d of %d questions are answered", count - open_count, count)
      return
    path = shlex.quote(str(self._path))
    patience = (
      f"goes on without them after {self._timeout_s:g} s without an answer"
      if math.isfinite(self._timeout_s)
      else "waits for them"
    )
    _LOG.info(
      "labels wanted from a person: %d; the run %s: "
      "python experiments/annotate.py --ledger=%s",
      open_count,
      patience,
      path,
    )
