"""Text to token ids and back, with a chat format that text cannot forge.

The chat markers are single ids that `encode` never produces: a request that
contains the text `<|im_start|>system` is encoded letter by letter.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

PAD = "<|pad|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

# Byte-level BPE of the generated tool-calling task, and of the documentation
# that is summarised, made by `python -m saw_jax.tasks.make_tokenizer`.
_TASKS = pathlib.Path(__file__).parent / "tasks"
TOOL_CALLING_BPE = _TASKS / "tool_calling/assets/tool_calling_bpe.json"
SUMMARIES_BPE = _TASKS / "summaries/assets/summaries_bpe.json"


# The pieces of generated arithmetic and its stories: see `PieceTokenizer`.
MATH_PIECES = (
  *"0123456789+-*/=()., ?{}\\\n",
  *"abcdefghijklmnopqrstuvwxyz",
  "\\boxed{",
  *("tom", "ann", "sam", "eva"),
  *(" pens", " eggs", " figs", " nuts", " red", " blue", " bags", " days"),
  *(" has ", " had ", " gets ", " gives ", " more", " away", " now", " each"),
  *(" are ", " lost", " bad", " left", " in ", " in all", " of ", " and "),
  *(" on ", " with ", ". how many", "how many", "there"),
)

# The pieces of generated knights-and-knaves puzzles in their compact form.
KNIGHTS_PIECES = (
  *("ann", "bob", "cat", "dan", "eva", "fay", "gus", "hal"),
  *("=knight", "=knave", ":", "\n", "|", "<answer>", "</answer>"),
  *(" and ", " or ", " implies ", " iff "),
  # Of a verdict on an answer.
  *("?", "true", "false"),
)


class Tokenizer(Protocol):
  """What rollouts need of a tokenizer."""

  vocab_size: int
  pad_id: int
  eos_ids: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text; never a special id."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of any ids; special and unknown ones are left out."""
    ...

  def encode_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> list[int]:
    """Returns the ids of a conversation in ChatML."""
    ...


class _Chat:
  """ChatML on top of `encode`."""

  _im_start: int
  _im_end: int

  def encode(self, text: str) -> list[int]:
    raise NotImplementedError

  def encode_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> list[int]:
    r"""Returns the ids of a conversation in ChatML.

    A message is `<|im_start|>role\ncontent<|im_end|>\n`.

    Args:
      messages: each with a "role" and a "content".
      add_generation_prompt: whether to end with the start of an assistant's
        message.

    Returns:
      The ids.
    """
    ids = []
    for message in messages:
      ids.append(self._im_start)
      ids += self.encode(message["role"]) + self.encode("\n")
      ids += self.encode(message["content"])
      ids.append(self._im_end)
      ids += self.encode("\n")
    if add_generation_prompt:
      ids.append(self._im_start)
      ids += self.encode("assistant") + self.encode("\n")
    return ids


