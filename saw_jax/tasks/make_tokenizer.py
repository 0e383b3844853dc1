"""Makes the vocabulary of the generated tool-calling task.

  python -m saw_jax.tasks.make_tokenizer

writes `saw_jax/tasks/assets/tool_calling_bpe.json`, the same bytes each time.
"""

import json
from collections.abc import Iterator

from saw_jax import tokenizer
from saw_jax.tasks import tool_calling

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


def texts() -> Iterator[str]:
  """Yields what the vocabulary is trained on."""
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


def make() -> str:
  """Returns the content of the file."""
  content = tokenizer.train_bpe(texts(), vocab_size=VOCAB_SIZE, pattern=PATTERN)
  return json.dumps(json.loads(content), indent=0) + "\n"


if __name__ == "__main__":
  tokenizer.TOOL_CALLING_BPE.write_text(make(), encoding="utf-8")
