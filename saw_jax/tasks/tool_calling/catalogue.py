"""A small world of tools: requests made from templates, at scale `tiny`.

Requests are short and their values come from closed lists, so that a decoder of
under a million parameters can learn to copy them into a call.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from saw_jax.tasks import answer_task, base
from saw_jax.tasks.draws import TEST_PERCENT, Draws
from saw_jax.tasks.tool_calling import rewards

# Of a policy's answer: calls that are run, and characters that are said back.
_MAX_CALLS = 4
_MAX_ECHO = 16
_TYPES = {"string": str, "integer": int, "number": (int, float)}
_TYPES |= {"boolean": bool}

# A tool has a name, typed parameters with their values and, where these are not
# said as they are, the words of a request for them, and wordings of a request.
CATALOGUE: list[dict[str, Any]] = base.asset(__file__, "tools.json")
TOOLS = {tool["name"]: tool for tool in CATALOGUE}

_NAMES = ("Ann", "Ben", "Eve", "Leo", "Max", "Mia", "Sam", "Tom")
# Talk that asks for nothing, and what to say to it.
_TALK = (
  ("hello, {name} here", "hello {name}"),
  ("thanks for that, says {name}", "you are welcome"),
  ("{name} is late", "I see"),
  ("{name} and I sit here", "I see"),
)
_UNSERVED = "sorry, no tool for that"
_MAX_PARAMETERS = 8  # of several calls, so that an answer is short
_THOUGHTS = ("no call will do", "one call will do", "two calls will do")
_THOUGHTS += ("three calls will do",)


def write_signature(name: str) -> str:
  """Writes the line of the system message that offers a tool."""
  parameters = TOOLS[name]["parameters"]
  inside = ", ".join(f"{p['name']}: {p['type']}" for p in parameters)
  return f"{name}({inside})"


def write_request(draws: Draws, name: str, values: Mapping[str, Any]) -> str:
  """Words a request for a call with these values."""
  said = dict(values)
  for p in TOOLS[name]["parameters"]:
    if "said" in p:
      said[p["name"]] = p["said"][p["values"].index(values[p["name"]])]
  return draws.choice(TOOLS[name]["requests"]).format(**said)


def draw_values(draws: Draws, name: str) -> dict[str, Any]:
  """Draws a value for each parameter of a tool; no text occurs twice."""
  parameters = TOOLS[name]["parameters"]
  while True:
    values = {p["name"]: draws.choice(p["values"]) for p in parameters}
    texts = [value for value in values.values() if isinstance(value, str)]
    if len(set(texts)) == len(texts):
      return values


def split_of(name: str, values: Mapping[str, Any]) -> str:
  """Returns "test" for one call in five, "train" for the others."""
  text = json.dumps([name, dict(values)], sort_keys=True)
  digest = hashlib.sha256(text.encode()).digest()
  return "test" if digest[0] * 100 < TEST_PERCENT * 256 else "train"


def draw_row(draws: Draws, split: str, config: Any) -> answer_task.Row:
  """Draws a request of a split as a `ToolCallingConfig` says.

  Notes have the tools that are `offered`, and what is `asked` for by name and
  values, served or not.
  """
  low, high = config.num_distractors
  extra = draws.choice(range(low, high + 1))
  draw = _draw_talk if draws.chance(config.no_call_share) else _draw_calls
  asked, offered, request, answer = draw(draws, split, extra, config)
  system = "\n".join(map(write_signature, offered))
  messages = ({"role": "system", "content": system}, *answer_task.ask(request))
  meta = {"offered": tuple(offered), "asked": tuple(asked)}
  return messages, rewards.write(answer), meta


def _draw_calls(draws: Draws, split: str, extra: int, config: Any):
  count = 1 + draws.weighted(config.call_weights)
  asked: list[tuple[str, dict[str, Any]]] = []
  while len(asked) < count:
    again = asked and draws.chance(0.5)
    name = asked[-1][0] if again else draws.choice(tuple(TOOLS))
    new = (name, draw_values(draws, name))
    size = sum(len(values) for _, values in [*asked, new])
    if size > _MAX_PARAMETERS or new in asked:
      continue
    if split_of(*new) == split:
      asked.append(new)
  requests = [write_request(draws, *one) for one in asked]
  used = list(dict.fromkeys(name for name, _ in asked))
  others = [name for name in TOOLS if name not in used]
  extra = max(0, min(extra, config.max_tools - len(used)))
  offered = used + draws.sample(others, extra)
  offered = draws.sample(offered, len(offered))
  calls = tuple({"name": name, "parameters": values} for name, values in asked)
  answer = rewards.Answer(_THOUGHTS[count], calls, None)
  return asked, offered, " and ".join(requests), answer


def _draw_talk(draws: Draws, split: str, extra: int, config: Any):
  """Draws what no tool on offer is for."""
  unserved = draws.chance(0.5)
  while True:
    if unserved:
      name = draws.choice(tuple(TOOLS))
      asked = (name, draw_values(draws, name))
      request, response = write_request(draws, *asked), _UNSERVED
    else:
      talk, reply = draws.choice(_TALK)
      said = {"name": draws.choice(_NAMES)}
      asked = (talk, said)
      request, response = talk.format(**said), reply.format(**said)
    if split_of(*asked) == split:
      break
  others = [name for name in TOOLS if name != asked[0]]
  offered = draws.sample(others, min(extra + 1, config.max_tools))
  return [asked], offered, request, rewards.Answer(_THOUGHTS[0], (), response)


def run_calls(completion: str, offered: Sequence[str]) -> str:
  """Returns what tools say to the first four calls of an answer, a line each.

  A call that was not asked for works as well as any other.
  """
  if rewards.CALL not in completion:
    return ""
  block = rewards.find_block(completion)
  if block is None:
    return "open call"
  lines = block.split("\n")[:_MAX_CALLS]
  return "\n".join(_run(line, offered) for line in lines)


def _run(line: str, offered: Sequence[str]) -> str:
  # Nesting past the recursion limit, integers past the digit limit, lists where
  # a name should be: all of it is no call.
  try:
    call = json.loads(line)
    name, values = call["name"], call["parameters"]
  except Exception:
    return "no call"
  if not isinstance(name, str) or not isinstance(values, dict):
    return "no call"
  if name not in offered:
    return f"no tool {name[:_MAX_ECHO]}"
  said, known = [f"done {name}"], TOOLS[name]["parameters"]
  for p in known:
    if p["name"] not in values:
      return f"{name} needs {p['name']}"
    value, kind = values[p["name"]], p["type"]
    is_flag = isinstance(value, bool)
    if not isinstance(value, _TYPES[kind]) or is_flag != (kind == "boolean"):
      return f"{p['name']} is {kind}"
    text = value if isinstance(value, str) else json.dumps(value)
    said.append(text[:_MAX_ECHO])
  if len(values) > len(known):
    return f"{name} has only {' '.join(p['name'] for p in known)}"
  return " ".join(said)
