"""Label Studio: its annotations are worth what the page's answers are.

`make harness` also asks its own SDK what it thinks of the files.
"""

import json
import xml.etree.ElementTree

import pytest

from saw_jax.annotate import label_studio
from saw_jax.annotate.ledger import LabelLedger
from saw_jax.annotate.questions import Cluster, Label, Question
from saw_jax.annotate.sources import Annotator


def ask(*prompts, form="integer", answers=("7", "8", None), step=3):
  clusters = tuple(Cluster(a, 2, f"it is {a}") for a in answers)
  return [Question(p, f"prompt {p}", clusters, step, 0, form) for p in prompts]


def region(name, kind, *texts):
  key = "choices" if kind == "choices" else "text"
  return {
    "id": "Dx_aB91ISN",
    "from_name": name,
    "to_name": "question",
    "type": kind,
    "origin": "manual",
    "value": {key: list(texts)},
  }


def annotate(task, *, choice=None, typed=None, skips=False, **others):
  """Adds an annotation as Label Studio exports it."""
  result = [region("choice", "choices", choice)] if choice is not None else []
  result += [region("answer", "textarea", typed)] if typed is not None else []
  count = len(task.setdefault("annotations", []))
  annotation = {
    "id": 100 + count,
    "completed_by": 5,
    "result": result,
    "was_cancelled": skips,
    "created_at": f"2026-11-28T22:00:0{count}.000000Z",
    **others,
  }
  task["annotations"].append(annotation)
  return task


def export(ledger):
  """Through a file, as people do it; with the ids that an import gives."""
  tasks = json.loads(json.dumps(label_studio.export_tasks(ledger)))
  return [{"id": 10 + i, **task} for i, task in enumerate(tasks)]


def taken(ledger, *prompts):
  return {p: x and x.text for p, x in ledger.take(prompts).items()}


def test_a_question_goes_out_and_its_answer_comes_back(path, ledger):
  ledger.ask(ask(1, 2, 3, 4))
  ledger.settle("some-page", 3, 1, answer="9")
  first, second, third = export(ledger)
  data = first["data"]
  assert (data["question"], data["step"]) == ("prompt 1", 3)
  assert [x["alias"] for x in data["answers"]] == ["7", "8"]
  assert "integer" in data["expected"]
  assert len(data["responses"]) == 3
  annotate(first, choice="8")
  annotate(second, typed=" 12.0 ", completed_by={"id": 3, "email": "a@b.org"})
  annotate(third, skips=True)
  for _ in range(2):  # To import again changes nothing.
    done = label_studio.import_answers(ledger, [first, second, third])
    assert done == (2, 1, 0, [])
  assert ledger.take([2])[2] == Label("12", "label studio a@b.org")
  assert ledger.counts()[:3] == (0, 3, 1)
  # The run buys them, at its own price.
  source = Annotator(ledger, timeout_s=1, undo_s=0, price=2.5)
  bought = LabelLedger(path).buy(ask(1, 2, 3), source)
  assert [x.text for x in bought] == ["8", "12", "9"]
  assert ledger.totals(0).spent == 7.5


def test_files_and_what_is_said(ledger, tmp_path):
  ledger.ask(ask(1, 2, 3))
  tasks, config = tmp_path / "questions.json", tmp_path / "labeling.xml"
  said = label_studio.write(ledger, str(tasks), str(config))
  assert said.startswith("3 questions")
  assert config.read_text() == label_studio.LABELING_CONFIG
  one, two, _ = found = json.loads(tasks.read_text())
  annotate(one, choice="7")
  annotate(two, typed="no")
  tasks.write_text(json.dumps(found))
  first, second = str(label_studio.read(ledger, str(tasks))).split("\n")
  assert first.startswith("1 answered, 0 skipped, 1 not annotated")
  assert "annotation 100" in second
  tasks.write_text("{}")
  with pytest.raises(ValueError, match="list"):
    label_studio.read(ledger, str(tasks))


def test_several_annotators(ledger):
  ledger.ask(ask(1, 2, 3))
  one, two, three = export(ledger)
  annotate(one, skips=True)
  annotate(one, choice="8", created_at="2026-11-28T23:00:00Z")
  annotate(one, choice="7")  # Earlier than the one before.
  annotate(two, choice="7")
  annotate(two, typed="7")
  done = label_studio.import_answers(ledger, [one, two, three])
  assert done[:3] == (2, 0, 1)
  (refused,) = done.refused
  assert "annotation 101" in refused and "'7'" in refused
  assert taken(ledger, 1, 2, 3) == {1: "7", 2: "7", 3: None}


def test_an_answer_counts_where_the_run_has_asked_again(ledger):
  ledger.ask(ask(1, 2))
  one, two = export(ledger)
  ledger.take([1, 2])  # Nobody came.
  ledger.ask(ask(1, 2, answers=("9", "8"), step=5))
  tasks = [annotate(one, choice="7"), annotate(two, choice="8")]
  assert label_studio.import_answers(ledger, tasks).answered == 2
  assert taken(ledger, 1, 2) == {1: "7", 2: "8"}


