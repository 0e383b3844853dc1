"""Who answers questions for labels: the data set, or a person."""

import logging
import math
import shlex
import time
from collections.abc import Callable, Sequence

from saw_jax.annotate.database import LedgerLockedError
from saw_jax.annotate.ledger import LabelLedger
from saw_jax.annotate.questions import Label, Question
from saw_jax.tasks import base

_LOG = logging.getLogger(__name__)


class GroundTruth:
  """Answers with the references of a data set's examples, which may be lazy."""

  name = "ground truth"

  def __init__(self, examples: Sequence[base.Example], price: float = 1.0):
    self.price = price
    self._examples, self._by_key = examples, None

  def answer(self, questions: list[Question]) -> list[Label | None]:
    found = (self._find(q.prompt_id).reference for q in questions)
    return [Label(text, self.name) for text in found]

  def _find(self, key: int) -> base.Example:
    # Keys usually count up from the first. In a subset they do not: then all
    # examples are read once, to find them by key.
    examples = self._examples
    place = key - examples[0].key if examples else -1
    if 0 <= place < len(examples) and examples[place].key == key:
      return examples[place]
    if self._by_key is None:
      self._by_key = {example.key: example for example in examples}
    if key not in self._by_key:
      raise ValueError(
        f"there is no example {key} whose label could be bought."
      )
    return self._by_key[key]


class Annotator:
  """Asks a person, who answers in a page of another process, and waits.

  After `timeout_s` without any answer the run goes on; for `undo_s` the last
  one can be taken back. `stop`, asked every `poll_s`, ends the wait.
  """

  name = "annotator"

  def __init__(
    self,
    ledger: LabelLedger,
    *,
    timeout_s: float,
    poll_s: float = 0.5,
    undo_s: float = 3.0,
    price: float = 1.0,
    stop: Callable[[], bool] | None = None,
    tell: Callable[[str], None] = lambda text: None,
  ):
    for what, value in (("timeout_s", timeout_s), ("poll_s", poll_s)):
      if not value > 0:
        raise ValueError(f"{what} is not above 0: {value}.")
    if not undo_s >= 0:
      raise ValueError(f"undo_s is negative: {undo_s}.")
    self.price, self._ledger, self._stop, self._tell = price, ledger, stop, tell
    self._timeout_s, self._poll_s, self._undo_s = timeout_s, poll_s, undo_s

  def answer(self, questions: list[Question]) -> list[Label | None]:
    """Returns what a person answered; None where skipped or not in time."""
    prompts = list(dict.fromkeys(q.prompt_id for q in questions))
    self._ledger.ask(questions, patience=self._timeout_s)
    self._wait(prompts)
    labels = self._ledger.take(prompts)
    if missing := sum(label is None for label in labels.values()):
      _LOG.warning(
        "%d of %d questions have no label: skipped, or not answered in time",
        *(missing, len(prompts)),
      )
    return [labels[q.prompt_id] for q in questions]

  def _wait(self, prompts: Sequence[int]) -> None:
    """Returns when all is settled, or nothing was for too long."""
    states, changed, is_locked = None, time.monotonic(), False
    while True:
      before = states
      try:
        states, is_locked = self._ledger.states(prompts), False
      except LedgerLockedError as error:
        if not is_locked:
          _LOG.warning("%s; the run waits", error)
        is_locked = True
      waiting = [s for s in (states or {}).values() if s[0] == "waiting"]
      if states != before:
        changed = time.monotonic()
        if waiting and before is None:
          self._call_for(len(waiting))
        elif waiting:
          settled = len(prompts) - len(waiting)
          _LOG.info("%d of %d questions are answered", settled, len(prompts))
      still = time.monotonic() - changed
      # Settled before the wait began: nobody is there to take it back.
      is_final = before is None or still >= self._undo_s
      if states and not waiting and is_final or still >= self._timeout_s:
        return
      if self._stop is not None and self._stop():
        raise KeyboardInterrupt("stopped while it waited for labels")
      time.sleep(self._poll_s)

  def _call_for(self, count: int) -> None:
    patience = "waits for them"
    if math.isfinite(limit := self._timeout_s):
      patience = f"goes on without them after {limit:g} s without an answer"
    text = (
      f"labels wanted from a person: {count}; the run {patience}: saw "
      f"annotate --ledger={shlex.quote(str(self._ledger.path))}"
    )
    _LOG.info("%s", text)
    self._tell(text)
