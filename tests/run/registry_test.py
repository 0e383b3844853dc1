"""Tests of saw_jax/run/registry.py."""
