"""What an environment is: text in, text out, and a reward a step."""

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from saw_jax.tasks import base
from saw_jax.tasks.draws import Draws

FORMS = ("english", "compact")
_PROMPT = base.asset(__file__, "agent.txt")
_PAST = base.asset(__file__, "agent_past.txt")
_HAN = re.compile("[\u4e00-\u9fff]")


class EngineLost(Exception):
  """An environment's own process is gone: its worker has to be replaced."""


class Step(NamedTuple):
  """What one action brought about."""

  observation: str
  reward: float
  done: bool


class Environment:
  """A world that is played with words, until it is decided or out of steps.

  It is asked one action at a time and answers with what the policy sees next.
  It is deterministic, so that an episode can be played again from its seed and
  its actions. No action makes it raise: what it does not understand changes
  nothing and takes a step.

  A subclass starts the episode of a seed in `_start`, does what an action says
  in `_act` (observation, reward, and whether that decides the episode), and
  lists in `admissible_actions` what would do something now, in a fixed order.
  Any other class with the public names does as well.

  Attributes:
    max_return: the most that an episode can pay.
    task: what is to be done in this episode, in words.
    done: whether the episode is over.
  """

  admissible_actions: list[str]

  def __init__(self, max_steps: int, max_return: float):
    self.max_return, self.task, self.done = max_return, "", True
    self._steps, self._max_steps = 0, max_steps

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation."""
    self.done = True  # and stays so if there is no such episode
    observation = self._start(seed)
    self._steps, self.done = 0, False
    return observation

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done."""
    if self.done:
      raise RuntimeError("the episode is over: reset first")
    self._steps += 1
    observation, reward, decided = self._act(action)
    self.done = decided or self._steps >= self._max_steps
    return Step(observation, reward, self.done)

  def _start(self, seed: int) -> str:
    raise NotImplementedError

  def _act(self, action: str) -> tuple[str, float, bool]:
    raise NotImplementedError


class Situation(NamedTuple):
  """Where an episode stands: all that anybody outside needs of it."""

  task: str = ""
  observation: str = ""
  actions: tuple[str, ...] = ()  # the admissible ones
  reward: float = 0.0  # of the step that led here
  done: bool = False
  failure: str = ""  # what went wrong with the environment: the episode is over


class Reply(NamedTuple):
  """What a completion asks the environment to do."""

  action: str  # empty if there is none
  valid: bool


History = Sequence[tuple[str, str]]  # earlier observations and actions


class Transition(NamedTuple):
  """One step of somebody's episode, as the policy would have met it."""

  before: Situation
  history: History
  action: str
  observation: str  # what followed


