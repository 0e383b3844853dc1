"""Tokenizers of published models: their ids, and their chat templates.

The template is the model's own program for writing a conversation down. It runs
in a sandbox, and no text of a message becomes a marker: a marker that stands in
a message is broken by an invisible character before the template sees it. Tags
of answers, such as `<think>`, are text, whatever a tokenizer calls them.
"""

import copy
import functools
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from saw_jax import naming
from saw_jax import tokenizer as tokenizer_lib
from saw_jax.models.hub import files as hub_files
from saw_jax.models.hub import gguf_file, templates
from saw_jax.tokenizer import Messages

# What is copied when a policy is saved.
_FILES = (
  *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
  *("special_tokens_map.json", "generation_config.json"),
)
# U+2060, put after the first character of a marker that a message contains.
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
# The special tokens that a template may name.
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


class HubTokenizer(tokenizer_lib.LibraryTokenizer):
  """The tokenizer of a published model, with its chat template."""

  def __init__(
    self,
    tokenizer: Any,  # a `tokenizers.Tokenizer`
    template: str | None,  # a Jinja program
    tokens: Mapping[str, str],  # that it may name, such as `bos_token`
    eos_ids: Sequence[int],  # what ends an answer, by the model's files
    pad_id: int | None,
    path: pathlib.Path,  # of the model, for messages and for `save`
    options: Mapping[str, Any] | None = None,  # arguments of the template
  ):
    super().__init__(tokenizer)
    # A copy that reads markers as special tokens, for what a template writes.
    self._marking = copy.deepcopy(self._tokenizer)
    self._marking.encode_special_tokens = False
    self._path, self._tokens, self.template = path, tokens, template
    options = dict(options or {})
    self._values = {"tools": None, "documents": None, **tokens, **options}
    if not template:
      raise ValueError(
        f"{path}: the tokenizer has no chat template: put one into "
        "chat_template.jinja there"
      )
    specials = filter(None, map(self._tokenizer.id_to_token, self._special))
    specials = sorted(specials, key=len, reverse=True)
    self._markers = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
    what = f"{path}: the chat template (config.chat_template_options)"
    known = self._renderer.names - {"messages", "add_generation_prompt"}
    naming.check_options(sorted(known), options, what)
    self.opening = self._find_opening()
    # The template's own token after an assistant's message comes first.
    self.eos_ids = tuple(dict.fromkeys([*self._end_of_message(), *eos_ids]))
    if not self.eos_ids:
      raise ValueError(f"{path}: no token is said to end an answer")
    self.pad_id = self.eos_ids[-1] if pad_id is None else pad_id

  def __getstate__(self) -> dict:
    # A process cannot be pickled.
    return {k: v for k, v in vars(self).items() if k != "_renderer"}

  def render(
    self, messages: Messages, add_generation_prompt: bool = True
  ) -> str:
    """Writes messages as the template has it, their markers broken."""
    if odd := [m for m in messages if not isinstance(m, Mapping)]:
      raise ValueError(f"a message has a role and content, not {odd[0]!r:.60}")
    # As transformers has it: what is None is not there.
    given = [
      {k: self._broken(v) for k, v in message.items() if v is not None}
      for message in messages
    ]
    asks = {"messages": given, "add_generation_prompt": add_generation_prompt}
    try:
      return self._renderer.render(self._values | asks)
    except (ValueError, TypeError) as error:
      raise ValueError(
        f"{self._path}: the chat template refuses a conversation of "
        f"{', '.join(str(m.get('role')) for m in messages)}: {error}"
      ) from error

  def encode_chat(
    self, messages: Messages, add_generation_prompt: bool = True
  ) -> list[int]:
    text = self.render(messages, add_generation_prompt)
    return self._marking.encode(text, add_special_tokens=False).ids

  def save(self, directory: str | pathlib.Path) -> None:
    """Writes the tokenizer into a Hugging Face directory, which exists."""
    directory = pathlib.Path(directory)
    if self._path.is_dir():
      for name in _FILES:
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
    ids = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
    hub_files.write_json(directory / "tokenizer_config.json", settings)
    hub_files.write_json(directory / "generation_config.json", ids)

  def _broken(self, value: Any) -> Any:
    """What a message holds, in which no marker is one."""
    if isinstance(value, Mapping):
      return {self._broken(k): self._broken(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
      return [self._broken(item) for item in value]
    if not isinstance(value, str):
      return value
    text = value.encode("utf-8", errors="replace").decode("utf-8")
    parted = lambda found: found[0][:1] + BREAK + found[0][1:]  # noqa: E731
    return self._markers.sub(parted, text)

  def _find_opening(self) -> str:
    """What of an answer the template writes itself, as an open `<think>`."""
    prompt = self.render([{"role": "user", "content": "Hello"}])
    _, said, begun = prompt.rpartition("Hello")
    if not said:
      what = "the chat template does not write what a user says"
      raise ValueError(f"{self._path}: {what}")
    begun = self._markers.split(begun)[-1]
    tags = list(tokenizer_lib.TAG.finditer(begun))
    is_open = tags and not tags[-1][0].startswith("</")
    return begun[tags[0].start() :] if is_open else ""

  def _end_of_message(self) -> list[int]:
    """The special token after an answer in the template, if any."""
    turns = {"user": "Hello", "assistant": "answer"}
    messages = [{"role": r, "content": c} for r, c in turns.items()]
    try:
      ids = self.encode_chat(messages, add_generation_prompt=False)
    except ValueError:
      return []
    holding = [i for i in range(len(ids)) if "answer" in self.decode(ids[i:])]
    after = max(holding, default=-1) + 1
    return [i for i in ids[after:] if i in self._special][:1]

  @functools.cached_property
  def _renderer(self) -> Any:
    with naming.needs_extra("hf", "a chat template needs the jinja2 library"):
      import jinja2  # noqa: F401
    try:
      return templates.open_renderer(self.template)
    except ValueError as error:
      said = f"{self._path}: the chat template is not one: {error}"
      raise ValueError(said) from error


def open_tokenizer(
  path: str | pathlib.Path, options: Mapping[str, Any] | None = None
) -> HubTokenizer:
  """Opens the tokenizer of a Hugging Face directory, or of a `.gguf` file."""
  path = pathlib.Path(path)
  if path.suffix == ".gguf":
    return _from_gguf(path, options)
  file = path / "tokenizer.json"
  if not file.is_file():
    raise FileNotFoundError(f"{file}: there is no such file")
  library = tokenizer_lib.library()
  try:
    found = library.Tokenizer.from_file(str(file))
  except Exception as error:  # The library raises nothing narrower.
    said = hub_files.kind_of(file) or f"not a tokenizer: {error}"
    raise ValueError(f"{file}: {said}") from error

  def read(name: str) -> dict[str, Any]:
    there = (path / name).is_file()
    return hub_files.read_json(path / name) if there else {}

  settings = read("tokenizer_config.json")
  template = settings.get("chat_template")
  if isinstance(template, list):
    entries = [entry for entry in template if isinstance(entry, Mapping)]
    named = {str(entry.get("name")): entry.get("template") for entry in entries}
    template = named.get("default")
  if (own := path / "chat_template.jinja").is_file():
    if said := hub_files.kind_of(own):
      raise ValueError(f"{own}: {said}")
    try:
      template = own.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(f"{own}: {error}") from error
  template = template if isinstance(template, str) else None
  tokens = {}
  for document in (read("special_tokens_map.json"), settings):
    for role in _ROLES:
      token = document.get(role)
      token = token.get("content") if isinstance(token, Mapping) else token
      if isinstance(token, str):
        tokens[role] = token
  ids = {role: found.token_to_id(token) for role, token in tokens.items()}
  eos_ids, pad_id = [ids.get("eos_token")], ids.get("pad_token")
  for name in ("generation_config.json", "config.json"):
    document = read(name)
    ends = document.get("eos_token_id")
    eos_ids += ends if isinstance(ends, list) else [ends]
    pad_id = document.get("pad_token_id") if pad_id is None else pad_id
  known = set(found.get_vocab().values())
  eos_ids = [i for i in eos_ids if type(i) is int and i in known]
  pad_id = pad_id if type(pad_id) is int and pad_id in known else None
  return HubTokenizer(found, template, tokens, eos_ids, pad_id, path, options)


def _from_gguf(
  path: pathlib.Path, options: Mapping[str, Any] | None
) -> HubTokenizer:
  """Rebuilds a tokenizer from the metadata of a GGUF file."""
  fields = gguf_file.open_reader(path).fields

  def value(name: str) -> Any:
    field = fields.get(f"tokenizer.{name}")
    return field and field.contents()

  kind, cut = value("ggml.model"), value("ggml.pre")
  if kind != "gpt2" or cut not in _CUTS:
    raise ValueError(
      f"{path}: a tokenizer {kind!r} that cuts text as {cut!r} cannot be "
      f"rebuilt; gpt2 can, with {', '.join(_CUTS)}"
    )
  lib = tokenizer_lib.library()
  words = value("ggml.tokens")
  vocab = {word: id for id, word in enumerate(words)}
  merges = [tuple(merge.split(" ", 1)) for merge in value("ggml.merges")]
  # Llama 3's tokenizer takes a word that it has as a whole.
  whole = cut == "llama-bpe"
  found = lib.Tokenizer(lib.models.BPE(vocab, merges, ignore_merges=whole))
  pattern, digits = _CUTS[cut]
  cuts = lib.pre_tokenizers
  steps = [cuts.Digits(individual_digits=True)] if digits else []
  if pattern is not None:
    steps.append(cuts.Split(lib.Regex(pattern), behavior="isolated"))
  last = cuts.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
  found.pre_tokenizer = cuts.Sequence([*steps, last])
  found.decoder = lib.decoders.ByteLevel()
  if cut == "qwen2":
    found.normalizer = lib.normalizers.NFC()
  for word, type_ in zip(words, value("ggml.token_type"), strict=True):
    if type_ == _SPECIAL:
      found.add_special_tokens([word])
    elif type_ == _USER_DEFINED:
      found.add_tokens([lib.AddedToken(word, normalized=False)])

  keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
  ids = {role: value(f"ggml.{key}_token_id") for role, key in keys.items()}
  ids = {role: id for role, id in ids.items() if id is not None}
  tokens = {role: words[id] for role, id in ids.items()}
  template, pad_id = value("chat_template"), ids.get("pad_token")
  eos_ids = [ids["eos_token"]] if "eos_token" in ids else []
  return HubTokenizer(found, template, tokens, eos_ids, pad_id, path, options)
