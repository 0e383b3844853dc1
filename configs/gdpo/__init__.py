"""GDPO: several rewards, each normalised by itself."""
