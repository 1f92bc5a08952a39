"""The automaton in a process: its clock, sockets, files and the processes that do what it decides."""
