"""Tool-calling answers as parts: reading, writing, and damaging them.

A policy that is to learn format and correctness at different times has to start
with some of both. The damages here are the mistakes it starts with; `doctor`
uses them too, to see that a reward notices them.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from saw_jax.tasks.tool_calling import (
  catalogue as tool_catalogue,
)
from saw_jax.tasks.tool_calling import (
  rewards as tool_rewards,
)

Draws = tool_catalogue.Draws
Call = dict[str, Any]
Calls = Sequence[Call]
Names = Sequence[str]


class Answer(NamedTuple):
  """What an answer holds: a thought, then calls, a response, or both."""

  thought: str
  calls: tuple[Call, ...]
  response: str | None


def write_calls(calls: Calls) -> str:
  """Writes calls as JSON, one a line.

  Args:
    calls: each with a "name" and "parameters".

  Returns:
    The text.
  """
  return "\n".join(json.dumps(call) for call in calls)


def write(answer: Answer, body: str | None = None) -> str:
  """Writes an answer in the format that is rewarded.

  Args:
    answer: the parts.
    body: what to put between the call tags in place of the answer's calls.

  Returns:
    The text.
  """
  blocks = [f"<think> {answer.thought} </think>"]
  if answer.calls:
    body = write_calls(answer.calls) if body is None else body
    blocks.append(f"<tool_call>\n{body}\n</tool_call>")
  if answer.response is not None:
    blocks.append(f"<response> {answer.response} </response>")
  return "\n".join(blocks)


def read(reference: str) -> Answer:
  """Reads a ground truth into its parts.

  Args:
    reference: the ground truth.

  Returns:
    The parts; `write` makes them a text again.

  Raises:
    ValueError: it is not in the rewarded format, or a call is not JSON.
  """
  if tool_rewards.format_reward(reference, reference) != 1.0:
    raise ValueError("the reference is not in the rewarded format")
  calls: tuple[Call, ...] = ()
  if tool_rewards.CALL in reference:
    calls = tuple(tool_rewards.read_calls(reference))
  thought = reference.split("<think>", 1)[1].split("</think>", 1)[0]
  response = None
  if tool_rewards.RESPONSE in reference:
    response = reference.split("<response>")[1].split("</response>")[0].strip()
  return Answer(thought.strip(), calls, response)


def canonical(text: str) -> str | None:
  """Returns what an answer does, in one form.

  Args:
    text: an answer; any text.

  Returns:
    JSON: `calls`, in their order, and whether a `response` is given. The form
    is the same for 1 and 1.0, and for any order of parameters. None where calls
    cannot be read, or there is neither a call nor a response.

  >>> canonical("<response> hello </response>")
  '{"calls": [], "response": true}'
  """
  has_response = all(
    tag in text for tag in (tool_rewards.RESPONSE, tool_rewards.END_RESPONSE)
  )
  if tool_rewards.CALL not in text:
    return _canonical([], True) if has_response else None
  if tool_rewards.END_CALL not in text:
    return None
  # A policy writes anything, nesting past the recursion limit included.
  try:
    return _canonical(tool_rewards.read_calls(text), has_response)
  except Exception:
    return None


def parse_calls(text: str) -> str | None:
  """Reads calls that somebody typed.

  Args:
    text: as `canonical` has them, or a list of calls, or one call.

  Returns:
    The same as `canonical` has it; None if it is nothing of the kind.

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
  """Writes a ground truth that does what a label says.

  Args:
    label: as `canonical` has it.
    thought: to begin with.

  Returns:
    A text in the rewarded format.

  Raises:
    ValueError: it is no such label.
  """
  parsed = parse_calls(label)
  if parsed is None:
    raise ValueError(f"these are no calls: {label[:60]!r}")
  found = json.loads(parsed)
  response = "ok" if found["response"] else None
  return write(Answer(thought, tuple(found["calls"]), response))


def _canonical(calls: Calls, has_response: bool) -> str:
  """Raises where a call is none."""
  plain = []
  for call in calls:
    if not isinstance(call["name"], str):
      raise TypeError("a name is text")
    parameters = _normal(dict(call["parameters"]))
    plain.append({"name": call["name"], "parameters": parameters})
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
  """Breaks the format of an answer in one of the ways that apply to it.

  Args:
    draws: the random draws.
    text: an answer in the rewarded format.

  Returns:
    The answer with one damage; its calls can still be read.
  """
  while True:
    damaged = FORMAT_DAMAGES[draws.choice(tuple(FORMAT_DAMAGES))](text)
    if damaged != text:
      return damaged


def wrong_value(draws: Draws, calls: Calls, offered: Names) -> str:
  """Changes one value: to another of its list, where the tool has one.

  Args:
    draws: the random draws.
    calls: the gold calls, one of them with a parameter.
    offered: not read.

  Returns:
    What to put between the call tags.
  """
  index = draws.choice([i for i, c in enumerate(calls) if c["parameters"]])
  parameters = calls[index]["parameters"]
  name = draws.choice(tuple(parameters))
  values = [_other(parameters[name])]
  tool = tool_catalogue.TOOLS.get(calls[index]["name"])
  if tool is not None:
    known = {p.name: p.values for p in tool.parameters}.get(name, ())
    values = [v for v in known if v != parameters[name]] or values
  return _change(calls, index, {**parameters, name: draws.choice(values)})


def wrong_type(draws: Draws, calls: Calls, offered: Names) -> str:
  """Writes one value as another type, as `"3"` for 3.

  Args:
    draws: the random draws.
    calls: the gold calls, one of them with a parameter.
    offered: not read.

  Returns:
    What to put between the call tags.
  """
  index = draws.choice([i for i, c in enumerate(calls) if c["parameters"]])
  parameters = calls[index]["parameters"]
  name = draws.choice(tuple(parameters))
  value = parameters[name]
  value = [value] if isinstance(value, str) else json.dumps(value)
  return _change(calls, index, {**parameters, name: value})


