"""nfsbox."""
