"""Tool-calling answers in one form, and their damages.

The damages are mistakes. Demonstrations have them, so that a policy learns
format and calls at different times; the doctor checks that rewards see them.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from saw_jax.tasks.answer_task import Damage
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import catalogue, rewards
from saw_jax.tasks.tool_calling.rewards import Call, read, write, write_calls

Calls = Sequence[Call]
Names = Sequence[str]


def canonical(text: str) -> str | None:
  """Returns what an answer does, in one form, as JSON.

  It is the same for 1 and 1.0, and for any order of parameters. None where
  calls cannot be read, or there is neither a call nor a response.

  >>> canonical("<response> hello </response>")
  '{"calls": [], "response": true}'
  """
  text = rewards.hide_tags(text)
  has_response = rewards.has_response(text)
  if rewards.CALL not in text:
    return _canonical([], True) if has_response else None
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


def _canonical(calls: Calls, has_response: bool) -> str:
  """Raises where a call is none."""
  if not all(isinstance(call["name"], str) for call in calls):
    raise TypeError("a name is text")
  pairs = [(call["name"], dict(call["parameters"])) for call in calls]
  plain = [{"name": name, "parameters": values} for name, values in pairs]
  plain = json.loads(json.dumps(plain), parse_float=_number)
  return json.dumps({"calls": plain, "response": has_response}, sort_keys=True)


def _number(text: str) -> float:
  value = float(text)
  return int(value) if value.is_integer() else value


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
  tool = catalogue.TOOLS.get(calls[index]["name"], {"parameters": ()})
  known = {p["name"]: p["values"] for p in tool["parameters"]}
  value = parameters[name]
  others = [other for other in known.get(name, ()) if other != value]
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
  known = [p for tool in catalogue.CATALOGUE for p in tool["parameters"]]
  new = [p for p in known if p["name"] not in parameters]
  drawn = [(p["name"], draws.choice(p["values"])) for p in new]
  return _change(calls, index, dict([*parameters.items(), draws.choice(drawn)]))


def wrong_tool(draws: Draws, calls: Calls, offered: Names) -> str:
  """Calls another of the offered tools, with values of its own."""
  index = draws.choice(range(len(calls)))
  used, parameters = calls[index]["name"], calls[index]["parameters"]
  others = [other for other in offered if other != used]
  name = draws.choice(others or [f"{used}_2"])
  return _change(calls, index, _values(draws, name, parameters), name)


def extra_call(draws: Draws, calls: Calls, offered: Names) -> str:
  """Calls one tool more, of a name that the gold calls do not have."""
  used = {call["name"] for call in calls}
  others = [name for name in offered if name not in used]
  name = draws.choice(others) if others else f"{calls[-1]['name']}_2"
  more = {"name": name, "parameters": _values(draws, name, {})}
  return write_calls([*calls, more])


def broken_json(draws: Draws, calls: Calls, offered: Names) -> str:
  return write_calls(calls)[:-1]


# With the share of each among the wrong calls of demonstrations, and what it
# loses, of the S_max = p + 2 of one gold call with p parameters.
CALL_DAMAGES: dict[Callable[..., str], tuple[float, Callable[[int], float]]] = {
  wrong_value: (0.4, lambda p: 1.0),
  wrong_tool: (0.15, lambda p: p + 2.0),
  missing_parameter: (0.15, lambda p: 1.0 + 1.0 / max(p, 1)),
  extra_parameter: (0.1, lambda p: 1.0 / (p + 1)),
  wrong_type: (0.05, lambda p: 1.0),
  extra_call: (0.05, lambda p: 0.5),
  broken_json: (0.1, lambda p: p + 2.0),
}


def applies(damage: Callable[..., str], calls: Calls) -> bool:
  """Whether these calls have something for a call damage to damage."""
  needs = damage in (wrong_value, wrong_type, missing_parameter)
  return any(call["parameters"] or not needs for call in calls)


def damage_calls(draws: Draws, calls: Calls, offered: Names) -> str:
  """Writes the calls with one mistake, so that they score less than 3."""
  damages = [d for d in CALL_DAMAGES if applies(d, calls)]
  shares = [CALL_DAMAGES[damage][0] for damage in damages]
  return damages[draws.weighted(shares)](draws, calls, offered)


def format_damages(gold: str, best: float) -> Iterator[Damage]:
  """Yields what must cost the format alone, or leaves no call to be read."""
  for what, damage in FORMAT_DAMAGES.items():
    text = damage(gold)
    if text != gold:
      yield what, text, (best, 0.0)
  if rewards.END_CALL in gold:
    yield "unclosed_call", gold.replace(rewards.END_CALL, ""), (-3.0, 0.0)


def call_damages(key: int, reference: str, offered: Names) -> Iterator[Damage]:
  """Yields what must cost a part of correctness, and a change of order."""
  answer = read(reference)
  if not answer.calls:
    return
  swapped = write_calls(answer.calls[::-1])
  yield "swapped_calls", write(answer, swapped), (3.0, 1.0)
  p, single = len(answer.calls[0]["parameters"]), len(answer.calls) == 1
  for damage, (_, lost) in CALL_DAMAGES.items():
    if applies(damage, answer.calls):
      draws = Draws("inspection", key, damage.__name__)
      text = write(answer, damage(draws, answer.calls, offered))
      # With several calls it depends on which one is hit.
      is_known = single or damage is broken_json
      expected = 3.0 - 6.0 * lost(p) / (p + 2) if is_known else None
      yield damage.__name__, text, (expected, 1.0)


def _pick(draws: Draws, calls: Calls) -> tuple[int, Call, str]:
  """Draws a call that has parameters, and the name of one of them."""
  index = draws.choice([i for i, c in enumerate(calls) if c["parameters"]])
  parameters = calls[index]["parameters"]
  return index, parameters, draws.choice(tuple(parameters))


def _change(
  calls: Calls, index: int, parameters: Call, name: str | None = None
) -> str:
  old = calls[index]
  changed = {**old, "name": name or old["name"], "parameters": parameters}
  return write_calls([*calls[:index], changed, *calls[index + 1 :]])


def _values(draws: Draws, name: str, otherwise: Call) -> Call:
  known = name in catalogue.TOOLS
  return catalogue.draw_values(draws, name) if known else otherwise


def _other(value: Any) -> Any:
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1 if value + 1 != value else 0
  if isinstance(value, str):
    return value + "x"
  return None if value is not None else 0
