"""errd: process and service death detection (guide 13.9)."""
