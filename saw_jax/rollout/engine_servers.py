# SPDX-License-Identifier: Apache-2.0
"""Servers of an inference engine in the place of our own sampler, by HTTP.

Rows are of the weights that they were asked of, whoever asks in between: calls
by other weights wait for each other, and what a server says of its weights is
looked at in each answer. So a server that dies loses nothing but time, and one
that comes back is given its weights again.
"""

import collections
import contextlib
import json
import logging
import math
import pathlib
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any
from urllib import parse

import jax
import numpy as np

from saw_jax import asking
from saw_jax.rollout import engine_dialects as dialects
from saw_jax.rollout import transcript
from saw_jax.rollout.engine import EngineConfig, EngineError, Traits
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array, PyTree

LOG = logging.getLogger(__name__)
_MOST_REPLY_BYTES = 100_000_000
_SHORT_S = 30.0  # for what takes a server no time
_PAUSES_S = (0.2, 30.0)  # until a server is asked again: it doubles
_CHECKED = 8  # tokens of the row that is looked at after a publication
_NOTHING = dialects.Answer([], [], [], frozenset(), "")

# (params, folder): writes a model as a Hugging Face directory
Write = Callable[[PyTree, pathlib.Path], None]
# (params, prompt, tokens) -> our own greedy tokens and their log-probs
Greedy = Callable[[PyTree, list[int], int], tuple[Sequence[int], Any]]


class Server:
  """One server, and whether it can be asked now."""

  def __init__(self, url: str, client: Any, dialect: Any = None):
    split = parse.urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
      raise EngineError(
        f"rollout.engine has {url!r}: say where a server is, as "
        "http://localhost:8000, or several with commas between them"
      )
    self.url, self._client, self.dialect = url.rstrip("/"), client, dialect
    self.lock, self.version = threading.Lock(), None  # None: it is to be asked
    self.running, self.ready_at, self._pause = 0, 0.0, _PAUSES_S[0]

  def ask(self, path: str, body: Any = None, limit_s: float = _SHORT_S) -> Any:
    posted = None if body is None else json.dumps(body).encode()
    end = time.monotonic() + limit_s
    reply = asking.send(
      self._client,
      self.url + path,
      posted,
      end=end,
      most_bytes=_MOST_REPLY_BYTES,
    )
    try:
      return json.loads(reply)
    except ValueError:
      raise asking.Failure(f"{path} answers no JSON", "unreadable") from None

  def leave(self, failure: asking.Failure) -> None:
    """Lets others be asked, for longer each time in a row."""
    if failure.kind != "late":
      self.version = None
    pause = max(self._pause, failure.pause_s or 0.0)
    self.ready_at = time.monotonic() + pause
    self._pause = min(2 * self._pause, _PAUSES_S[1])

  def stay(self) -> None:
    self._pause = _PAUSES_S[0]

  def recognise(self) -> dialects.Facts:
    """Finds out what it is, or raises an `EngineError`."""
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
    except (asking.Failure, LookupError, TypeError) as error:
      raise EngineError(
        f"rollout.engine: no inference engine answers at {self.url} ({error}): "
        "start it first, or say where it is"
      ) from None

  def log_probs(self) -> str | None:
    """Which log-probs it gives, by asking: see `Traits`."""

    def first(prompt: int, **sampling: Any) -> dialects.Answer:
      how = GenerateConfig(1, 1, (), sampling=SamplingConfig(**sampling))
      body = self.dialect.body([prompt], how, 1, 2)
      return self.dialect.read(
        self.ask(self.dialect.generate, body, 4 * _SHORT_S)
      )

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
    except (asking.Failure, LookupError, TypeError, ValueError) as error:
      said = _quote(error)
      raise EngineError(
        f"rollout.engine: {self.url} samples nothing: {said}"
      ) from None
    return "processed" if abs(alone) < 1e-3 else "tempered"


