# SPDX-License-Identifier: Apache-2.0
"""Actors: threads that do one piece of work after another, and may die.

A pool hands a piece to an idle actor and returns what became of it: a result,
or a death, after which another actor takes the place of the dead one. What the
work is, the caller says; `ProcessSampler` is a sampler in a process of its own,
with its own JAX, for work that a crash must not take the run down with.
"""

import dataclasses
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import generate as generate_lib
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array, PyTree


class ActorDied(RuntimeError):
  """What an actor's work raises when the actor is gone, and its work undone."""


class ActorError(RuntimeError):
  """Actors die faster than the run may restart them."""


class Done(NamedTuple):
  """What became of a piece of work."""

  work: Any  # as it was submitted
  result: Any  # None if the actor died
  error: ActorDied | None


# work -> result
Act = Callable[[Any], Any]


class ActorPool:
  """Actors that work side by side; a context manager.

  >>> with ActorPool(lambda index: lambda work: work + 1, 1) as pool:
  ...   pool.submit(41)
  ...   print(pool.wait().result)
  42
  """

  def __init__(
    self, make_act: Callable[[int], Act], count: int, *, max_deaths: int = 3
  ):
    """Takes note of how actors are made; they start when it is entered.

    Args:
      make_act: from an actor's index to what it does with a piece of work. It
        is called in the actor's thread, and again after each death. A `close`
        method of the result is called at the end.
      count: of actors, at least 1.
      max_deaths: that are made good, over the life of the pool.
    """
    if count < 1:
      raise ValueError(f"count is {count}; a pool has 1 or more actors.")
    self._make_act, self._count = make_act, count
    self._max_deaths = max_deaths
    self._work: queue.SimpleQueue = queue.SimpleQueue()
    self._done: queue.SimpleQueue = queue.SimpleQueue()
    self._threads: list[threading.Thread] = []
    self.pending = 0  # pieces submitted and not yet returned by `wait`
    self.deaths = 0

  def __enter__(self) -> "ActorPool":
    """Starts the actors."""
    self._threads = [
      threading.Thread(
        target=self._live, args=(index,), name=f"actor {index}", daemon=True
      )
      for index in range(self._count)
    ]
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, *exc) -> None:
    """Lets every actor end the piece that it is at, and stops it."""
    for _ in self._threads:
      self._work.put(None)
    for thread in self._threads:
      thread.join()

  @property
  def idle(self) -> int:
    """Actors without work."""
    return max(0, self._count - self.pending)

  def submit(self, work: Any) -> None:
    """Gives a piece of work to the first actor that is idle.

    Args:
      work: what `make_act(...)` is called with; not None.
    """
    self.pending += 1
    self._work.put(work)

  def wait(self, timeout: float | None = None) -> Done | None:
    """Returns a piece of work that is done, in the order of completion.

    Args:
      timeout: seconds to wait; None waits as long as it takes.

    Returns:
      What became of the piece, or None when the time is over.

    Raises:
      ActorError: more actors died than may be restarted.
      Exception: whatever the work raised, but for `ActorDied`.
    """
    try:
      done = self._done.get(timeout=timeout)
    except queue.Empty:
      return None
    self.pending -= 1
    if isinstance(done, BaseException):
      raise done
    if done.error is not None:
      self.deaths += 1
      if self.deaths > self._max_deaths:
        raise ActorError(
          f"{self.deaths} actors died, and {self._max_deaths} may be "
          f"restarted; the last one: {done.error}"
        ) from done.error
    return done

  def _live(self, index: int) -> None:
    act = None
    while (work := self._work.get()) is not None:
      try:
        act = act or self._make_act(index)
        done = Done(work, act(work), None)
      except ActorDied as error:
        _close(act)
        act, done = None, Done(work, None, error)
      except BaseException as error:  # the caller's, to raise where it waits
        done = error
      self._done.put(done)
    _close(act)


def _close(act: Act | None) -> None:
  if hasattr(act, "close"):
    act.close()


