"""Search questions over a corpus."""
