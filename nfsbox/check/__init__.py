"""nfscheck: tells whether the replicated directories of this server answer."""
