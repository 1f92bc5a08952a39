"""Special commands for user scripts (guide 14.5, 10.2.1): run by the small scripts of SAFE/private/bin."""
