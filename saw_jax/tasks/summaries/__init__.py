"""Summaries scored for quality and conciseness."""
