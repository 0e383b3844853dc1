"""Names of tasks, tokenizers and checkpoints."""

import importlib.util

import pytest

from saw_jax import tokenizer
from saw_jax.run import registry
from saw_jax.tasks.tool_calling.task import VOCABULARY


@pytest.mark.parametrize("name", registry.TASKS)
def test_every_task_is_made(name):
  engine = {"alfworld": "alfworld", "textworld": "textworld_express"}
  if name in engine and importlib.util.find_spec(engine[name]) is None:
    with pytest.raises(ImportError, match=rf"saw_jax\[{name}\]"):
      registry.make_task(name, {})
    return
  task = registry.make_task(name, {})
  assert task.name == name
  assert task.components


def test_options_are_the_tasks_own_config():
  task = registry.make_task("tool_calling", {"num_train": 7})
  assert len(task.examples("train")) == 7


def test_a_task_may_be_a_class_and_its_config(monkeypatch):
  path = "saw_jax.tasks.tool_calling.task"
  module = importlib.import_module(path)
  entry = (module.ToolCallingTask, module.ToolCallingConfig)
  monkeypatch.setitem(registry.TASKS, "mine", entry)
  task = registry.make_task("mine", {"num_train": 7})
  assert len(task.examples("train")) == 7


def test_every_tokenizer_is_made_and_is_another():
  made = [registry.make_tokenizer(name) for name in registry.TOKENIZERS]
  sizes = {one.vocab_size for one in made}
  assert len(sizes) == len(made) and min(sizes) > 20
  assert all(one.eos_ids for one in made)


def test_a_tokenizer_may_be_a_file(tmp_path):
  # Of a pretrained model, which pads with <|endoftext|>.
  text = VOCABULARY.read_text(encoding="utf-8")
  path = tmp_path / "tokenizer.json"
  path.write_text(text.replace(tokenizer.PAD, "<|endoftext|>"))
  found = registry.make_tokenizer(str(path))
  named = registry.make_tokenizer("tool_calling")
  assert found.encode("Oslo") == named.encode("Oslo")
  assert found.pad_id == named.pad_id


@pytest.mark.parametrize(
  ("make", "error", "word"),
  [
    (lambda: registry.make_task("tool_caling", {}), KeyError, "'tool_calling'"),
    (
      lambda: registry.make_task("tool_calling", {"num_trian": 7}),
      TypeError,
      "'num_train'",
    ),
    (lambda: registry.make_tokenizer("byts"), KeyError, "'bytes'"),
    (lambda: registry.find_checkpoint("nowhere"), FileNotFoundError, "smollm2"),
  ],
)
def test_an_unknown_name_is_answered_with_the_nearest(make, error, word):
  with pytest.raises(error, match=word):
    make()
