"""One process per server, off by default, that sends every change of a resource to KairosDB (guide 10.7)."""
