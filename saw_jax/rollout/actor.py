# SPDX-License-Identifier: Apache-2.0
"""Actors: threads that do one piece of work after another, and may die.

A pool hands a piece to an idle actor and returns what became of it: a result,
or a death, after which another actor takes the place of the dead one. The
samplers here are what an actor may sample with beside the learner's own.
"""

import dataclasses
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.refill import make_generate
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array, PyTree

Act = Callable[[Any], Any]  # work -> result
# (version, params [N, ...], prompts [N, P], row_keys [N, P * G]) -> Transcript
Sampler = Callable[[int, PyTree, PromptBatch, Array], Transcript]


class ActorDied(RuntimeError):
  """Raised by an actor's work when the actor is gone, and its work undone."""


class ActorError(RuntimeError):
  """Actors die faster than the run may restart them."""


class Done(NamedTuple):
  """What became of a piece of work."""

  work: Any  # as it was submitted
  result: Any  # None if the actor died
  error: ActorDied | None


class ActorPool:
  """Actors that work side by side; a context manager.

  `make_act` goes from an actor's index to what it does with a piece of work. It
  is called in the actor's thread, and again after each death, of which a pool
  survives `max_deaths`. A `close` method of its result is called at the end.

  >>> with ActorPool(lambda index: lambda work: work + 1, 1) as pool:
  ...   pool.submit(41)
  ...   print(pool.wait().result)
  42
  """

  def __init__(
    self, make_act: Callable[[int], Act], count: int, *, max_deaths: int = 3
  ):
    self._make_act, self._max_deaths = make_act, max_deaths
    self._work, self._done = queue.SimpleQueue(), queue.SimpleQueue()
    self._threads = [
      threading.Thread(target=self._live, args=(index,), daemon=True)
      for index in range(count)
    ]
    self.pending = 0  # pieces submitted and not yet returned by `wait`
    self.deaths = 0

  def __enter__(self) -> "ActorPool":
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, *exc) -> None:
    for _ in self._threads:
      self._work.put(None)
    for thread in self._threads:
      thread.join()

  def submit(self, work: Any) -> None:
    """Gives a piece of work, not None, to the first actor that is idle."""
    self.pending += 1
    self._work.put(work)

  def wait(self) -> Done:
    """Waits for a piece of work, and raises what it raised but `ActorDied`."""
    done = self._done.get()
    self.pending -= 1
    if isinstance(done, BaseException):
      raise done
    self.deaths += done.error is not None
    if self.deaths > self._max_deaths:
      raise ActorError(
        f"{self.deaths} actors died, and {self._max_deaths} may be restarted; "
        f"the last one: {done.error}"
      ) from done.error
    return done

  def _live(self, index: int) -> None:
    act = None
    while (work := self._work.get()) is not None:
      try:
        act = act or self._make_act(index)
        done = Done(work, act(work), None)
      except ActorDied as error:
        close(act)
        act, done = None, Done(work, None, error)
      except BaseException as error:  # the caller's, to raise where it waits
        done = error
      self._done.put(done)
    close(act)


def close(act: Any) -> None:
  """Closes an act or a sampler, if it has anything to close."""
  if hasattr(act, "close"):
    act.close()


def partial_sampler(
  config: GenerateConfig,
  make: Callable[[GenerateConfig], Sampler],
  latest: Callable[[], tuple[int, PyTree]],
  part: int,
) -> Sampler:
  """Samples in parts, and goes on with the newest weights after each.

  What was sampled is read again by the new weights: no cache outlives its
  version. A response may span versions; its group's is that of its first token.
  `latest` returns the newest version and its weights.
  """
  limit, part = config.max_new_tokens, min(part, config.max_new_tokens)
  one = dataclasses.replace(config, max_new_tokens=part)
  first, later = make(one), make(dataclasses.replace(one, group_size=1))

  def is_unfinished(whole, part):
    """Rows that wrote all of the last part, and no end token in it."""
    wrote = whole.roles[..., -part:] != 0
    is_end = np.isin(whole.tokens[..., -part:], config.eos_ids)
    return wrote[..., -1] & ~(is_end & wrote).any(-1)

  def sample(version, params, prompts, row_keys):
    whole = jax.device_get(first(version, params, prompts, row_keys))
    size = part
    unfinished = is_unfinished(whole, part)
    while size < limit and unfinished.any():
      version, params = latest()
      lengths = np.where(unfinished, whole.ends - whole.starts, 1)
      prompts = PromptBatch(
        tokens=whole.tokens,
        lengths=lengths.astype(np.int32),
        ids=whole.group_ids,
        sampled=np.full(whole.ends.shape, size, np.int32),
      )
      more = jax.device_get(later(version, params, prompts, row_keys))
      width = min(part, limit - size)
      kept, new = unfinished[..., None], slice(more.prompt_size, None)

      def join(old, new, nothing, kept=kept, width=width):
        new = np.where(kept, new[..., :width], np.asarray(nothing, new.dtype))
        return np.concatenate([old, new], -1)

      roles = join(whole.roles, more.roles[..., new], 0)
      log_probs = join(whole.behave_log_probs, more.behave_log_probs, 0.0)
      whole = whole.replace(
        tokens=join(whole.tokens, more.tokens[..., new], config.pad_id),
        roles=roles,
        behave_log_probs=log_probs,
        ends=whole.starts + (roles != 0).sum(-1).astype(np.int32),
      )
      unfinished, size = unfinished & is_unfinished(whole, width), size + width
    return whole

  sample.close = lambda: (close(first), close(later))
  return sample


class ProcessSampler:
  """A sampler in a process of its own, with its own JAX, on the CPU.

  `fetch` takes the parameters to the host, with an axis of seeds.
  """

  def __init__(
    self,
    decoder: DecoderConfig,
    config: GenerateConfig,
    fetch: Callable[[PyTree], PyTree] = jax.device_get,
  ):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, decoder, config), daemon=True
    )
    self._process.start()
    theirs.close()
    self.pid, self._version, self._fetch = self._process.pid, None, fetch

  def __call__(
    self, version: int, params: PyTree, prompts: PromptBatch, row_keys: Array
  ) -> Transcript:
    new = None if version == self._version else self._fetch(params)
    self._version = version
    key_data = np.asarray(jax.random.key_data(row_keys))
    try:
      self._pipe.send((new, jax.device_get(prompts), key_data))
      answer = self._pipe.recv()
    except (EOFError, OSError) as error:
      self._process.join(timeout=5.0)
      raise ActorDied(
        f"the sampler's process ended with code {self._process.exitcode} "
        "(-9: the system killed it, as it does where memory runs out)"
      ) from error
    if isinstance(answer, str):
      raise ActorDied(f"the sampler raised {answer}")
    return answer

  def close(self) -> None:
    self._pipe.close()
    self._process.terminate()
    self._process.join(timeout=10.0)
    self._process.kill()
    self._process.join()


def _serve(pipe, decoder: DecoderConfig, config: GenerateConfig) -> None:
  """The sampler's process: answers until the other end closes."""
  # Ctrl-C is for the run, which then ends this process in its own time.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  jax.config.update("jax_platforms", "cpu")
  sample = make_generate(decoder, config, lanes=True)
  while True:
    try:
      new, prompts, key_data = pipe.recv()
    except (EOFError, OSError):
      return
    try:
      if new is not None:
        params = jax.device_put(new)
      keys = jax.random.wrap_key_data(key_data)
      pipe.send(jax.device_get(sample(params, prompts, keys)))
    except Exception as error:
      pipe.send(f"{type(error).__name__}: {error}")
