"""Passages and questions about them: drawn from a seed, or from local files.

A drawn corpus is about people, their works and places. A question of one hop
is answered by one passage; for one of two hops, what the first says has to be
searched for.
"""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from saw_jax.tasks import row_files
from saw_jax.tasks.draws import Draws, split_of

KINDS = ("birthplace", "job", "author", "country", "author_birthplace")
KINDS += ("person_country",)
TWO_HOPS = ("author_birthplace", "person_country")
FIRST = tuple("ann bob cara dan eva finn gina hugo iris jon kim leo".split())
LAST = tuple(
  "bell cole dunn fox gray hall king lane moss park reed shaw".split()
)
JOBS = tuple("painter writer singer farmer doctor pilot baker judge".split())
CITIES = tuple(
  "avon brill corda dover elton farley gorton hale irvine jarrow kelso".split()
)
COUNTRIES = tuple("norland sudland estria westria".split())
ADJECTIVES = tuple(
  "glass silent golden broken winter hidden paper distant iron velvet".split()
)
NOUNS = tuple(
  "river garden tower letter bridge harbor mirror forest clock island".split()
)


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


# Passages, and the questions of each split.
Corpus = tuple[tuple[Passage, ...], Mapping[str, tuple[Question, ...]]]
MOST_PEOPLE = len(FIRST) * len(LAST)


def draw_corpus(
  num_people: int, *, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> Corpus:
  """Draws people with a birthplace and a job, places, and works of some people.

  Two in three people wrote a work, while there are titles. There is every
  question of the `kinds`. Nobody whom a test question is about is asked about
  in training.
  """
  if not 1 <= num_people <= MOST_PEOPLE:
    raise ValueError(
      f"a drawn corpus has 1 to {MOST_PEOPLE} people, not {num_people}."
    )
  draws = Draws("corpus", seed)
  names = [f"{a} {b}" for a, b in itertools.product(FIRST, LAST)]
  titles = [f"{a} {b}" for a, b in itertools.product(ADJECTIVES, NOUNS)]
  people = draws.sample(names, num_people)
  works = draws.sample(titles, min(len(titles), num_people * 2 // 3))
  country = {city: draws.choice(COUNTRIES) for city in CITIES}
  city = {person: draws.choice(CITIES) for person in people}
  job = {person: draws.choice(JOBS) for person in people}
  author = dict(zip(works, people, strict=False))

  passages = [Passage("", f"{c} is a city in {country[c]}.") for c in CITIES]
  passages += [
    Passage("", f"{p} was born in {city[p]} and became a {job[p]}.")
    for p in people
  ]
  passages += [Passage("", f"the {w} is a book by {author[w]}.") for w in works]
  questions: dict[str, list[Question]] = {"train": [], "test": []}
  for kind, subject, question in _questions(country, city, job, author):
    if kind in kinds:
      questions[split_of(subject)].append(question._replace(source=kind))
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
  """Reads rows with `contents`, whose first line is the title, or with `text`.

  With `text` there may be a `title`.
  """
  passages = tuple(row_files.parse_rows(path, _passage))
  if not passages:
    raise ValueError(f"{path}: there is no passage in it.")
  return passages


def read_questions(path: str | pathlib.Path) -> tuple[Question, ...]:
  """Reads the questions of a public set.

  A row has a `question` and one of `golden_answers`, `answers` and `answer`: a
  text, or a list of texts that are all right. A row's `data_source` names the
  set; without one the file does, or, if that is called train, dev or test, its
  folder.
  """
  file = pathlib.Path(path).absolute()
  is_split = file.stem in ("train", "dev", "test")
  named = file.parent.name if is_split else file.stem
  questions = tuple(
    row_files.parse_rows(path, lambda row: _question(row, named))
  )
  if not questions:
    raise ValueError(f"{path}: there is no question in it.")
  return questions


def _passage(row: Any) -> Passage:
  if isinstance(row, Mapping) and "contents" in row:
    title, _, text = row_files.field(row, "contents", str).partition("\n")
    return Passage(title, text) if text else Passage("", title)
  text = row_files.field(row, "text", str)
  title = row_files.field({"title": row.get("title") or ""}, "title", str)
  return Passage(title, text)


def _question(row: Any, named: str) -> Question:
  text = row_files.field(row, "question", str).strip()
  answers = _answers(row)
  if not text:
    raise ValueError("field 'question' is empty")
  source = {"data_source": row.get("data_source") or named}
  return Question(
    text, answers, source=row_files.field(source, "data_source", str)
  )


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
  names = ("golden_answers", "answers", "answer")
  name = next((name for name in names if name in row), names[0])
  answers = row_files.field(row, name, (list, str))
  several = [answers] if isinstance(answers, str) else answers
  if not several or not all(
    isinstance(one, str) and one.strip() for one in several
  ):
    raise ValueError(f"field {name!r} is no text and no list of texts")
  return tuple(several)


def _questions(
  country: Mapping[str, str],
  city: Mapping[str, str],
  job: Mapping[str, str],
  author: Mapping[str, str],
) -> Iterator[tuple[str, str, Question]]:
  """Kind, subject and question of all that can be asked."""
  for place, land in country.items():
    text = f"in which country is {place}?"
    yield "country", place, Question(text, (land,), (place,))
  for person, place in city.items():
    text = f"where was {person} born?"
    yield "birthplace", person, Question(text, (place,), (person,))
    text = f"what did {person} become?"
    yield "job", person, Question(text, (job[person],), (person,))
    text = f"in which country was {person} born?"
    hops = (person, place)
    yield "person_country", person, Question(text, (country[place],), hops)
  for work, person in author.items():
    text = f"who wrote the {work}?"
    yield "author", person, Question(text, (person,), (work,))
    text = f"where was the author of the {work} born?"
    hops = (work, person)
    yield "author_birthplace", person, Question(text, (city[person],), hops)
