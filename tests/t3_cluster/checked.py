"""A mirror without replication whose application, checkers and rules a test chooses: what the tests of guide
4.4 share. Timings are short; one test elsewhere has the defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pair import Pair

from lab.archive import archive
from lab.cluster import Lab, Node
from lab.waiting import wait_until

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
ACTING = f"""#!/bin/sh
"$SAFE/safekit" set -m "$1" -r "$2" -v up -i customscript
while :; do
    if [ -e {SWITCH} ]; then rm -f {SWITCH}; "$SAFE/safekit" "$3" -m "$1" -i customscript; fi
    sleep 0.2
done
"""
"""A custom checker that does what its argument says when the condition is bad."""
BOTH = {"start_both": SCRIPTS["start_prim"], "stop_both": SCRIPTS["stop_prim"], "customscript": SCRIPTS["customscript"]}

EVERY_CHECKER = """<errd polltimer="30"><proc name="appli" action="noaction" class="both"/></errd>
<check>
 <tcp ident="t" when="both"><to addr="127.0.0.1" port="8000" interval="1" timeout="1"/></tcp>
 <ping ident="p"><to addr="{peer}" interval="1" timeout="1"/></ping>
 <intf ident="i"><to local_addr="{own}"/></intf>
 <ip ident="a"><to addr="{extra}" interval="10"/></ip>
 <custom ident="c" when="both" exec="customscript"/>
</check>"""
"""One checker of each kind, at one second."""


def config(
    inside: str,
    *,
    mode: str = "mirror",
    service: str = "",
    failover: str = FAST,
    rules: str = "",
    lans: tuple[str, str] = ("default", "repli"),
) -> str:
    """userconfig.xml with two heartbeats (in a mirror) or a lan (in a farm), the sections of `inside`, and rules."""
    network = {
        "mirror": f"""<heart pulse="150" timeout="1500"><heartbeat name="{lans[0]}" ident="default"/>
   <heartbeat name="{lans[1]}" ident="second"/></heart>""",
        "farm": """<farm><lan name="default"/></farm>""",
        "light": "",
    }[mode]
    return f"""<!DOCTYPE safe>
<safe>
 <service mode="{mode}" {service}>
  {network}
  <user nicestoptimeout="5" forcestoptimeout="5"/>
  {inside}
  <failover {failover}><![CDATA[
{rules}
  ]]></failover>
 </service>
</safe>
"""


def _nothing() -> None:
    """A restart of the application mends what its checkers see."""


@dataclass(frozen=True)
class Fault:
    """What a test breaks, the messages that follow in their order, how it is mended, and the messages of that.

    `ready` is true when the checker has seen that all is well again: only then is the next fault another one."""

    make: Callable[[], object]
    messages: Sequence[str]
    mend: Callable[[], object] = _nothing
    mended: Sequence[str] = ()
    ready: Callable[[], bool] = lambda: True


class Checked(Pair):
    """The module on both nodes of a lab, reconfigured by each test."""

    def __init__(self, lab: Lab, module: str = MODULE) -> None:
        super().__init__(lab, module)

    @staticmethod
    def beside(node: Node, name: str, text: str, **scripts: str) -> Checked:
        """A second module on one node."""
        made = Checked(node.lab, name)
        if name in node.run(["ls", "/opt/safekit/modules"]).stdout.split():  # a former test of this lab left it
            made.stop(node)
        made.outside(node, "/root/second.safe").write_bytes(archive(text, scripts))
        node.safekit("module", "install", "-r", "-m", name, "/root/second.safe")
        node.safekit("config", "-m", name)
        return made

    def sees(self, node: Node, resource: str) -> bool:
        """A checker has found a resource in order."""
        return self.value(node, resource) == "up"

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

    def repeat(self, node: Node, fault: Fault, state: str, *, times: int = 3, timeout: float = 30.0) -> None:
        """The common tail of guide 4.4: the fault `times` times, with its messages each time, then once more, which
        stops the module."""
        for _ in range(times):
            mark = self.mark()
            fault.make()
            self.wait_log(node, mark, fault.messages, timeout)
            if fault.mended:
                self.wait(node, "WAIT red")
            mark = self.mark()
            fault.mend()
            if fault.mended:
                self.wait_log(node, mark, fault.mended, timeout)
            wait_until(lambda: self.state(node) == state and fault.ready(), timeout, lambda: f"{state}\n{self.tail()}")
        mark = self.mark()
        fault.make()
        self.wait_log(node, mark, ["Stopping loop", "Local state STOP red"], timeout)
        fault.mend()

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
            wait_until(lambda: self.state(node) == between, 30, lambda: f"{between}; {self.states()}\n{self.tail()}")
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