@dataclasses.dataclass(frozen=True)
class SamplerSpec:
  """What a sampler is made of; it crosses to another process."""

  decoder: DecoderConfig
  sampling: SamplingConfig
  max_new_tokens: int
  group_size: int
  eos_ids: tuple[int, ...]
  pad_id: int = 0

  def make(self) -> generate_lib.GenerateFn:
    """Makes the sampler, of arrays with a leading axis of seeds."""
    config = generate_lib.GenerateConfig(
      sampling=self.sampling,
      max_new_tokens=self.max_new_tokens,
      group_size=self.group_size,
      eos_ids=self.eos_ids,
      pad_id=self.pad_id,
    )
    return generate_lib.make_generate(self.decoder, config, lanes=True)


# (version, params [N, ...], prompts [N, P], row_keys [N, P * G]) -> Transcript
Sampler = Callable[[int, PyTree, PromptBatch, Array], Transcript]


class DeviceSampler:
  """A sampler on a device of this process."""

  def __init__(self, spec: SamplerSpec, device: jax.Device):
    """Compiles nothing yet.

    Args:
      spec: what it samples with.
      device: where. Weights get there from the learner's devices directly,
        once for each version.
    """
    self._sample, self._device = spec.make(), device
    self._version, self._params = None, None

  def __call__(
    self, version: int, params: PyTree, prompts: PromptBatch, row_keys: Array
  ) -> Transcript:
    """Samples.

    Args:
      version: of the weights.
      params: the weights, with a leading axis of seeds.
      prompts: `[N, P]`.
      row_keys: `[N, P * G]`.

    Returns:
      The transcript, rows `[N, P * G]`, on the device.
    """
    if version != self._version:
      self._params = jax.device_put(params, self._device)
      self._version = version
    return self._sample(
      self._params,
      jax.device_put(prompts, self._device),
      jax.device_put(row_keys, self._device),
    )


class PartialSampler:
  """Samples in parts, and goes on with the newest weights after each.

  What was sampled stays: it is read again by the new weights, so that no cache
  outlives its version. A response may then span versions; its group's is that
  of its first token.
  """

  def __init__(
    self,
    spec: SamplerSpec,
    make: Callable[[SamplerSpec], Sampler],
    latest: Callable[[], tuple[int, PyTree]],
    *,
    part: int,
  ):
    """Makes a sampler for first parts and one for the rest.

    Args:
      spec: what is sampled in all.
      make: from a specification to a sampler of parts.
      latest: returns the newest version and its weights.
      part: most tokens of a part, at least 1.
    """
    if part < 1:
      raise ValueError(f"part is {part}; a part has 1 or more tokens.")
    self._spec, self._latest = spec, latest
    self._part = min(part, spec.max_new_tokens)
    one = dataclasses.replace(spec, max_new_tokens=self._part)
    self._first = make(one)
    self._next = make(dataclasses.replace(one, group_size=1))

  def __call__(
    self, version: int, params: PyTree, prompts: PromptBatch, row_keys: Array
  ) -> Transcript:
    """Samples; see `DeviceSampler`.

    Args:
      version: of the weights for the first part.
      params: those weights.
      prompts: `[N, P]`.
      row_keys: `[N, P * G]`.

    Returns:
      Host arrays, rows `[N, P * G]`.
    """
    limit, part = self._spec.max_new_tokens, self._part
    whole = jax.device_get(self._first(version, params, prompts, row_keys))
    unfinished = self._unfinished(whole, part)
    while (size := whole.tokens.shape[-1] - whole.prompt_size) < limit and (
      unfinished.any()
    ):
      version, params = self._latest()
      more = jax.device_get(
        self._next(
          version,
          params,
          PromptBatch(
            tokens=whole.tokens,
            lengths=np.where(unfinished, whole.ends - whole.starts, 1).astype(
              np.int32
            ),
            ids=whole.group_ids,
            sampled=np.full(whole.ends.shape, size, np.int32),
          ),
          row_keys,
        )
      )
      width = min(part, limit - size)
      added = slice(more.prompt_size, more.prompt_size + width)
      kept = unfinished[..., None]

      def join(old, new, nothing, kept=kept):
        new = np.where(kept, new, np.asarray(nothing, new.dtype))
        return np.concatenate([old, new], -1)

      roles = join(whole.roles, more.roles[..., added], 0)
      whole = whole.replace(
        tokens=join(whole.tokens, more.tokens[..., added], self._spec.pad_id),
        roles=roles,
        behave_log_probs=join(
          whole.behave_log_probs, more.behave_log_probs[..., :width], 0.0
        ),
        ends=whole.starts + (roles != 0).sum(-1).astype(np.int32),
      )
      unfinished = unfinished & self._unfinished(whole, width)
    return whole

  def close(self) -> None:
    """Closes both samplers."""
    _close(self._first)
    _close(self._next)

  def _unfinished(self, whole: Transcript, part: int) -> np.ndarray:
    """Rows that wrote all of the last part, and no end token in it."""
    tokens, roles = whole.tokens[..., -part:], whole.roles[..., -part:]
    wrote = roles != 0
    ended = (np.isin(tokens, self._spec.eos_ids) & wrote).any(-1)
    return wrote[..., -1] & ~ended


