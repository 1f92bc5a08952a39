"""safeadmin."""
