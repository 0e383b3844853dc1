"""A household of text episodes, and ALFWorld."""
