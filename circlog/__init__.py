"""circlog."""
