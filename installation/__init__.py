"""Puts the product on a server and takes it away again (guide 2.1, 2.5, 10.9)."""
