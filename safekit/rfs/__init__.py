"""What nfsbox and reintegre agree on: their wire, changes and the journal of them, generations, exclusions."""
