"""One process per running module: heartbeats, the automaton, failover rules, user scripts (guide 5, 13.2, 13.18)."""