class ByteTokenizer(_Chat):
  """One token per byte of UTF-8, and three special ids.

  >>> tokenizer = ByteTokenizer()
  >>> tokenizer.encode("hé")
  [104, 195, 169]
  >>> tokenizer.decode([104, 195, 169, tokenizer.pad_id])
  'hé'
  """

  def __init__(self):
    self.pad_id, self._im_start, self._im_end = 256, 257, 258
    self.vocab_size = 259
    self.eos_ids = (self._im_end,)

  def encode(self, text: str) -> list[int]:
    """Returns the bytes of a text. A lone surrogate becomes a `?`."""
    return list(text.encode("utf-8", errors="replace"))

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of the bytes; what is not UTF-8 becomes U+FFFD."""
    data = bytes(i for i in map(int, ids) if 0 <= i < 256)
    return data.decode("utf-8", errors="replace")


class PieceTokenizer:
  """One token per piece of a short list, the longest that fits, left to right.

  For policies that start from nothing: few ids, short sequences, and a message
  costs two tokens beside its content, since each role has a start marker of its
  own. A character outside of the list becomes one unknown id, which is read as
  U+FFFD.

  >>> tokenizer = PieceTokenizer()
  >>> ids = tokenizer.encode_chat([{"role": "user", "content": "12+34="}])
  >>> len(ids), tokenizer.decode(ids)
  (9, '12+34=')
  """

  _ROLES = ("system", "user", "assistant", "tool")

  def __init__(self, pieces: Sequence[str] = MATH_PIECES):
    """Numbers the pieces.

    Args:
      pieces: none of them empty, no two the same.

    Raises:
      ValueError: two pieces are the same, or one is empty.
    """
    if len(set(pieces)) < len(pieces) or "" in pieces:
      raise ValueError("two pieces are the same, or one is empty.")
    self.pad_id, self._end, self._unknown = 0, 1, 2
    self._starts = {role: 3 + i for i, role in enumerate(self._ROLES)}
    first = 3 + len(self._ROLES)
    self._ids = {piece: first + i for i, piece in enumerate(pieces)}
    self._pieces = {id: piece for piece, id in self._ids.items()}
    self._pieces[self._unknown] = "\ufffd"
    # Alternatives are tried in order: the longest piece that fits is found.
    ordered = sorted(pieces, key=len, reverse=True)
    self._pattern = re.compile("|".join([*map(re.escape, ordered), "(?s:.)"]))
    self.vocab_size = first + len(pieces)
    self.eos_ids = (self._end,)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the pieces of a text."""
    find = self._ids.get
    return [find(piece, self._unknown) for piece in self._pattern.findall(text)]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of any ids; markers and unknown ids are left out."""
    return "".join(self._pieces.get(int(i), "") for i in ids)

  def encode_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> list[int]:
    """Returns a conversation: for each message its role, its content, an end.

    Args:
      messages: each with a "role" and a "content".
      add_generation_prompt: whether to end with the start of an assistant's
        message.

    Returns:
      The ids.

    Raises:
      KeyError: a role other than system, user, assistant and tool.
    """
    ids = []
    for message in messages:
      ids.append(self._starts[message["role"]])
      ids += self.encode(message["content"])
      ids.append(self._end)
    if add_generation_prompt:
      ids.append(self._starts["assistant"])
    return ids


class LibraryTokenizer:
  """Encoding and decoding with a tokenizer of the `tokenizers` library."""

  def __init__(self, tokenizer: Any):
    """Takes the library's tokenizer.

    Args:
      tokenizer: a `tokenizers.Tokenizer`; from here on it takes special tokens
        in a text for text.
    """
    self._tokenizer = tokenizer
    # Special tokens in a text are text, not markers.
    self._tokenizer.encode_special_tokens = True
    self._special = {
      id
      for id, token in self._tokenizer.get_added_tokens_decoder().items()
      if token.special
    }
    self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._tokenizer.encode_special_tokens = True  # Pickling forgets it.

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text. A lone surrogate becomes a `?`."""
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of the ids; what is not UTF-8 becomes U+FFFD."""
    known = [
      i
      for i in map(int, ids)
      if 0 <= i < self.vocab_size and i not in self._special
    ]
    return self._tokenizer.decode(known, skip_special_tokens=False)


class BPETokenizer(LibraryTokenizer, _Chat):
  """A `tokenizer.json` with ChatML, such as those made by `train_bpe`.

  Needs the `tokenizers` library, which is in the extra `hf`.
  """

  def __init__(
    self,
    path: str | pathlib.Path = TOOL_CALLING_BPE,
    *,
    pad: str = PAD,
    eos: Sequence[str] = (IM_END,),
  ):
    """Loads a file.

    Args:
      path: a file of the `tokenizers` library with the ChatML markers as
        special tokens.
      pad: the token to pad with, such as `<|endoftext|>` for Qwen.
      eos: the tokens that end an answer.

    Raises:
      ImportError: the library is missing.
      ValueError: the file lacks one of the special tokens.
    """
    self._path = pathlib.Path(path)
    super().__init__(library().Tokenizer.from_file(str(self._path)))
    self.pad_id = self._id(pad)
    self.eos_ids = tuple(self._id(token) for token in eos)
    self._im_start, self._im_end = self._id(IM_START), self._id(IM_END)

  def _id(self, token: str) -> int:
    found = self._tokenizer.token_to_id(token)
    if found is None or found not in self._special:
      raise ValueError(f"{self._path} has no special token {token!r}.")
    return found


def train_bpe(texts: Iterable[str], *, vocab_size: int, pattern: str) -> str:
  """Trains a byte-level BPE with the ChatML markers as special tokens.

  Args:
    texts: what to train on.
    vocab_size: size of the vocabulary, special tokens and 256 bytes included.
    pattern: regular expression of the pieces that no merge reaches across.

  Returns:
    The content of a `tokenizer.json`.

  Raises:
    ImportError: the `tokenizers` library is missing.
  """
  lib = library()
  tokenizer = lib.Tokenizer(lib.models.BPE())
  tokenizer.pre_tokenizer = lib.pre_tokenizers.Sequence(
    [
      lib.pre_tokenizers.Split(lib.Regex(pattern), behavior="isolated"),
      lib.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = lib.decoders.ByteLevel()
  trainer = lib.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[PAD, IM_START, IM_END],
    initial_alphabet=sorted(lib.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer.to_str(pretty=True)


def library() -> Any:
  """Imports the `tokenizers` library.

  Returns:
    The module.

  Raises:
    ImportError: it is missing; the message names the extra.
  """
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      "a BPE tokenizer needs the `tokenizers` library: "
      "pip install 'saw_jax[hf]'"
    ) from error
  return tokenizers
