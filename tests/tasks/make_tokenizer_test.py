import json

import pytest

from saw_jax import tokenizer
from saw_jax.tasks import make_tokenizer


@pytest.mark.parametrize(
  ("path", "make"),
  [
    (tokenizer.TOOL_CALLING_BPE, make_tokenizer.make),
    (tokenizer.SUMMARIES_BPE, make_tokenizer.make_summaries),
  ],
  ids=["tool_calling", "summaries"],
)
def test_making_it_again_gives_the_same_vocabulary(path, make):
  pytest.importorskip("tokenizers")
  ours = json.loads(path.read_text(encoding="utf-8"))
  again = json.loads(make())
  assert again["model"]["vocab"] == ours["model"]["vocab"]
  assert again["model"]["merges"] == ours["model"]["merges"]
  assert again["pre_tokenizer"] == ours["pre_tokenizer"]
  assert again["added_tokens"] == ours["added_tokens"]
