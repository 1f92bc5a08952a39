"""Tells whether the replicated directories of this server answer, and the module when they do not (guide 13.6)."""
