"""The Berkeley Function-Calling Leaderboard (Patil et al., ICML 2025).

The single-turn categories, by the data and the checker of the package
`bfcl-eval`: calls are compared, and never executed.
"""

import contextlib
import functools
import importlib.util
import io
import json
import pathlib
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saw_jax.tasks import answer_task, base, row_files
from saw_jax.tasks.tool_calling import rewards

# What version 3 averages, see `averages`.
_SIMPLE = ("simple_python", "simple_java", "simple_javascript")
_NON_LIVE = (*_SIMPLE, "multiple", "parallel", "parallel_multiple")
_NON_LIVE += ("irrelevance",)
_LIVE = ("live_simple", "live_multiple", "live_parallel")
_LIVE += ("live_parallel_multiple", "live_irrelevance", "live_relevance")
CATEGORIES = (*_NON_LIVE, *_LIVE)
_PREFIX = "bfcl_"
SPLITS = ("bfcl", *(_PREFIX + category for category in CATEGORIES))
# Keys of the examples start here, beyond those of any other split.
FIRST_KEY = 3 * 2**29

_VERSION = "BFCL_v4"
_MODEL = "saw_jax"
_STUBBED = "bfcl_eval.constants.model_config"
_TOOLS = re.compile(r"1\. Name: .*\nParameters: [^\n]*", re.DOTALL)
_REQUEST = re.compile(r"<user> .* </user>", re.DOTALL)
# How a call's arguments are written down: for Java and JavaScript, whose values
# JSON does not have, as source text.
_SOURCE = {"simple_java": "Java", "simple_javascript": "JavaScript"}


# A prompt of ToolRL's around what differs between two prompts: what is before
# and after its tools, and before and after its dialogue.
Frame = tuple[str, str, str, str]


def find_frame(example: base.Example) -> Frame:
  """Returns the words in which a policy is trained; a file has one frame."""
  contents = {m["role"]: m["content"] for m in example.messages}
  tools = _TOOLS.search(contents.get("system", ""))
  history = _REQUEST.search(contents.get("user", ""))
  if tools is None or history is None:
    raise ValueError(
      "no prompt of ToolRL's: its system message lists tools from "
      "'1. Name: ' to a last 'Parameters: ', and its user message has "
      "'<user> ... </user>'"
    )
  return tuple(
    part
    for found in (tools, history)
    for part in (found.string[: found.start()], found.string[found.end() :])
  )


def read_category(
  category: str, *, frame: Frame | None = None
) -> list[base.Example]:
  """Reads the entries of a category, with their possible answers as JSON.

  Without a frame a prompt has the form of generated requests.
  """
  if category not in CATEGORIES:
    raise ValueError(
      f"no category {category!r} of single turns: "
      f"{base.nearest(category, CATEGORIES)}"
    )
  folder, name = find_package() / "data", f"{_VERSION}_{category}.json"
  entries = _read(folder / name)
  answers: Sequence[Any] = [None] * len(entries)
  if not _asks_whether(category):
    rows = _read(folder / "possible_answer" / name)
    if [row["id"] for row in rows] != [entry["id"] for entry in entries]:
      raise ValueError(f"{name}: the possible answers are of other entries")
    answers = [row_files.field(row, "ground_truth", list) for row in rows]
  start = FIRST_KEY + 10_000 * CATEGORIES.index(category)
  examples = []
  for number, (entry, answer) in enumerate(zip(entries, answers, strict=True)):
    functions = row_files.field(entry, "function", list)
    (turn,) = row_files.field(entry, "question", list)
    documented = [_document(function, category) for function in functions]
    write = _write_plain if frame is None else functools.partial(_write, frame)
    meta = {"category": category, "id": entry["id"], "functions": functions}
    example = start + number, write(documented, turn), json.dumps(answer), meta
    examples.append(base.Example(*example))
  return examples


def read_split(split: str, *, frame: Frame | None = None) -> list[base.Example]:
  """Reads a category, or all of them."""
  names = CATEGORIES if split == "bfcl" else [split.removeprefix(_PREFIX)]
  return [row for name in names for row in read_category(name, frame=frame)]


def read_calls(completion: str) -> list[dict[str, Any]] | None:
  """Reads a completion's calls into the checker's form; None if it cannot."""
  answer = rewards.extract_completion(completion)
  if rewards.CALL not in answer:
    return []
  # As in `rewards.call_score`: whatever a policy writes is one outcome.
  try:
    calls = rewards.read_calls(answer)
  except Exception:
    return None
  if rewards.END_CALL not in answer or not all(
    isinstance(call["name"], str) for call in calls
  ):
    return None
  return [{call["name"]: call["parameters"]} for call in calls]


