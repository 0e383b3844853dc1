# SPDX-License-Identifier: Apache-2.0
"""From prompts to transcripts."""
