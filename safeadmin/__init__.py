"""The server daemon: cluster membership, port mapper, boot, starts and stops modules (guide 12, 10.1)."""
