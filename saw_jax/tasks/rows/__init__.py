"""Rows of one's own, rewarded by functions of one's own."""
