"""Tool calling: ToolRL's format and rewards, and BFCL."""
