"""Passages and questions about them: drawn from a seed, or from local files."""

import itertools
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from saw_jax.tasks import base, row_files
from saw_jax.tasks.draws import Draws, split_of

TWO_HOPS = ("author_birthplace", "person_country")
KINDS = ("birthplace", "job", "author", "country", *TWO_HOPS)
NAMES = base.asset(__file__, "names.json")  # of what a drawn corpus is about


class Passage(NamedTuple):
  """One text that can be found."""

  title: str
  text: str

  @property
  def contents(self) -> str:
    """Title and text in one, as they are searched and shown."""
    return f"{self.title}\n{self.text}" if self.title else self.text


class Question(NamedTuple):
  """What is asked, all answers that are right, and how an expert finds one."""

  text: str
  answers: tuple[str, ...]
  queries: tuple[str, ...] = ()  # in order; empty: nobody knows
  source: str = ""  # the set that it is from, or its kind


MOST_PEOPLE = math.prod(map(len, NAMES["people"]))


def draw_corpus(
  num_people: int, *, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> tuple[tuple[Passage, ...], Mapping[str, tuple[Question, ...]]]:
  """Draws people, places and works, and every question of the `kinds`.

  Nobody whom a test question is about is asked about in training.
  """
  if not 1 <= num_people <= MOST_PEOPLE:
    most = f"a drawn corpus has 1 to {MOST_PEOPLE} people"
    raise ValueError(f"{most}, not {num_people}.")
  draws = Draws("corpus", seed)
  names, titles = (
    [f"{a} {b}" for a, b in itertools.product(*NAMES[kind])]
    for kind in ("people", "works")
  )
  people = draws.sample(names, num_people)
  works = draws.sample(titles, min(len(titles), num_people * 2 // 3))
  country = {city: draws.choice(NAMES["countries"]) for city in NAMES["cities"]}
  city = {person: draws.choice(NAMES["cities"]) for person in people}
  job = {person: draws.choice(NAMES["jobs"]) for person in people}
  author = dict(zip(works, people, strict=False))

  passages: list[Passage] = []
  questions: dict[str, list[Question]] = {"train": [], "test": []}

  def ask(about: str, kind: str, text: str, answer: str, *queries: str):
    if kind in kinds:
      question = Question(text, (answer,), queries, kind)
      questions[split_of(about)].append(question)

  for place, land in country.items():
    passages.append(Passage("", f"{place} is a city in {land}."))
    ask(place, "country", f"in which country is {place}?", land, place)
  for person, place in city.items():
    text = f"{person} was born in {place} and became a {job[person]}."
    passages.append(Passage("", text))
    ask(person, "birthplace", f"where was {person} born?", place, person)
    ask(person, "job", f"what did {person} become?", job[person], person)
    text = f"in which country was {person} born?"
    ask(person, "person_country", text, country[place], person, place)
  for work, person in author.items():
    passages.append(Passage("", f"the {work} is a book by {person}."))
    ask(person, "author", f"who wrote the {work}?", person, work)
    text = f"where was the author of the {work} born?"
    ask(person, "author_birthplace", text, city[person], work, person)
  for split, several in questions.items():
    if not several:
      raise ValueError(
        f"a corpus of {num_people} people has no question for the split "
        f"{split!r}: draw more people or more kinds of questions."
      )
  # In random order: an evaluation takes the first ones.
  return tuple(draws.sample(passages, len(passages))), {
    name: tuple(draws.sample(several, len(several)))
    for name, several in questions.items()
  }


def read_passages(path: str | pathlib.Path) -> tuple[Passage, ...]:
  """Reads rows with `contents`, whose first line is the title, or `text`."""

  def parse(row: Any) -> Passage:
    if isinstance(row, Mapping) and "contents" in row:
      title, _, text = row_files.field(row, "contents", str).partition("\n")
      return Passage(title, text) if text else Passage("", title)
    text = row_files.field(row, "text", str)
    title = {"title": row.get("title") or ""}
    return Passage(row_files.field(title, "title", str), text)

  return _some(path, parse, "passage")


def read_questions(path: str | pathlib.Path) -> tuple[Question, ...]:
  """Reads the questions of a public set.

  A row has a `question` and one of `golden_answers`, `answers` and `answer`,
  texts that are all right; its `data_source`, or the file or its folder, names
  the set.
  """
  file = pathlib.Path(path).absolute()
  is_split = file.stem in ("train", "dev", "test")
  named = file.parent.name if is_split else file.stem

  def parse(row: Any) -> Question:
    text = row_files.field(row, "question", str).strip()
    names = ("golden_answers", "answers", "answer")
    name = next((name for name in names if name in row), names[0])
    answers = row_files.texts(row, name)
    for what, texts in (("question", [text]), (name, answers)):
      if not texts or not all(map(str.strip, texts)):
        raise ValueError(f"field {what!r} is empty")
    source = {"data_source": row.get("data_source") or named}
    source = row_files.field(source, "data_source", str)
    return Question(text, answers, source=source)

  return _some(path, parse, "question")


def _some(path, parse, what: str) -> tuple:
  found = tuple(row_files.parse_rows(path, parse))
  if not found:
    raise ValueError(f"{path}: there is no {what} in it.")
  return found
