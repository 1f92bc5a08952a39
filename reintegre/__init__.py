"""reintegre."""