def missing_parameter(draws: Draws, calls: Calls, offered: Names) -> str:
  """Leaves one parameter out.

  Args:
    draws: the random draws.
    calls: the gold calls, one of them with a parameter.
    offered: not read.

  Returns:
    What to put between the call tags.
  """
  index = draws.choice([i for i, c in enumerate(calls) if c["parameters"]])
  parameters = dict(calls[index]["parameters"])
  del parameters[draws.choice(tuple(parameters))]
  return _change(calls, index, parameters)


def extra_parameter(draws: Draws, calls: Calls, offered: Names) -> str:
  """Adds a parameter that is not in the gold call.

  Args:
    draws: the random draws.
    calls: the gold calls, at least one.
    offered: not read.

  Returns:
    What to put between the call tags.
  """
  index = draws.choice(range(len(calls)))
  parameters = calls[index]["parameters"]
  new = [
    (parameter.name, draws.choice(parameter.values))
    for tool in tool_catalogue.CATALOGUE
    for parameter in tool.parameters
    if parameter.name not in parameters
  ]
  name, value = draws.choice(new)
  return _change(calls, index, {**parameters, name: value})


def wrong_tool(draws: Draws, calls: Calls, offered: Names) -> str:
  """Calls another of the offered tools, with values of its own.

  Args:
    draws: the random draws.
    calls: the gold calls, at least one.
    offered: names of the tools that the prompt offers.

  Returns:
    What to put between the call tags.
  """
  index = draws.choice(range(len(calls)))
  name = calls[index]["name"]
  others = [other for other in offered if other != name] or [f"{name}_2"]
  name = draws.choice(others)
  tool = tool_catalogue.TOOLS.get(name)
  parameters = calls[index]["parameters"]
  if tool is not None:
    parameters = tool.draw_values(draws)
  changed = list(calls)
  changed[index] = {"name": name, "parameters": parameters}
  return write_calls(changed)


def extra_call(draws: Draws, calls: Calls, offered: Names) -> str:
  """Calls one tool more, of a name that the gold calls do not have.

  Args:
    draws: the random draws.
    calls: the gold calls, at least one.
    offered: names of the tools that the prompt offers.

  Returns:
    What to put between the call tags.
  """
  used = {call["name"] for call in calls}
  others = [name for name in offered if name not in used]
  name = draws.choice(others) if others else f"{calls[-1]['name']}_2"
  tool = tool_catalogue.TOOLS.get(name)
  parameters = tool.draw_values(draws) if tool is not None else {}
  return write_calls([*calls, {"name": name, "parameters": parameters}])


def broken_json(draws: Draws, calls: Calls, offered: Names) -> str:
  """Forgets the last brace.

  Args:
    draws: the random draws.
    calls: the gold calls, at least one.
    offered: not read.

  Returns:
    What to put between the call tags.
  """
  return write_calls(calls)[:-1]


# Each takes (draws, gold calls, offered names) and returns what to write
# between the tags, with its share among the wrong calls of demonstrations.
CALL_DAMAGES = {
  wrong_value: 0.4,
  wrong_tool: 0.15,
  missing_parameter: 0.15,
  extra_parameter: 0.1,
  wrong_type: 0.05,
  extra_call: 0.05,
  broken_json: 0.1,
}
_NEED_PARAMETERS = (wrong_value, wrong_type, missing_parameter)


def applies(damage: Callable[..., str], calls: Calls) -> bool:
  """Says whether a call damage can be done to these calls.

  Args:
    damage: one of `CALL_DAMAGES`.
    calls: the gold calls.

  Returns:
    False if there is nothing for it to damage.
  """
  if not calls:
    return False
  return damage not in _NEED_PARAMETERS or any(c["parameters"] for c in calls)


def damage_calls(draws: Draws, calls: Calls, offered: Names) -> str:
  """Writes the calls with one mistake, so that they score less than 3.

  Args:
    draws: the random draws.
    calls: the gold calls, at least one.
    offered: names of the tools that the prompt offers.

  Returns:
    What to put between the call tags.
  """
  damages = [d for d in CALL_DAMAGES if applies(d, calls)]
  shares = [CALL_DAMAGES[damage] for damage in damages]
  return damages[draws.weighted(shares)](draws, calls, offered)


def demonstrate(
  draws: Draws,
  reference: str,
  offered: Names,
  *,
  format_rate: float,
  call_rate: float,
) -> str:
  """Writes an answer whose format and whose calls are each right at a rate.

  The two are drawn independently, and no format mistake hides a call: the mean
  format reward of many is `format_rate`, and a share `call_rate` of those with
  a call has the full correctness reward.

  Args:
    draws: the random draws.
    reference: the right answer.
    offered: names of the tools that the prompt offers.
    format_rate: probability of the right format.
    call_rate: probability of the right calls, where the reference has any.

  Returns:
    The answer.
  """
  answer = read(reference)
  right_format = draws.chance(format_rate)
  body = None
  if not draws.chance(call_rate) and answer.calls:
    body = damage_calls(draws, answer.calls, offered)
  text = write(answer, body)
  return text if right_format else damage_format(draws, text)


def _change(calls: Calls, index: int, parameters: Call) -> str:
  changed = list(calls)
  changed[index] = {**calls[index], "parameters": parameters}
  return write_calls(changed)


def _other(value: Any) -> Any:
  """Returns a value of the same type that is not equal."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1 if value + 1 != value else 0
  if isinstance(value, str):
    return value + "x"
  return None if value is not None else 0
