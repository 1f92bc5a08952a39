"""vipd."""
