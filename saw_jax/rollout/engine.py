# SPDX-License-Identifier: Apache-2.0
"""Whatever samples responses: our own decoder, or an engine's server."""

from typing import NamedTuple, Protocol

from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array, PyTree


class Traits(NamedTuple):
  """What an engine is, and what it can give."""

  name: str
  version: str
  seeded: bool  # a row's key alone decides its tokens
  # "processed": of the distribution sampled from; "raw": of that before the
  # temperature and truncation; None
  log_probs: str | None
  publishes: str  # how weights get there: "memory" or "disk"


class Engine(Protocol):
  """Samples the responses to prompts by the weights that it is given."""

  traits: Traits

  def publish(self, params: PyTree) -> None:
    """Brings weights to where rows are sampled, before any row needs them."""

  def sample(
    self,
    params: PyTree,
    prompts: PromptBatch,
    row_keys: Array,
    config: GenerateConfig,
  ) -> Transcript:
    """Samples `G` responses to prompts `[N, P]` by these very weights.

    Keys are `[N, P * G]`, as the rows of the transcript. Its log-probs are
    those of the distribution sampled from, or None. A row without a token could
    not be sampled, and is not scored.
    """

  def close(self) -> None:
    """Lets go of what the engine holds; its servers go on."""
