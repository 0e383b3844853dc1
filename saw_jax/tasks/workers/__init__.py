"""Worker processes that score answers and play episodes."""
