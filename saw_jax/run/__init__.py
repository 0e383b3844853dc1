"""Runs from a config: build, loop, session, checkpoints, evaluation."""
