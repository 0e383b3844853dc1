"""The questions of a ledger as Label Studio's tasks, and its answers back.

A project has `LABELING_CONFIG` as its interface, imports what `export_tasks`
gives, and is exported as JSON (not JSON-MIN, which has no skips). The ledger
checks answers as it does the page's, the first of a question counts, and it is
kept as text: it also counts where the run has asked again meanwhile.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from saw_jax.annotate.asking import AnswerError, Shown
from saw_jax.annotate.ledger import LabelLedger
from saw_jax.annotate.questions import describe_form, is_hidden
from saw_jax.tasks import row_files

# To the ledger all imported answers come from one page, so that importing a
# file again changes nothing.
_PAGE = "label-studio"
_CHOICE, _ANSWER = "choice", "answer"  # names of controls
_CONFIG = pathlib.Path(__file__).parent / "assets" / "label_studio.xml"
LABELING_CONFIG = _CONFIG.read_text(encoding="utf-8")


class Imported(NamedTuple):
  """What became of the tasks of a file."""

  answered: int
  skipped: int
  untouched: int  # that nobody has annotated yet
  refused: list[str]  # a sentence for each annotation that was not counted

  def __str__(self) -> str:
    done = f"{self.answered} answered, {self.skipped} skipped"
    others = f"{self.untouched} not annotated yet"
    refused = f"{len(self.refused)} annotations not counted"
    return "\n  ".join([f"{done}, {others}, {refused}", *self.refused])


def write(
  ledger: LabelLedger, path: str, labeling_config: str | None = None
) -> str:
  """Writes the tasks to a file, and the interface to another; says so."""
  tasks = export_tasks(ledger)
  pathlib.Path(path).write_text(json.dumps(tasks, indent=1), "utf-8")
  if labeling_config:
    pathlib.Path(labeling_config).write_text(LABELING_CONFIG, "utf-8")
  return f"{len(tasks)} questions are in {path}"


def read(ledger: LabelLedger, path: str) -> Imported:
  """Reads what a project has exported as JSON."""
  return import_answers(ledger, row_files.read_rows(path))


def export_tasks(ledger: LabelLedger) -> list[dict[str, Any]]:
  """Makes a task of each question that waits, the oldest first."""
  waiting = (shown for shown in ledger.questions() if shown.is_waiting)
  return [{"data": _task_data(shown)} for shown in waiting]


def import_answers(ledger: LabelLedger, tasks: Iterable[Any]) -> Imported:
  """Answers the questions of a ledger with the annotations of tasks."""
  known = {asked.prompt_id: asked for asked in ledger.questions()}
  counts, refused = collections.Counter(), []
  for place, task in enumerate(tasks):
    try:
      annotations, name = list(task.get("annotations", ())), task.get("id")
      given = [a for a in annotations if not a.get("was_cancelled")]
      given.sort(key=lambda a: a.get("created_at") or "")
    except (AttributeError, TypeError):
      refused.append(f"Entry {place} is no task with annotations.")
      continue
    if not annotations:
      counts["untouched"] += 1
    outcomes = set()
    # A skip counts only if nobody has answered.
    for annotation in given or annotations[:1]:
      try:
        outcomes.add(_settle(ledger, known, task, annotation))
      except AnswerError as error:
        who = f"Task {name}, annotation {annotation.get('id')}"
        refused.append(f"{who}: {error}")
    counts.update(outcomes)
  numbers = (counts[kind] for kind in Imported._fields[:3])
  return Imported(*numbers, refused)


def _task_data(shown: Shown) -> dict[str, Any]:
  answers, responses = collections.Counter(), []
  for excerpt, count, response, label in shown.clusters:
    name = "no answer" if excerpt is None else _visible(*excerpt)
    text = _visible(*response)
    responses.append({"answer": f"{name} ({count})", "response": text})
    if label is not None:  # Two may mean the same.
      answers[label] += count
  return {
    "question": _visible(*shown.text),
    "expected": describe_form(shown.form),
    # An annotation has the alias. A dollar sign in the value would be read as
    # the name of a field of this task.
    "answers": [
      {"value": f"{_visible(label)} ({n})".replace("$", "＄"), "alias": label}
      for label, n in answers.items()
    ],
    "responses": responses,
    "prompt_id": shown.prompt_id,
    "prompt_digest": shown.digest,
    "seed": shown.seed,
    "step": shown.step,
  }


def _settle(
  ledger: LabelLedger,
  known: Mapping[int, Shown],
  task: Mapping[str, Any],
  annotation: Mapping[str, Any],
) -> str:
  """Answers or skips a question; "answered" or "skipped"."""
  try:
    data = task["data"]
    prompt, digest = data["prompt_id"], data["prompt_digest"]
    asked = known.get(prompt)
    chosen = _texts(annotation, _CHOICE, "choices")
    typed = _texts(annotation, _ANSWER, "text")
  except (LookupError, TypeError, AttributeError):
    raise AnswerError("It has not the form of an exported question.") from None
  if asked is None or asked.digest != digest:
    raise AnswerError(f"The ledger has no such question {prompt}.")
  answers: dict[str, Any] = {}
  if not annotation.get("was_cancelled"):
    if len(chosen) + len(typed) != 1:
      raise AnswerError(f"One answer is expected, not {chosen + typed}.")
    labels = [label for *_, label in asked.clusters]
    if chosen and chosen[0] in labels:
      answers["choice"] = labels.index(chosen[0])
    else:
      answers["answer"] = (chosen + typed)[0]
  who = annotation.get("completed_by")
  if isinstance(who, Mapping):
    who = who.get("email") or who.get("id")
  name = f"label studio {who or 'annotator'}"
  ledger.settle(_PAGE, prompt, asked.round, who=name, **answers)
  return "answered" if answers else "skipped"


def _texts(annotation: Mapping[str, Any], control: str, key: str) -> list[str]:
  """The values of one control in an annotation, without blank ones."""
  found = []
  for region in annotation["result"]:
    if region.get("from_name") == control:
      values = region["value"][key]
      found += [values] if isinstance(values, str) else values
  # A choice may come with its parents, of which it is the last.
  found = [x[-1] if isinstance(x, list) else x for x in found]
  return [text.strip() for text in found if text.strip()]


def _visible(head: str, left_out: int = 0, tail: str = "") -> str:
  """Spells out what cannot be seen, or would turn a line around."""
  cut = f" […{left_out:,} characters left out…] " if left_out else ""
  return "".join(
    f"[U+{ord(character):04X}]" if is_hidden(character) else character
    for character in f"{head}{cut}{tail}"
  )
