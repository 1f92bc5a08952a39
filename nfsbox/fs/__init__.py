"""A replicated directory as its applications see it: the FUSE mount and what each of its operations means."""
