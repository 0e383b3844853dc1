"""What tools say to calls, from their signatures alone.

An environment for single answers: a line a call, which a policy can come to
predict. The right answer has no way in: a call that was not asked for works as
well as any other.
"""

import json
from collections.abc import Sequence
from typing import Any

from saw_jax.tasks.tool_calling import rewards
from saw_jax.tasks.tool_calling.catalogue import Parameter, Tool

# A policy may write any number of calls.
_MAX_CALLS = 4
# Characters of a policy's own words that are said back.
_MAX_ECHO = 16

_TYPES = {
  "string": (str,),
  "integer": (int,),
  "number": (int, float),
  "boolean": (bool,),
}


def run_calls(completion: str, offered: Sequence[Tool]) -> str:
  """Returns a line for each of the first four calls of an answer.

  A line has the tool and its values, in the order of its signature, or what is
  wrong. Empty where nothing is called.
  """
  if rewards.CALL not in completion:
    return ""
  block = completion.split(rewards.CALL, 2)[1]
  if rewards.END_CALL not in block:
    return "open call"
  lines = block.split(rewards.END_CALL, 1)[0].strip().split("\n")
  tools = {tool.name: tool for tool in offered}
  return "\n".join(_run(line, tools) for line in lines[:_MAX_CALLS])


def _run(line: str, tools: dict[str, Tool]) -> str:
  # Nesting past the recursion limit, integers past the digit limit, lists where
  # a name should be: all of it is no call.
  try:
    call = json.loads(line)
    name, values = call["name"], call["parameters"]
    values = dict(values) if isinstance(values, dict) else None
  except Exception:
    return "no call"
  if not isinstance(name, str) or values is None:
    return "no call"
  tool = tools.get(name)
  if tool is None:
    return f"no tool {name[:_MAX_ECHO]}"
  for parameter in tool.parameters:
    if parameter.name not in values:
      return f"{name} needs {parameter.name}"
    if not _fits(parameter, values[parameter.name]):
      return f"{parameter.name} is {parameter.type}"
  if len(values) > len(tool.parameters):
    return f"{name} has only {' '.join(p.name for p in tool.parameters)}"
  said = (_say(values[p.name]) for p in tool.parameters)
  return " ".join([f"done {name}", *said])


def _fits(parameter: Parameter, value: Any) -> bool:
  is_fair = isinstance(value, bool) == (parameter.type == "boolean")
  return is_fair and isinstance(value, _TYPES[parameter.type])


def _say(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text[:_MAX_ECHO]
