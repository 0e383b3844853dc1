# SPDX-License-Identifier: Apache-2.0
"""Servers of an inference engine in the place of our own sampler, by HTTP.

A row is sampled by the weights that the caller gave. Calls by other weights
wait until it has come, and each answer tells the version that it was sampled
by, which is checked. So a server that dies costs nothing but time, and one that
comes back is given the weights again.
"""

import collections
import contextlib
import dataclasses
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

import jax
import numpy as np

from saw_jax import asking
from saw_jax.rollout import engine_dialects as dialects
from saw_jax.rollout import generate
from saw_jax.rollout import server as server_lib
from saw_jax.rollout.engine import Engine, EngineConfig, EngineError
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.server import Server
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array, PyTree

LOG = logging.getLogger(__name__)
_CHECKED = 8  # tokens of the row that is looked at after a publication
_NOTHING = dialects.Answer([], [], [], frozenset(), "")
_FIGURES = "publish_seconds publish_hidden asked_again aborted wrong unscored"

# (params, folder): writes a model as a Hugging Face directory
Write = Callable[[PyTree, pathlib.Path], None]
# (params, prompt, tokens) -> our own greedy tokens and their log-probs
Greedy = Callable[[PyTree, list[int], int], tuple[Sequence[int], Any]]


@dataclasses.dataclass
class _Call:
  """The weights and settings of one call, and which rows are being sampled."""

  version: str
  config: GenerateConfig
  has_log_probs: bool
  only: Server | None = None  # the one that is asked; None: any
  is_cut: bool = False  # by newer weights: the rest is asked of those
  running: dict[str, Server] = dataclasses.field(default_factory=dict)


