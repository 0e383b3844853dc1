"""A language model that scores text, behind any OpenAI-compatible endpoint.

A text is sent inside a JSON document, so that it cannot pose as anything else,
and a reply that quotes it is no verdict. Without numbers from the judge there
is no score: the text is masked, never given 0. The endpoint's key goes into one
header, and into no file or message.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib import parse

from saw_jax import asking
from saw_jax.tasks import answer_task

RUBRIC = pathlib.Path(__file__).parent / "assets" / "summary_rubric.txt"

_FORM = """
The JSON object alone is your reply. Should you have to say more, say it before,
and end with a line that is %s and the object on the line after it.
"""
_FENCE = re.compile(r"```(?:json)?\n([^`]*)\n```")
_LOG = logging.getLogger(__name__)
_MOST_REPLY_BYTES = 1_000_000
_MOST_REPLY_CHARS = 4_000
_LONGEST_PAUSE_S = 30.0
_APPLICATION = 0x5341574A  # marks the file as ours
_VERSION = 1
_BUSY_S = 30.0  # the longest wait for another process
_SCHEMA = (
  "CREATE TABLE verdicts (key TEXT PRIMARY KEY, scores TEXT NOT NULL)",
  "CREATE TABLE departures (model TEXT PRIMARY KEY, next_at REAL NOT NULL)",
  f"PRAGMA application_id = {_APPLICATION}",
  f"PRAGMA user_version = {_VERSION}",
)
_FIND = "SELECT scores FROM verdicts WHERE key = ?"


class JudgeError(ValueError):
  """The judge cannot be asked, or its cache be used; it says what to change."""


# A text that the judge did not score, and why.
Unscored = asking.Failure


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """Whom to ask, how often, and for how long."""

  url: str = ""  # up to and without "/chat/completions"
  model: str = ""  # as the endpoint calls it
  # Name of the environment variable with the endpoint's key. Without such a
  # variable no key is sent, as servers of one's own need none.
  key_variable: str = "OPENAI_API_KEY"
  rubric: str | None = None  # path of another rubric
  cache: str = ".cache/judge.sqlite"  # shared by processes and runs
  temperature: float = 0.1
  max_tokens: int = 256  # of a reply
  attempts: int = 4  # requests for a text, at most
  backoff_s: float = 1.0  # pause after the first failure; it doubles
  request_limit_s: float = 30.0  # of one request
  limit_s: float = 60.0  # of all that is done for a text
  requests_per_minute: float = 0.0  # of all processes together; 0: no limit

  def __post_init__(self):
    split = parse.urlsplit(self.url)
    if split.scheme not in ("http", "https") or not split.hostname:
      where = "say where the judge is, as http://localhost:8000/v1"
      raise JudgeError(f"judge.url is {self.url!r}: {where}")
    if split.username or split.password or split.query or split.fragment:
      what = "judge.url holds more than a place: keys belong into the"
      raise JudgeError(f"{what} environment variable {self.key_variable}")
    if not self.model:
      raise JudgeError("judge.model is empty: name a model of the endpoint")
    for name in ("attempts", "max_tokens", "request_limit_s", "limit_s"):
      if not getattr(self, name) > 0:
        raise JudgeError(f"judge.{name} is not positive")
    for name in ("temperature", "backoff_s", "requests_per_minute"):
      if not getattr(self, name) >= 0:
        raise JudgeError(f"judge.{name} is negative")


class JudgeCache:
  """Verdicts by key, and a queue for requests: one SQLite file.

  Processes of several runs share it, and any of them may be killed at any
  moment: each operation opens it, makes one short transaction and closes it.
  There is no write-ahead log, which would not work on network file systems.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self._transaction() as connection:
      # Another process may be making it: whoever comes second waits, and looks.
      made = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
      for statement in _SCHEMA if made == (0,) else ():
        connection.execute(statement)
      (application,) = connection.execute("PRAGMA application_id").fetchone()
      (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, version) != (_APPLICATION, _VERSION):
      what = f"no judge's cache of version {_VERSION}: name another file"
      raise JudgeError(f"{self.path} is an SQLite file, but {what}")

  def get(self, key: str) -> dict[str, float] | None:
    with self._transaction() as connection:
      row = connection.execute(_FIND, (key,)).fetchone()
    return row and json.loads(row[0])

  def put(self, key: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Keeps a verdict unless there is one, and returns the one that counts."""
    row = key, json.dumps(dict(scores))
    with self._transaction() as connection:
      connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", row)
      (found,) = connection.execute(_FIND, (key,)).fetchone()
    return json.loads(found)

  def reserve(
    self, model: str, interval_s: float, patience_s: float, longest_s: float
  ) -> float | None:
    """Takes the next place in the queue of requests to a model.

    Returns in how many seconds the request may leave, or None if that is more
    than `patience_s`. Nobody ever waits longer than `longest_s`: a longer queue
    is left over from before the clock was set back, and does not count.
    """
    with self._transaction() as connection:
      find = "SELECT next_at FROM departures WHERE model = ?"
      (next_at,) = connection.execute(find, (model,)).fetchone() or (0.0,)
      now = time.time()  # as other processes have it, too
      wait_s = max(next_at - now, 0.0)
      wait_s = 0.0 if wait_s > longest_s + interval_s else wait_s
      if wait_s > patience_s:
        return None
      keep = "INSERT OR REPLACE INTO departures VALUES (?, ?)"
      connection.execute(keep, (model, now + wait_s + interval_s))
    return wait_s

  @contextlib.contextmanager
  def _transaction(self) -> Iterator[sqlite3.Connection]:
    try:
      with (
        contextlib.closing(
          sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        ) as connection,
        connection,
      ):
        connection.execute("BEGIN IMMEDIATE")
        yield connection
    except sqlite3.OperationalError as error:
      what = "is the folder writable, and no other process stuck in it?"
      raise JudgeError(f"{self.path}: {error}; {what}") from error
    except sqlite3.DatabaseError as error:
      what = f"{self.path} is damaged or no SQLite file ({error}): name another"
      raise JudgeError(f"{what}, or remove it and its verdicts") from error


class Judge:
  """Scores summaries; its cache is shared by all that have its file."""

  def __init__(self, config: JudgeConfig, components: Sequence[str]):
    self._config, self._components = config, tuple(components)
    path = pathlib.Path(config.rubric) if config.rubric else RUBRIC
    if not path.is_file():
      raise JudgeError(f"judge.rubric: there is no file {path}")
    self._rubric = path.read_text(encoding="utf-8")
    for name in self._components:
      if name not in self._rubric:
        raise JudgeError(f"{path}: the rubric does not say what {name!r} is")
    # Verdicts on other terms are not found again.
    terms = (self._rubric + _FORM).encode()
    self._digest = hashlib.sha256(terms).hexdigest()
    self._cache = JudgeCache(config.cache)
    self._client: Any = None
    # Verdicts of this process by what they are: `cached`, `scored`, or unscored
    # as `unreadable`, `late` or `failed`.
    self.counts: collections.Counter[str] = collections.Counter()
    _import_httpx()

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_client": None, "counts": collections.Counter()}

  def judge(self, source: str, summary: str) -> tuple[float, ...]:
    """Scores a summary, from the cache or by asking, within `limit_s` seconds.

    Raises an `Unscored`, or a `JudgeError` where all requests are refused.
    """
    parts = [self._config.model, self._digest, self._components]
    document = json.dumps([*parts, source, summary])  # ASCII, whatever comes
    key, kind = hashlib.sha256(document.encode()).hexdigest(), "cached"
    scores = self._cache.get(key)
    try:
      if scores is None:
        kind = "scored"
        scores = self._cache.put(key, self._ask(source, summary))
    except Unscored as error:
      self.counts[error.kind] += 1
      count = sum(self.counts[k] for k in ("unreadable", "late", "failed"))
      if count & (count - 1) == 0:  # 1, 2, 4, 8: a log that does not drown
        told = "the judge left %d text(s) unscored, the last one since %s"
        _LOG.warning(told, count, error)
      raise
    self.counts[kind] += 1
    return tuple(scores[name] for name in self._components)

  def _ask(self, source: str, summary: str) -> dict[str, float]:
    config = self._config
    judged = {"text": source[:20_000], "summary": summary[:4_000]}
    # No text that is judged can know what its verdict is marked by.
    marker = f"SCORES-{secrets.token_hex(8)}"
    system = {"role": "system", "content": self._rubric + _FORM % marker}
    document = {
      "model": config.model,
      "messages": [system, *answer_task.ask(json.dumps(judged))],
      "temperature": config.temperature,
      "max_tokens": config.max_tokens,
    }
    body = json.dumps(document).encode()
    deadline = time.monotonic() + config.limit_s
    pause, left = config.backoff_s, config.attempts
    while True:
      if rate := config.requests_per_minute:
        limits = deadline - time.monotonic(), config.limit_s
        wait_s = self._cache.reserve(config.model, 60.0 / rate, *limits)
        if wait_s is None:
          raise Unscored(f"{rate:g} requests a minute leave no time", "late")
        time.sleep(wait_s)
      try:
        return read_scores(self._send(body, deadline), self._components, marker)
      except Unscored as failure:
        left -= 1
        if failure.pause_s is None or not left:
          raise
        wait = max(pause, failure.pause_s)
        if time.monotonic() + wait >= deadline:
          raise
      time.sleep(wait)
      pause = min(2 * pause, _LONGEST_PAUSE_S)

  def _send(self, body: bytes, deadline: float) -> str:
    if self._client is None:  # It reads certificates: no part of a request.
      self._client = _import_httpx().Client(headers=self._headers())
    end = min(time.monotonic() + self._config.request_limit_s, deadline)
    url = f"{self._config.url.rstrip('/')}/chat/completions"
    try:
      reply = asking.send(
        self._client, url, body, end=end, most_bytes=_MOST_REPLY_BYTES
      )
    except asking.Refusal as error:
      raise JudgeError(
        f"the judge at {url} answers {error}: judge.url, judge.model or the "
        "key in the variable of judge.key_variable is wrong"
      ) from error
    try:
      content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
      content = None
    if not isinstance(content, str):
      raise Unscored("its reply is no chat completion with text", "unreadable")
    return content

  def _headers(self) -> dict[str, str]:
    key = os.environ.get(self._config.key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
      variable = self._config.key_variable
      what = f"the environment variable {variable} holds no key"
      raise JudgeError(f"{what}: it has characters that no header can have")
    own = {"Authorization": f"Bearer {key}"} if key else {}
    return asking.HEADERS | own


def read_scores(
  text: str, components: Sequence[str], marker: str
) -> dict[str, float]:
  """Reads a judge's reply: a JSON object with a number from 0 to 10 for each.

  The object is the reply, but for a block of thoughts before it and a fence
  around it, or what stands behind the last marker. Any other object in a reply
  may be a quotation.

  >>> read_scores('Well, X\\n{"quality": 7, "more": "words"}', ["quality"], "X")
  {'quality': 7.0}
  """
  text = text.strip()
  if text.startswith("<think>"):
    text = text.partition("</think>")[2].strip()
  text = text.rpartition(marker)[2].strip()
  if len(text) > _MOST_REPLY_CHARS:
    raise Unscored("its reply is no JSON object but an essay", "unreadable")
  fenced = _FENCE.fullmatch(text)
  try:
    found = json.loads(
      fenced[1] if fenced else text, object_pairs_hook=_without_doubles
    )
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict) or not set(components) <= set(found):
    raise Unscored("its reply is no JSON object with scores", "unreadable")
  for name in components:
    value = found[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= 10):  # NaN is in no range.
      raise Unscored(f"its {name} is no number from 0 to 10", "unreadable")
  return {name: float(found[name]) for name in components}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  document = dict(pairs)
  if len(document) < len(pairs):
    raise ValueError("a name comes twice")
  return document


def _import_httpx() -> Any:
  return asking.import_httpx("judge", "asking a judge needs httpx")
