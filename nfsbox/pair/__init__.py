"""Both servers of a replicated directory: the stream of changes, how it is applied, the record of what is missing."""
