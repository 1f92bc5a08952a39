"""A farm, until it is written."""
