"""Our own tokenizers as files of a Hugging Face directory.

`tokenizer.json` and its chat template are for other libraries, and give a text
the ids that it has here. We read `saw_jax_tokenizer.json`, which says how a
tokenizer was made: a template writes a conversation as one text, in which a
marker that somebody typed is a marker, and letters merge with their neighbours.
"""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

NAME, LIBRARY_NAME = "saw_jax_tokenizer.json", "tokenizer.json"
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(
  directory: str | pathlib.Path,
  made_by: Mapping[str, Any],
  library: Mapping[str, Any],  # the content of tokenizer.json
  *,
  template: str,
  eos_ids: Sequence[int],
  pad_id: int,
) -> None:
  """Writes a tokenizer into a directory, which exists."""
  added = {token["id"]: token["content"] for token in library["added_tokens"]}
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "chat_template": template,
    "eos_token": added[eos_ids[0]],
    "pad_token": added[pad_id],
    "unk_token": library["model"].get("unk_token"),
  }
  ids = {"eos_token_id": list(eos_ids), "pad_token_id": pad_id}
  for name, document in {
    NAME: made_by,
    LIBRARY_NAME: library,
    "tokenizer_config.json": settings,
    "generation_config.json": ids,
  }.items():
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (pathlib.Path(directory) / name).write_text(text, encoding="utf-8")


def of_bytes(special: Mapping[str, int]) -> dict[str, Any]:
  """The `tokenizer.json` of one token a byte: pairs that never merge."""
  plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = itertools.count(256)  # Each byte has a letter that can be seen.
  letters = [chr(b if b in plain else next(others)) for b in range(256)]
  vocabulary = {letter: byte for byte, letter in enumerate(letters)}
  level = {"type": "ByteLevel", "add_prefix_space": False}
  level |= {"trim_offsets": True, "use_regex": False}
  model = {"type": "BPE", "vocab": vocabulary | special, "merges": []}
  return _library(model, special, level, level)


def of_pieces(
  pieces: Mapping[str, int],
  pattern: str,
  special: Mapping[str, int],
  unknown: tuple[str, int],
) -> dict[str, Any]:
  """The `tokenizer.json` of pieces that a pattern finds one after the other."""
  vocabulary = {**special, **dict([unknown]), **pieces}
  model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown[0]}
  cut = {"type": "Split", "pattern": {"Regex": pattern}}
  cut |= {"behavior": "Isolated", "invert": False}
  return _library(model, special, cut, {"type": "Fuse"})


def _library(model, special, cut, decoder) -> dict[str, Any]:
  how = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  added = [
    {"id": id, "content": token, **how, "special": True}
    for token, id in special.items()
  ]
  return {
    "version": "1.0",
    **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
    "added_tokens": added,
    "pre_tokenizer": cut,
    "decoder": decoder,
    "model": model,
  }
