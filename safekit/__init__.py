"""safekit."""
