"""Search questions as a task: which there are, and how one is asked.

Prompts and replies are in English with a place to think, or compact: the
question, what was searched for, and what was found.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from saw_jax.tasks import base, environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import History, Reply, Situation, Transition
from saw_jax.tasks.search import corpus as search_corpus
from saw_jax.tasks.search import questions as search_questions
from saw_jax.tasks.search.questions import SearchQuestions
from saw_jax.tasks.search_index import SearchIndex

_NAMES = (
  *search_corpus.FIRST,
  *search_corpus.LAST,
  *search_corpus.JOBS,
  *search_corpus.CITIES,
  *search_corpus.COUNTRIES,
  *search_corpus.ADJECTIVES,
  *search_corpus.NOUNS,
)
# The pieces of drawn corpora: of questions, of actions, and of passages.
PIECES = (
  *_NAMES,
  *(f" {name}" for name in _NAMES),
  *("<search>", "</search>", "<answer>", "</answer>", "|", ">", "?"),
  *("in which country is", "in which country was", " born?", "where was"),
  *("what did", " become?", "who wrote the", "where was the author of the"),
  *(" is a city in", " was born in", " and became a", ".", "the"),
  *(" is a book by", '<information>{"result": "', '"}</information>'),
  *("Doc 1: ", "Doc 2: ", "Doc 3: ", "\\n", "unknown"),
)


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
    files = [self.corpus, self.train, self.test]
    if any(files) and not all(files):
      raise ValueError(
        "local files are read together: give corpus, train and test, or none "
        "of them."
      )


class SearchTask(environments.FormTask):
  """Questions about one corpus, another each seed."""

  name = "search"

  def __init__(self, config: SearchConfig | None = None):
    config = config or SearchConfig()
    self._library, self._questions = _open(config)
    sizes = {name: len(several) for name, several in self._questions.items()}
    super().__init__(config, sizes)

  def __reduce__(self):
    # The index is made again where it is needed.
    return type(self), (self.config,)

  def category(self, split: str, seed: int) -> str:
    return self._questions[split][seed].source

  def make(self, split: str) -> SearchQuestions:
    self.num_episodes(split)  # raises if there is no such split
    config = self.config
    limits = (config.max_steps, config.reward, config.num_passages)
    return SearchQuestions(self._library, self._questions[split], *limits)

  def prompts(self, situation: Situation, history: History) -> Iterator[str]:
    seen = [text for text, _ in history[1:]] + [situation.observation]
    steps = [(a, text) for (_, a), text in zip(history, seen, strict=False)]
    for first in range(len(steps) + 1):
      told = list(enumerate(steps, 1))[first:]
      if self.is_compact:
        past = "|".join(f"{action}{found}" for _, (action, found) in told)
        yield f"{situation.task}|{past}>"
        continue
      past = "\n".join(f"Step {k}:{action} {f}" for k, (action, f) in told)
      past = _HISTORY.format(steps=len(steps), history=past) if told else ""
      yield _TASK.format(task=situation.task) + past + _END

  def read_reply(self, completion: str) -> Reply:
    return search_questions.read_reply(completion)

  def write_reply(self, action: str) -> str:
    return action if self.is_compact else f"<think></think>{action}"

  def expert(self, env: SearchQuestions, draws: Draws) -> Iterator[str]:
    """Searches for each hop, then says what was found."""
    del draws
    queries = env.question.queries
    if not queries:
      raise ValueError("nobody knows how to answer questions from a file.")
    while True:
      left = [query for query in queries if query not in env.searched]
      if left:
        yield f"<search>{left[0]}</search>"
      else:
        yield f"<answer>{env.question.answers[0]}</answer>"

  def held_out(self, count: int) -> list[Transition]:
    """Returns an expert's steps for test questions; none if from a file."""
    return [] if self.config.corpus else super().held_out(count)

  def mistake(self, situation: Situation, draws: Draws) -> str:
    """Returns the search or the answer of any other question."""
    other = draws.choice(self._questions["train"])
    if draws.chance(0.5):
      return f"<search>{other.queries[0]}</search>"
    return f"<answer>{other.answers[0]}</answer>"

  def _starts(self, split: str, seed: int) -> Iterator[tuple[int, Draws]]:
    questions = range(self.num_episodes(split))
    for number in itertools.count():
      draws = Draws("search expert", split, seed, number)
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
