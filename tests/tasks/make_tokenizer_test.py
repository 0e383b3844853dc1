import json

import pytest

from saw_jax import tokenizer
from saw_jax.tasks import make_tokenizer


def test_making_it_again_gives_the_same_vocabulary():
  pytest.importorskip("tokenizers")
  ours = json.loads(tokenizer.TOOL_CALLING_BPE.read_text(encoding="utf-8"))
  again = json.loads(make_tokenizer.make())
  assert again["model"]["vocab"] == ours["model"]["vocab"]
  assert again["model"]["merges"] == ours["model"]["merges"]
  assert again["pre_tokenizer"] == ours["pre_tokenizer"]
  assert again["added_tokens"] == ours["added_tokens"]
