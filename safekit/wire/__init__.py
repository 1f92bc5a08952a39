"""What crosses a network: keys and their rotation, sealing, protocol versions, heartbeats, membership, web requests."""
