"""Reading runs and published numbers, and setting them side by side."""
