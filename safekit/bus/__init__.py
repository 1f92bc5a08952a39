"""Requests and answers between the processes of one server: sealed datagrams on the loopback."""
