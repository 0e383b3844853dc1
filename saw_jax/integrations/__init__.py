"""Weightings, advantages and losses inside other libraries' trainers."""
