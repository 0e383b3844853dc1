"""Questions that are answered by searching: passages in, an answer out.

Search-R1, https://arxiv.org/abs/2503.09516; the exact match is SQuAD's,
https://arxiv.org/abs/1606.05250
"""

import dataclasses
import functools
import itertools
import json
import re
import string
from collections.abc import Iterator, Sequence

from saw_jax.tasks import base, environments, panels
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import History, Reply, Situation, Transition
from saw_jax.tasks.search import corpus as search_corpus
from saw_jax.tasks.search_index import SearchIndex

LONGEST_QUERY = 500  # characters of a query or answer that are read
LONGEST_PASSAGE = 3_000  # characters of a passage that are shown
_BLOCK = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A number whose sign or point counts.
_NUMBER = re.compile(r"[^\w-]*(-[0-9,]*[0-9]|-?[0-9,]*\.[0-9]+)\W*")
_PROMPT = base.asset(__file__, "searcher.txt")
# The pieces of compact prompts, of questions, of actions, and of passages.
PIECES = base.asset(__file__, "pieces.json")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Which questions there are, what is searched, and how one is asked.

  With `corpus`, `train` and `test`, which are read together, they are those of
  local files; else they are drawn.
  """

  num_people: int = 120  # of the corpus that is drawn
  seed: int = 0  # of the corpus that is drawn
  kinds: tuple[str, ...] = search_corpus.KINDS  # of questions that are drawn
  corpus: str = ""  # path of the passages
  train: tuple[str, ...] = ()  # paths of questions
  test: tuple[str, ...] = ()
  max_steps: int = 4
  num_passages: int = 3  # that a search brings
  reward: float = 1.0  # of a right answer
  form: str = "english"  # of prompts and replies; or "compact"

  def __post_init__(self):
    base.check_choice("form", self.form, environments.FORMS)
    for kind in self.kinds:
      base.check_choice("kind", kind, search_corpus.KINDS)
    base.check_positive(self, "num_people", "max_steps", "num_passages")
    # A config's lists become tuples, so that this can be a key.
    for name in ("kinds", "train", "test"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    environments.check_together(self, "corpus", "train", "test")


class SearchQuestions(environments.Environment):
  """The question of a seed's number, until it is answered.

  A `<search>` is followed by the passages that are found. An `<answer>` ends
  the episode, and pays if it is right; anything else is followed by nothing.
  """

  def __init__(
    self, library: SearchIndex, questions: Sequence, config: SearchConfig
  ):
    super().__init__(config.max_steps, config.reward)
    self._library, self._questions = library, questions
    self._num_passages = config.num_passages

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
    if found[1] == "answer":
      is_right = normalise(text) in map(normalise, self.question.answers)
      return "", self.max_return * is_right, True
    self.searched.append(text)
    passages = self._library.find(text, self._num_passages)
    told = "".join(
      f"Doc {number}: {passage.contents[:LONGEST_PASSAGE]}\n"
      for number, passage in enumerate(passages, 1)
    )
    told = json.dumps({"result": told})
    return f"<information>{told}</information>", 0.0, False

  @property
  def admissible_actions(self) -> list[str]:
    return [f"<search>{self.task}</search>", "<answer>unknown</answer>"]


def normalise(answer: str) -> str:
  """Returns an answer as it is compared: without case, marks and articles.

  Differs from the published form: 1.5 is not 15, -5 is not 5, and an answer
  with nothing but an article or marks, such as "A" or "!!!", stays as it is.

  >>> normalise("The  Glass-River!")
  'glassriver'
  """
  words = answer.lower().split()
  numbers = map(_NUMBER.fullmatch, words)
  text = " ".join(
    number[1].replace(",", "") if number else word.translate(_PUNCTUATION)
    for word, number in zip(words, numbers, strict=True)
  )
  return " ".join(_ARTICLES.sub(" ", text).split() or text.split() or words)


class SearchTask(environments.FormTask):
  """Questions about one corpus, another each seed."""

  name = "search"

  def __init__(self, config: SearchConfig | None = None):
    config = config or SearchConfig()
    self._library, self._questions = _open(config)
    super().__init__(config, self._questions)

  def __reduce__(self):
    # The index is made again where it is needed.
    return type(self), (self.config,)

  def category(self, split: str, seed: int) -> str:
    return self._questions[split][seed].source

  def _make(self, split: str) -> SearchQuestions:
    return SearchQuestions(self._library, self._questions[split], self.config)

  def panel(self, split: str, count: int) -> list[str]:
    """Hashes of the questions and what answers them; the corpus is another."""
    asked = self._questions[split][:count]
    return [panels.short(f"{x.text}\n{x.answers}".encode()) for x in asked]

  def prompts(self, situation: Situation, history: History) -> Iterator[str]:
    seen = [text for text, _ in history[1:]] + [situation.observation]
    steps = [(a, text) for (_, a), text in zip(history, seen, strict=False)]
    for first in range(len(steps) + 1):
      told = list(enumerate(steps, 1))[first:]
      if self.is_compact:
        past = "|".join(f"{action}{found}" for _, (action, found) in told)
        yield f"{situation.task}|{past}>"
        continue
      past = "".join(f"Step {k}:{action} {f}\n" for k, (action, f) in told)
      if told:
        past = (
          f"So far you have taken {len(steps)} step(s), and this is what you "
          f"searched for and what was found:\n{past}"
        )
      yield _PROMPT.format(question=situation.task, past=past)

  def read_reply(self, completion: str) -> Reply:
    found = list(environments.find_blocks(completion, "search", "answer"))
    if not found:
      return Reply("", False)
    verb, text = found[-1]
    return Reply(f"<{verb}>{text.strip()}</{verb}>", len(found) == 1)

  def write_reply(self, action: str) -> str:
    return action if self.is_compact else f"<think></think>{action}"

  def expert(self, env: SearchQuestions, draws: Draws) -> Iterator[str]:
    queries = env.question.queries
    if not queries:
      raise ValueError("nobody knows how to answer questions from a file.")
    answer = f"<answer>{env.question.answers[0]}</answer>"
    while True:
      left = [query for query in queries if query not in env.searched]
      yield f"<search>{left[0]}</search>" if left else answer

  def held_out(self, count: int) -> list[Transition]:
    return [] if self.config.corpus else super().held_out(count)

  def mistake(self, situation: Situation, draws: Draws) -> str:
    other = draws.choice(self._questions["train"])
    if draws.chance(0.5):
      return f"<search>{other.queries[0]}</search>"
    return f"<answer>{other.answers[0]}</answer>"

  def _starts(self, split: str, seed: int) -> Iterator[tuple[int, Draws]]:
    questions = range(self.num_episodes(split))
    for _, draws in super()._starts(split, seed):
      yield draws.choice(questions), draws


@functools.lru_cache(maxsize=4)
def _open(config: SearchConfig):
  """The library and the questions of each split; once a process."""
  if not config.corpus:
    passages, questions = search_corpus.draw_corpus(
      config.num_people, seed=config.seed, kinds=config.kinds
    )
  else:
    passages = search_corpus.read_passages(config.corpus)
    questions = {
      split: tuple(itertools.chain(*map(search_corpus.read_questions, paths)))
      for split, paths in (("train", config.train), ("test", config.test))
    }
  texts = [passage.contents for passage in passages]
  return SearchIndex(passages, texts), questions
