"""A small world of tools: requests made from templates, at scale `tiny`.

Requests are short and their values come from closed lists, so that a decoder
of under a million parameters can learn to copy them into a call. Which split a
call belongs to depends on the call alone: no call of the test split is ever
asked for in training, whatever the seed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from saw_jax.tasks.draws import Draws

TEST_PERCENT = 20


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A typed parameter; `said` tells how a request words its values."""

  name: str
  type: str
  values: tuple[Any, ...]
  said: Mapping[Any, str] = dataclasses.field(default_factory=dict)

  def say(self, value: Any) -> str:
    """Returns the value as a request words it."""
    return self.said.get(value, str(value))


@dataclasses.dataclass(frozen=True)
class Tool:
  """A tool with its parameters and the wordings that ask for it."""

  name: str
  parameters: tuple[Parameter, ...]
  requests: tuple[str, ...]

  @property
  def signature(self) -> str:
    """The line of the system message that offers this tool."""
    inside = ", ".join(f"{p.name}: {p.type}" for p in self.parameters)
    return f"{self.name}({inside})"

  def request(self, draws: Draws, values: Mapping[str, Any]) -> str:
    """Words a request for a call with these values."""
    said = {p.name: p.say(values[p.name]) for p in self.parameters}
    return draws.choice(self.requests).format(**said)

  def draw_values(self, draws: Draws) -> dict[str, Any]:
    """Draws a value for each parameter; no text occurs twice."""
    while True:
      values = {p.name: draws.choice(p.values) for p in self.parameters}
      texts = [value for value in values.values() if isinstance(value, str)]
      if len(set(texts)) == len(texts):
        return values


_CITIES = ("Oslo", "Rome", "Lima", "Paris", "Cairo", "Delhi", "Kyoto", "Bonn")
_NAMES = ("Ann", "Ben", "Eve", "Leo", "Max", "Mia", "Sam", "Tom")
_TEXTS = ("Hello", "Thanks", "Late", "Yes", "No", "Done")
_MONEY = ("USD", "EUR", "GBP", "CHF", "JPY")
_ROOMS = ("Kitchen", "Hall", "Attic", "Bath", "Office", "Garage")
_MUSIC = ("Jazz", "Rock", "Folk", "Soul", "Opera", "Blues")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FOOD = ("Pizza", "Soup", "Salad", "Rice", "Tacos", "Pasta")


def _integers(first: int, last: int) -> tuple[int, ...]:
  return tuple(range(first, last + 1))


CATALOGUE = (
  Tool(
    "weather",
    (
      Parameter("city", "string", _CITIES),
      Parameter("days", "integer", _integers(2, 9)),
    ),
    (
      "weather in {city} for {days} days",
      "how is {city} over the next {days} days",
      "{days} days of weather for {city}",
    ),
  ),
  Tool(
    "flight",
    (
      Parameter("start", "string", _CITIES),
      Parameter("end", "string", _CITIES),
      Parameter("seats", "integer", _integers(2, 9)),
    ),
    (
      "book {seats} seats from {start} to {end}",
      "fly {seats} of us to {end} from {start}",
      "from {start} to {end} with {seats} seats",
    ),
  ),
  Tool(
    "convert",
    (
      Parameter("amount", "number", tuple(n / 2 for n in range(3, 19))),
      Parameter("source", "string", _MONEY),
      Parameter("target", "string", _MONEY),
    ),
    (
      "convert {amount} {source} to {target}",
      "how many {target} for {amount} {source}",
      "change {amount} {source} into {target}",
    ),
  ),
  Tool(
    "timer",
    (Parameter("minutes", "integer", _integers(2, 59)),),
    (
      "set a timer for {minutes} minutes",
      "tell me in {minutes} minutes",
      "a timer of {minutes} minutes",
    ),
  ),
  Tool(
    "message",
    (
      Parameter("to", "string", _NAMES),
      Parameter("text", "string", _TEXTS),
    ),
    (
      "tell {to} {text}",
      "send {text} to {to}",
      "write to {to} and say {text}",
    ),
  ),
  Tool(
    "call",
    (
      Parameter("name", "string", _NAMES),
      Parameter("minutes", "integer", _integers(2, 9)),
      Parameter(
        "video", "boolean", (True, False), {True: "with", False: "without"}
      ),
    ),
    (
      "call {name} {video} video for {minutes} minutes",
      "{minutes} minutes with {name} {video} video",
      "ring {name} {video} video, {minutes} minutes",
    ),
  ),
  Tool(
    "lights",
    (
      Parameter("room", "string", _ROOMS),
      Parameter("level", "integer", _integers(1, 9)),
    ),
    (
      "lights in the {room} to {level}",
      "set lights at {level} in the {room}",
      "make the {room} lights {level}",
    ),
  ),
  Tool(
    "heat",
    (
      Parameter("room", "string", _ROOMS),
      Parameter("degrees", "number", tuple(n / 2 for n in range(31, 51))),
    ),
    (
      "heat the {room} to {degrees} degrees",
      "make the {room} {degrees} degrees",
      "{degrees} degrees in the {room}",
    ),
  ),
  Tool(
    "play",
    (
      Parameter("music", "string", _MUSIC),
      Parameter("volume", "integer", _integers(1, 9)),
    ),
    (
      "play {music} at volume {volume}",
      "some {music} at {volume}",
      "play {music}, volume {volume}",
    ),
  ),
  Tool(
    "table",
    (
      Parameter("guests", "integer", _integers(2, 9)),
      Parameter("day", "string", _DAYS),
      Parameter(
        "inside", "boolean", (True, False), {True: "inside", False: "outside"}
      ),
    ),
    (
      "a table for {guests} on {day}, {inside}",
      "book a table {inside} on {day} for {guests}",
      "{day} we are {guests} and sit {inside}",
    ),
  ),
  Tool(
    "order",
    (
      Parameter("food", "string", _FOOD),
      Parameter("count", "integer", _integers(2, 9)),
    ),
    (
      "order {count} {food}",
      "get me {count} of {food}",
      "{count} {food} for us",
    ),
  ),
  Tool(
    "alarm",
    (
      Parameter("day", "string", _DAYS),
      Parameter("hour", "integer", _integers(5, 12)),
    ),
    (
      "set an alarm on {day} at {hour}",
      "wake me at {hour} on {day}",
      "on {day} I get up at {hour}",
    ),
  ),
)

