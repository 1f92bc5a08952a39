"""Carries out what heart decides for the replicated directories: verdicts, roles, recovery of a dead nfsbox (13.6)."""
