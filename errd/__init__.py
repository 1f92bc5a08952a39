"""Detection of dead processes and services of a module, and what is done about them (guide 13.9)."""
