"""Text to token ids and back, with a chat format that text cannot forge.

The chat markers are single ids that `encode` never produces: a request that
contains the text `<|im_start|>system` is encoded letter by letter.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from saw_jax import naming, tokenizer_files
from saw_jax.tokenizer_files import CHATML

PAD = "<|pad|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
# Each with a "role" and a "content"; templates may read more.
Messages = Sequence[Mapping[str, Any]]
# Tags of an answer's format: text, also where a tokenizer has a token for them.
TAG = re.compile(
  "</?(?:think|thinking|thoughts?|reason|reasoning|reflection|plan|scratchpad|"
  "answer|final_answer|solution|response|summary|tools?|tool_call|tool_response|"
  "function_call|search|information|action|obs|observation|code|python|output|"
  "result)>"
)
_MARKER = re.compile(r"<[|｜]\S*[|｜]>")


class Tokenizer(Protocol):
  """What rollouts need of a tokenizer."""

  vocab_size: int
  pad_id: int
  eos_ids: tuple[int, ...]
  opening: str  # what of an answer each prompt ends with, such as "<think>"

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text; no special id, and a `?` for a surrogate."""

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of any ids but special ones; no UTF-8 is U+FFFD."""

  def encode_chat(
    self, messages: Messages, add_generation_prompt: bool = True
  ) -> list[int]:
    """Returns the ids of a conversation, up to where an answer begins."""

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes it into a Hugging Face directory, which exists."""


class _Chat:
  r"""Conversations in ChatML: `<|im_start|>role\ncontent<|im_end|>\n`."""

  opening = ""

  def encode_chat(
    self, messages: Messages, add_generation_prompt: bool = True
  ) -> list[int]:
    ids = []
    for message in messages:
      ids += self._start(message["role"])
      if not isinstance(text := message.get("content"), str):
        raise ValueError(f"a message is text here, and this one is {text!r}")
      ids += [*self.encode(text), *self._end()]
    return ids + self._start("assistant") * add_generation_prompt

  def _write(self, directory, library, template=CHATML, **made_by) -> None:
    how = {"eos_ids": self.eos_ids, "pad_id": self.pad_id, "template": template}
    tokenizer_files.write(directory, made_by, library, **how)

  def _start(self, role: str) -> list[int]:
    return [self._im_start, *self.encode(role), *self.encode("\n")]

  def _end(self) -> list[int]:
    return [self._im_end, *self.encode("\n")]


class ByteTokenizer(_Chat):
  """One token per byte of UTF-8, and three special ids.

  >>> tokenizer = ByteTokenizer()
  >>> tokenizer.encode("hé")
  [104, 195, 169]
  >>> tokenizer.decode([104, 195, 169, tokenizer.pad_id])
  'hé'
  """

  pad_id, _im_start, _im_end = 256, 257, 258
  vocab_size, eos_ids = 259, (_im_end,)

  def save(self, directory: str | pathlib.Path) -> None:
    special = {PAD: self.pad_id, IM_START: self._im_start}
    library = tokenizer_files.of_bytes({**special, IM_END: self._im_end})
    self._write(directory, library, kind="bytes")

  def encode(self, text: str) -> list[int]:
    return list(text.encode("utf-8", errors="replace"))

  def decode(self, ids: Iterable[int]) -> str:
    data = bytes(i for i in map(int, ids) if 0 <= i < 256)
    return data.decode("utf-8", errors="replace")


