"""Answers as ToolRL has them, and its two rewards: on format, on calls.

No text of a policy makes them raise, and they take time linear in its length.
"""

import collections
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
RESPONSE, END_RESPONSE = "<response>", "</response>"

Call = dict[str, Any]  # a name and its parameters
_TURN, _END_TURN = "<|im_start|>assistant", "<|im_end|>"
_TAG = re.compile(r"<(?=/?(?:think|tool_call|response)>|\|im_(?:start|end)\|>)")
_DECODER = json.JSONDecoder()


def extract_completion(text: str) -> str:
  """Returns the last turn of the assistant in a ChatML text, stripped.

  The text may be an answer alone, with or without its end marker.
  """
  return hide_tags(text).rpartition(_TURN)[2].partition(_END_TURN)[0].strip()


class Answer(NamedTuple):
  """What an answer holds: a thought, then calls, a response, or both."""

  thought: str
  calls: tuple[Call, ...]
  response: str | None


def write_calls(calls: Sequence[Call]) -> str:
  return "\n".join(_hide(json.dumps(call)) for call in calls)


def _hide(text: str) -> str:
  return _TAG.sub(r"\\u003c", text)


@functools.lru_cache(maxsize=8)
def hide_tags(text: str) -> str:
  """Escapes the tags inside of JSON strings of calls: they are text, no tags.

  >>> print(hide_tags('<tool_call>{"name": "</response>"}</tool_call>'))
  <tool_call>{"name": "\\u003c/response>"}</tool_call>
  """
  head, tag, block = text.partition(CALL)
  lines = block.split("\n")
  for index, line in enumerate(lines):
    if "<" in line:
      try:
        _, end = _DECODER.raw_decode(line, len(line) - len(line.lstrip()))
      except (ValueError, RecursionError):
        break
      lines[index] = _hide(line[:end]) + line[end:]
  return head + tag + "\n".join(lines)


def has_response(text: str) -> bool:
  return END_RESPONSE in text.partition(RESPONSE)[2]


def write(answer: Answer, body: str | None = None) -> str:
  """Writes an answer in the rewarded format, with `body` for its calls."""
  blocks = [f"<think> {answer.thought} </think>"]
  if answer.calls:
    body = write_calls(answer.calls) if body is None else body
    blocks.append(f"<tool_call>\n{body}\n</tool_call>")
  if answer.response is not None:
    blocks.append(f"<response> {answer.response} </response>")
  return "\n".join(blocks)


def read(reference: str) -> Answer:
  """Reads a ground truth into its parts; `write` makes them a text again."""
  if format_reward(reference, reference) != 1.0:
    raise ValueError("the reference is not in the rewarded format")
  reference = hide_tags(reference)
  calls = tuple(read_calls(reference)) if CALL in reference else ()
  thought = reference.partition(THINK)[2].partition(END_THINK)[0].strip()
  said = reference.partition(RESPONSE)[2].partition(END_RESPONSE)[0].strip()
  return Answer(thought, calls, said if RESPONSE in reference else None)


def format_reward(completion: str, reference: str) -> float:
  r"""Returns 1 for an answer with the blocks of the reference, in their order.

  The reference decides which of the four patterns has to match (with DOTALL):

    only `<response>`     ^<think>.*?</think>\n<response>.*?</response>$
    only `<tool_call>`    ^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$
    both                  the second without its $, then \n, then `<response>`
    neither               ^<think>.*?</think>$

  and each tag of those blocks has to occur exactly once. Such a pattern matches
  if and only if its fixed parts are found one after the other, each at its
  first chance, which takes linear time for any text.
  Differs from the reference code: a tag in a string of a call is no tag.
  """
  completion, reference = hide_tags(completion), hide_tags(reference)
  blocks, tags = [f"{THINK}\0{END_THINK}"], []
  if CALL in reference:
    blocks.append(f"{CALL}\n\0\n{END_CALL}")
    tags += [CALL, END_CALL]
  if RESPONSE in reference:
    blocks.append(f"{RESPONSE}\0{END_RESPONSE}")
    tags += [RESPONSE, END_RESPONSE]
  once = all(completion.count(tag) == 1 for tag in tags)
  return float(once and _in_order(completion, "\n".join(blocks).split("\0")))


