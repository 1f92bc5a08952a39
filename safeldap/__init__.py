"""Asks a directory (LDAP, Active Directory) whether a password is right and which role a user has, for the web service
that starts it (guide 11.4.3). It runs as nobody: no LDAP library is in a process of root."""
