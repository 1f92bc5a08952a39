"""Keeps the log of a module bounded (guide 9.5)."""
