"""The command `safekit`: one file per section of chapter 9 of the guide; only the command that is used is imported."""