@pytest.mark.parametrize(
  ("change", "word"),
  [
    ({"typed": "perhaps 7"}, "integer"),
    ({"typed": "7\u202e"}, "U+202E"),
    ({"choice": "7", "typed": "7"}, "One answer"),
    ({}, "One answer"),
    ({"typed": " "}, "One answer"),
    ({"result": [{"from_name": "answer"}]}, "form"),
    ({"result": None}, "form"),
    ({"result": [region("answer", "textarea", 7)]}, "form"),
    ({"result": [region("choice", "choices", [])]}, "form"),
  ],
)
def test_what_the_page_would_refuse_is_named(ledger, change, word):
  ledger.ask(ask(1))
  (task,) = export(ledger)
  done = label_studio.import_answers(ledger, [annotate(task, **change)])
  assert done[:3] == (0, 0, 0)
  (refused,) = done.refused
  assert "Task 10, annotation 100" in refused and word in refused
  assert ledger.counts().waiting == 1


def test_what_is_no_question_of_this_ledger(ledger, tmp_path):
  other = LabelLedger(tmp_path / "other.sqlite")
  other.ask([Question(1, "another prompt", (), 0, 0, "integer")])
  ledger.ask(ask(1, 2))
  (foreign,) = export(other)
  unknown, answered = export(ledger)
  unknown["data"]["prompt_id"] = 99
  ledger.settle("some-page", 2, 1, answer="3")
  tasks = [
    *(annotate(task, choice="7") for task in (foreign, unknown, answered)),
    annotate({"id": 4, "data": {"text": "of another project"}}, choice="7"),
    [],
    {"annotations": [None]},
  ]
  done = label_studio.import_answers(ledger, tasks)
  assert done[:3] == (0, 0, 0)
  words = ["question 1", "question 99", "'3'", "form", "Entry 4", "Entry 5"]
  for word, refused in zip(words, done.refused, strict=True):
    assert word in refused
  assert taken(ledger, 1, 2) == {1: None, 2: "3"}


@pytest.mark.parametrize(
  ("form", "answer"),
  [
    ("text", "a $5 tea"),
    ("integer", "-7.0"),
    ("math", "\\dfrac{6}{-4}"),
    ("roles ann bob", "ann=knight|bob=knave"),
    ("calls", '{"calls": [], "response": true}'),
  ],
)
def test_a_label_of_any_form_comes_back_as_it_is(ledger, form, answer):
  ledger.ask(ask(1, form=form, answers=(answer,)))
  (task,) = export(ledger)
  (choice,) = task["data"]["answers"]
  ledger.ask(ask(2, form=form, answers=()))
  (_, again) = export(ledger)
  tasks = [annotate(t, choice=choice["alias"]) for t in (task, again)]
  assert label_studio.import_answers(ledger, tasks).refused == []
  assert set(taken(ledger, 1, 2).values()) == {choice["alias"]}
  assert "$" not in choice["value"]


def test_hostile_text_is_spelled_out(ledger):
  text = "a\u202eb\x00c\ud800 <b>" + "x" * 50_000
  ledger.ask([Question(1, text, (), 0, 0)])
  shown = export(ledger)[0]["data"]["question"]
  assert shown.startswith("a[U+202E]b[U+0000]c[U+D800] <b>xxx")
  assert "10,010" in shown and len(shown) < 41_000


def test_controls_are_of_the_fields_of_a_task(ledger):
  ledger.ask(ask(1))
  (task,) = export(ledger)
  root = xml.etree.ElementTree.fromstring(label_studio.LABELING_CONFIG)
  values = [x.get("value", "") for x in root.iter()]
  words = {w.strip(",:") for v in values for w in v.split() if w[0] == "$"}
  assert {word[1:] for word in words} <= set(task["data"])


def test_the_sdk_reads_tasks_and_config(ledger, tmp_path):
  pytest.importorskip("label_studio_sdk", reason="see `make harness`")
  from label_studio_sdk.converter import Converter
  from label_studio_sdk.label_interface import LabelInterface
  from label_studio_sdk.label_interface.objects import TaskValue

  interface = LabelInterface(label_studio.LABELING_CONFIG)
  interface.validate()
  ledger.ask(ask(1, 2, 3))
  tasks = export(ledger)
  for task in tasks:
    assert interface.validate_task(task)
  interface.load_task(tasks[0]["data"])
  annotate(tasks[0], choice="8")
  annotate(tasks[1], typed="12")
  annotate(tasks[2], skips=True)
  for task in tasks:
    TaskValue(**task)
    for annotation in task["annotations"]:
      assert interface._validate_object(annotation, return_errors=True) == []
  # Through the SDK's own export to a file.
  before, after = tmp_path / "in.json", tmp_path / "out"
  before.write_text(json.dumps(tasks))
  converter = Converter(label_studio.LABELING_CONFIG, str(tmp_path))
  converter.convert_to_json(str(before), str(after), is_dir=False)
  exported = json.loads((after / "result.json").read_text())
  assert label_studio.import_answers(ledger, exported) == (2, 1, 0, [])
  assert ledger.counts()[:3] == (0, 2, 1)
