"""The demonstration, `bin/demo`: a database that survives the loss of its server."""