class AgentTask:
  """A source of environments, and how a policy is asked and understood.

  It is pickled into worker processes, so its class lives in an importable
  module. An inheriting class gives `episodes` (or `num_episodes`), `make` and
  `prompts`; with an `expert` there are demonstrations. The rest has defaults.

  Attributes:
    name: of the task, in messages and metrics.
    max_steps: of an episode, `E`.
    max_return: the most that an episode can pay.
    episodes: how many seeds each split has, by its name.
    expert: takes an environment at the start of an episode and random draws,
      and yields what somebody who knows how to win would do next, whatever was
      done before; it ends where they have no idea. None: there is no expert.
    has_walkthroughs: whether the expert only knows a list of actions, and is
      lost after a mistake.
    keeps_case: whether capital letters of an action mean something.

  >>> class Guess(AgentTask):
  ...   name, max_steps, max_return = "guess", 5, 1.0
  ...   episodes = {"train": 1000, "test": 100}
  ...   def make(self, split):
  ...     return MyEnvironment(split)
  ...   def prompts(self, situation, history):
  ...     yield f"{situation.task} {history} {situation.observation}"
  ...     yield f"{situation.task} {situation.observation}"
  """

  name: str
  max_steps: int
  max_return: float
  episodes: Mapping[str, int]
  expert: ClassVar[Callable[..., Iterator[str]] | None] = None
  has_walkthroughs = False
  keeps_case = False

  @property
  def components(self) -> tuple[base.Component, ...]:
    """The one reward: what an episode pays."""
    return (base.Component("return", 0.0, self.max_return),)

  def num_episodes(self, split: str) -> int:
    """Returns how many episodes a split has; their seeds count from 0."""
    base.check_split(split, self.episodes)
    return self.episodes[split]

  def make(self, split: str) -> Environment:
    """Makes an environment, whose `reset` takes a seed of the split."""
    raise NotImplementedError

  def category(self, split: str, seed: int) -> str:
    """Returns what an evaluation counts an episode under, a name or nothing."""
    return ""

  def prompts(self, situation: Situation, history: History) -> Iterator[str]:
    """Yields what the policy may be asked; the first that fits is taken.

    They are messages of the user, the longest first. The history has every
    earlier observation of the episode with the action taken.
    """
    raise NotImplementedError

  def read_reply(self, completion: str) -> Reply:
    """Finds the action in a completion, which may be any text at all.

    It is the first closed `<action>`, in small letters unless `keeps_case`. The
    reply is valid if it also has a `<think>` block and no Chinese character:
    the checks of GiGPO's agent loop, https://arxiv.org/abs/2505.10978. The
    action of an invalid reply is played all the same.
    """
    found = next(find_blocks(completion, "action"), None)
    thinks = "<think>" in completion and "</think>" in completion
    valid = bool(found and thinks and not _HAN.search(completion))
    return Reply(self._clean(found[1]) if found else "", valid)

  def write_reply(self, action: str) -> str:
    """Returns a completion that asks for an action, for demonstrations."""
    return f"<think></think><action>{action}</action>"

  def mistake(self, situation: Situation, draws: Draws) -> str:
    """Returns what an expert that errs does: any admissible action."""
    return draws.choice(situation.actions)

  def demonstrations(
    self, count: int, *, seed: int, wrong_rate: float = 0.0
  ) -> list[Transition]:
    """Returns steps of an expert who makes mistakes at a rate.

    It goes on from where a mistake leads, so that recovering is shown too. The
    steps are those of training episodes, the last of which may be cut short.
    """
    return self._play("train", count, seed, wrong_rate)

  def held_out(self, count: int) -> list[Transition]:
    """Returns an expert's steps in test episodes; none without an expert."""
    return self._play("test", count, 0, 0.0) if self.expert else []

  def _clean(self, action: str) -> str:
    return action.strip() if self.keeps_case else action.strip().lower()

  def _starts(self, split: str, seed: int) -> Iterator[tuple[int, Draws]]:
    """The seed of each demonstrated episode, and the draws of its play."""
    for number in itertools.count():
      draws = Draws(f"{self.name} expert", split, seed, number)
      yield number % self.num_episodes(split), draws

  def _play(
    self, split: str, count: int, seed: int, wrong_rate: float
  ) -> list[Transition]:
    if self.expert is None:
      raise NotImplementedError(f"task {self.name!r} has no expert.")
    if not 0 <= wrong_rate < 1:
      raise ValueError(f"not a rate below 1: {wrong_rate}.")
    if wrong_rate and self.has_walkthroughs:
      raise ValueError("a walkthrough has no mistakes: set wrong_rate to 0.")
    env, steps, idle = self.make(split), [], 0
    for start, draws in self._starts(split, seed):
      if len(steps) == count:
        break
      observation, history = env.reset(start), ()
      expert = self.expert(env, draws)
      while not env.done and len(steps) < count:
        actions = tuple(env.admissible_actions)
        before = Situation(env.task, observation, actions)
        action = next(expert, None)
        if action is None:
          break
        if draws.chance(wrong_rate):
          action = self.mistake(before, draws)
        seen, observation = observation, env.step(action).observation
        steps.append(Transition(before, history, action, observation))
        history = (*history, (seen, action))
      idle = 0 if history else idle + 1
      if idle > self.num_episodes(split):
        where = f"split {split!r} of task {self.name!r}"
        raise ValueError(f"no episode of {where} has a walkthrough.")
    return steps


