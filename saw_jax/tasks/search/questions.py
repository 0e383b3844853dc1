"""Questions that are answered by searching: passages in, an answer out.

An action is `<search>a query</search>`, which is answered by the passages that
BM25 finds, or `<answer>an answer</answer>`, which ends the episode and pays if
it is one of the right ones after normalisation.

References:
  Jin et al., 2025. Search-R1. https://arxiv.org/abs/2503.09516
  Rajpurkar et al., 2016. SQuAD, whose script defines the exact match.
  https://arxiv.org/abs/1606.05250
"""

import json
import re
import string
from collections.abc import Sequence

from saw_jax.tasks.environments import Reply, Step
from saw_jax.tasks.search.corpus import Passage, Question
from saw_jax.tasks.search.index import SearchIndex

LONGEST_QUERY = 500  # characters of a query or answer that are read
LONGEST_PASSAGE = 3_000  # characters of a passage that are shown
_BLOCK = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

_TASK = """\
You are an expert agent that answers questions, and can search for what you do \
not know.
The question is: {task}
"""
_HISTORY = """\
So far you have taken {steps} step(s), and this is what you searched for and \
what was found:
{history}
"""
_END = """\

It is your turn to act. First reason step by step about what you know and what \
is missing, inside <think> </think> tags. Then do exactly one of two things: \
search, by writing a query as <search> query </search>, or answer, by writing \
the answer and nothing else as <answer> answer </answer>."""


class Library:
  """Passages that can be searched."""

  def __init__(self, passages: Sequence[Passage]):
    """Indexes the passages.

    Args:
      passages: at least one.

    Raises:
      ImportError: bm25s is missing.
    """
    self._passages = tuple(passages)
    self._index = SearchIndex([p.contents for p in self._passages])

  def search(self, query: str, count: int) -> list[Passage]:
    """Returns at most so many passages for a query, the best first."""
    found = self._index.find(query[:LONGEST_QUERY], count)
    return [self._passages[i] for i in found]


class SearchQuestions:
  """An `Environment`: one question a seed, done when it is answered."""

  def __init__(
    self,
    library: Library,
    questions: Sequence[Question],
    *,
    max_steps: int = 4,
    max_return: float = 1.0,
    num_passages: int = 3,
  ):
    """Asks nothing yet: `reset` does.

    Args:
      library: what is searched.
      questions: of the split; a seed is the number of one.
      max_steps: after which the episode is over.
      max_return: what a right answer pays.
      num_passages: that a search brings.
    """
    self.max_return = max_return
    self.task = ""
    self._library, self._questions = library, questions
    self._max_steps, self._num_passages = max_steps, num_passages

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation."""
    self.question = self._questions[seed]
    self.task = self.question.text
    self.searched: list[str] = []  # the queries so far
    self.answer: str | None = None
    self._steps = 0
    return self.task

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done.

    An answer is followed by an empty observation, and so is what is neither
    search nor answer.

    Raises:
      RuntimeError: the episode is done, or none was started.
    """
    if not self.task or self.done:
      raise RuntimeError("the episode is over: reset first")
    self._steps += 1
    verb, text = split_action(action)
    observation, reward = "", 0.0
    if verb == "search":
      self.searched.append(text)
      observation = write_passages(
        self._library.search(text, self._num_passages)
      )
    elif verb == "answer":
      self.answer = text
      if is_right(text, self.question.answers):
        reward = self.max_return
    return Step(observation, reward, self.done)

  @property
  def done(self) -> bool:
    """Whether it is answered or the steps are used up."""
    return self.answer is not None or self._steps >= self._max_steps

  @property
  def admissible_actions(self) -> list[str]:
    """What would do something now: the two kinds of it."""
    return [f"<search>{self.task}</search>", "<answer>unknown</answer>"]


def read_reply(completion: str) -> Reply:
  """Finds the action in a completion.

  Args:
    completion: any text.

  Returns:
    The last block, or none. It is valid if there is exactly one.

  >>> read_reply("<think>hm</think> <search> ann bell </search>")
  Reply(action='<search>ann bell</search>', valid=True)
  """
  found = list(_BLOCK.finditer(completion))
  if not found:
    return Reply("", False)
  verb, text = found[-1][1], found[-1][2].strip()
  return Reply(f"<{verb}>{text}</{verb}>", len(found) == 1)


def split_action(action: str) -> tuple[str, str]:
  """Splits an action into its verb and its text.

  Args:
    action: any text.

  Returns:
    "search" or "answer" with what is in the block; two empty texts if it is
    neither.
  """
  found = _BLOCK.fullmatch(action.strip())
  if found is None:
    return "", ""
  return found[1], found[2].strip()[:LONGEST_QUERY]


def write_passages(passages: Sequence[Passage]) -> str:
  """Writes what a search found.

  Args:
    passages: the best first.

  Returns:
    `<information>`, a JSON object with all passages in one text, and
    `</information>`.
  """
  text = "".join(
    f"Doc {number}: {one.contents[:LONGEST_PASSAGE]}\n"
    for number, one in enumerate(passages, 1)
  )
  return f"<information>{json.dumps({'result': text})}</information>"


def is_right(answer: str, answers: Sequence[str]) -> bool:
  """Says whether an answer is one of those that are right.

  Args:
    answer: what was answered.
    answers: that are right.

  Returns:
    Whether it is equal to one of them after normalisation.
  """
  return normalise(answer) in map(normalise, answers)


def normalise(answer: str) -> str:
  """Returns the form of an answer that is compared.

  Args:
    answer: any text.

  Returns:
    It in lower case, without punctuation and articles, with single spaces.

  >>> normalise("The  Glass-River!")
  'glassriver'
  """
  text = answer.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def make_prompt(
  task: str, history: Sequence[tuple[str, str]] = (), *, shown: int
) -> str:
  """Writes what the policy is asked at a step.

  Args:
    task: the question.
    history: every earlier action of the episode with what followed it.
    shown: how many of the last ones are shown.

  Returns:
    The text of one message of the user; without history a shorter one.
  """
  text = _TASK.format(task=task)
  if history:
    first = max(len(history) - shown, 0)
    lines = "\n".join(
      f"Step {k}:{action} {found}"
      for k, (action, found) in enumerate(history[first:], first + 1)
    )
    text += _HISTORY.format(steps=len(history), history=lines)
  return text + _END
