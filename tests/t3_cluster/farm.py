"""A farm module on the nodes of a lab, and a client behind the same switch: what the cluster tests of farms share.

On every node start_both runs what `checked` runs (a process `appli`, a web server on 127.0.0.1:8000), and a server on
the virtual addresses that answers with the name of its node: TCP 80 (rule on_port) and 81 (on_addr), UDP 5001
(on_port). The web service of the product, with its page that names the server, is balanced on port 9010.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from checked import BOTH, FAST, SCRIPTS, Checked

from lab.cluster import Lab, Node
from lab.waiting import wait_until
from tests.t2_process.farm_network import LONG, SERVER, SHORT, figures, served

MODULE = "farm"
PULSE_MS = 100
FULL = (1 << 256) - 1
# What a farm says in the tests: the lines of an assignment, and what an action or a fault of the test provokes.
NORMAL = ("farm_membership", "farm_load", "farm_heard", "farm_left", "farm_restarted", "farm_silent")

START_BOTH = (
    SCRIPTS["start_prim"].replace(" && exit 0", " && break")
    + """
setsid /usr/bin/python3 -I "$SAFEUSERBIN/server.py" "$(hostname)" {vips} </dev/null >/dev/null 2>&1 &
echo $! > /run/server.pid
for i in $(seq 50); do
    /usr/bin/python3 -I -c 'import socket; socket.create_connection(("{first}", 80))' 2>/dev/null && exit 0
    sleep 0.1
done
exit 1
"""
)
STOP_BOTH = '[ -f /run/server.pid ] && kill -9 "$(cat /run/server.pid)" 2>/dev/null; rm -f /run/server.pid\n'


def farm_config(
    lab: Lab,
    *,
    kind: str = "vmac_directed",
    engine: str = "nftables",
    inside: str = "",
    rules: str = "",
    failover: str = FAST,
    interface: str = "",
    service: str = "",
    groups: str | None = None,
    pulse: int = PULSE_MS,
    count: int = 5,
) -> str:
    """userconfig.xml of a farm with an IPv4 and an IPv6 virtual address. inside: more sections (errd, check); rules:
    failover rules; interface: attributes of <interface>; groups: the load balancing instead of the usual one."""
    usual = """<group name="FarmProto">
   <rule port="9010" proto="tcp" filter="on_port"/><rule port="80" proto="tcp" filter="on_port"/>
   <rule port="81" proto="tcp" filter="on_addr"/><rule port="5001" proto="udp" filter="on_port"/>
  </group>"""
    return f"""<!DOCTYPE safe>
<safe>
 <service mode="farm" {service}>
  <farm pulse="{pulse}" mlost_count="{count}" slost_count="{count}"><lan name="default"/></farm>
  <vip engine="{engine}"><interface_list>
   <interface arpreroute="on" {interface or 'check="off"'}><virtual_interface type="{kind}">
    <virtual_addr addr="{lab.vip}" where="alias" check="off"/>
    <virtual_addr addr="{lab.vip6}" where="alias" check="off"/>
   </virtual_interface></interface></interface_list>
   <loadbalancing_list>{usual if groups is None else groups}</loadbalancing_list>
  </vip>
  <user nicestoptimeout="5" forcestoptimeout="5"/>
  {inside}
  <failover {failover}><![CDATA[
{rules}
  ]]></failover>
 </service>
