"""Methods by the names of the tables' rows: `gdpo+saw`, `asympo`.

Each name in `assets/methods.json` sets keys of a config; `+` joins names.
`ALONE` has the advantage that a paper's loss was made for. A ratio to `behave`,
the sampler's log-probs, is verl's default.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from saw_jax import naming
from saw_jax.tasks import base

METHODS: Mapping[str, Mapping] = base.asset(__file__, "methods.json")
# The paper's Algorithm 1: reward minus group mean; tokens are averaged within a
# response, then responses. The balance of ASymPO only holds under these.
ALONE = {
  **dict.fromkeys(("naive", "spo", "asympo"), "dr_grpo"),
  **dict.fromkeys(("topr", "tis_reinforce"), "dr_grpo"),
  **dict.fromkeys(("gspo", "cispo", "tis", "decoupled_ppo"), "grpo"),
  **dict.fromkeys(("icepop", "sequence_mask", "sapo", "a3po", "vcpo"), "grpo"),
  **dict.fromkeys(("m2po", "m2po_bounds", "m2po_all"), "grpo"),
  "off_policy_sequence": "grpo",
  **dict.fromkeys(("quadratic", "quadratic_response"), "dr_grpo"),
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
  for key, value in keys_of(method).items():
    *sections, name = key.split(".")
    place = config
    for section in sections:
      place = place[section]
    place[name] = value
