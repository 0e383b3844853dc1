# SPDX-License-Identifier: Apache-2.0
"""Whatever samples responses: our own decoder, or an engine's server."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from saw_jax import naming
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.rollout.turns import Kept
from saw_jax.types import Array, PyTree


class EngineError(RuntimeError):
  """An engine cannot sample for this run; it says what to change."""


class Traits(NamedTuple):
  """What an engine is, and what it can give."""

  name: str
  version: str
  seeded: bool  # a row's key alone decides its tokens, up to rounding
  # "processed": of the distribution sampled from; "tempered": before it is
  # truncated; "raw": before the temperature, too; None
  log_probs: str | None
  publishes: str  # how weights get there: "memory" or "disk"
  model: str = ""  # what its servers began with

  def gives_log_probs(self, sampling: SamplingConfig) -> bool:
    """Whether log-probs are of the distribution that is sampled from."""
    is_whole = (sampling.top_k, sampling.top_p, sampling.min_p) == (0, 1, 0)
    return (
      self.log_probs == "processed"
      or (self.log_probs == "tempered" and is_whole)
      or (self.log_probs == "raw" and is_whole and sampling.temperature == 1)
    )


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """How servers are asked, and how far they may be from the trainer."""

  folder: str = ""  # of weights, which servers read; empty: in the run's
  dtype: str = ""  # of these weights; empty: the decoder's own
  concurrency: int = 64  # requests at a time, of each server
  deadline_s: float = 600.0  # of a request
  patience_s: float = 600.0  # without any answer, then the run stops
  attempts: int = 3  # for a row that comes back wrong; then it is unscored
  # A token is beyond where a server's log-prob and ours are further apart than
  # this. The row that is compared after a publication may have no such token.
  bound: float = 0.01  # by default 0.5 where weights are no float32
  most_beyond: float = 0.01  # share of the tokens of a step
  beyond: str = "warn"  # or "stop": what a step with more does to the run
  # What happens to an actor's rows when weights are newer: those wait for them,
  # or "abort" ends the rows, which are asked for again by the newest weights.
  in_flight: str = "finish"

  def __post_init__(self):
    for name in ("concurrency", "deadline_s", "patience_s", "attempts"):
      if not 0 < _number(self, name) < math.inf:
        raise ValueError(f"rollout.engine_options.{name} is above 0 and finite")
    for name in ("bound", "most_beyond"):
      if not _number(self, name) >= 0:
        raise ValueError(f"rollout.engine_options.{name} is 0 or more")
    choices = {"beyond": ("warn", "stop"), "in_flight": ("finish", "abort")}
    choices["dtype"] = ("", "float64", "float32", "bfloat16", "float16")
    for name, known in choices.items():
      what = f"rollout.engine_options.{name}"
      naming.check_choice(what, getattr(self, name), known)


def _number(config: EngineConfig, name: str) -> float:
  value = getattr(config, name)
  if not isinstance(value, int | float):
    what = f"rollout.engine_options.{name}"
    raise ValueError(f"{what} is a number, not {value!r}")
  return value


class Engine:
  """Samples the responses to prompts by the weights that it is given."""

  traits: Traits

  def sample(
    self,
    params: PyTree,
    prompts: PromptBatch,
    row_keys: Array,
    config: GenerateConfig,
    newest: Callable[[], PyTree] | None = None,
  ) -> Transcript:
    """Samples `G` responses to prompts `[N, P]` by these very weights.

    Keys are `[N, P * G]`, as the rows of the transcript. Its log-probs are
    those of the distribution sampled from, or None. A row without a token could
    not be sampled, and is not scored. A caller that can use rows of later
    weights gives a function that returns the `newest`: an engine that aborts
    rows asks for them again by those.
    """
    raise NotImplementedError

  def turn(
    self, *asked: Any, kept: Kept | None, config: GenerateConfig
  ) -> tuple[Transcript, Kept | None]:
    """Does `sample`, brings the rows to the host, and may keep what it read.

    `kept` is what the last call by the same weights gave to go on from; None:
    nothing is to be kept. The second result is for the next call.
    """
    return self.sample(*asked, config), None

  def figures(self) -> dict[str, float]:
    """What to log of the time since it was asked last."""
    return {}

  def close(self) -> None:
    """Lets go of what the engine holds; its servers go on."""