</safe>
"""


class FarmLab(Checked):
    """The module on all nodes of a lab (two or more)."""

    def __init__(self, lab: Lab, module: str = MODULE) -> None:
        super().__init__(lab, module)
        self.nodes = tuple(lab)
        self.client = lab.client
        self.vips = (lab.vip, lab.vip6)

    # --- life

    def set_up(self, config: str | None = None, **scripts: str) -> None:
        """Stop the module everywhere and apply a configuration (default: farm_config) with the scripts above."""
        start = START_BOTH.replace("{vips}", " ".join(self.vips)).replace("{first}", self.vips[0])
        stop = BOTH["stop_both"].replace("exit 0\n", STOP_BOTH + "exit 0\n")
        every = {**BOTH, "start_both": start, "stop_both": stop, "server.py": SERVER, **scripts}
        self.reconfigure(config or farm_config(self.lab), **every)

    def start_all(self) -> None:
        """Start on every node, side by side, until all share the load."""
        for node in self.nodes:
            node.safekit("start", "-m", self.module)
        for node in self.nodes:
            self.wait(node, "UP green")
        self.wait_sharing(*self.nodes)

    # --- looking

    def view(self, node: Node) -> dict[str, Any]:
        """`safekit farm --json` on a node; empty while there is none."""
        done = node.safekit("farm", "--json", "-m", self.module, check=False)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def wait_sharing(self, *nodes: Node, timeout: float = 20.0) -> None:
        """Wait until exactly these nodes share the load, each of them says so, and nothing is moving."""
        names = [node.name for node in nodes]
        seen: dict[str, Any] = {}

        def agreed() -> bool:
            for node in nodes:
                view = self.view(node)
                seen[node.name] = (view.get("participants"), view.get("final"))
            return all(told == (names, True) for told in seen.values())

        wait_until(agreed, timeout, lambda: f"{names} share; {seen}; {self.states()}\n{self.tail()}")

    def bitmaps(self, node: Node) -> list[tuple[int, int]]:
        """(number of the server, bits) of every rule, by `safekit -r vip_if_ctrl -l`."""
        shown = node.safekit("-r", "vip_if_ctrl", "-l").stdout
        form = re.compile(r"^Bitmap (\d+):((?:[0-9a-f]{8}:){7}[0-9a-f]{8})$", re.MULTILINE)
        return [(int(number), int(text.replace(":", ""), 16)) for number, text in form.findall(shown)]

    # --- the client

    def _client(self, program: str, *words: object) -> subprocess.Popen[str]:
        command = ["/usr/bin/python3", "-I", "-u", "-c", program, *map(str, words)]
        pipe = subprocess.PIPE
        process = self.client.popen(command, stdin=pipe, stdout=pipe, stderr=sys.stderr, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    def short(
        self, address: str, port: int, count: int, *, pause: float = 0.0, limit: float = 3.0, first: int = 0
    ) -> subprocess.Popen[str]:
        """Start short connections of the client; `figures` of the process: {found, slowest, failed, ports}."""
        return self._client(SHORT, address, port, count, pause, limit, first, "-")

    def count(self, address: str, port: int, count: int, **options: Any) -> dict[str, int]:
        """Which server answered how many of that many short connections of the client."""
        return served(self.short(address, port, count, **options))

    def long(self, address: str, port: int, count: int) -> tuple[subprocess.Popen[str], list[str]]:
        """Open connections of the client that exchange something all the time, and who serves each of them."""
        process = self._client(LONG, address, port, count)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    def neighbour(self, address: str) -> str:
        """The MAC that the client knows for an address, '' when none."""
        found = re.search(r"lladdr (\S+)", self.client.run(["ip", "neigh", "show", address]).stdout)
        return found[1] if found is not None else ""

    def mac(self, node: Node) -> str:
        """The MAC of a node on the lan of the virtual addresses."""
        return self.lab.plan.cable(node.name, self.lab.plan.lans[0]).mac

    # --- faults

    @contextmanager
    def isolated(self, node: Node, *others: Node) -> Iterator[None]:
        """No frame passes between a node and these machines (default: the other nodes), in both directions, while all
        links look alive."""
        apart = others or tuple(each for each in self.nodes if each is not node)
        for each in apart:
            self.lab.block(node, each, "default")
            self.lab.block(each, node, "default")
        try:
            yield
        finally:
            for each in apart:
                self.lab.unblock(node, each, "default")
                self.lab.unblock(each, node, "default")


__all__ = ["FULL", "MODULE", "NORMAL", "FarmLab", "farm_config", "figures"]