class ProcessSampler:
  """A sampler in a process of its own, on the CPU.

  The weights cross through the host, once for each version. If the process
  dies, the call that it was at raises `ActorDied`.
  """

  def __init__(self, spec: SamplerSpec):
    """Starts the process; it is ready when the first call returns.

    Args:
      spec: what it samples with.
    """
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, spec), daemon=True
    )
    # JAX reads these when the child imports it.
    before = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
      self._process.start()
    finally:
      os.environ.clear()
      os.environ.update(before)
    theirs.close()
    self._version: int | None = None

  @property
  def pid(self) -> int:
    """Of the process."""
    return self._process.pid

  def __call__(
    self, version: int, params: PyTree, prompts: PromptBatch, row_keys: Array
  ) -> Transcript:
    """Samples.

    Args:
      version: of the weights; those of one that was sent before stay there.
      params: the weights, with a leading axis of seeds.
      prompts: `[N, P]`.
      row_keys: `[N, P * G]`.

    Returns:
      Host arrays, rows `[N, P * G]`.

    Raises:
      ActorDied: the process is gone.
    """
    try:
      if version != self._version:
        self._pipe.send(("params", jax.device_get(params)))
        self._version = version
      key_data = np.asarray(jax.random.key_data(row_keys))
      self._pipe.send(("sample", (jax.device_get(prompts), key_data)))
      kind, value = self._pipe.recv()
    except (EOFError, OSError) as error:
      self._process.join(timeout=5.0)
      raise ActorDied(
        f"the sampler's process ended with code {self._process.exitcode}"
      ) from error
    if kind == "error":
      raise ActorDied(f"the sampler raised {value}")
    return value

  def close(self) -> None:
    """Ends the process."""
    self._pipe.close()
    self._process.terminate()
    self._process.join(timeout=10.0)
    if self._process.is_alive():
      self._process.kill()
      self._process.join()


def _serve(pipe, spec: SamplerSpec) -> None:
  """The sampler's process: answers until the other end closes."""
  import signal

  # Ctrl-C is for the run, which then ends this process in its own time.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  sample = spec.make()
  params = None
  while True:
    try:
      kind, value = pipe.recv()
    except (EOFError, OSError):
      return
    if kind == "params":
      params = jax.device_put(value)
      continue
    try:
      prompts, key_data = value
      keys = jax.random.wrap_key_data(key_data)
      answer = ("done", jax.device_get(sample(params, prompts, keys)))
    except Exception as error:
      answer = ("error", f"{type(error).__name__}: {error}")
    pipe.send(answer)