def is_right(example: base.Example, completion: str) -> bool:
  """Asks the leaderboard's checker; nothing in the completion is executed."""
  category = example.meta["category"]
  calls = read_calls(completion)
  if _asks_whether(category):
    return bool(calls) == ("irrelevance" not in category)
  check = _checker()
  if calls is None:
    return False
  answers = json.loads(example.reference)
  # Some of its converters print, and standard output is not theirs.
  with contextlib.redirect_stdout(io.StringIO()):
    try:
      return bool(check(example.meta["functions"], calls, answers, category))
    except Exception:
      return False


def score(example: base.Example, completion: str) -> base.Score:
  """Scores a completion in the components of tool calling.

  The outcome is about the calls alone, so that the share of right ones is the
  leaderboard's accuracy.
  """
  right = is_right(example, completion)
  is_formatted = rewards.format_reward(
    rewards.extract_completion(completion), gold_completion(example)
  )
  outcome = base.Outcome.RIGHT if right else base.Outcome.WRONG
  if not right and read_calls(completion) is None:
    outcome = base.Outcome.UNPARSABLE
  return base.Score((3.0 if right else -3.0, is_formatted), outcome)


def gold_completion(example: base.Example) -> str:
  category = example.meta["category"]
  thought = f"{rewards.THINK} ... {rewards.END_THINK}\n"
  if "irrelevance" in category:
    return f"{thought}{rewards.RESPONSE} ... {rewards.END_RESPONSE}"
  functions = {f["name"]: f for f in example.meta["functions"]}
  calls = []
  if _asks_whether(category):
    calls.append({"name": next(iter(functions)), "parameters": {}})
  for answer in json.loads(example.reference) or []:
    ((name, possible),) = answer.items()
    known = functions[name]["parameters"]
    parameters = {
      argument: _write_value(
        _first(values),
        known["properties"].get(argument, {"type": "any"}),
        _SOURCE.get(category),
      )
      for argument, values in possible.items()
      # An argument that may be left out is.
      if "" not in values or argument in known["required"]
    }
    calls.append({"name": name, "parameters": parameters})
  lines = "\n".join(json.dumps(call) for call in calls)
  return f"{thought}{rewards.CALL}\n{lines}\n{rewards.END_CALL}"


def averages(
  categories: Sequence[str], right: Sequence[float]
) -> dict[str, float]:
  """Averages as version 3 of the leaderboard does, as far as turns are single.

  `non_live` is the plain mean of simple (itself that of three languages),
  multiple, parallel, parallel multiple and irrelevance; `live` is the mean over
  all of its entries, and `single_turn` that of the two. An average is left out
  where one of its categories is.
  """
  found: dict[str, list[float]] = {}
  for category, value in zip(categories, right, strict=True):
    found.setdefault(category, []).append(float(value))
  figures = {c: _mean(found[c]) for c in CATEGORIES if c in found}
  if found.keys() >= set(_NON_LIVE):
    simple = _mean([figures[c] for c in _SIMPLE])
    others = [figures[c] for c in _NON_LIVE[len(_SIMPLE) :]]
    figures["non_live"] = _mean([simple, *others])
  if found.keys() >= set(_LIVE):
    figures["live"] = _mean([v for c in _LIVE for v in found[c]])
  if {"non_live", "live"} <= figures.keys():
    figures["single_turn"] = _mean([figures["non_live"], figures["live"]])
  return figures


def find_package() -> pathlib.Path:
  spec = importlib.util.find_spec("bfcl_eval")
  if spec is None or not spec.submodule_search_locations:
    raise ImportError(
      "BFCL comes with the package bfcl-eval: pip install --no-deps "
      "'bfcl-eval==2026.3.23', whose own requirements are an older NumPy and "
      "the clients of every provider, of which its checker needs none"
    )
  return pathlib.Path(spec.submodule_search_locations[0])


