"""Makes the directories of a secondary equal to those of its primary while it changes (guide 5.4, 13.6.3)."""
