"""Names of tasks, tokenizers and checkpoints."""

import importlib.util

import pytest

from saw_jax import tokenizer
from saw_jax.run import registry
from saw_jax.tasks.tool_calling import task as task_lib


@pytest.mark.parametrize("name", sorted({*registry.TASKS} - {"rows"}))
def test_every_task_is_made(name):
  engine = {one: one for one in "alfworld gymnasium openenv verifiers".split()}
  engine["textworld"] = "textworld_express"
  lacks = name in engine and importlib.util.find_spec(engine[name]) is None
  if lacks or name in ("openenv", "verifiers"):
    said = rf"saw_jax\[{name}\]" if lacks else "options.env"
    with pytest.raises(ImportError if lacks else ValueError, match=said):
      registry.make_task(name, {})
    return
  task = registry.make_task(name, {})
  assert task.name == name and task.components


def test_a_task_is_a_name_or_two_classes_with_options(monkeypatch):
  classes = (task_lib.ToolCallingTask, task_lib.ToolCallingConfig)
  monkeypatch.setitem(registry.TASKS, "mine", classes)
  for name in ("tool_calling", "mine"):
    assert (
      len(registry.make_task(name, {"num_train": 7}).examples("train")) == 7
    )


def test_every_tokenizer_is_made_and_is_another():
  made = [registry.make_tokenizer(name) for name in registry.TOKENIZERS]
  sizes = {one.vocab_size for one in made if one.eos_ids}
  assert len(sizes) == len(made) and min(sizes) > 20


def test_a_tokenizer_may_be_a_file(tmp_path):
  # Of a pretrained model, which pads with <|endoftext|>.
  text = task_lib.VOCABULARY.read_text(encoding="utf-8")
  path = tmp_path / "tokenizer.json"
  path.write_text(text.replace(tokenizer.PAD, "<|endoftext|>"))
  found, named = map(registry.make_tokenizer, (str(path), "tool_calling"))
  assert found.encode("Oslo") == named.encode("Oslo")
  assert found.pad_id == named.pad_id
  (tmp_path / "run.json").touch()
  with pytest.raises(ValueError, match="saw export"):
    registry.find_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
  ("make", "given", "error", "word"),
  [
    (registry.make_task, ("tool_caling", {}), KeyError, "'tool_calling'"),
    (registry.make_task, ("math", {"num_trian": 7}), TypeError, "'num_train'"),
    (registry.make_tokenizer, ("byts",), KeyError, "'bytes'"),
    (registry.find_checkpoint, ("nowhere",), FileNotFoundError, "smollm2"),
  ],
)
def test_an_unknown_name_is_answered_with_the_nearest(make, given, error, word):
  with pytest.raises(error, match=word):
    make(*given)
