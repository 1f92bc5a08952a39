"""`safekit protect`: from a service that runs on a server to a mirror module on two."""