TOOLS = {tool.name: tool for tool in CATALOGUE}

# Talk that asks for nothing, and what to say to it.
_TALK = (
  ("hello, {name} here", "hello {name}"),
  ("thanks for that, says {name}", "you are welcome"),
  ("{name} is late", "I see"),
  ("{name} and I sit here", "I see"),
)
_UNSERVED = "sorry, no tool for that"

# Bounds the length of an answer with several calls.
_MAX_PARAMETERS = 8

_THOUGHTS = ("one call will do", "two calls will do", "three calls will do")
_NO_CALL_THOUGHT = "no call will do"


def split_of(name: str, values: Mapping[str, Any]) -> str:
  """Returns the split that a call belongs to, the same on every machine.

  Args:
    name: of the tool.
    values: of its parameters, in any order.

  Returns:
    "test" for one call in five, "train" for the others.
  """
  text = json.dumps([name, dict(values)], sort_keys=True)
  digest = hashlib.sha256(text.encode()).digest()
  return "test" if digest[0] * 100 < TEST_PERCENT * 256 else "train"


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A request, the tools on offer, and what the right answer holds."""

  offered: tuple[Tool, ...]
  request: str
  thought: str
  calls: tuple[dict[str, Any], ...]
  response: str | None
  asked: tuple[tuple[str, Mapping[str, Any]], ...]


def draw_scenario(
  draws: Draws,
  split: str,
  *,
  call_weights: Sequence[float],
  no_call_share: float,
  num_distractors: tuple[int, int],
  max_tools: int,
) -> Scenario:
  """Draws a request with one to three calls, or with none.

  Args:
    draws: the random draws.
    split: "train" or "test": what is asked for belongs to it.
    call_weights: relative weight of one call, two calls and so on.
    no_call_share: probability of a request that needs no call.
    num_distractors: least and largest number of tools offered but not needed.
    max_tools: most tools offered, if the calls themselves do not need more.

  Returns:
    The scenario. `asked` has each (tool, values), served or not.
  """
  extra = draws.choice(range(num_distractors[0], num_distractors[1] + 1))
  if draws.chance(no_call_share):
    return _no_call(draws, split, min(extra + 1, max_tools))

  count = 1 + draws.weighted(call_weights)
  asked: list[tuple[str, dict[str, Any]]] = []
  while len(asked) < count:
    again = asked and draws.chance(0.5)
    tool = TOOLS[asked[-1][0]] if again else draws.choice(CATALOGUE)
    new = (tool.name, tool.draw_values(draws))
    size = sum(len(values) for _, values in [*asked, new])
    if size > _MAX_PARAMETERS or new in asked:
      continue
    if split_of(*new) == split:
      asked.append(new)
  requests = [TOOLS[name].request(draws, values) for name, values in asked]
  used = list(dict.fromkeys(name for name, _ in asked))
  others = [tool.name for tool in CATALOGUE if tool.name not in used]
  extra = max(0, min(extra, max_tools - len(used)))
  offered = used + draws.sample(others, extra)
  return Scenario(
    offered=tuple(TOOLS[n] for n in draws.sample(offered, len(offered))),
    request=" and ".join(requests),
    thought=_THOUGHTS[count - 1],
    calls=tuple({"name": n, "parameters": values} for n, values in asked),
    response=None,
    asked=tuple(asked),
  )


def _no_call(draws: Draws, split: str, num_offered: int) -> Scenario:
  unserved = draws.chance(0.5)
  while True:
    if unserved:
      tool = draws.choice(CATALOGUE)
      asked = (tool.name, tool.draw_values(draws))
      request, response = tool.request(draws, asked[1]), _UNSERVED
    else:
      talk, reply = draws.choice(_TALK)
      said = {"name": draws.choice(_NAMES)}
      asked = (talk, said)
      request, response = talk.format(**said), reply.format(**said)
    if split_of(*asked) == split:
      break
  others = [tool for tool in CATALOGUE if tool.name != asked[0]]
  return Scenario(
    offered=tuple(draws.sample(others, num_offered)),
    request=request,
    thought=_NO_CALL_THOUGHT,
    calls=(),
    response=response,
    asked=(asked,),
  )
