"""Checkers: one small process each, one file each (guide 13.10 to 13.17)."""
