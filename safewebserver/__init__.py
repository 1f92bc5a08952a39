"""The web service of a server: health checks, the API that carries distributed commands, pages (guide 10.5)."""
