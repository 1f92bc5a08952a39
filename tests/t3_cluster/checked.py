"""A mirror without replication whose application, checkers and rules a test chooses: what the tests of guide
4.4 share. Timings are short; one test elsewhere has the defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pair import Pair, archive, wait_for

from lab.cluster import Lab, Node

MODULE = "checked"
PORT = 8000
SWITCH = "/var/tmp/bad"
FAST = 'period="100" handle_time="200"'

SCRIPTS = {
    "start_prim": """#!/bin/sh
cp -f /bin/sleep /var/tmp/appli
setsid /var/tmp/appli 100000 </dev/null >/dev/null 2>&1 &
setsid /usr/bin/python3 -I -m http.server 8000 --bind 127.0.0.1 </dev/null >/dev/null 2>&1 &
echo $! > /run/web.pid
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    /usr/bin/python3 -I -c 'import socket; socket.create_connection(("127.0.0.1", 8000))' 2>/dev/null && exit 0
    sleep 0.1
done
""",
    "stop_prim": """#!/bin/sh
[ -f /run/web.pid ] && kill -9 "$(cat /run/web.pid)" 2>/dev/null
rm -f /run/web.pid
pkill -9 -x appli
exit 0
""",
    "customscript": """#!/bin/sh
state=none
while :; do
    if [ -e /var/tmp/bad ]; then found=down; else found=up; fi
    if [ "$found" != "$state" ]; then
        "$SAFE/safekit" set -m "$1" -r "$2" -v $found -i customscript && state=$found
        if [ "$found" = down ] && [ -n "$3" ]; then rm -f /var/tmp/bad; "$SAFE/safekit" "$@"; fi
    fi
    sleep 0.2
done
""",
}
BOTH = {"start_both": SCRIPTS["start_prim"], "stop_both": SCRIPTS["stop_prim"], "customscript": SCRIPTS["customscript"]}


def config(inside: str, *, mode: str = "mirror", service: str = "", failover: str = FAST, rules: str = "") -> str:
    """userconfig.xml with two heartbeats (in a mirror), the sections of `inside`, and rules."""
    heart = """<heart pulse="150" timeout="1500"><heartbeat name="default"/><heartbeat name="repli" ident="second"/>
  </heart>"""
    return f"""<!DOCTYPE safe>
<safe>
 <service mode="{mode}" {service}>
  {heart if mode == "mirror" else ""}
  <user nicestoptimeout="5" forcestoptimeout="5"/>
  {inside}
  <failover {failover}><![CDATA[
{rules}
  ]]></failover>
 </service>
</safe>
"""


class Checked(Pair):
    """The module on both nodes of a lab, reconfigured by each test."""

    def __init__(self, lab: Lab, module: str = MODULE) -> None:
        super().__init__(lab, module)

    def reconfigure(self, text: str, nodes: Sequence[Node] | None = None, **scripts: str) -> None:
        """Stop the module, put it as it was installed first, and apply `text`."""
        for node in nodes or self.nodes:
            self.stop(node)
            node.run(["rm", "-f", SWITCH])
            data = archive(text, {**SCRIPTS, **scripts})
            self.outside(node, "/root/module.safe").write_bytes(data)
            node.safekit("module", "install", "-r", "-M", "7", "-m", self.module, "/root/module.safe")
            node.safekit("config", "-m", self.module)

    def stop(self, node: Node) -> None:
        """Stop the module, whatever it does."""
        if not self.state(node).startswith("STOP"):
            node.safekit("stop", "-m", self.module, check=False)
            self.wait(node, "STOP red")

    def start(self, *nodes: Node) -> None:
        """Start on these nodes, one after the other: the first one becomes primary."""
        wanted = ["ALONE green", "SECOND green"] if len(nodes) == 2 else ["ALONE green"]
        for node, state in zip(nodes, wanted, strict=True):
            node.safekit("start", "-m", self.module)
            self.wait(node, state)
        if len(nodes) == 2:
            self.wait(nodes[0], "PRIM green")

    def start_up(self, node: Node) -> None:
        """Start a farm or light module on one node."""
        node.safekit("start", "-m", self.module)
        self.wait(node, "UP green")

    @staticmethod
    def stop_web(node: Node) -> None:
        """The application no longer accepts connections."""
        node.run("kill -9 $(cat /run/web.pid)")

    def loops(self, node: Node, fail: str, between: str, times: int = 3) -> None:
        """Do `fail` on a node until the loop is stopped: `times` automatic actions, then STOP red."""
        for _ in range(times):
            mark = self.mark()
            node.run(fail)
            self.wait_log(node, mark, [re.compile("Action .*|Transition WAIT_TR.*")])
            wait_for(lambda: self.state(node) == between, 30, lambda: f"{between}; {self.states()}\n{self.tail()}")
        mark = self.mark()
        node.run(fail)
        self.wait_log(node, mark, ["Stopping loop", "Local state STOP red"])

    @contextmanager
    def switched(self, node: Node) -> Iterator[None]:
        """The condition that customscript looks at is bad."""
        node.run(["touch", SWITCH])
        try:
            yield
        finally:
            node.run(["rm", "-f", SWITCH])
