"""Tokenizers of published models: their ids, and their chat templates.

The template is the model's own program for writing a conversation down. It runs
in a sandbox, and no text of a message becomes a marker: a marker that stands in
a message is broken by an invisible character before the template sees it.
"""

import copy
import json
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from saw_jax import tokenizer as tokenizer_lib

# What is copied when a policy is saved.
FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
  "special_tokens_map.json",
  "generation_config.json",
)
# U+2060, put behind the first character of a marker that a message contains.
BREAK = "\u2060"

_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> how a text is cut before pairs are merged: a pattern; or
# none, for that of GPT-2, and whether each digit stands alone.
_CUTS = {
  "gpt-2": (None, False),
  "smollm": (None, True),
  "qwen2": (_WORDS % "", False),
  "llama-bpe": (_WORDS % "{1,3}", False),
}
_SPECIAL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


class HubTokenizer(tokenizer_lib.LibraryTokenizer):
  """The tokenizer of a published model, with its chat template.

  Attributes:
    pad_id: the model's, or one that ends an answer if it has none.
    eos_ids: what ends an answer. The first is what the template puts behind an
      assistant's message, the others are what the model's files name.
    template: the source of the chat template.
  """

  def __init__(
    self,
    tokenizer: Any,
    *,
    template: str | None,
    tokens: Mapping[str, str],
    eos_ids: Sequence[int],
    pad_id: int | None,
    path: pathlib.Path,
  ):
    """Takes what the model's files say; see `open_tokenizer`.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      template: a Jinja program, or none if there is none.
      tokens: the special tokens that a template may name, such as `bos_token`.
      eos_ids: what ends an answer, as the model's files name it.
      pad_id: of the token to pad with, if there is one.
      path: of the model, for messages and for `save`.

    Raises:
      ImportError: `jinja2` is missing.
      ValueError: there is no template, it does not run, or nothing ends an
        answer.
    """
    super().__init__(tokenizer)
    # A copy that takes markers for markers, for what a template has written.
    self._marking = copy.deepcopy(tokenizer)
    self._marking.encode_special_tokens = False
    self._path = path
    self._tokens = dict(tokens)
    if not template:
      raise ValueError(
        f"{path}: the tokenizer has no chat template: put one into "
        "chat_template.jinja there"
      )
    self.template = template
    specials = [
      token.content
      for token in tokenizer.get_added_tokens_decoder().values()
      if token.special and token.content
    ]
    self._markers = re.compile(
      "|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True))
      or r"(?!)"
    )
    self._renderer = self._make_renderer()
    self.encode_chat([{"role": "user", "content": "Hello"}])
    end = self._end_of_message()
    ids = ([] if end is None else [end]) + list(eos_ids)
    self.eos_ids = tuple(dict.fromkeys(ids))
    if not self.eos_ids:
      raise ValueError(f"{path}: no token is said to end an answer")
    self.pad_id = self.eos_ids[-1] if pad_id is None else pad_id

  def __getstate__(self) -> dict:
    """Leaves the compiled template out."""
    state = dict(self.__dict__)
    del state["_renderer"]
    return state

  def __setstate__(self, state: dict) -> None:
    super().__setstate__(state)
    self._renderer = self._make_renderer()

  def render(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Writes a conversation down as the model's template has it.

    Args:
      messages: each with a "role" and a "content".
      add_generation_prompt: whether to end with the start of an assistant's
        message.

    Returns:
      The text, with markers. One that stood in a message is broken.

    Raises:
      ValueError: the template refuses the conversation.
    """
    import jinja2

    safe = [
      {key: self._broken(value) for key, value in message.items()}
      for message in messages
    ]
    try:
      return self._renderer.render(
        messages=safe,
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **self._tokens,
      )
    except jinja2.TemplateError as error:
      raise ValueError(
        f"{self._path}: the chat template refuses a conversation of "
        f"{', '.join(m['role'] for m in messages)}: {error}"
      ) from error

  def encode_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> list[int]:
    """Returns the ids of a conversation in the model's own format.

    Args:
      messages: each with a "role" and a "content".
      add_generation_prompt: whether to end with the start of an assistant's
        message.

    Returns:
      The ids.

    Raises:
      ValueError: the template refuses the conversation.
    """
    text = self.render(messages, add_generation_prompt)
    return self._marking.encode(text, add_special_tokens=False).ids

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes the tokenizer as a Hugging Face directory has it.

    Args:
      directory: where to; it exists.
    """
    directory = pathlib.Path(directory)
    if self._path.is_dir():
      for name in FILES:
        if (self._path / name).is_file():
          shutil.copyfile(self._path / name, directory / name)
      return
    self._tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "clean_up_tokenization_spaces": False,
      "add_bos_token": False,
      "chat_template": self.template,
      **self._tokens,
    }
    generation = {
      "eos_token_id": list(self.eos_ids),
      "pad_token_id": self.pad_id,
    }
    for name, document in (
      ("tokenizer_config.json", settings),
      ("generation_config.json", generation),
    ):
      (directory / name).write_text(
        json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
      )

  def _broken(self, text: str) -> str:
    """A message's text in which no marker is one."""
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return self._markers.sub(
      lambda found: found[0][:1] + BREAK + found[0][1:], text
    )

  def _end_of_message(self) -> int | None:
    """The special token that the template puts behind an answer, if any."""
    answer = "answer"
    try:
      ids = self.encode_chat(
        [
          {"role": "user", "content": "Hello"},
          {"role": "assistant", "content": answer},
        ],
        add_generation_prompt=False,
      )
    except ValueError:
      return None
    behind = 0
    for i in range(len(ids)):
      if answer in self.decode(ids[i:]):
        behind = i + 1
    return next((i for i in ids[behind:] if i in self._special), None)

  def _make_renderer(self) -> Any:
    try:
      import jinja2
      import jinja2.sandbox
    except ImportError as error:
      raise ImportError(
        "a chat template needs the `jinja2` library: pip install 'saw_jax[hf]'"
      ) from error

    def refuse(message: str) -> None:
      raise jinja2.TemplateError(message)

    # The settings and names that templates are written for. strftime_now, the
    # date of today, is left out: a prompt would depend on when a run is made.
    # Templates that ask for it have a date of their own in its place.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
      value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = refuse
    try:
      return environment.from_string(self.template)
    except jinja2.TemplateError as error:
      raise ValueError(
        f"{self._path}: the chat template is not one: {error}"
      ) from error


