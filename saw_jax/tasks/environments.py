"""What an environment is: text in, text out, and a reward a step.

An environment is asked one action at a time and answers with what the policy
sees next. It is deterministic, and no action makes it raise: what it does not
understand changes nothing, and takes a step.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_HAN = re.compile("[\u4e00-\u9fff]")


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


class Reply(NamedTuple):
  """What a completion asks the environment to do."""

  action: str  # empty if there is none
  valid: bool


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
