"""Adapters to other libraries and text games; each needs its own extra."""
