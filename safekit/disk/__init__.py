"""Where the files are that processes share, and how they are written, read, watched and packed."""
