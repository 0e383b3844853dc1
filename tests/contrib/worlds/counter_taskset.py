"""A taskset of verifiers with a tool, which counts up to a goal."""

import itertools

import verifiers.v1 as vf

__all__ = ["CounterTaskset"]


class CounterState(vf.State):
  count: int = 0


class CounterTools(vf.Toolset[vf.ToolsetConfig, CounterState]):
  TOOL_PREFIX = None

  @vf.tool
  def add(self, amount: int) -> str:
    """Adds to the count."""
    self.state.count += amount
    return f"the count is {self.state.count}"


class CounterConfig(vf.TaskConfig):
  tools: vf.ToolsetConfig = vf.ToolsetConfig()


class CounterData(vf.TaskData):
  goal: int


class CounterTask(vf.Task[CounterData, CounterState, CounterConfig]):
  @classmethod
  def toolsets(cls, config):
    return [CounterTools(config.tools)]

  @vf.reward
  async def reached(self, trace: vf.Trace) -> float:
    return float(trace.state.count == self.data.goal)


class CountersConfig(vf.TasksetConfig):
  task: CounterConfig = CounterConfig()


class CounterTaskset(vf.Taskset[CounterTask, CountersConfig]):
  INFINITE = True

  def load(self):
    for i in itertools.count():
      data = CounterData(prompt=f"Count to {i % 3 + 1}.", goal=i % 3 + 1)
      yield CounterTask(data, self.config.task)
