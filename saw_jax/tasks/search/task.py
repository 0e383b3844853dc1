"""Search questions as a task: which there are, and how one is asked.

Two forms of prompts and replies: English with a place to think, and a compact
one for policies that start from nothing, of few tokens in the tokenizer
`search`: the question, what was searched for, and what was found; a reply is
the block alone.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

from saw_jax.tasks import base, environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Reply, Situation, Transition
from saw_jax.tasks.search import (
  corpus as search_corpus,
)
from saw_jax.tasks.search import (
  questions as search_questions,
)
from saw_jax.tasks.search.questions import SearchQuestions

__all__ = ["PIECES", "Expert", "SearchConfig", "SearchTask"]

_FORMS = ("english", "compact")
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
    if self.form not in _FORMS:
      raise ValueError(
        f"unknown form {self.form!r}: {base.nearest(self.form, _FORMS)}"
      )
    for kind in self.kinds:
      if kind not in search_corpus.KINDS:
        raise ValueError(
          f"unknown kind {kind!r}: {base.nearest(kind, search_corpus.KINDS)}"
        )
    for name in ("num_people", "max_steps", "num_passages"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is not positive: {getattr(self, name)}.")
    # A config's lists become tuples, so that this can be a key.
    for name in ("kinds", "train", "test"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    files = [self.corpus, self.train, self.test]
    if any(files) and not all(files):
      raise ValueError(
        "local files are read together: give corpus, train and test, or none "
        "of them."
      )


class Expert:
  """Answers one question: searches for each hop, then says what was found."""

  def __init__(self, env: SearchQuestions):
    """Looks at the question.

    Args:
      env: at the start of an episode; whoever steps it, this one looks on.

    Raises:
      ValueError: the question does not say how it is answered.
    """
    if not env.question.queries:
      raise ValueError("nobody knows how to answer questions from a file.")
    self._env = env

  def action(self) -> str:
    """Returns what it would do now."""
    question = self._env.question
    for query in question.queries:
      if query not in self._env.searched:
        return f"<search>{query}</search>"
    return f"<answer>{question.answers[0]}</answer>"


class SearchTask(environments.AgentTask):
  """Questions about one corpus, another each seed."""

  name = "search"

  def __init__(self, config: SearchConfig | None = None):
    """Draws or reads passages and questions.

    Args:
      config: of the corpus.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is damaged.
      ImportError: bm25s is missing.
    """
    self.config = SearchConfig() if config is None else config
    self.max_steps = self.config.max_steps
    self.max_return = self.config.reward
    self._library, self._questions = _open(self.config)

  def __reduce__(self):
    # The index is made again where it is needed.
    return type(self), (self.config,)

  def num_episodes(self, split: str) -> int:
    """Returns how many questions a split has."""
    if split not in self._questions:
      raise ValueError(
        f"no split {split!r}: {base.nearest(split, [*self._questions])}"
      )
    return len(self._questions[split])

  def category(self, split: str, seed: int) -> str:
    """Returns the set that a question is from, or its kind."""
    return self._questions[split][seed].source

  def make(self, split: str) -> SearchQuestions:
    """Makes an environment, whose `reset` takes a seed of the split."""
    self.num_episodes(split)  # says so if there is no such split
    return SearchQuestions(
      self._library,
      self._questions[split],
      max_steps=self.config.max_steps,
      max_return=self.config.reward,
      num_passages=self.config.num_passages,
    )

  def prompts(
    self, situation: Situation, history: Sequence[tuple[str, str]]
  ) -> Iterator[str]:
    """Yields prompts with less and less history, the oldest left out first."""
    seen = [text for text, _ in history[1:]]
    if history:
      seen.append(situation.observation)
    steps = [
      (action, found) for (_, action), found in zip(history, seen, strict=True)
    ]
    for shown in range(len(steps), -1, -1):
      last = steps[len(steps) - shown :]
      if self.config.form == "compact":
        told = "|".join(f"{action}{found}" for action, found in last)
        yield f"{situation.task}|{told}>"
      else:
        yield search_questions.make_prompt(
          situation.task, steps if shown else (), shown=shown
        )

  def read_reply(self, completion: str) -> Reply:
    """Finds the action in a completion, whatever it is."""
    return search_questions.read_reply(completion)

  def write_reply(self, action: str) -> str:
    """Returns a completion that asks for an action."""
    return (
      action if self.config.form == "compact" else f"<think></think>{action}"
    )

  def demonstrations(
    self, count: int, *, seed: int, wrong_rate: float = 0.0
  ) -> list[Transition]:
    """Returns steps of an expert that errs at a given rate.

    Episodes are of the training split, cut where they end or are over the
    limit.

    Args:
      count: of steps.
      seed: of the questions and the mistakes.
      wrong_rate: probability that a step is the search or the answer of any
        other question instead.

    Returns:
      The steps, episode by episode.

    Raises:
      ValueError: it would do nothing right, or questions come from a file.
    """
    return list(self._play("train", count, seed, wrong_rate))

  def held_out(self, count: int) -> list[Transition]:
    """Returns steps of an expert for test questions, without mistakes.

    Args:
      count: of steps.

    Returns:
      The steps, episode by episode; none if questions come from a file.
    """
    if self.config.corpus:
      return []
    return list(self._play("test", count, 0, 0.0))

  def _play(
    self, split: str, count: int, seed: int, wrong_rate: float
  ) -> Iterator[Transition]:
    steps = environments.play(
      self.make(split),
      self._episodes(split, seed),
      expert=lambda env, draws: Expert(env),
      mistake=lambda situation, draws: _mistake(
        draws.choice(self._questions[split]), draws
      ),
      wrong_rate=wrong_rate,
    )
    return itertools.islice(steps, count)

  def _episodes(self, split: str, seed: int) -> Iterator[tuple[int, Draws]]:
    questions = range(self.num_episodes(split))
    for episode in itertools.count():
      draws = Draws("search expert", split, seed, episode)
      yield draws.choice(questions), draws


def _mistake(other: search_corpus.Question, draws: Draws) -> str:
  if draws.chance(0.5):
    return f"<search>{other.queries[0]}</search>"
  return f"<answer>{other.answers[0]}</answer>"


@functools.lru_cache(maxsize=4)
def _open(config: SearchConfig):
  """The library and the questions of each split; once a process."""
  if not config.corpus:
    corpus = search_corpus.draw_corpus(
      config.num_people, seed=config.seed, kinds=config.kinds
    )
    return search_questions.Library(corpus.passages), corpus.questions
  passages = search_corpus.read_passages(config.corpus)
  questions = {
    name: tuple(
      question
      for path in paths
      for question in search_corpus.read_questions(path)
    )
    for name, paths in (("train", config.train), ("test", config.test))
  }
  return search_questions.Library(passages), questions
