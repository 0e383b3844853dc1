# SPDX-License-Identifier: Apache-2.0
"""Few labels where they matter: votes, gaps, probes, selection, certainty."""

from saw_jax.labels import (
  care,
  certainty,
  diagnostics,
  gap,
  probe_losses,
  probes,
  replay,
  selection,
  voting,
)

__all__ = [
  "care",
  "certainty",
  "diagnostics",
  "gap",
  "probe_losses",
  "probes",
  "replay",
  "selection",
  "voting",
]
