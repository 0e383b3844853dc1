# SPDX-License-Identifier: Apache-2.0
"""One server of an inference engine, by HTTP, and whether it can be asked."""

import contextlib
import functools
import json
import logging
import threading
import time
from typing import Any
from urllib import parse

from saw_jax import asking
from saw_jax.rollout import engine_dialects as dialects
from saw_jax.rollout.engine import EngineConfig, EngineError, Traits
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig

LOG = logging.getLogger(__name__)
PAUSES_S = (0.2, 30.0)  # until a server is asked again: it doubles
_MOST_REPLY_BYTES = 100_000_000
_SHORT_S = 30.0  # for what takes a server no time


class Server:
  """One server: what it is, which weights it has, and when to ask it again."""

  def __init__(self, url: str, client: Any, config: EngineConfig):
    split = parse.urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
      raise EngineError(
        f"rollout.engine has {url!r}: say where a server is, as "
        "http://localhost:8000, or several with commas between them"
      )
    self.url, self._client, self._config = url.rstrip("/"), client, config
    self.dialect: dialects.Dialect | None = None
    self.lock, self.version = threading.Lock(), None  # None: it is to be asked
    self.running, self.ready_at, self._pause = 0, 0.0, PAUSES_S[0]

  def ask(self, path: str, body: Any = None, limit_s: float = _SHORT_S) -> Any:
    posted = None if body is None else json.dumps(body).encode()
    reply = asking.send(
      self._client,
      self.url + path,
      posted,
      end=time.monotonic() + limit_s,
      most_bytes=_MOST_REPLY_BYTES,
    )
    try:
      return json.loads(reply or b"null")
    except ValueError:
      raise asking.Failure(f"{path} answers no JSON", "unreadable") from None

  def leave(self, failure: asking.Failure) -> None:
    """Leaves it alone for a while, for longer after each failure in a row."""
    if failure.kind != "late":
      self.version = None
    self.ready_at = time.monotonic() + max(self._pause, failure.pause_s or 0.0)
    self._pause = min(2 * self._pause, PAUSES_S[1])

  def traits(self, max_length: int) -> Traits:
    """Finds out what it is, or raises an `EngineError`."""
    facts = self._recognise()
    if facts.max_length and max_length > facts.max_length:
      raise EngineError(
        f"rollout.engine: {self.url} takes {facts.max_length} tokens, and a "
        f"prompt with its response may have {max_length} "
        "(rollout.max_prompt_tokens, rollout.max_new_tokens)"
      )
    given = facts.version, facts.seeded, self._log_probs(), "disk", facts.model
    return Traits(self.dialect.name, *given)

  def take(self, version: str, folder: str) -> None:
    """Has it load weights, unless it has them, or raises a `Failure`."""
    if self.dialect.held(self.ask) != version:
      ask = functools.partial(self.ask, limit_s=self._config.deadline_s)
      self.dialect.load(ask, folder, version)
    self.version = version

  def sample(self, body: dialects.Document, version: str) -> dialects.Answer:
    """Has it sample one row by these weights, or raises a `Failure`."""
    with self.lock:
      self.running += 1
    try:
      limit_s = self._config.deadline_s
      answer = self.dialect.read(self.ask(self.dialect.generate, body, limit_s))
    finally:
      with self.lock:
        self.running -= 1
    if answer.versions - {version}:
      said = f"a row by the weights {sorted(answer.versions)}"
      raise asking.Failure(f"{said}, not {version}", pause_s=0.0)
    self._pause = PAUSES_S[0]
    return answer

  def _recognise(self) -> dialects.Facts:
    try:
      for dialect in dialects.DIALECTS:
        with contextlib.suppress(asking.Refusal):
          found = dialect.facts(self.ask)
          self.dialect = dialect
          return found
      known = " or ".join(dialect.name for dialect in dialects.DIALECTS)
      raise EngineError(f"there is a server, and none of {known}")
    except EngineError as error:
      raise EngineError(f"rollout.engine, {self.url}: {error}") from None
    except (asking.Failure, *dialects.ODD) as error:
      raise EngineError(
        f"rollout.engine: no inference engine answers at {self.url} ({error}): "
        "start it first, or say where it is"
      ) from None

  def _log_probs(self) -> str | None:
    """Which log-probs it gives, by asking: see `Traits`."""

    def first(prompt: int, **sampling: Any) -> dialects.Answer:
      how = GenerateConfig(1, 1, (), sampling=SamplingConfig(**sampling))
      body = self.dialect.body([prompt], how, 1, 2)
      document = self.ask(self.dialect.generate, body, 4 * _SHORT_S)
      return self.dialect.read(document)

    try:
      for prompt in range(3, 40):  # one whose likeliest token is that
        top = first(prompt).top
        if len(top) < 2:
          return None
        if (gap := top[0] - top[1]) > 0.01:
          break
      top = first(prompt, temperature=0.5).top
      if top[0] - top[1] < 1.5 * gap:
        return "raw"
      (alone,) = first(prompt, top_k=1).log_probs
    except asking.Refusal as error:
      raise EngineError(
        f"rollout.engine: {self.url}{self.dialect.generate} answers {error}: "
        "vLLM has it with --enable-scale-out"
      ) from None
    except (asking.Failure, *dialects.ODD) as error:
      said = f"{self.url} samples nothing: {quote(error)}"
      raise EngineError(f"rollout.engine: {said}") from None
    return "processed" if abs(alone) < 1e-3 else "tempered"


def quote(error: Exception) -> str:
  """An error with the beginning of what the server said with it."""
  reply = getattr(error, "reply", b"")[:300].decode(errors="replace")
  return f"{error}: {reply}" if reply else f"{error}"