def _in_order(text: str, parts: list[str]) -> bool:
  """Whether text is the parts with anything between them."""
  text = text.removesuffix("\n")  # `$` also matches before a last newline.
  first, *middle, last = parts
  if not text.startswith(first):
    return False
  position = len(first)
  for part in middle:
    found = text.find(part, position)
    if found < 0:
      return False
    position = found + len(part)
  return text.endswith(last) and len(text) - len(last) >= position


def read_calls(reference: str) -> list[Call]:
  """Reads the calls of a ground truth, one JSON object a line of its block."""
  try:
    calls = _load_calls(reference)
    for call in calls:
      hash(call["name"])
      if not isinstance(call["parameters"], dict):
        raise TypeError("the parameters are not an object")
    return calls
  except Exception as error:
    what = f"unreadable tool calls in the reference: {error}"
    raise ValueError(what) from error


def call_score(completion: str, gold: Sequence[Call]) -> float | None:
  """Scores calls by the names, parameters and values they share with the gold.

  The reward is 6 times this score, from 0 to 1, less 3. Calls that equal the
  gold ones, in their order, get 1. Otherwise it is S / S_max, with

    S = J(names) + Σ_gold max_unused (J(parameter names) + #equal values)
    S_max = 1 + Σ_gold (1 + #parameters)

  with J the Jaccard index of multisets, and the maximum over the answer's
  unused calls of the same name. Values compare with Python's `==` after
  `json.loads`, so that 1 equals 1.0 and true but not "1". Only what is between
  the answer's first `<tool_call>` and the `</tool_call>` after it counts, also
  inside of `<think>`, and whatever block follows; None where that cannot be
  read, is not closed, or holds another `<tool_call>`.

  Differs from the paper: calls are matched greedily, in the order of the gold
  ones, and names are multisets, as in the reference code. Differs from that:
  it reads a block that is closed before it begins, and one up to a second
  `<tool_call>`, and a tag in a string of a call is one.
  """
  # A policy writes anything: nesting past the recursion limit, integers past
  # the digit limit, lists where a name should be. All of it is one outcome.
  try:
    calls = _load_calls(completion)
    score, matches = _compare(gold, calls)
    for named, equal in matches:
      score += named + equal
    most = 1.0 + sum(1.0 + len(call["parameters"]) for call in gold)
    return 1.0 if calls == gold else score / most
  except Exception:
    return None


def call_parts(
  completion: str, gold: Sequence[Call]
) -> tuple[float, float, float] | None:
  """The three parts that `call_score` adds up, each from 0 to 1.

  How alike the names of the calls are, the names of their parameters, and how
  many values are right. None where no calls can be read.
  """
  try:
    names, matches = _compare(gold, _load_calls(completion))
    count = sum(len(call["parameters"]) for call in gold)
    named, equal = (sum(part) for part in zip(*matches, strict=True))
    return names, named / len(gold), equal / count if count else 1.0
  except Exception:
    return None


def find_block(text: str) -> str | None:
  """What the first block of calls holds, if it is closed and none is in it."""
  block, end, _ = hide_tags(text).partition(CALL)[2].partition(END_CALL)
  return block.strip() if end and CALL not in block else None


def _load_calls(text: str) -> list[Any]:
  lines = (find_block(text) or "").split("\n")
  return [json.loads(line) for line in lines]


def _compare(
  gold: Sequence[Call], calls: list[Any]
) -> tuple[float, list[tuple[float, int]]]:
  """Compares names, and each gold call with the unused one most like it."""
  names = _jaccard([c["name"] for c in gold], [c["name"] for c in calls])
  unused, found = list(calls), []
  for wanted in gold:
    matches = [_match(wanted, call) for call in unused]
    best = max(matches, key=sum, default=(0.0, 0))
    if sum(best) > 0.0:
      unused.pop(matches.index(best))
    found.append(best)
  return names, found


def _match(wanted: Call, call: Call) -> tuple[float, int]:
  if call["name"] != wanted["name"]:
    return 0.0, 0
  gold, answer = wanted["parameters"], call["parameters"]
  equal = sum(name in answer and answer[name] == gold[name] for name in gold)
  return _jaccard(list(gold.keys()), list(answer.keys())), equal


def _jaccard(a: list[Any], b: list[Any]) -> float:
  """The Jaccard index of two multisets; 1 for two that are equal as lists."""
  if a == b:
    return 1.0
  if not a or not b:
    return 0.0
  shared = (collections.Counter(a) & collections.Counter(b)).total()
  return shared / (len(a) + len(b) - shared)
