"""How a process of ours runs: its frame, its supervisor, its user scripts, its place in the table of processes."""
