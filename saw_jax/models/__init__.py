"""One config-driven decoder, its cache, and log-probs in chunks."""
