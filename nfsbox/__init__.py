"""The replicated file system of one module and its two administrators, nfsadmin and nfscheck (guide 13.6)."""
