"""What environments of other libraries have in common as tasks."""

import dataclasses
import importlib
import os
from collections.abc import Mapping
from typing import Any

from saw_jax import naming
from saw_jax.tasks import base, environments
from saw_jax.tasks.environments import Environment, History, Situation

# Test episodes count their seeds from here: none is one of training.
TEST_SEEDS = 2**30

_PROMPT = base.asset(__file__, "agent.txt")
_PAST = """\
So far you have taken {steps} step(s). The last {shown} observation(s) and the \
actions that you took: {history}
"""
_ACTIONS = "The actions that are possible now are: [{}].\n"


class World(Environment):
  """An environment of a library, whose splits differ in their seeds."""

  def __init__(self, config: "WorldConfig", split: str):
    super().__init__(config.max_steps, config.reward)
    self._config, self._split = config, split
    self._first = TEST_SEEDS if split == "test" else 0


def ask(scene: str, now: Situation, history: History, shown: int) -> str:
  """Writes a prompt that lists what can be done, or else leaves it open."""
  past = environments.write_history(history, shown)
  past = _PAST.format(steps=len(history), shown=shown, history=past)
  actions = ", ".join(map("'{}'".format, now.actions))
  return _PROMPT.format(
    scene=scene,
    task=now.task,
    past=past if shown else "",
    observation=now.observation,
    actions=_ACTIONS.format(actions) if actions else "",
    choose="choose one possible action" if actions else "decide on an action",
  )


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """Which environment of a library, and how much of it."""

  env: str = ""  # by its name there
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of it
  num_train: int = 8192
  num_test: int = 256
  max_steps: int = 20
  reward: float = 1.0  # the most that an episode pays
  shown: int = 2  # earlier steps in a prompt, where they fit

  def __post_init__(self):
    base.check_positive(self, "num_train", "num_test", "max_steps")
    if self.num_train > TEST_SEEDS:
      raise ValueError(f"num_train is {self.num_train}, above {TEST_SEEDS}.")


@dataclasses.dataclass(frozen=True)
class AskedConfig(WorldConfig):
  """Also how a policy is asked, where the environment does not do that."""

  goal: str = ""  # in words; empty: what the environment says of itself
  form: str = "english"  # or "compact": observations and actions, no words

  def __post_init__(self):
    super().__post_init__()
    base.check_choice("form", self.form, environments.FORMS)


class WorldTask(environments.FormTask):
  """A task whose episodes another library plays, by the name of its extra.

  Each step of an episode is a row of its own in an update, whose prompt is
  written anew from text: what was said before is never part of a loss.
  """

  keeps_case = True
  _longest_prompt = 12_000
  _module: str  # of the library
  _world: type[Environment]  # made of the config and a split
  _places: tuple[str, ...] = ()  # options that say where something is defined

  def __init__(self, config: WorldConfig):
    super().__init__(config)
    with naming.needs_extra(self.name, f"task {self.name!r} needs its library"):
      importlib.import_module(self._module)
    if not config.env:
      raise ValueError(f"task {self.name!r}: options.env names no environment.")
    self.make("train")  # What is wrong is said at once.

  def __setstate__(self, state: dict[str, Any]) -> None:
    vars(self).update(state)
    self.make("train")  # Imports, before the time limit of a step holds.

  def remember(self, directory: str | os.PathLike) -> dict[str, Any]:
    """The options that make the task again, from any directory."""
    del directory
    options = dict(vars(self.config))
    given = [name for name in self._places if options[name]]
    found = {name: naming.load(options[name]) for name in given}
    return options | {k: naming.place_of(one) for k, one in found.items()}

  def _make(self, split: str) -> Environment:
    return self._world(self.config, split)

  def _is_action(self, text: str) -> bool:
    return bool(text)

  def _english(self, situation: Situation, history: History, shown: int) -> str:
    scene = "You are acting in an environment, one step after the other."
    return ask(scene, situation, history, shown)

  def _compact(self, situation: Situation, history: History, shown: int) -> str:
    past = history[len(history) - shown :]
    said = [text for step in past for text in step]
    return "\n".join([*said, situation.observation])
