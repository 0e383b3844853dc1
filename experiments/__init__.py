"""Scripts: flags and nothing else."""
