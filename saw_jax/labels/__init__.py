# SPDX-License-Identifier: Apache-2.0
"""Few labels where they matter: votes, gaps, selection, certainty."""

from saw_jax.labels import certainty, gap, probe_losses, selection, voting

__all__ = ["certainty", "gap", "probe_losses", "selection", "voting"]
