"""Tasksets of verifiers (its `v1`): as single answers, or as conversations."""

import asyncio
import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saw_jax import naming
from saw_jax.contrib import verifiers_talk, worlds
from saw_jax.contrib.verifiers_talk import Conversation
from saw_jax.tasks import answer_task, base
from saw_jax.tasks.environments import History, Reply, Situation


@dataclasses.dataclass(frozen=True)
class VerifiersConfig(worlds.WorldConfig):
  """Which taskset, and which of its rows.

  `env` is the id of an installed taskset, `kwargs` are fields of its config.
  Its first rows are the test split, unless `test` says otherwise.
  """

  test: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # Of single answers: the least and, as `reward`, the most that each reward
  # function gives, before its weight.
  minimum: float = 0.0
  # The rewards by name, where a function gives several; empty: the functions.
  rewards: tuple[str, ...] = ()
  shown: int = 100


class Taskset:
  """The rows of a taskset by split, and the environment that plays them."""

  def __init__(self, config: VerifiersConfig):
    self.env = _open(config, {})
    held_out = _open(config, config.test) if config.test else self.env
    skipped = 0 if config.test else config.num_test
    self.rows = {
      "train": list(self.env.taskset.skip(skipped).take(config.num_train)),
      "test": list(held_out.taskset.take(config.num_test)),
    }
    for split, rows in self.rows.items():
      if not rows:
        raise ValueError(
          f"{config.env} has no rows left for the split {split!r}, with "
          f"num_test={config.num_test}."
        )
    _refuse(self.env, self.rows["train"][0])

  @functools.cached_property
  def loop(self) -> asyncio.AbstractEventLoop:
    """Where the environment runs, once it has been started."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(self.env.start())
    return loop

  @property
  def is_single(self) -> bool:
    """Whether an answer to the prompt is all that there is to a row."""
    import verifiers.v1 as vf

    row, taskset = self.rows["train"][0], self.env.taskset
    tools = type(row).toolsets(row.config), taskset.toolsets(taskset.config)
    is_plain = type(self.env) is vf.SingleAgentEnv and not any(tools)
    return is_plain and row.data.prompt is not None


class AnswerTask:
  """Rows with a prompt, each reward function a component of its own."""

  name = "verifiers"

  def __init__(self, config: VerifiersConfig, found: Taskset):
    self.config, self._rows = config, found.rows
    row = found.rows["train"][0]
    weights = {fn.__name__: fn._vf_weight for fn in row.hooks("reward")}
    names = config.rewards or tuple(name for name, w in weights.items() if w)
    ends = (config.minimum, config.reward)
    self.components = tuple(
      base.Component(name, *sorted(weights.get(name, 1.0) * x for x in ends))
      for name in names
    )

  def __getstate__(self) -> dict[str, Any]:
    return vars(self) | {"_rows": {}}  # Examples bring their rows along.

  def examples(self, split: str) -> Sequence[base.Example]:
    base.check_split(split, ("train", "test"))
    rows, key = self._rows[split], answer_task.TEST_KEYS * (split == "test")

    def make(index: int) -> base.Example:
      told = verifiers_talk.new_trace(rows[index]).nodes
      asked = tuple(
        {"role": one.role, "content": verifiers_talk.text_of(one)}
        for one in (node.message for node in told)
      )
      return base.Example(key + index, asked, "", {"row": rows[index]})

    return answer_task.LazyExamples(make, len(rows))

  def score(self, example: base.Example, completion: str) -> base.Score:
    return self.score_many([(example, completion)])[0]

  def score_many(
    self, pairs: Sequence[tuple[base.Example, str]]
  ) -> list[base.Score]:
    """Scores all at once, as a reward may wait for somebody's answer."""

    async def score_all() -> list[base.Score]:
      return await asyncio.gather(*(self._score(*pair) for pair in pairs))

    return asyncio.run(score_all())

  async def _score(self, example: base.Example, completion: str) -> base.Score:
    import verifiers.v1 as vf

    row = example.meta["row"]
    trace = verifiers_talk.new_trace(row)
    verifiers_talk.add(trace, vf.AssistantMessage(content=completion), True)
    trace.is_completed = trace.ok = True
    await row.score(trace)
    found = {k: x for k, x in trace.rewards.items() if not x or x.weight}
    if {component.name for component in self.components} != set(found):
      raise ValueError(f"it gave {[*found]}: name them in options.rewards")
    named = [found[component.name] for component in self.components]
    values = tuple(one and one.value for one in named)
    best = tuple(component.maximum for component in self.components)
    outcome = base.Outcome.RIGHT if values == best else base.Outcome.WRONG
    return base.Score(values, outcome)


class ConversationTask(worlds.WorldTask):
  """Rows that an environment plays with the policy, turn by turn, or tools."""

  name, _module = "verifiers", "verifiers.v1"

  def __init__(self, config: VerifiersConfig, found: Taskset):
    self._found: Taskset | None = found
    super().__init__(config)
    self.episodes = {split: len(rows) for split, rows in found.rows.items()}

  def __getstate__(self) -> dict[str, Any]:
    return vars(self) | {"_found": None}

  def _make(self, split: str) -> Conversation:
    self._found = found = self._found or Taskset(self.config)
    limits = (self.config.max_steps, self.config.reward)
    return Conversation(found.env, found.rows[split], found.loop, *limits)

  def read_reply(self, completion: str) -> Reply:
    return Reply(completion, bool(completion.strip()))

  def prompts(self, situation: Situation, history: History) -> Iterator[str]:
    for shown in range(min(self.config.shown, len(history)), -1, -1):
      past = [
        f"{seen}\nassistant: {said}".strip()
        for seen, said in history[len(history) - shown :]
      ]
      yield "\n".join([situation.task, *past, situation.observation]).strip()


def make_task(config: VerifiersConfig) -> AnswerTask | ConversationTask:
  """Makes a task of the kind that the taskset's rows are."""
  with naming.needs_extra("verifiers", "task 'verifiers' needs its library"):
    import verifiers.v1  # noqa: F401
  if not config.env:
    raise ValueError("task 'verifiers': options.env names no taskset.")
  found = Taskset(config)
  return (AnswerTask if found.is_single else ConversationTask)(config, found)


def _open(config: VerifiersConfig, changes: Mapping[str, Any]) -> Any:
  import verifiers.v1 as vf

  fields = {**config.kwargs, **changes, "id": config.env}
  return vf.load_environment(vf.resolve_env_config({"taskset": fields}))


def _refuse(env: Any, row: Any) -> None:
  """Raises where a row needs what is not started here."""
  import verifiers.v1 as vf
  from verifiers.v1.configs.agent import agent_config_fields
  from verifiers.v1.utils.decorators import discover_decorated

  def wants_runtime(fn) -> bool:
    found = inspect.signature(fn).parameters.get("runtime")
    return found is not None and found.default is found.empty

  kind, empty = type(row), vf.Task
  hooks = kind.setup, kind.finalize
  scores = [*row.hooks("reward"), *row.hooks("metric")]
  for what, is_so in {
    "several agents": len(agent_config_fields(env.config)) > 1,
    "a container": bool(kind.NEEDS_CONTAINER or row.data.image),
    "a runtime": hooks != (empty.setup, empty.finalize)
    or any(map(wants_runtime, scores)),
    "hooks that stop or intercept": bool(row.hooks("stop"))
    or bool(discover_decorated(row, "intercept")),
    "a judge": bool(row.config.judges),
  }.items():
    if is_so:
      raise ValueError(
        f"{env.config.env_id} needs {what}, and is played here without: see "
        "docs/environments.md"
      )
