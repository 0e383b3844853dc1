"""A taskset of verifiers with single answers and two rewards."""

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]


class SumsData(vf.TaskData):
  answer: str


class SumsTask(vf.Task[SumsData]):
  @vf.reward(weight=2.0)
  async def right(self, trace: vf.Trace) -> float:
    if trace.last_reply == "boom":
      raise RuntimeError("as told")
    return float(self.data.answer in trace.last_reply)

  @vf.reward(weight=-1.0)
  async def long(self, trace: vf.Trace) -> float:
    return min(len(trace.last_reply) / 10, 1.0)

  @vf.metric
  async def turns(self, trace: vf.Trace) -> float:
    return float(trace.num_turns)


class SumsConfig(vf.TasksetConfig):
  num_tasks: int = 20
  first: int = 0
  runtime: bool = False


class NeedsRuntime(SumsTask):
  async def setup(self, trace, runtime):
    await runtime.run(["true"], {})


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
  def load(self):
    kind = NeedsRuntime if self.config.runtime else SumsTask
    first = self.config.first
    for i in range(first, first + self.config.num_tasks):
      data = SumsData(prompt=f"{i}+1=", system_prompt="Add.", answer=str(i + 1))
      yield kind(data, self.config.task)
