"""What an environment is: text in, text out, and a reward a step.

An environment is asked one action at a time and answers with what the policy
sees next. It is deterministic, and no action makes it raise: what it does not
understand changes nothing, and takes a step.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from saw_jax.tasks import base
from saw_jax.tasks.draws import Draws

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_HAN = re.compile("[\u4e00-\u9fff]")


class EngineLost(Exception):
  """The process behind an environment is gone, with all that it held.

  An environment of a worker process raises it to be played again in a new one.
  """


class Step(NamedTuple):
  """What one action brought about."""

  observation: str
  reward: float
  done: bool


class Environment(Protocol):
  """A world that is played with words.

  Attributes:
    max_return: the most that an episode can pay.
    task: what is to be done in this episode.
  """

  max_return: float
  task: str

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation."""
    ...

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done."""
    ...

  @property
  def admissible_actions(self) -> list[str]:
    """What would do something now, in a fixed order."""
    ...

  @property
  def done(self) -> bool:
    """Whether the episode is over."""
    ...


class Situation(NamedTuple):
  """Where an episode stands: all that anybody outside needs of it."""

  task: str
  observation: str
  actions: tuple[str, ...]  # the admissible ones
  reward: float  # of the step that led here; 0 at the start
  done: bool
  failure: str = ""  # what went wrong with the environment: the episode is over


class Reply(NamedTuple):
  """What a completion asks the environment to do."""

  action: str  # empty if there is none
  valid: bool


class Transition(NamedTuple):
  """One step of somebody's episode, as the policy would have met it."""

  before: Situation
  history: tuple[tuple[str, str], ...]  # earlier observations and actions
  action: str
  observation: str  # what followed


class Expert(Protocol):
  """Somebody who knows how an episode is won."""

  def action(self) -> str:
    """Returns what to do next, after whatever has been done."""
    ...


class AgentTask:
  """A source of environments, and how a policy is asked and understood.

  It is pickled into worker processes, so its class lives in an importable
  module. An inheriting class says which episodes there are in `num_episodes`
  and makes an environment in `make`; the rest has defaults.

  Attributes:
    name: of the task.
    max_steps: of an episode, `E`.
    max_return: the most that an episode can pay.
  """

  name: str
  max_steps: int
  max_return: float

  @property
  def components(self) -> tuple[base.Component, ...]:
    """The one reward: what an episode pays."""
    return (base.Component("return", 0.0, self.max_return),)

  def num_episodes(self, split: str) -> int:
    """Returns how many seeds of episodes a split has."""
    raise NotImplementedError

  def make(self, split: str) -> Environment:
    """Makes an environment, whose `reset` takes a seed of the split."""
    raise NotImplementedError

  def category(self, split: str, seed: int) -> str:
    """Returns what an episode is counted under, in letters that a name has.

    An evaluation says how each category went. Empty, as by default: none.
    """
    del split, seed
    return ""

  def prompts(
    self, situation: Situation, history: Sequence[tuple[str, str]]
  ) -> Iterator[str]:
    """Yields what the policy may be asked, the longest first.

    The first that fits is taken.

    Args:
      situation: where the episode stands.
      history: every earlier observation of the episode with the action taken.
    """
    raise NotImplementedError

  def read_reply(self, completion: str) -> Reply:
    """Finds the action in a completion, whatever it is."""
    return read_reply(completion)

  def write_reply(self, action: str) -> str:
    """Returns a completion that asks for an action."""
    return f"<think></think><action>{action}</action>"

  def demonstrations(self, count: int, *, seed: int) -> list[Transition]:
    """Returns steps for a supervised start, where there is an expert."""
    raise NotImplementedError

  def held_out(self, count: int) -> list[Transition]:
    """Returns an expert's steps in test worlds; none without an expert."""
    del count
    return []


def play(
  env: Environment,
  episodes: Iterable[tuple[int, Draws]],
  *,
  expert: Callable[[Environment, Draws], Expert],
  mistake: Callable[[Situation, Draws], str],
  wrong_rate: float,
) -> Iterator[Transition]:
  """Lets an expert play that errs at a given rate.

  It goes on from where its mistakes lead, so that both are shown.

  Args:
    env: to play in.
    episodes: the seed of each, with the draws of what is random about its play.
    expert: makes one for an episode that was just started.
    mistake: what is done instead, where the expert errs.
    wrong_rate: probability that a step is a mistake, in [0, 1).

  Yields:
    The steps, episode by episode.

  Raises:
    ValueError: it would do nothing right.
  """
  if not 0 <= wrong_rate < 1:
    raise ValueError(f"not a rate below 1: {wrong_rate}.")
  for seed, draws in episodes:
    observation = env.reset(seed)
    player, history = expert(env, draws), ()
    while not env.done:
      situation = Situation(
        env.task, observation, tuple(env.admissible_actions), 0.0, False
      )
      action = player.action()
      if draws.chance(wrong_rate):
        action = mistake(situation, draws)
      before, observation = observation, env.step(action).observation
      yield Transition(situation, history, action, observation)
      history = (*history, (before, action))


def read_reply(completion: str) -> Reply:
  """Finds the action in a completion.

  Args:
    completion: any text.

  Returns:
    The first action, in lower case. It is valid if it stands in `<action>`
    tags, a `<think>` block is there too, and no Chinese character is.

  References:
    The checks of GiGPO's agent loop. https://arxiv.org/abs/2505.10978

  >>> read_reply("<think>hm</think><action>go to bed 1</action>")
  Reply(action='go to bed 1', valid=True)
  """
  found = _ACTION.search(completion)
  thinks = "<think>" in completion and "</think>" in completion
  valid = bool(found and thinks and not _HAN.search(completion))
  return Reply(found[1].strip().lower() if found else "", valid)


def number_anchors(
  observations: Iterable[str], *, similarity: float = 1.0
) -> list[int]:
  """Numbers observations, so that those that are alike have one number.

  GiGPO compares the steps of a group that started from the same observation.

  Args:
    observations: the text before each step, of one group.
    similarity: 1 for equal texts; below, an observation joins the first number
      whose first text is this similar (`difflib`), which takes far longer.

  Returns:
    A number for each, from 0 on, in order of first appearance.

  >>> number_anchors(["a room", "a bed", "a room"])
  [0, 1, 0]
  """
  numbers: dict[str, int] = {}
  first: list[str] = []
  found = []
  for text in observations:
    if text not in numbers:
      numbers[text] = _first_like(text, first, similarity)
      if numbers[text] == len(first):
        first.append(text)
    found.append(numbers[text])
  return found


def _first_like(text: str, first: Sequence[str], similarity: float) -> int:
  if similarity < 1:
    for number, other in enumerate(first):
      if difflib.SequenceMatcher(None, text, other).ratio() >= similarity:
        return number
  return len(first)
