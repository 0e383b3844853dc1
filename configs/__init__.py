"""Configs: a folder a paper, a file a table, rows and scales as arguments."""
