"""What each process may be asked: one module per process, its requests and answers as frozen dataclasses."""
