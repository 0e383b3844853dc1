"""Questions that are answered by searching: passages in, an answer out.

References:
  Jin et al., 2025. Search-R1. https://arxiv.org/abs/2503.09516
  Rajpurkar et al., 2016. SQuAD, whose script defines the exact match.
  https://arxiv.org/abs/1606.05250
"""

import json
import re
import string
from collections.abc import Sequence

from saw_jax.tasks.environments import Environment, Reply
from saw_jax.tasks.search.corpus import Passage, Question
from saw_jax.tasks.search_index import SearchIndex

LONGEST_QUERY = 500  # characters of a query or answer that are read
LONGEST_PASSAGE = 3_000  # characters of a passage that are shown
_BLOCK = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SearchQuestions(Environment):
  """An `Environment`: the question of a seed's number, until it is answered.

  `<search>a query</search>` is followed by the passages that are found, and
  `<answer>an answer</answer>`, which pays if it is right, by nothing, as is
  anything else.

  Attributes:
    question: what is asked.
    searched: the queries so far.
  """

  def __init__(
    self,
    library: SearchIndex[Passage],
    questions: Sequence[Question],
    max_steps: int = 4,
    max_return: float = 1.0,
    num_passages: int = 3,
  ):
    super().__init__(max_steps, max_return)
    self._library, self._questions = library, questions
    self._num_passages = num_passages

  def _start(self, seed: int) -> str:
    self.question = self._questions[seed]
    self.task = self.question.text
    self.searched: list[str] = []
    return self.task

  def _act(self, action: str) -> tuple[str, float, bool]:
    found = _BLOCK.fullmatch(action.strip())
    if found is None:
      return "", 0.0, False
    text = found[2].strip()[:LONGEST_QUERY]
    if found[1] == "search":
      self.searched.append(text)
      told = "".join(
        f"Doc {number}: {passage.contents[:LONGEST_PASSAGE]}\n"
        for number, passage in enumerate(
          self._library.find(text, self._num_passages), 1
        )
      )
      told = json.dumps({"result": told})
      return f"<information>{told}</information>", 0.0, False
    right = normalise(text) in map(normalise, self.question.answers)
    return "", self.max_return if right else 0.0, True

  @property
  def admissible_actions(self) -> list[str]:
    """What would do something now: the two kinds of it."""
    return [f"<search>{self.task}</search>", "<answer>unknown</answer>"]


def read_reply(completion: str) -> Reply:
  """Returns the last block of a completion; valid if there is exactly one.

  >>> read_reply("<think>hm</think> <search> ann bell </search>")
  Reply(action='<search>ann bell</search>', valid=True)
  """
  found = list(_BLOCK.finditer(completion))
  if not found:
    return Reply("", False)
  verb, text = found[-1][1], found[-1][2].strip()
  return Reply(f"<{verb}>{text}</{verb}>", len(found) == 1)


def normalise(answer: str) -> str:
  """Returns an answer as it is compared: without case, marks and articles.

  >>> normalise("The  Glass-River!")
  'glassriver'
  """
  text = answer.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())
