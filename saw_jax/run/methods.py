"""Methods by the names that the tables' rows have: `gdpo+saw`, `asympo`.

Each name is a part, the keys of a config that it sets; parts are joined by `+`.
Two of them may not set one key differently. Papers whose loss was made for one
advantage say so in `ALONE`: it is theirs unless another part brings its own.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from saw_jax import naming

_NAIVE = {
  "algorithm.loss": "policy_gradient",
  "algorithm.aggregate": "sequence_mean_token_mean",
}
# The ratio is to the sampler's own log-probs, as in verl's default.
_TO_SAMPLER = {"algorithm.ratio_to": "behave"}
_TOKENS = {"algorithm.aggregate": "token_mean"}
CLIPPED = {
  "algorithm.loss": "clipped_surrogate",
  "algorithm.loss_options.clip_low": 0.2,
  "algorithm.loss_options.clip_high": 0.2,
}
_GPG = {"algorithm.loss": "policy_gradient", **_TOKENS}
_VOTES = "vote filtered_vote random entropy mean_probability oracle certainty"

METHODS: dict[str, Mapping[str, Any]] = {
  # Advantages of single answers, ...
  **{
    name: {"algorithm.advantage": name}
    for name in ("grpo", "gdpo", "rloo", "dr_grpo")
  },
  "gpg": {"algorithm.advantage": "gpg", **_GPG},
  "gpg_nonzero": {"algorithm.advantage": "gpg_nonzero", **_GPG},
  "dapo": {
    "algorithm.advantage": "grpo",
    **CLIPPED,
    "algorithm.loss_options.clip_high": 0.28,
    "algorithm.loss_options.dual_clip": 3.0,
    "asynchronous.dynamic_sampling": True,
    **_TO_SAMPLER,
    **_TOKENS,
  },
  # ... and of the steps of episodes.
  "step_grpo": {"algorithm.advantage": "step_grpo"},
  "step_rloo": {"algorithm.advantage": "step_rloo"},
  "gigpo": {
    "algorithm.advantage": "gigpo",
    "algorithm.advantage_options.gamma": 0.95,
    "algorithm.advantage_options.omega": 1.0,
    "algorithm.advantage_options.normalize": "mean_std",
  },
  "ppo": {
    "algorithm.advantage": "step_gae",
    "algorithm.advantage_options.gamma": 1.0,
    "algorithm.advantage_options.lambda_": 1.0,
    "algorithm.advantage_options.whiten": "sequence",
  },
  # How rewards are weighed.
  **{
    name: {"algorithm.weights": name}
    for name in ("equal", "saw", "static", "gradient")
  },
  # Losses.
  "naive": _NAIVE,
  "spo": {
    **_NAIVE,
    "algorithm.loss": "spo",
    "algorithm.loss_options.negative_weight": 0.2,
  },
  "asympo": {**_NAIVE, "algorithm.loss": "asympo"},
  "gspo": {**_NAIVE, "algorithm.loss": "gspo", **_TO_SAMPLER},
  "cispo": {"algorithm.loss": "cispo", **_TO_SAMPLER, **_TOKENS},
  "topr": {
    "algorithm.loss": "topr",
    "algorithm.loss_options.ratio_of": "sequence",
    "algorithm.aggregate": "sequence_mean_token_sum",
  },
  **{
    name: {"algorithm.loss": name, **_TOKENS}
    for name in ("tis_reinforce", "tis", "decoupled_ppo")
  },
  # A world model beside the policy's loss.
  "paw": {
    "algorithm.world_model.loss": "clipped_absolute_error",
    "algorithm.world_model.loss_options.rho": 0.2,
  },
  # Where rewards come from.
  **{name: {"labels.method": name} for name in _VOTES.split()},
  "self_verification": {"labels.method": "self_verification"},
  "care": {"labels.method": "care", "labels.gate": "probe"},
}
# The paper's Algorithm 1: reward minus group mean, tokens averaged inside a
# response and then responses. The balance of ASymPO holds under these alone.
ALONE = {
  **dict.fromkeys(("naive", "spo", "asympo"), "dr_grpo"),
  **dict.fromkeys(("topr", "tis_reinforce"), "dr_grpo"),
  **dict.fromkeys(("gspo", "cispo", "tis", "decoupled_ppo"), "grpo"),
}


def keys_of(method: str) -> dict[str, Any]:
  """The keys that a method sets.

  >>> keys_of("gdpo+saw")
  {'algorithm.advantage': 'gdpo', 'algorithm.weights': 'saw'}
  """
  found: dict[str, Any] = {}
  owners: dict[str, str] = {}
  parts = [part.strip() for part in method.split("+")]
  for part in parts:
    for key, value in naming.lookup(METHODS, part, "method").items():
      if key in found and found[key] != value:
        raise ValueError(
          f"method {method!r}: {owners[key]} has {key}={found[key]!r}, and "
          f"{part} has {value!r}: leave one of them out"
        )
      found[key], owners[key] = value, part
  for part in parts:
    if part in ALONE:
      found.setdefault("algorithm.advantage", ALONE[part])
  return found


def set_method(config: ml_collections.ConfigDict, method: str) -> None:
  """Sets a method's keys in a config."""
  for key, value in keys_of(method).items():
    *sections, name = key.split(".")
    place = config
    for section in sections:
      place = place[section]
    place[name] = value
