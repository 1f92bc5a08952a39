"""One process per server, off by default, that turns what happens to modules into messages for people."""
