"""Tool-calling answers as parts: reading, writing, and damaging them.

The damages are the mistakes that a policy starts with, so that it learns format
and calls at different times; the doctor sees that a reward notices them.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from saw_jax.tasks.answer_task import Damage
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import catalogue, rewards
from saw_jax.tasks.tool_calling.catalogue import Answer

Call = dict[str, Any]
Calls = Sequence[Call]
Names = Sequence[str]


def write_calls(calls: Calls) -> str:
  return "\n".join(json.dumps(call) for call in calls)


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
  if rewards.format_reward(reference, reference) != 1.0:
    raise ValueError("the reference is not in the rewarded format")
  calls: tuple[Call, ...] = ()
  if rewards.CALL in reference:
    calls = tuple(rewards.read_calls(reference))
  thought = reference.split("<think>", 1)[1].split("</think>", 1)[0]
  said = reference.partition("<response>")[2].partition("</response>")[0]
  response = said.strip() if rewards.RESPONSE in reference else None
  return Answer(thought.strip(), calls, response)


def canonical(text: str) -> str | None:
  """Returns what an answer does, in one form, as JSON.

  It is the same for 1 and 1.0, and for any order of parameters. None where
  calls cannot be read, or there is neither a call nor a response.

  >>> canonical("<response> hello </response>")
  '{"calls": [], "response": true}'
  """
  has_response = rewards.RESPONSE in text and rewards.END_RESPONSE in text
  if rewards.CALL not in text:
    return _canonical([], True) if has_response else None
  if rewards.END_CALL not in text:
    return None
  # A policy writes anything, nesting past the recursion limit included.
  try:
    return _canonical(rewards.read_calls(text), has_response)
  except Exception:
    return None


def parse_calls(text: str) -> str | None:
  """Returns calls that somebody typed as `canonical` has them, if they are any.

  >>> parse_calls('{"name": "stop", "parameters": {}}')
  '{"calls": [{"name": "stop", "parameters": {}}], "response": false}'
  """
  try:
    found = json.loads(text)
    if isinstance(found, dict) and "name" in found:
      found = [found]
    if isinstance(found, list):
      found = {"calls": found, "response": not found}
    calls, has_response = found["calls"], found["response"]
    if not isinstance(has_response, bool) or not (calls or has_response):
      return None
    return _canonical(calls, has_response)
  except Exception:
    return None


def write_label(label: str, thought: str) -> str:
  """Writes a ground truth that does what a label in canonical form says."""
  parsed = parse_calls(label)
  if parsed is None:
    raise ValueError(f"these are no calls: {label[:60]!r}")
  found = json.loads(parsed)
  response = "ok" if found["response"] else None
  return write(Answer(thought, tuple(found["calls"]), response))


def _canonical(calls: Calls, has_response: bool) -> str:
  """Raises where a call is none."""
  if not all(isinstance(call["name"], str) for call in calls):
    raise TypeError("a name is text")
  plain = [
    {"name": call["name"], "parameters": _normal(dict(call["parameters"]))}
    for call in calls
  ]
  return json.dumps({"calls": plain, "response": has_response}, sort_keys=True)


def _normal(value: Any) -> Any:
  """The same value where Python has two numbers that are equal."""
  if isinstance(value, float) and value.is_integer():
    return int(value)
  if isinstance(value, list):
    return [_normal(item) for item in value]
  if isinstance(value, dict):
    return {name: _normal(item) for name, item in value.items()}
  return value


# Each breaks the format of a well-formed answer and leaves its calls readable.
# One that does not apply to an answer returns it unchanged.
FORMAT_DAMAGES: dict[str, Callable[[str], str]] = {
  "no_think": lambda text: text.split("</think>\n", 1)[-1],
  "open_think": lambda text: text.replace(" </think>", "", 1),
  "no_newline": lambda text: text.replace("</think>\n", "</think> ", 1),
  "call_on_one_line": lambda text: re.sub(
    r"(<tool_call>)\n|\n(</tool_call>)", r"\1\2", text
  ),
  "open_response": lambda text: text.replace(" </response>", "", 1),
  "text_after": lambda text: text + "\ndone",
  "text_before": lambda text: "yes\n" + text,
  "wrong_tag": lambda text: text.replace("think>", "thought>"),
}


def damage_format(draws: Draws, text: str) -> str:
  while True:
    damaged = FORMAT_DAMAGES[draws.choice(tuple(FORMAT_DAMAGES))](text)
    if damaged != text:
      return damaged


# A call damage takes draws, gold calls and the names of the tools on offer, and
# returns what to write between the call tags.


def wrong_value(draws: Draws, calls: Calls, offered: Names) -> str:
  index, parameters, name = _pick(draws, calls)
  value = parameters[name]
  tool = catalogue.TOOLS.get(calls[index]["name"])
  lists = {p.name: p.values for p in tool.parameters} if tool else {}
  others = [other for other in lists.get(name, ()) if other != value]
  new = draws.choice(others or [_other(value)])
  return _change(calls, index, {**parameters, name: new})


def wrong_type(draws: Draws, calls: Calls, offered: Names) -> str:
  index, parameters, name = _pick(draws, calls)
  value = parameters[name]
  value = [value] if isinstance(value, str) else json.dumps(value)
  return _change(calls, index, {**parameters, name: value})


def missing_parameter(draws: Draws, calls: Calls, offered: Names) -> str:
  index, parameters, name = _pick(draws, calls)
  left = {key: value for key, value in parameters.items() if key != name}
  return _change(calls, index, left)


def extra_parameter(draws: Draws, calls: Calls, offered: Names) -> str:
  index = draws.choice(range(len(calls)))
  parameters = calls[index]["parameters"]
  known = [p for tool in catalogue.CATALOGUE for p in tool.parameters]
  new = [
    (p.name, draws.choice(p.values)) for p in known if p.name not in parameters
  ]
  name, value = draws.choice(new)
  return _change(calls, index, {**parameters, name: value})


def wrong_tool(draws: Draws, calls: Calls, offered: Names) -> str:
  """Calls another of the offered tools, with values of its own."""
  index = draws.choice(range(len(calls)))
  call = calls[index]
  others = [other for other in offered if other != call["name"]]
  name = draws.choice(others or [f"{call['name']}_2"])
  tool = catalogue.TOOLS.get(name)
  parameters = tool.draw_values(draws) if tool else call["parameters"]
  changed = {"name": name, "parameters": parameters}
  return write_calls([*calls[:index], changed, *calls[index + 1 :]])


def extra_call(draws: Draws, calls: Calls, offered: Names) -> str:
  """Calls one tool more, of a name that the gold calls do not have."""
  used = {call["name"] for call in calls}
  others = [name for name in offered if name not in used]
  name = draws.choice(others) if others else f"{calls[-1]['name']}_2"
  tool = catalogue.TOOLS.get(name)
  parameters = tool.draw_values(draws) if tool else {}
  return write_calls([*calls, {"name": name, "parameters": parameters}])


def broken_json(draws: Draws, calls: Calls, offered: Names) -> str:
  return write_calls(calls)[:-1]


# With the share of each among the wrong calls of demonstrations.
CALL_DAMAGES = {
  wrong_value: 0.4,
  wrong_tool: 0.15,
  missing_parameter: 0.15,
  extra_parameter: 0.1,
  wrong_type: 0.05,
  extra_call: 0.05,
  broken_json: 0.1,
}


def applies(damage: Callable[..., str], calls: Calls) -> bool:
  """Whether these calls have something for a call damage to damage."""
  needs = damage in (wrong_value, wrong_type, missing_parameter)
  return any(call["parameters"] or not needs for call in calls)


def damage_calls(draws: Draws, calls: Calls, offered: Names) -> str:
  """Writes the calls with one mistake, so that they score less than 3."""
  damages = [d for d in CALL_DAMAGES if applies(d, calls)]
  shares = [CALL_DAMAGES[damage] for damage in damages]
  return damages[draws.weighted(shares)](draws, calls, offered)


def damages(
  key: int, reference: str, offered: Names, best: float
) -> Iterator[Damage]:
  """Yields each way to damage a reference, the text and its two rewards.

  A mistake in the format must cost it alone, and one in a call correctness.
  """
  answer = read(reference)
  for what, damage in FORMAT_DAMAGES.items():
    text = damage(reference)
    if text != reference:
      yield what, text, (best, 0.0)
  if not answer.calls:
    return
  unclosed = reference.replace("</tool_call>", "")
  yield "unclosed_call", unclosed, (-3.0, 0.0)
  swapped = write_calls(answer.calls[::-1])
  yield "swapped_calls", write(answer, swapped), (3.0, 1.0)
  for damage in CALL_DAMAGES:
    if applies(damage, answer.calls):
      what = damage.__name__
      body = damage(Draws("inspection", key, what), answer.calls, offered)
      expected = expected_correctness(what, answer.calls)
      yield what, write(answer, body), (expected, 1.0)


def expected_correctness(what: str, calls: Calls) -> float | None:
  """Returns the correctness of a gold answer with one named mistake.

  With one gold call of p parameters, S_max = p + 2, and a mistake loses that
  part of S which it touches. None for several calls, where it depends on which
  one is hit.
  """
  if what == "broken_json":
    return -3.0
  if len(calls) != 1:
    return None
  p = len(calls[0]["parameters"])
  lost = {
    "wrong_value": 1.0,
    "wrong_type": 1.0,
    "missing_parameter": 1.0 + 1.0 / max(p, 1),
    "extra_parameter": 1.0 / (p + 1),
    "extra_call": 0.5,
    "wrong_tool": p + 2.0,
  }[what]
  return 3.0 - 6.0 * lost / (p + 2)


def _pick(draws: Draws, calls: Calls) -> tuple[int, Call, str]:
  """Draws a call that has parameters, and the name of one of them."""
  index = draws.choice([i for i, c in enumerate(calls) if c["parameters"]])
  parameters = calls[index]["parameters"]
  return index, parameters, draws.choice(tuple(parameters))


def _change(calls: Calls, index: int, parameters: Call) -> str:
  changed = {**calls[index], "parameters": parameters}
  return write_calls([*calls[:index], changed, *calls[index + 1 :]])


def _other(value: Any) -> Any:
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1 if value + 1 != value else 0
  if isinstance(value, str):
    return value + "x"
  return None if value is not None else 0
