"""Tasks: examples, and rewards of what a policy answered to them."""
