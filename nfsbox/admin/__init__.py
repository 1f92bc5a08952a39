"""nfsadmin: decides the kind of resynchronisation, starts it, and adopts or recovers nfsbox (guide 13.6)."""