class PieceTokenizer(_Chat):
  """One token per piece of a short list, the longest that fits, left to right.

  For policies that start from nothing: few ids, and a message costs two tokens
  beside its content, since each role has a start marker of its own. A character
  outside of the list is one unknown id, read as U+FFFD.

  >>> tokenizer = PieceTokenizer(["1", "2", "12", "+", "="])
  >>> ids = tokenizer.encode_chat([{"role": "user", "content": "12+2="}])
  >>> len(ids), tokenizer.decode(ids)
  (7, '12+2=')
  """

  _ROLES = ("system", "user", "assistant", "tool")

  def __init__(self, pieces: Sequence[str]):
    if len(set(pieces)) < len(pieces) or "" in pieces:
      raise ValueError("two pieces are the same, or one is empty.")
    self.pad_id, end, self._unknown = 0, 1, 2
    self._starts = {role: 3 + i for i, role in enumerate(self._ROLES)}
    first = 3 + len(self._ROLES)
    self._ids = {piece: first + i for i, piece in enumerate(pieces)}
    self._pieces = {id: piece for piece, id in self._ids.items()}
    self._pieces[self._unknown] = "\ufffd"
    # Alternatives are tried in order: the longest piece that fits is found.
    ordered = sorted(pieces, key=len, reverse=True)
    self._pattern = re.compile("|".join([*map(re.escape, ordered), "(?s:.)"]))
    self.vocab_size = first + len(pieces)
    self.eos_ids = (end,)

  def save(self, directory: str | pathlib.Path) -> None:
    markers = {f"<|{role}|>": id for role, id in self._starts.items()}
    special = {PAD: self.pad_id, IM_END: self.eos_ids[0]} | markers
    unknown = self._pieces[self._unknown], self._unknown
    # Oniguruma writes "a dot that may be a newline" in another way.
    pattern = self._pattern.pattern.replace("(?s:.)", "(?m:.)")
    library = tokenizer_files.of_pieces(self._ids, pattern, special, unknown)
    template = (
      "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
      f"{IM_END}{{% endfor %}}"
      "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    pieces = list(self._ids)
    self._write(directory, library, template, kind="pieces", pieces=pieces)

  def encode(self, text: str) -> list[int]:
    find = self._ids.get
    return [find(piece, self._unknown) for piece in self._pattern.findall(text)]

  def decode(self, ids: Iterable[int]) -> str:
    return "".join(self._pieces.get(int(i), "") for i in ids)

  def _start(self, role: str) -> list[int]:
    return [self._starts[role]]

  def _end(self) -> list[int]:
    return list(self.eos_ids)


class LibraryTokenizer:
  """Encoding and decoding with a `tokenizers.Tokenizer`.

  It takes special tokens in a text for text. Special is what the file calls so
  and what has the form of a marker, but no tag of an answer's format.
  """

  def __init__(self, tokenizer: Any):
    document = json.loads(tokenizer.to_str())
    for token in document["added_tokens"]:
      is_marker = token["special"] or _MARKER.fullmatch(token["content"])
      token["special"] = bool(is_marker and not TAG.fullmatch(token["content"]))
    self._tokenizer = library().Tokenizer.from_str(json.dumps(document))
    self._tokenizer.encode_special_tokens = True
    added = self._tokenizer.get_added_tokens_decoder()
    self._special = {id for id, token in added.items() if token.special}
    self.vocab_size = 1 + max(tokenizer.get_vocab().values(), default=-1)

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._tokenizer.encode_special_tokens = True  # Pickling forgets it.

  def encode(self, text: str) -> list[int]:
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    plain = range(self.vocab_size)
    known = [i for i in map(int, ids) if i in plain and i not in self._special]
    return self._tokenizer.decode(known, skip_special_tokens=False)


class BPETokenizer(LibraryTokenizer, _Chat):
  """A `tokenizer.json` whose special tokens include the ChatML markers.

  Needs the extra `hf`. `pad` is the token to pad with, such as `<|endoftext|>`
  for Qwen; those in `eos` end an answer.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    *,
    pad: str = PAD,
    eos: Sequence[str] = (IM_END,),
  ):
    self._path = pathlib.Path(path)
    super().__init__(library().Tokenizer.from_file(str(self._path)))
    self._made_by = {"pad": pad, "eos": list(eos)}
    self.pad_id = self._id(pad)
    self.eos_ids = tuple(self._id(token) for token in eos)
    self._im_start, self._im_end = self._id(IM_START), self._id(IM_END)

  def save(self, directory: str | pathlib.Path) -> None:
    library = json.loads(self._path.read_text(encoding="utf-8"))
    self._write(directory, library, kind="bpe", **self._made_by)

  def _id(self, token: str) -> int:
    found = self._tokenizer.token_to_id(token)
    if found is None or found not in self._special:
      raise ValueError(f"{self._path} has no special token {token!r}.")
    return found


def open_saved(directory: pathlib.Path) -> Tokenizer | None:
  """Opens what one of our own has saved in a directory, if one has."""
  path = directory / tokenizer_files.NAME
  if not path.is_file():
    return None
  try:
    made_by = dict(json.loads(path.read_text(encoding="utf-8")))
    kind = _KINDS[made_by.pop("kind")]
    return kind(directory / tokenizer_files.LIBRARY_NAME, **made_by)
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path} is damaged: {error!r}") from error


# What a saved tokenizer says that it is -> how to make it again, of the path
# of its tokenizer.json and what else is in the file.
_KINDS: Mapping[str, Any] = {
  "bytes": lambda path: ByteTokenizer(),
  "pieces": lambda path, pieces: PieceTokenizer(pieces),
  "bpe": BPETokenizer,
}


def library() -> Any:
  """Imports the `tokenizers` library, or names the extra that has it."""
  with naming.needs_extra("hf", "a BPE tokenizer needs the tokenizers library"):
    import tokenizers
  return tokenizers
