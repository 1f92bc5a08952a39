"""The automaton as a pure function: state and event in, new state, actions and reasons out (guide 5)."""
