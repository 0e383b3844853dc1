"""All methods together."""
