"""A conversation of verifiers as an environment: its agent is the policy.

The library calls its model; an environment here is called with an action. So
the library's episode runs in an event loop that stands still whenever its agent
is asked something, until `step` brings the answer. Nothing is served over HTTP
and no program is started: what needs that is refused by `verifiers_task`.
"""

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from saw_jax.tasks import environments

_TOOLS = """
You may call these tools, with <tool_call>{"name": ..., "arguments": {...}}\
</tool_call>:
"""


def new_trace(task: Any) -> Any:
  """The record of a run of a task, with what its agent is told first."""
  import verifiers.v1 as vf
  from verifiers.v1.state import state_cls

  about = vf.TraceTask(
    type=type(task).__name__, data=task.data, key=task.key, hash=task.hash
  )
  agent = vf.AgentInfo(config=vf.AgentConfig())
  trace = vf.Trace(task=about, agent=agent, state=state_cls(type(task))())
  if task.data.system_prompt:
    add(trace, vf.SystemMessage(content=task.data.system_prompt))
  prompt = task.data.prompt or []
  if isinstance(prompt, str):
    prompt = [vf.UserMessage(content=prompt)]
  for message in prompt:
    add(trace, message)
  return trace


def add(trace: Any, message: Any, sampled: bool = False) -> None:
  import verifiers.v1 as vf

  parent = len(trace.nodes) - 1 if trace.nodes else None
  node = vf.MessageNode(parent=parent, message=message, sampled=sampled)
  trace.nodes.append(node)


def text_of(message: Any) -> str:
  from verifiers.v1.types import content_text

  return content_text(message.content)


class _Tools:
  """Tools of a run, called in this process."""

  def __init__(self, toolsets: Sequence[Any]):
    self._toolsets, self._calls = toolsets, {}
    from verifiers.v1.utils.decorators import discover_decorated

    for one in toolsets:
      for fn in discover_decorated(one, "tool"):
        name = getattr(fn, "tool_name", None) or fn.__name__
        prefix = f"{one.server_name}_" if one.server_name else ""
        self._calls[prefix + name] = fn

  def explain(self) -> str:
    lines = [
      f"{name}{inspect.signature(fn)}: {inspect.getdoc(fn) or ''}".rstrip(": ")
      for name, fn in self._calls.items()
    ]
    return _TOOLS + "\n".join(lines) if lines else ""

  async def open(self, trace: Any) -> None:
    for one in self._toolsets:
      # What its `state` is where no channel leads to a server's.
      one._inert_state = trace.state
      await one.setup()
      await one.setup_task(trace.task.data)

  async def call(self, text: str) -> tuple[str, str]:
    """Does what a call says; a bad one is told, as a server would."""
    import pydantic

    try:
      said = json.loads(text)
      name, given = said["name"], said.get("arguments", {})
      found = pydantic.validate_call(self._calls[name])(**given)
      return name, str(await found if inspect.isawaitable(found) else found)
    except Exception as error:
      return "error", f"{type(error).__name__}: {error}"


class _Seat:
  """The agent of an episode; stands in for the library's `Agent`."""

  trainable = True

  def __init__(
    self,
    ask: Callable[[str], Awaitable[str]],
    tools_of: Callable[[Any], _Tools],
    max_turns: int,
  ):
    self._ask, self._tools_of, self._max_turns = ask, tools_of, max_turns
    self.traces: list[Any] = []

  async def run(self, task: Any, **_: Any) -> Any:
    async with self.interaction(task) as talk:
      await talk.turn()
    return talk.trace

  @contextlib.asynccontextmanager
  async def interaction(self, task: Any, **_: Any) -> AsyncIterator[Any]:
    talk = _Talk(task, self._ask, self._tools_of(task), self._max_turns)
    await talk.tools.open(talk.trace)
    yield talk
    talk.trace.is_completed = talk.trace.ok = True
    await task.score(talk.trace)
    self.traces.append(talk.trace)