def open_tokenizer(path: str | pathlib.Path) -> HubTokenizer:
  """Opens the tokenizer of a published model.

  Args:
    path: a Hugging Face directory, or a `.gguf` file.

  Returns:
    The tokenizer.

  Raises:
    FileNotFoundError: there is no such directory or file, or no
      `tokenizer.json` in it.
    ValueError: a file makes no sense, the tokenizer is of an unknown kind, or
      it has no chat template.
    ImportError: `tokenizers`, `jinja2` or `gguf` is missing.
  """
  path = pathlib.Path(path)
  if path.suffix == ".gguf":
    return _from_gguf(path)
  file = path / "tokenizer.json"
  if not file.is_file():
    raise FileNotFoundError(f"{file}: there is no such file")
  library = tokenizer_lib.library()
  try:
    found = library.Tokenizer.from_file(str(file))
  except Exception as error:  # The library raises nothing narrower.
    raise ValueError(f"{file}: not a tokenizer: {error}") from error
  settings = _read(path / "tokenizer_config.json")
  template = settings.get("chat_template")
  if isinstance(template, list):
    named = {entry.get("name"): entry.get("template") for entry in template}
    template = named.get("default")
  if (path / "chat_template.jinja").is_file():
    template = (path / "chat_template.jinja").read_text(encoding="utf-8")
  tokens = {
    **_tokens(_read(path / "special_tokens_map.json")),
    **_tokens(settings),
  }
  ids = (
    [found.token_to_id(tokens["eos_token"])] if "eos_token" in tokens else []
  )
  pad = (
    found.token_to_id(tokens["pad_token"]) if "pad_token" in tokens else None
  )
  for name in ("generation_config.json", "config.json"):
    document = _read(path / name)
    ends = document.get("eos_token_id")
    ids += ends if isinstance(ends, list) else [ends]
    if pad is None:
      pad = document.get("pad_token_id")
  return HubTokenizer(
    found,
    template=template,
    tokens=tokens,
    eos_ids=[i for i in ids if isinstance(i, int)],
    pad_id=pad,
    path=path,
  )


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object; an empty one where there is no file."""
  if not path.is_file():
    return {}
  try:
    document = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: not JSON: {error}") from error
  return document if isinstance(document, dict) else {}


def _tokens(settings: Mapping[str, Any]) -> dict[str, str]:
  """The special tokens that a file names, by the names of their roles."""
  found = {}
  for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
    token = settings.get(role)
    if isinstance(token, Mapping):
      token = token.get("content")
    if isinstance(token, str):
      found[role] = token
  return found


def _from_gguf(path: pathlib.Path) -> HubTokenizer:
  """Rebuilds a tokenizer from the metadata of a GGUF file."""
  if not path.is_file():
    raise FileNotFoundError(f"{path}: there is no such file")
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      "a GGUF file needs the `gguf` library: pip install 'saw_jax[gguf]'"
    ) from error
  try:
    fields = gguf.GGUFReader(str(path)).fields
  except Exception as error:  # The reader raises whatever it stumbles over.
    raise ValueError(
      f"{path}: truncated or damaged, or not a GGUF file"
    ) from error

  def value(name: str, default: Any = None) -> Any:
    field = fields.get(f"tokenizer.{name}")
    return default if field is None else field.contents()

  kind, cut = value("ggml.model"), value("ggml.pre", "")
  if kind != "gpt2" or cut not in _CUTS:
    raise ValueError(
      f"{path}: a tokenizer {kind!r} that cuts text as {cut!r} cannot be "
      f"rebuilt; gpt2 can, with {', '.join(_CUTS)}"
    )
  lib = tokenizer_lib.library()
  words = value("ggml.tokens")
  merges = [tuple(merge.split(" ", 1)) for merge in value("ggml.merges")]
  found = lib.Tokenizer(
    lib.models.BPE(
      vocab={word: id for id, word in enumerate(words)},
      merges=merges,
      # Llama 3's tokenizer takes a word that it has as a whole.
      ignore_merges=cut == "llama-bpe",
    )
  )
  pattern, digits = _CUTS[cut]
  steps = []
  if digits:
    steps.append(lib.pre_tokenizers.Digits(individual_digits=True))
  if pattern is not None:
    steps.append(
      lib.pre_tokenizers.Split(lib.Regex(pattern), behavior="isolated")
    )
  steps.append(
    lib.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=pattern is None
    )
  )
  found.pre_tokenizer = lib.pre_tokenizers.Sequence(steps)
  found.decoder = lib.decoders.ByteLevel()
  if cut == "qwen2":
    found.normalizer = lib.normalizers.NFC()
  for word, type_ in zip(words, value("ggml.token_type"), strict=True):
    if type_ == _SPECIAL:
      found.add_special_tokens([word])
    elif type_ == _USER_DEFINED:
      found.add_tokens([lib.AddedToken(word, normalized=False)])

  ids = {
    "bos_token": value("ggml.bos_token_id"),
    "eos_token": value("ggml.eos_token_id"),
    "pad_token": value("ggml.padding_token_id"),
  }
  tokens = {role: words[id] for role, id in ids.items() if id is not None}
  return HubTokenizer(
    found,
    template=value("chat_template"),
    tokens=tokens,
    eos_ids=[ids["eos_token"]] if ids["eos_token"] is not None else [],
    pad_id=ids["pad_token"],
    path=path,
  )
