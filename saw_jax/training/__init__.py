"""Training: what turns the formulas into steps, runs and checkpoints."""
