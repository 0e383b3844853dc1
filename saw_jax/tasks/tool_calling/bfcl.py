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
import statistics
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from saw_jax import naming
from saw_jax.tasks import answer_task, base
from saw_jax.tasks.row_files import field, read_lines
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
# Keys of the examples start here, where other tasks have their benchmarks.
FIRST_KEY = 3 * 2**29

_VERSION = "BFCL_v4"
_MODEL = "saw_jax"
_STUBBED = "bfcl_eval.constants.model_config"
_TOOLS = re.compile(r"1\. Name: .*\nParameters: [^\n]*", re.DOTALL)
_REQUEST = re.compile(r"<user> .* </user>", re.DOTALL)
# How a call's arguments are written down: for Java and JavaScript, whose values
# JSON does not have, as source text.
_SOURCE = {"simple_java": "Java", "simple_javascript": "JavaScript"}

# The system's and the user's message of a prompt of ToolRL's, around the tools
# and the dialogue of another.
Frame = tuple[str, str]


def find_frame(example: base.Example) -> Frame:
  """Returns the words in which a policy is trained; a file has one frame."""
  contents = {m["role"]: m["content"] for m in example.messages}
  system, user = contents.get("system", ""), contents.get("user", "")
  if not (_TOOLS.search(system) and _REQUEST.search(user)):
    raise ValueError(
      "no prompt of ToolRL's, with tools from '1. Name: ' to a last "
      "'Parameters: ' for the system and '<user> ... </user>' for the user"
    )
  return system, user


def read_category(
  category: str, frame: Frame | None = None
) -> list[base.Example]:
  """Reads the entries of a category, with their possible answers as JSON.

  Without a frame a prompt has the form of generated requests.
  """
  base.check_choice("category", category, CATEGORIES)
  folder, name = find_package() / "data", f"{_VERSION}_{category}.json"
  entries = list(read_lines(folder / name))
  answers: Sequence[Any] = [None] * len(entries)
  if not _asks_whether(category):
    rows = list(read_lines(folder / "possible_answer" / name))
    if [row["id"] for row in rows] != [entry["id"] for entry in entries]:
      raise ValueError(f"{name}: the possible answers are of other entries")
    answers = [field(row, "ground_truth", list) for row in rows]
  start = FIRST_KEY + 10_000 * CATEGORIES.index(category)
  pairs, examples = zip(entries, answers, strict=True), []
  for key, (entry, answer) in enumerate(pairs, start):
    functions = field(entry, "function", list)
    (turn,) = field(entry, "question", list)
    documented = [_document(function, category) for function in functions]
    messages = _write(documented, turn, frame)
    meta = {"category": category, "id": entry["id"], "functions": functions}
    examples.append(base.Example(key, messages, json.dumps(answer), meta))
  return examples


def read_split(split: str, frame: Frame | None = None) -> list[base.Example]:
  """Reads a category, or all of them."""
  names = CATEGORIES if split == "bfcl" else [split.removeprefix(_PREFIX)]
  return [row for name in names for row in read_category(name, frame)]


def is_entry(example: base.Example) -> bool:
  """Whether an example is one of the leaderboard's."""
  return "category" in example.meta


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
  if not all(isinstance(call["name"], str) for call in calls):
    return None
  return [{call["name"]: call["parameters"]} for call in calls]


def is_right(example: base.Example, completion: str) -> bool:
  """Asks the leaderboard's checker; nothing in the completion is executed."""
  category = example.meta["category"]
  calls = read_calls(completion)
  if _asks_whether(category):
    return bool(calls) == ("irrelevance" not in category)
  checker, languages = _checker()
  if calls is None:
    return False
  language = languages[_SOURCE.get(category, "Python").upper()]
  answers = json.loads(example.reference)
  # Some of its converters print, and standard output is not theirs.
  with contextlib.redirect_stdout(io.StringIO()):
    try:
      functions = example.meta["functions"]
      found = checker(functions, calls, answers, language, category, _MODEL)
      return bool(found["valid"])
    except Exception:
      return False


def score(example: base.Example, completion: str) -> base.Score:
  """Scores a completion in the components of tool calling.

  The outcome is about the calls alone, so that the share of right ones is the
  leaderboard's accuracy.
  """
  right = is_right(example, completion)
  answer = rewards.extract_completion(completion)
  is_formatted = rewards.format_reward(answer, gold_completion(example))
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
    known, parameters = functions[name]["parameters"], {}
    for argument, values in possible.items():
      # An argument that may be left out is.
      if "" in values and argument not in known["required"]:
        continue
      value = _settle(next((v for v in values if v != ""), ""))
      about = known["properties"].get(argument, {"type": "any"})
      if category == "simple_java":
        inner = about.get("items", {}).get("type")
        value = _write_java(value, about["type"], inner)
      elif category == "simple_javascript":
        value = _write_script(value, about["type"])
      parameters[argument] = value
    calls.append({"name": name, "parameters": parameters})
  lines = rewards.write_calls(calls)
  return f"{thought}{rewards.CALL}\n{lines}\n{rewards.END_CALL}"