class FormTask(AgentTask):
  """A task in two forms: English with tags, and one of few tokens.

  The compact form is for policies that start from nothing: each task has a
  tokenizer for it, and a reply is the action and nothing else. A subclass knows
  in `_is_action(text)` what a compact reply may be. It has the class of its
  config as `Config`, and makes environments in `_make`.
  """

  Config: type
  _role = ""  # what the agent of the English prompts does, ...
  _subject = ""  # ... and what it is to reason about
  _longest_prompt = 10**9  # characters; a longer one goes without history

  def __init__(self, config: Any = None, parts: Mapping[str, Sequence] = {}):
    """`parts` has what the episodes of each split are about, where known."""
    self.config = config = config or self.Config()
    self.is_compact = getattr(config, "form", "english") == "compact"
    self.max_steps, self.max_return = config.max_steps, config.reward
    self.episodes = {split: len(several) for split, several in parts.items()}
    if not parts:
      self.episodes = {"train": config.num_train, "test": config.num_test}

  def make(self, split: str) -> Environment:
    base.check_split(split, self.episodes)
    return self._make(split)

  def prompts(self, situation: Situation, history: History) -> Iterator[str]:
    write = self._compact if self.is_compact else self._english
    for shown in range(min(self.config.shown, len(history)), -1, -1):
      text = write(situation, history, shown)
      if not shown or len(text) <= self._longest_prompt:
        yield text

  def read_reply(self, completion: str) -> Reply:
    if not self.is_compact:
      return super().read_reply(completion)
    action = self._clean(completion)
    valid = self._is_action(action)
    return Reply(action if valid else "", valid)

  def write_reply(self, action: str) -> str:
    return action if self.is_compact else super().write_reply(action)

  def _english(self, situation: Situation, history: History, shown: int) -> str:
    steps, past = len(history), "Your"
    if history:
      told = write_history(history, shown)
      past = _PAST.format(steps=steps, shown=shown, history=told, now=steps + 1)
    return _PROMPT.format(
      role=self._role,
      task=situation.task,
      past=past,
      observation=situation.observation,
      actions=", ".join(map("'{}'".format, situation.actions)),
      subject=self._subject,
    )

  def _compact(self, situation: Situation, history: History, shown: int) -> str:
    actions = ";".join(action for _, action in history[len(history) - shown :])
    return f"{situation.task}|{actions}|{situation.observation}>"


def find_blocks(text: str, *names: str) -> Iterator[tuple[str, str]]:
  """Yields what stands in each `<name>...</name>`, in linear time.

  A block goes to its first end; one that has none is passed over.

  >>> list(find_blocks("<a><b>1</b></a><a>2</a><b>3", "a", "b"))
  [('a', '<b>1</b>'), ('a', '2')]
  """
  place, last = 0, {name: text.rfind(f"</{name}>") for name in names}
  for tag in re.finditer(f"<({'|'.join(names)})>", text):
    if place <= tag.start() and tag.end() <= last[tag[1]]:
      place = text.find(f"</{tag[1]}>", tag.end())
      yield tag[1], text[tag.end() : place]


def write_history(history: History, shown: int) -> str:
  """Lists the last observations and actions of a history, numbered from 1.

  >>> write_history([("a bed", "look"), ("a lamp", "use")], 1)
  "[Observation 2: 'a lamp', Action 2: 'use']"
  """
  first = len(history) - shown
  return ", ".join(
    f"[Observation {k}: '{seen}', Action {k}: '{action}']"
    for k, (seen, action) in enumerate(history[first:], first + 1)
  )


def check_together(config: Any, *names: str) -> None:
  """Raises if some of a config's files are given and others are not."""
  given = [name for name in names if getattr(config, name)]
  if given and len(given) < len(names):
    raise ValueError(
      f"{', '.join(names)} are read together: give all of them, or none."
    )


def number_anchors(
  observations: Sequence[str], *, similarity: float = 1.0
) -> list[int]:
  """Numbers observations in order of first appearance; those alike share one.

  GiGPO compares the steps of a group that started from the same observation.
  With a similarity below 1, an observation joins the first number whose first
  text is this similar (`difflib`), which takes far longer.

  >>> number_anchors(["a room", "a bed", "a room"])
  [0, 1, 0]
  """
  first: list[str] = []
  numbers: dict[str, int] = {}
  for text in dict.fromkeys(observations):
    alike = (
      number
      for number, other in enumerate(first if similarity < 1 else ())
      if difflib.SequenceMatcher(None, text, other).ratio() >= similarity
    )
    numbers[text] = next(alike, len(first))
    if numbers[text] == len(first):
      first.append(text)
  return [numbers[text] for text in observations]
