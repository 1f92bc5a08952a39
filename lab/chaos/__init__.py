"""Random faults against a cluster in a lab, with audits of what was promised after each (`safelab chaos`)."""
