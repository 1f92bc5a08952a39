"""Files that processes share: where they are, how they are written, read, watched and packed."""
