"""Makes the vocabularies of the tasks that have one for a policy from nothing.

  python -m saw_jax.tasks.make_tokenizer

writes `tool_calling_bpe.json` and `summaries_bpe.json` into
`assets/` of their tasks, the same bytes each time.
"""

import json
from collections.abc import Iterator

from saw_jax import tokenizer
from saw_jax.tasks.summaries import task as summaries
from saw_jax.tasks.tool_calling import task as tool_calling

VOCAB_SIZE = 640
_NUM_EXAMPLES = 4096

# A tag is one piece, as is each fixed part of a call. A capitalised word or a
# digit has no space before it, so that a value is the same tokens in a request
# and in a call: to call is to copy. Other words take the space before them.
PATTERN = "|".join(
  (
    r"</?[a-z_]+>",
    r'\{"name": "',
    r'", "parameters": \{"?',
    r": (?:string|integer|number|boolean)",
    r'"?, "?',
    r'": "?',
    r'"?\}+',
    r"[A-Z][A-Za-z]*",
    r"[0-9]",
    r" ?[a-z_]+",
    r"\n",
  )
)

SUMMARIES_VOCAB_SIZE = 1024
# A word takes the space before it, a digit stands alone.
SUMMARIES_PATTERN = r" ?[A-Za-z]+|[0-9]|\n|[^A-Za-z0-9\n]"


def texts() -> Iterator[str]:
  """Yields what the vocabulary of tool calling is trained on."""
  task = tool_calling.ToolCallingTask(
    tool_calling.ToolCallingConfig(seed=1, num_train=_NUM_EXAMPLES)
  )
  pairs = task.demonstrations(
    _NUM_EXAMPLES, seed=1, format_rate=0.7, call_rate=0.9
  )
  for example, completion in pairs:
    for message in example.messages:
      yield message["role"]
      yield message["content"]
    yield "assistant"
    yield completion


def summary_texts() -> Iterator[str]:
  """Yields what the vocabulary of summaries is trained on: no held-out row."""
  for example in summaries.SummariesTask().examples("train"):
    yield from ("user", "assistant")
    yield example.meta["source"]
    yield example.reference


def make() -> str:
  """Returns the content of the file for tool calling."""
  return _train(texts(), VOCAB_SIZE, PATTERN)


def make_summaries() -> str:
  """Returns the content of the file for summaries."""
  return _train(summary_texts(), SUMMARIES_VOCAB_SIZE, SUMMARIES_PATTERN)


def _train(lines: Iterator[str], vocab_size: int, pattern: str) -> str:
  content = tokenizer.train_bpe(lines, vocab_size=vocab_size, pattern=pattern)
  return json.dumps(json.loads(content), indent=0) + "\n"


if __name__ == "__main__":
  tokenizer.TOOL_CALLING_BPE.write_text(make(), encoding="utf-8")
  tokenizer.SUMMARIES_BPE.write_text(make_summaries(), encoding="utf-8")