class Servers:
  """Servers that have one model, as an `Engine` for the policy of one seed."""

  def __init__(
    self,
    urls: str,
    config: EngineConfig,
    *,
    vocab_size: int,
    max_length: int = 0,
    write: Write | None = None,
    greedy: Greedy | None = None,
    folder: pathlib.Path | None = None,
  ):
    """Asks all servers what they are; raises an `EngineError`."""
    httpx = asking.import_httpx("engine", "an inference engine needs httpx")
    self._config, self._vocab_size = config, vocab_size
    self._write, self._greedy, self._folder = write, greedy, folder
    urls = [url.strip() for url in urls.split(",")]
    count = config.concurrency * len(urls)
    self._client = httpx.Client(
      # Another connection is never waited for, and none is taken by a proxy.
      limits=httpx.Limits(
        max_connections=None, max_keepalive_connections=count
      ),
      headers={
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
      },
      trust_env=False,
    )
    self._servers = [Server(url, self._client) for url in urls]
    found = [self._traits(server, max_length) for server in self._servers]
    if len({one._replace(model="") for one in found}) > 1:
      raise EngineError(f"rollout.engine: its servers differ: {found}")
    self.traits = found[0]
    self._threads = futures.ThreadPoolExecutor(count, "engine")
    # Calls by one version run side by side; the next version waits for them.
    self._turn, self._calls = threading.Condition(), 0
    self._held: list[weakref.ref] = []  # leaves of the version's weights
    self._token, self._count = uuid.uuid4().hex[:8], 0
    self._path: pathlib.Path | None = None
    self._prompt: list[int] = []
    self._figures, self._owner = collections.Counter(), threading.get_ident()
    self._answered, self._closed = time.monotonic(), False

  def _traits(self, server: Server, max_length: int) -> Traits:
    facts = server.recognise()
    if facts.max_length and max_length > facts.max_length:
      raise EngineError(
        f"rollout.engine: {server.url} takes {facts.max_length} tokens, and a "
        f"prompt with its response may have {max_length} "
        "(rollout.max_prompt_tokens, rollout.max_new_tokens)"
      )
    return Traits(
      server.dialect.name,
      facts.version,
      facts.seeded,
      server.log_probs(),
      "disk",
      facts.model,
    )

  def publish(self, params: PyTree) -> None:
    with self._by(params):
      pass

  def sample(
    self,
    params: PyTree,
    prompts: PromptBatch,
    row_keys: Array,
    config: GenerateConfig,
  ) -> Transcript:
    tokens, lengths = np.asarray(prompts.tokens), np.asarray(prompts.lengths)
    if (
      len(tokens) != 1 or prompts.sampled is not None or config.record_entropies
    ):
      raise EngineError(
        "an engine's servers sample whole responses of one seed, and no "
        "entropies"
      )
    rows = [
      row[len(row) - size :].tolist()
      for row, size in zip(tokens[0], lengths[0], strict=True)
      for _ in range(config.group_size)
    ]
    has_log_probs = self.traits.gives_log_probs(config.sampling)
    self._prompt = self._prompt or rows[0]
    with self._by(params) as version:
      work = [
        self._threads.submit(self._row, version, row, seed, config)
        for row, seed in zip(rows, _seeds(row_keys), strict=True)
      ]
      try:
        answers = [one.result() for one in work]
      finally:  # Nothing is left of them, but where one has raised.
        for one in work:
          one.cancel()
    return _lay_out(prompts, answers, config, has_log_probs)

  def figures(self) -> dict[str, float]:
    names = ("publish_seconds", "publish_hidden", "asked_again", "wrong")
    found, self._figures = self._figures, collections.Counter()
    return {f"engine/{name}": found[name] for name in (*names, "unscored")}

  def close(self) -> None:
    self._closed = True
    self._threads.shutdown(wait=False, cancel_futures=True)
    self._client.close()
    if self._path is not None:
      shutil.rmtree(self._path, ignore_errors=True)

  @contextlib.contextmanager
  def _by(self, params: PyTree) -> Iterator[str]:
    """Keeps the servers at these weights; gives their version."""
    leaves = jax.tree.leaves(params)

    def are_held() -> bool:
      pairs = zip(self._held, leaves, strict=False)
      return bool(self._held) and all(ref() is leaf for ref, leaf in pairs)

    with self._turn:
      self._turn.wait_for(lambda: are_held() or not self._calls)
      if not are_held():
        self._publish(params)
        self._held = list(map(weakref.ref, leaves))
      self._calls += 1
    try:
      yield f"{self._token}-{self._count}"
    finally:
      with self._turn:
        self._calls -= 1
        self._turn.notify_all()

  def _publish(self, params: PyTree) -> None:
    begun, old = time.monotonic(), self._path
    self._held, self._count = [], self._count + 1
    folder = self._config.folder or self._folder or tempfile.gettempdir()
    name = f"weights-{self._token}-{self._count}"
    self._path = pathlib.Path(folder).absolute() / name
    self._write(params, self._path)
    if old is not None:
      shutil.rmtree(old, ignore_errors=True)
    version = f"{self._token}-{self._count}"
    ours = (
      self._greedy(params, self._prompt, _CHECKED) if self._prompt else None
    )
    self._answered = time.monotonic()
    list(self._threads.map(lambda x: self._prepare(x, version), self._servers))
    if not any(server.version == version for server in self._servers):
      self._patience("new weights")
    for server in self._servers:
      if ours is not None and server.version == version:
        self._compare(server, version, *ours)
    seconds = time.monotonic() - begun
    self._figures["publish_seconds"] += seconds
    if threading.get_ident() != self._owner:
      self._figures["publish_hidden"] += seconds
    LOG.debug("weights %s: published in %.2f s", version, seconds)

  def _prepare(self, server: Server, version: str) -> bool:
    """Gives a server the weights if it has others; whether it has them now."""
    with server.lock:
      if server.version == version:
        return True
      if server.ready_at > time.monotonic():
        return False
      ask, limit = server.ask, self._config.deadline_s
      try:
        if server.dialect.held(ask) != version:
          server.dialect.load(
            lambda path, body: ask(path, body, limit), str(self._path), version
          )
        server.version = version
      except asking.Failure as failure:
        self._warn(
          "%s did not take new weights: %s", server.url, _quote(failure)
        )
        server.leave(failure)
    return server.version == version

  def _compare(self, server, version, tokens, log_probs) -> None:
    """Refuses a server whose likeliest row by new weights is not ours."""
    config = GenerateConfig(
      _CHECKED, 1, (), sampling=SamplingConfig(greedy=True)
    )
    answer = self._row(version, self._prompt, 1, config, server)
    if not answer.tokens:
      raise EngineError(f"rollout.engine: no row of {server.url} is right")
    same = np.equal(answer.tokens, tokens)
    place = int(same.argmin()) if not same.all() else len(same) - 1
    theirs = answer.log_probs
    if theirs is None:
      far = 0.0 if same[0] else math.inf
    else:  # Where they part, the two have to be as likely.
      far = float(np.abs(np.subtract(theirs, log_probs))[: place + 1].max())
    if far > self._config.bound:
      raise EngineError(
        f"rollout.engine: by the same weights {server.url} continues "
        f"{answer.tokens[: place + 1]} where our decoder has "
        f"{[int(x) for x in tokens[: place + 1]]}, with log-probs up to "
        f"{far:.3g} apart (rollout.engine_options.bound): is it another model, "
        "a quantised one, or one whose tied head is not reloaded?"
      )

  def _row(
    self,
    version: str,
    prompt: list[int],
    seed: int,
    config: GenerateConfig,
    only: Server | None = None,
  ) -> dialects.Answer:
    """Has one row sampled, by whichever server can; `_NOTHING` after faults."""
    wants = self.traits.gives_log_probs(config.sampling)
    faults = 0
    while not self._closed:
      now = time.monotonic()
      ready = [
        x for x in (only and [only]) or self._servers if x.ready_at <= now
      ]
      if not ready:
        self._patience("a row")
        time.sleep(_PAUSES_S[0] / 2)
        continue
      server = min(ready, key=lambda x: x.running)
      if not self._prepare(server, version):
        continue
      with server.lock:
        server.running += 1
      body = server.dialect.body(prompt, config, seed, 0 if wants else None)
      try:
        said = server.ask(
          server.dialect.generate, body, self._config.deadline_s
        )
        answer = server.dialect.read(said)
        if answer.versions - {version}:
          said = f"a row by the weights {sorted(answer.versions)}"
          raise asking.Failure(f"{said}, not {version}", pause_s=0.0)
        fault = self._fault(answer, config, wants)
      except asking.Failure as failure:
        if isinstance(failure, asking.Refusal) or failure.pause_s is None:
          raise EngineError(
            f"rollout.engine: {server.url} refuses a row: {_quote(failure)}"
          ) from None
        self._warn("%s: %s; its row is asked again", server.url, failure)
        self._figures["asked_again"] += 1
        server.leave(failure)
        continue
      except (LookupError, TypeError, ValueError) as error:
        fault = f"no response of the known form ({error!r})"
      finally:
        with server.lock:
          server.running -= 1
      server.stay()
      self._answered = time.monotonic()
      if not fault:
        return answer
      faults += 1
      self._figures["wrong"] += 1
      what = "%s returned %s (%d of %d times)"
      self._warn(what, server.url, fault, faults, self._config.attempts)
      if faults >= self._config.attempts:
        self._figures["unscored"] += 1
        return _NOTHING
    raise EngineError("the engine was closed")

  def _fault(self, answer, config, wants) -> str:
    """What is wrong with an answer; empty: nothing."""
    tokens, found = answer.tokens, answer.log_probs
    ends = [i for i, token in enumerate(tokens) if token in config.eos_ids]
    return next(
      (
        what
        for what, is_so in {
          f"{len(tokens)} tokens where at most {config.max_new_tokens} were "
          "asked for": not 0 < len(tokens) <= config.max_new_tokens,
          "token ids that the model has not": not all(
            type(x) is int and 0 <= x < self._vocab_size for x in tokens
          ),
          "a row that goes on behind its end": ends[:1]
          not in (
            [],
            [len(tokens) - 1],
          ),
          f"{len(tokens)} tokens and no end, because of {answer.reason!r}": (
            not ends and len(tokens) < config.max_new_tokens
          ),
          "log-probs that are none": wants
          and not (
            found is not None
            and len(found) == len(tokens)
            and all(
              isinstance(x, float | int) and -1e3 < x < 1e-3 for x in found
            )
          ),
        }.items()
        if is_so
      ),
      "",
    )

  def _patience(self, what: str) -> None:
    waited = time.monotonic() - self._answered
    if waited > self._config.patience_s:
      places = ", ".join(server.url for server in self._servers)
      raise EngineError(
        f"no server of rollout.engine ({places}) has answered for "
        f"{waited:.0f} s, and {what} waits: start one, and resume the run"
      )

  def _warn(self, message: str, *values: Any) -> None:
    """Logs the first, second, fourth ... of its kind."""
    self._figures[message] += 1
    count = self._figures[message]
    if count & (count - 1) == 0:
      LOG.warning(message, *values)


