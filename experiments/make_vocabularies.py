"""Makes the vocabularies of the tasks that have one for a policy from nothing.

  python experiments/make_vocabularies.py

writes the file `VOCABULARY` of each such task, the same bytes each time.
"""

import json
from collections.abc import Iterable, Iterator

from saw_jax import tokenizer
from saw_jax.tasks.summaries import task as summaries
from saw_jax.tasks.tool_calling import task as tool_calling

# A tag is one piece, as is each fixed part of a call. A capitalised word or a
# digit has no space before it, so that a value is the same tokens in a request
# and in a call: to call is to copy. Other words take the space before them.
_CALLS = (
  r'</?[a-z_]+>|\{"name": "|", "parameters": \{"?'
  r'|: (?:string|integer|number|boolean)|"?, "?|": "?|"?\}+'
  r"|[A-Z][A-Za-z]*|[0-9]| ?[a-z_]+|\n"
)
# A word takes the space before it, a digit stands alone.
_WORDS = r" ?[A-Za-z]+|[0-9]|\n|[^A-Za-z0-9\n]"


def _call_texts() -> Iterator[str]:
  config = tool_calling.ToolCallingConfig(seed=1, num_train=4096)
  task = tool_calling.ToolCallingTask(config)
  rates = {"format_rate": 0.7, "call_rate": 0.9}
  for example, completion in task.demonstrations(4096, seed=1, **rates):
    for message in example.messages:
      yield from (message["role"], message["content"])
    yield from ("assistant", completion)


def _summary_texts() -> Iterator[str]:
  """No held-out row."""
  for example in summaries.SummariesTask().examples("train"):
    source = example.meta["source"]
    yield from ("user", "assistant", source, example.reference)


# File -> what it is trained on, its size with special tokens and 256 bytes, and
# the pieces that no merge reaches across.
VOCABULARIES = {
  tool_calling.VOCABULARY: (_call_texts, 640, _CALLS),
  summaries.VOCABULARY: (_summary_texts, 1024, _WORDS),
}


def train_bpe(texts: Iterable[str], vocab_size: int, pattern: str) -> str:
  """Returns the `tokenizer.json` of a byte-level BPE with ChatML's markers."""
  lib = tokenizer.library()
  bpe = lib.Tokenizer(lib.models.BPE())
  bpe.pre_tokenizer = lib.pre_tokenizers.Sequence(
    [
      lib.pre_tokenizers.Split(lib.Regex(pattern), behavior="isolated"),
      lib.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  bpe.decoder = lib.decoders.ByteLevel()
  trainer = lib.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[tokenizer.PAD, tokenizer.IM_START, tokenizer.IM_END],
    initial_alphabet=sorted(lib.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  bpe.train_from_iterator(texts, trainer)
  return json.dumps(json.loads(bpe.to_str()), indent=0) + "\n"


if __name__ == "__main__":
  for path, (texts, vocab_size, pattern) in VOCABULARIES.items():
    path.write_text(train_bpe(texts(), vocab_size, pattern), encoding="utf-8")
