"""An application for a balancer's tests: a web server on a port, which tells on which node it runs."""

from __future__ import annotations

SERVER = """#!/bin/sh
mkdir -p /run/site{port} && hostname > /run/site{port}/name
setsid python3 -m http.server {port} --directory /run/site{port} >/dev/null 2>&1 </dev/null &
echo $! > /run/site{port}.pid
"""
END = """#!/bin/sh
[ -f /run/site{port}.pid ] || exit 0
kill "$(cat /run/site{port}.pid)" 2>/dev/null
rm -f /run/site{port}.pid
exit 0
"""