def _quote(error: Exception) -> str:
  """An error with the beginning of what the server said with it."""
  reply = getattr(error, "reply", b"")[:300].decode(errors="replace")
  return f"{error}: {reply}" if reply else f"{error}"


def _seeds(row_keys: Array) -> list[int]:
  """Seeds from 0 to 2^63 - 1, of the rows' keys."""
  data = np.asarray(jax.random.key_data(row_keys)).astype(np.uint64)
  data = data.reshape(-1, data.shape[-1])
  seeds = (data[:, 0] << np.uint64(32)) | data[:, -1]
  return (seeds & np.uint64(2**63 - 1)).tolist()


def _lay_out(
  prompts: PromptBatch,
  answers: Sequence[dialects.Answer],
  config: GenerateConfig,
  has_log_probs: bool,
) -> Transcript:
  """The transcript, as our own sampler lays it out."""
  S, T, G = prompts.tokens.shape[-1], config.max_new_tokens, config.group_size
  size = len(answers)
  tokens = np.full((size, S + T), config.pad_id, np.int32)
  tokens[:, :S] = np.repeat(np.asarray(prompts.tokens)[0], G, axis=0)
  starts = S - np.repeat(np.asarray(prompts.lengths)[0], G).astype(np.int32)
  counts = np.array([len(answer.tokens) for answer in answers], np.int32)
  order = np.arange(S + T)
  ends = S + counts
  roles = np.where(order < S, transcript.PROMPT, transcript.POLICY)
  is_out = (order < starts[:, None]) | (order >= ends[:, None])
  log_probs = np.zeros((size, T), np.float32) if has_log_probs else None
  for row, answer in enumerate(answers):
    tokens[row, S : ends[row]] = answer.tokens
    if has_log_probs:
      log_probs[row, : counts[row]] = answer.log_probs
  group_ids = np.arange(size, dtype=np.int32) // G
  found = Transcript(
    tokens=tokens,
    roles=np.where(is_out, transcript.PAD, roles).astype(np.int8),
    starts=starts,
    ends=ends,
    behave_log_probs=log_probs,
    group_ids=group_ids,
    prompt_size=S,
  )
  return jax.tree.map(lambda x: x[None], found)