def averages(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
  """Averages categories as version 3 of the leaderboard does, of single turns.

  `non_live` is the plain mean of simple (itself that of three languages),
  multiple, parallel, parallel multiple and irrelevance; `live` is the mean over
  all of its entries, and `single_turn` that of the two. An average is left out
  where one of its categories is.
  """
  found: dict[str, list[float]] = {}
  for category, value in pairs:
    found.setdefault(category, []).append(float(value))
  figures = {c: statistics.fmean(found[c]) for c in CATEGORIES if c in found}
  if found.keys() >= set(_NON_LIVE):
    simple = statistics.fmean(figures[c] for c in _SIMPLE)
    others = [figures[c] for c in _NON_LIVE[len(_SIMPLE) :]]
    figures["non_live"] = statistics.fmean([simple, *others])
  if found.keys() >= set(_LIVE):
    figures["live"] = statistics.fmean(v for c in _LIVE for v in found[c])
  if {"non_live", "live"} <= figures.keys():
    figures["single_turn"] = (figures["non_live"] + figures["live"]) / 2
  return figures


def find_package() -> pathlib.Path:
  spec = importlib.util.find_spec("bfcl_eval")
  if spec is None or not spec.submodule_search_locations:
    raise ImportError(
      "BFCL needs bfcl-eval without its requirements, an older NumPy and the "
      "clients of every provider: pip install --no-deps 'bfcl-eval==2026.3.23'"
    )
  return pathlib.Path(spec.submodule_search_locations[0])


@functools.cache
def _checker() -> tuple[Callable[..., dict[str, Any]], Any]:
  """The package's own checker, and its languages."""
  find_package()
  # The checker looks one thing up, whether dots in names are kept, in a table
  # of all models that cannot be imported without their clients.
  stub = types.ModuleType(_STUBBED)
  keeps_dots = types.SimpleNamespace(underscore_to_dot=False)
  stub.MODEL_CONFIG_MAPPING = {_MODEL.replace("_", "/"): keeps_dots}
  with naming.standing_in(_STUBBED, stub):
    from bfcl_eval.eval_checker.ast_eval import ast_checker
  from bfcl_eval.constants.enums import Language

  return ast_checker.ast_checker, Language


def _asks_whether(category: str) -> bool:
  return category.endswith("relevance")


def _document(function: Mapping[str, Any], category: str) -> dict[str, Any]:
  parameters = dict(function["parameters"]["properties"])
  if category in _SOURCE:
    # As the leaderboard does it: source text in a JSON string.
    for name, known in parameters.items():
      about = {k: known[k] for k in known if k not in ("items", "properties")}
      said = f"{known.get('description', '')} {_SOURCE[category]} source text, "
      said += f"of type {known['type']}."
      parameters[name] = {**about, "type": "string", "description": said}
  return {**function, "parameters": parameters}


def _write(
  functions: Sequence[Mapping[str, Any]],
  turn: Sequence[Mapping[str, str]],
  frame: Frame | None,
) -> answer_task.Messages:
  offered, system, said = [], [], []
  for number, function in enumerate(functions, 1):
    name, known = function["name"], function["parameters"]
    inside = ", ".join(f"{n}: {about['type']}" for n, about in known.items())
    described = f"Description: {function['description']}\n"
    described += f"Parameters: {json.dumps(known)}"
    plain, framed = f"{name}({inside})", f"{number}. Name: {name}\n{described}"
    offered.append(framed if frame else plain)
  for message in turn:
    text, role = message["content"], message["role"]
    if role == "system":
      system.append(text)
      continue
    tag = "user" if role == "user" else "response"
    said.append(f"<{tag}> {text} </{tag}>" if frame else text)
  tools, history, gap = "\n".join(offered), "\n".join(said), "\n"
  if frame:
    gap = "\n\n"
    # Not as templates, whose backslashes would mean something.
    tools = _TOOLS.sub(lambda _: "\n".join(offered), frame[0], count=1)
    history = _REQUEST.sub(lambda _: "\n".join(said), frame[1], count=1)
  system = {"role": "system", "content": gap.join([tools, *system])}
  return (system, *answer_task.ask(history))


def _settle(value: Any) -> Any:
  """The first possible value of each key of dictionaries."""
  if isinstance(value, list):
    return [_settle(item) for item in value]
  if not isinstance(value, dict):
    return value
  return {key: values[0] for key, values in value.items() if "" not in values}


def _write_script(value: Any, kind: str) -> str:
  if kind == "String" or not isinstance(value, dict | list | bool):
    return str(value) + "n" * (kind == "Bigint")
  return json.dumps(value)


def _write_java(value: Any, kind: str, inner: str | None = None) -> str:
  """A value as Java's source text, in a form that the checker reads."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, int) and kind == "long":
    return f"{value}L"
  if isinstance(value, int | float) and kind == "float":
    return f"{value}f"
  if isinstance(value, list):
    quoted = kind == "ArrayList" and inner == "String"
    write = json.dumps if quoted else lambda x: _write_java(x, inner or "")
    items = ", ".join(map(write, value))
    if kind == "Array":
      return f"new Object[]{{{items}}}"
    return f"new ArrayList<>(Arrays.asList({items}))"
  if isinstance(value, dict):
    pairs = (map(json.dumps, pair) for pair in value.items())
    puts = " ".join(f"put({key}, {item});" for key, item in pairs)
    return f"new HashMap<>() {{{{ {puts} }}}}"
  return str(value)
