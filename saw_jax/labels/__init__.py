# SPDX-License-Identifier: Apache-2.0
"""Few labels where they matter: votes, gaps, probes, selection, certainty."""
