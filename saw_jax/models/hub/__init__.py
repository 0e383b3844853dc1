"""Released checkpoints and their tokenizers."""