@functools.cache
def _checker() -> Callable[[list, list, list, str], bool]:
  """The package's own checker: `(functions, calls, answers, category)`."""
  find_package()
  # The checker asks one question of a table of all models and their clients,
  # which cannot be imported without them: whether dots in names are kept.
  before = sys.modules.get(_STUBBED)
  stub = types.ModuleType(_STUBBED)
  keeps_dots = types.SimpleNamespace(underscore_to_dot=False)
  stub.MODEL_CONFIG_MAPPING = {_MODEL.replace("_", "/"): keeps_dots}
  sys.modules[_STUBBED] = stub
  try:
    from bfcl_eval.eval_checker.ast_eval import ast_checker
  finally:
    del sys.modules[_STUBBED]
    if before is not None:
      sys.modules[_STUBBED] = before
  from bfcl_eval.constants.enums import Language

  def check(functions, calls, answers, category):
    source = _SOURCE.get(category, "Python").upper()
    return ast_checker.ast_checker(
      functions, calls, answers, Language[source], category, _MODEL
    )["valid"]

  return check


def _asks_whether(category: str) -> bool:
  return category.endswith("relevance")


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _document(function: Mapping[str, Any], category: str) -> dict[str, Any]:
  parameters = dict(function["parameters"]["properties"])
  language = _SOURCE.get(category)
  if language is not None:
    # As the leaderboard does it: source text in a JSON string.
    parameters = {
      name: {
        **{k: v for k, v in known.items() if k not in ("items", "properties")},
        "type": "string",
        "description": (
          f"{known.get('description', '')} {language} source text, of type "
          f"{known['type']}."
        ),
      }
      for name, known in parameters.items()
    }
  return {**function, "parameters": parameters}


def _write(
  frame: Frame, functions: Sequence[Mapping[str, Any]], turn: Sequence[Any]
) -> answer_task.Messages:
  tools = "\n".join(
    f"{number}. Name: {function['name']}\n"
    f"Description: {function['description']}\n"
    f"Parameters: {json.dumps(function['parameters'])}"
    for number, function in enumerate(functions, 1)
  )
  before_tools, after_tools, before_history, after_history = frame
  system, said = before_tools + tools + after_tools, []
  for message in turn:
    if message["role"] == "system":
      system += "\n\n" + message["content"]
    elif message["role"] == "user":
      said.append(f"<user> {message['content']} </user>")
    else:
      said.append(f"<response> {message['content']} </response>")
  history = before_history + "\n".join(said) + after_history
  return ({"role": "system", "content": system}, *answer_task.ask(history))


def _write_plain(
  functions: Sequence[Mapping[str, Any]], turn: Sequence[Any]
) -> answer_task.Messages:
  lines = []
  for function in functions:
    known = function["parameters"].items()
    inside = ", ".join(f"{name}: {about['type']}" for name, about in known)
    lines.append(f"{function['name']}({inside})")
  lines += [m["content"] for m in turn if m["role"] == "system"]
  said = [m["content"] for m in turn if m["role"] != "system"]
  system = {"role": "system", "content": "\n".join(lines)}
  return (system, *answer_task.ask("\n".join(said)))


def _first(values: Sequence[Any]) -> Any:
  """The first possible value; of each key, where it is a dictionary."""
  value = next((v for v in values if v != ""), "")
  return (
    list(map(_settle, value)) if isinstance(value, list) else _settle(value)
  )


def _settle(value: Any) -> Any:
  if not isinstance(value, dict):
    return value
  return {key: values[0] for key, values in value.items() if "" not in values}


def _write_value(
  value: Any, known: Mapping[str, Any], language: str | None
) -> Any:
  if language is None:
    return value
  kind = known["type"]
  if language == "Java":
    return _write_java(value, kind, known.get("items", {}).get("type"))
  if kind == "String" or not isinstance(value, dict | list | bool):
    return str(value) + "n" * (kind == "Bigint")
  return json.dumps(value)


def _write_java(value: Any, kind: str, inner: str | None) -> str:
  """A value as Java's source text, in a form that the checker reads."""
  if isinstance(value, bool):
    return str(value).lower()
  if kind == "long" and isinstance(value, int):
    return f"{value}L"
  if kind == "float" and isinstance(value, int | float):
    return f"{value}f"
  if isinstance(value, list):
    items = ", ".join(
      json.dumps(item)
      if kind == "ArrayList" and inner == "String"
      else _write_java(item, inner or "", None)
      for item in value
    )
    if kind == "Array":
      return f"new Object[]{{{items}}}"
    return f"new ArrayList<>(Arrays.asList({items}))"
  if isinstance(value, dict):
    puts = " ".join(
      f"put({json.dumps(key)}, {json.dumps(item)});"
      for key, item in value.items()
    )
    return f"new HashMap<>() {{{{ {puts} }}}}"
  return str(value)
