"""Addresses, links, neighbours, frames and packets of this server, and the rules of its firewall."""