class Servers(Engine):
  """Servers that have one model, as an `Engine` for the policy of one seed."""

  def __init__(
    self,
    urls: str,
    config: EngineConfig,
    *,
    vocab_size: int,
    max_length: int = 0,
    write: Write | None = None,  # these two are needed to sample
    greedy: Greedy | None = None,
    folder: pathlib.Path | None = None,
  ):
    """Asks all servers what they are; raises an `EngineError`."""
    httpx = asking.import_httpx("engine", "an inference engine needs httpx")
    self._config, self._vocab_size = config, vocab_size
    self._write, self._greedy, self._folder = write, greedy, folder
    urls = [url.strip() for url in urls.split(",")]
    count = config.concurrency * len(urls)
    # vLLM ends idle connections after 5 s, under a request, too.
    limits = httpx.Limits(max_keepalive_connections=count, keepalive_expiry=2.0)
    self._client = httpx.Client(
      limits=limits,
      headers=asking.HEADERS,
      trust_env=False,  # no proxy
    )
    self._servers = [Server(url, self._client, config) for url in urls]
    found = [server.traits(max_length) for server in self._servers]
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

  def sample(
    self, params, prompts, row_keys, config, newest=None
  ) -> Transcript:
    tokens, lengths = np.asarray(prompts.tokens), np.asarray(prompts.lengths)
    is_known = len(tokens) == 1 and prompts.sampled is None
    if not is_known or config.record_entropies:
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
    asked = list(zip(rows, _seeds(row_keys), strict=True))
    answers: list[dialects.Answer | None] = [None] * len(rows)
    if self._config.in_flight != "abort":
      newest = None
    while None in answers:
      params = newest() if newest else params
      with self._by(params) as version:
        call = _Call(version, config, has_log_probs)
        is_old = newest and (lambda held=params: newest() is not held)
        self._fill(answers, asked, call, is_old)
    return _lay_out(prompts, answers, config, has_log_probs)

  def figures(self) -> dict[str, float]:
    found, self._figures = self._figures, collections.Counter()
    return {f"engine/{name}": found[name] for name in _FIGURES.split()}

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
    version = f"{self._token}-{self._count}"
    folder = self._config.folder or self._folder or tempfile.gettempdir()
    self._path = pathlib.Path(folder).absolute() / f"weights-{version}"
    self._write(params, self._path)
    if old is not None:
      shutil.rmtree(old, ignore_errors=True)
    ours = self._greedy(params, self._prompt, _CHECKED)
    self._answered = time.monotonic()
    list(self._threads.map(lambda x: self._prepare(x, version), self._servers))
    if not any(server.version == version for server in self._servers):
      self._patience("new weights")
    for server in self._servers:
      if server.version == version:
        self._compare(server, version, *ours)
    seconds = time.monotonic() - begun
    self._figures["publish_seconds"] += seconds
    if threading.get_ident() != self._owner:
      self._figures["publish_hidden"] += seconds
    LOG.debug("weights %s: published in %.2f s", version, seconds)

  def _prepare(self, server: Server, version: str) -> bool:
    """Gives a server the weights if it has others; whether it has them now."""
    with server.lock:  # The others wait, and then find it as it is.
      if server.version == version or server.ready_at > time.monotonic():
        return server.version == version
      try:
        server.take(version, str(self._path))
      except asking.Failure as failure:
        said = server_lib.quote(failure)
        self._warn("%s did not take new weights: %s", server.url, said)
        server.leave(failure)
      return server.version == version

  def _compare(self, server, version, tokens, log_probs) -> None:
    """Refuses a server whose likeliest row by new weights is not ours."""
    greedy = SamplingConfig(greedy=True)
    config = GenerateConfig(_CHECKED, 1, (), sampling=greedy)
    has_log_probs = self.traits.gives_log_probs(greedy)
    call = _Call(version, config, has_log_probs, only=server)
    answer = self._row(call, self._prompt, 1)
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

  def _fill(self, answers: list, asked: list, call: _Call, is_old) -> None:
    """Has what has no answer sampled; cuts it once its weights are old."""
    left = [row for row, answer in enumerate(answers) if answer is None]
    work = [self._threads.submit(self._row, call, *asked[row]) for row in left]
    try:
      while is_old and futures.wait(work, server_lib.PAUSES_S[0]).not_done:
        if is_old():
          self._cut(call)
      for row, one in zip(left, work, strict=True):
        answers[row] = one.result()
    finally:  # Nothing is left of them, but where one has raised.
      for one in work:
        one.cancel()

  def _cut(self, call: _Call) -> None:
    """Has what runs aborted; what comes whole all the same is kept."""
    call.is_cut, names = True, collections.defaultdict(list)
    for name, server in call.running.copy().items():
      names[server].append(name)
    for server, own in names.items():
      with contextlib.suppress(asking.Failure):
        server.dialect.abort(server.ask, own)

  def _row(
    self, call: _Call, prompt: list[int], seed: int
  ) -> dialects.Answer | None:
    """Has one row sampled, by whichever server can.

    `_NOTHING` after too many faults, and None if the call is cut.
    """
    faults, name = 0, uuid.uuid4().hex
    while not (self._closed or call.is_cut):
      now = time.monotonic()
      among = (call.only,) if call.only else self._servers
      ready = [server for server in among if server.ready_at <= now]
      if not ready:
        self._patience("a row")
        time.sleep(server_lib.PAUSES_S[0] / 2)
        continue
      server = min(ready, key=lambda x: x.running)
      if not self._prepare(server, call.version):
        continue
      count = 0 if call.has_log_probs else None
      body = server.dialect.body(prompt, call.config, seed, count, name)
      call.running[name] = server
      try:
        answer = server.sample(body, call.version)
        fault = self._fault(answer, call)
      except asking.Failure as failure:
        if isinstance(failure, asking.Refusal) or failure.pause_s is None:
          said = f"{server.url} refuses a row: {server_lib.quote(failure)}"
          raise EngineError(f"rollout.engine: {said}") from None
        self._warn("%s: %s; its row is asked again", server.url, failure)
        self._figures["asked_again"] += 1
        server.leave(failure)
        continue
      except dialects.ODD as error:
        fault = f"no response of the known form ({error!r})"
      finally:
        del call.running[name]
      self._answered = time.monotonic()
      if not fault:
        return answer
      if call.is_cut:
        self._figures["aborted"] += 1
        break
      faults += 1
      self._figures["wrong"] += 1
      what = "%s returned %s (%d of %d times)"
      self._warn(what, server.url, fault, faults, self._config.attempts)
      if faults >= self._config.attempts:
        self._figures["unscored"] += 1
        return _NOTHING
    if self._closed:
      raise EngineError("the engine was closed")
    return None

  def _fault(self, answer: dialects.Answer, call: _Call) -> str:
    """What is wrong with an answer; empty: nothing."""
    tokens, found = answer.tokens, answer.log_probs
    size, most = len(tokens), call.config.max_new_tokens
    ends = [i for i, x in enumerate(tokens) if x in call.config.eos_ids]
    if not 0 < size <= most:
      return f"{size} tokens where at most {most} were asked for"
    if not all(type(x) is int and 0 <= x < self._vocab_size for x in tokens):
      return "token ids that the model has not"
    if ends and ends[0] < size - 1:
      return "a row that goes on behind its end"
    if not ends and size < most:
      return f"{size} tokens and no end, because of {answer.reason!r}"
    if call.has_log_probs and not _are_log_probs(found, size):
      return "log-probs that are none"
    return ""

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


def _are_log_probs(found: Sequence | None, size: int) -> bool:
  if found is None or len(found) != size:
    return False
  return all(isinstance(x, float | int) and -1e3 < x < 1e-3 for x in found)


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
  """The transcript, as our own sampler lays it out, on the host."""
  shape = (1, len(answers), config.max_new_tokens)
  tokens = np.full(shape, config.pad_id, np.int32)
  log_probs = np.zeros(shape, np.float32)
  counts = np.array([[len(answer.tokens) for answer in answers]], np.int32)
  for row, answer in enumerate(answers):
    tokens[0, row, : counts[0, row]] = answer.tokens
    if has_log_probs:
      log_probs[0, row, : counts[0, row]] = answer.log_probs
  recorded = {"behave_log_probs": log_probs if has_log_probs else None}
  found = generate.to_transcript(prompts, counts, tokens, recorded)
  return jax.device_get(found)
