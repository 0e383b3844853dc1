"""The policies of all seeds: their train state, and what adapters sit on."""

import functools
from typing import Any

import jax
import optax

from saw_jax.models import lora as lora_lib
from saw_jax.models.config import DecoderConfig
from saw_jax.run import checkpoint
from saw_jax.training import parallel, update
from saw_jax.types import PyTree


class Policy:
  """One policy a seed, which start alike, where the lift keeps them.

  `state` is what a step changes; it is given away to the next step (donated).
  `base` is what adapters sit on, which no step changes, and `digest` names what
  is in it; both are None without adapters.
  """

  def __init__(
    self,
    decoder: DecoderConfig,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    lift: parallel.Lift,
    *,
    lora: lora_lib.LoraConfig,
    num_components: int,
    num_seeds: int,
  ):
    self.decoder, self.optimizer, self.lift = decoder, optimizer, lift
    self.num_seeds = num_seeds
    self.merge, self.base, self.digest = None, None, None
    self._merged: tuple[Any, Any] = (None, None)  # parameters, and what of
    start = params
    if lora.rank:
      STATE = parallel.STATE
      self.merge = functools.partial(lora_lib.merge, config=lora)
      self._merge_all = lift.wrap(self.merge, (STATE, STATE), (STATE,))
      start = lora_lib.init_adapters(params, lora, decoder)
      self.base = lift.place_params(_stack(params, num_seeds))
      self.digest = checkpoint.digest(params)
    state = update.create_state(start, optimizer, num_components=num_components)
    self.state = lift.place(_stack(state, num_seeds))

  @property
  def params(self) -> PyTree:
    """The parameters as the decoder takes them, adapters merged."""
    if self.merge is None:
      return self.state.params
    adapters = self.state.params
    if self._merged[1] is not adapters:
      self._merged = (self._merge_all(self.base, adapters), adapters)
    return self._merged[0]

  def drop_merged(self) -> None:
    self._merged = (None, None)

  def copy_params(self) -> PyTree:
    """A reference: the base of adapters, or the parameters as they are now."""
    if self.base is not None:
      return self.base
    return jax.tree.map(lambda x: x.copy(), self.state.params)

  def restore(
    self, store: checkpoint.Checkpointer, step: int | None = None
  ) -> checkpoint.Restored:
    """Takes up the state in a checkpoint, by default the latest one's."""
    found = store.restore(self.state, step=step)
    if found.host.get("base") != self.digest:
      raise checkpoint.CheckpointError(
        "the checkpoint's adapters were trained on another model than the one "
        "that this run starts from: give it the model and the warm start that "
        "the run began with"
      )
    self.state = found.state
    return found


def _stack(tree: PyTree, num_seeds: int) -> PyTree:
  return update.stack_states([tree] * num_seeds)
