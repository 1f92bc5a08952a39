"""Certification authority of a cluster: its own small web service on TCP 9001, and the commands that make, renew and
revoke certificates (guide 11.3.1, 11.6)."""