class _Talk:
  """Stands in for the library's `Interaction`: one turn is one answer."""

  def __init__(self, task: Any, ask: Callable, tools: _Tools, max_turns: int):
    self.trace, self.tools = new_trace(task), tools
    self._ask, self._max_turns, self._told = ask, max_turns, 0

  async def turn(self, message: Any = None) -> Any:
    import verifiers.v1 as vf

    if isinstance(message, str):
      message = [vf.UserMessage(content=message)]
    for one in message or ():
      add(self.trace, one)
    first, calls = len(self.trace.nodes), [""]
    while calls and self.trace.num_turns < self._max_turns:
      text = await self._ask(self._news())
      add(self.trace, vf.AssistantMessage(content=text), sampled=True)
      self._told = len(self.trace.nodes)
      calls = list(environments.find_blocks(text, "tool_call"))
      for index, (_, call) in enumerate(calls):
        name, found = await self.tools.call(call)
        add(
          self.trace,
          vf.ToolMessage(tool_call_id=str(index), content=found, name=name),
        )
    if calls:
      self.trace.stop("max_turns")
    said = [node.message for node in self.trace.nodes[first:]]
    return vf.Segment(messages=said, terminated=not said)

  def _news(self) -> str:
    """What the agent has not seen yet."""
    new = [node.message for node in self.trace.nodes[self._told :]]
    lines = [f"{one.role}: {text_of(one)}" for one in new]
    explained = "" if self._told else self.tools.explain().strip()
    return "\n".join([explained, *lines] if explained else lines)


class Conversation(environments.Environment):
  """An episode of a task of verifiers; it pays at its end.

  An observation is what the user, the environment or a tool has said since, an
  action is what the agent says, tool calls included. After `max_steps` answers
  the library is told that the agent's turns are used up, and scores what there
  is.
  """

  admissible_actions: list[str] = []  # any text is one

  def __init__(
    self,
    made: Any,
    rows: Sequence[Any],
    loop: asyncio.AbstractEventLoop,
    max_steps: int,
    most: float,
  ):
    super().__init__(max_steps, most)
    self._made, self._rows, self._loop = made, rows, loop
    self._limit, self._playing = max_steps, None

  def _start(self, seed: int) -> str:
    if self._playing is not None and not self._playing.done():
      self._playing.cancel()
      self._loop.run_until_complete(asyncio.wait([self._playing]))
    self._playing = self._loop.create_task(self._play(self._rows[seed]))
    self.task, paid, is_over = self._go_on()
    if is_over:
      raise ValueError(f"the conversation is over at once, and pays {paid}")
    return ""

  def _act(self, action: str) -> tuple[str, float, bool]:
    self._answer.set_result(action)
    return self._go_on()

  def _go_on(self) -> tuple[str, float, bool]:
    """Lets the episode run until its agent is asked, or it is over."""
    self._question = self._loop.create_future()
    both, first = (self._question, self._playing), asyncio.FIRST_COMPLETED
    self._loop.run_until_complete(asyncio.wait(both, return_when=first))
    if self._question.done():
      return self._question.result(), 0.0, False
    return "", self._playing.result(), True

  async def _ask(self, text: str) -> str:
    self._answer = self._loop.create_future()
    self._question.set_result(text)
    return await self._answer

  def _tools_of(self, task: Any) -> _Tools:
    taskset = self._made.taskset
    own, shared = type(task).toolsets, type(taskset).toolsets
    return _Tools([*own(task.config), *shared(taskset.config)])

  async def _play(self, task: Any) -> float:
    """Plays an episode, and returns what it paid."""
    import verifiers.v1 as vf

    made = self._made
    seat = _Seat(self._ask, self._tools_of, self._limit)
    agents = vf.Agents(made.config, lambda name, spec: seat)
    await made.setup(agents)
    await made.run(task, agents)
    about = seat.traces[0].task
    episode = vf.Episode(env=vf.EnvInfo(id=made.config.env_id), task=about)
    episode.traces.extend(seat.traces)
    await made.finalize(task, episode)
    return sum(trace.reward for trace in seat.traces)
