"""Reading runs and published numbers, and setting them side by side.

The two never mix: what was measured is a `Summary`, what a paper prints is a
`PublishedCell`, and no function takes one for the other.
"""
