"""The network of a lab, as seen from the namespace that is its switch: bridges, cables, faults.

Runs in the keeper only: every command here acts on the namespace of the calling process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab.errors import LabError
from lab.faults import Faults, rules
from lab.plan import Cable, Plan
from lab.state import Process
from safekit import syscalls


def command(words: list[str], text: str | None = None) -> None:
    """Raises LabError with what the command said."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise LabError(
            f"{' '.join(words[:6])} failed: {(done.stderr or done.stdout).strip()}",
            "this kernel may lack the feature; see the message",
        )


def ip(*lines: str) -> None:
    command(["ip", "-batch", "-"], "\n".join(lines) + "\n")


def remove_link(name: str) -> None:
    """Remove an interface; the kernel does it too when the namespace at its other end ends."""
    done = subprocess.run(["ip", "link", "del", name], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0 and "Cannot find device" not in done.stderr:
        raise LabError(f"interface {name} cannot be removed: {done.stderr.strip()}", "see the message")


class Switch:
    """Bridges and cables; remembers which cables are plugged into a running node, and the relays of slow links."""

    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan = plan
        self.faults = Faults()
        self._log = log
        self._relays: dict[tuple[str, str], subprocess.Popen[str]] = {}
        self._plugged: dict[str, Process] = {}

    def build(self) -> None:
        """Make the bridges. They forward, and have no address: this namespace takes no part in the traffic."""
        for scope in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
        for lan in self.plan.lans:
            name = self.plan.bridge(lan)
            # No snooping: without a querier it would soon stop forwarding neighbour discovery.
            ip(f"link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0", f"link set {name} up")

    def plug(self, machine: str, process: Process) -> None:
        """Connect a machine that boots; cables that are cut stay cut."""
        self._plugged[machine] = process
        for cable in self.plan.cables(machine):
            ip(
                f"link add {cable.port} type veth peer name {cable.interface} address {cable.mac} netns {process.pid}",
                f"link set {cable.port} master {cable.bridge}",
            )
            self._apply(cable)

    def isolate(self, machine: str) -> None:
        """No frame of the machine goes anywhere any more, while its links still look alive: a server that loses its
        power does not see its cables go. Killing it comes second: a dead namespace goes on answering for a while."""
        ip(*(f"link set {port} nomaster" for port in map(self._bridged, self.plan.cables(machine))))

    def _bridged(self, cable: Cable) -> str:
        """The port of a cable that is in the bridge."""
        return cable.delayed if (cable.node, cable.lan) in self._relays else cable.port

    def unplug(self, machine: str) -> None:
        """Take all cables of a machine away."""
        if self._plugged.pop(machine, None) is None:
            return
        for cable in self.plan.cables(machine):
            remove_link(cable.port)
        for cable in self.plan.cables(machine):
            self._stop_relay(cable)

    def change(self, faults: Faults) -> None:
        """Make `faults` the state of the network. Raises LabError; what was refused is then not in effect."""
        former, self.faults = self.faults, faults
        try:
            self._apply_all(former)
        except LabError:
            self.faults = former
            raise

    def _apply_all(self, former: Faults) -> None:
        if (former.blocked, former.loss) != (self.faults.blocked, self.faults.loss):
            command(["nft", "-f", "-"], rules(self.plan, self.faults))
        for machine in self._plugged:
            for cable in self.plan.cables(machine):
                link = (machine, cable.lan)
                before = (link in former.cut, former.delay.get(link), former.limit.get(link))
                if before != (link in self.faults.cut, self.faults.delay.get(link), self.faults.limit.get(link)):
                    self._apply(cable)

    def _apply(self, cable: Cable) -> None:
        link = (cable.node, cable.lan)
        self._stop_relay(cable)
        if link in self.faults.delay:
            self._start_relay(cable, self.faults.delay[link])
        self._limit(cable, self.faults.limit.get(link))
        ip(f"link set {cable.port} {'down' if link in self.faults.cut else 'up'}")

    def _limit(self, cable: Cable, rate: str | None) -> None:
        inside = ["nsenter", f"--net=/proc/{self._plugged[cable.node].pid}/ns/net"]
        for prefix, device in (([], cable.port), (inside, cable.interface)):
            if rate is None:
                subprocess.run([*prefix, "tc", "qdisc", "del", "dev", device, "root"], capture_output=True, check=False)
            else:
                shape = ["tbf", "rate", rate, "burst", "64kb", "latency", "100ms"]
                command([*prefix, "tc", "qdisc", "replace", "dev", device, "root", *shape])

    def _start_relay(self, cable: Cable, milliseconds: float) -> None:
        ip(
            f"link set {cable.port} nomaster",
            f"link add {cable.delayed} type veth peer name {cable.relay_end}",
            f"link set {cable.relay_end} up",
            f"link set {cable.delayed} master {cable.bridge} up",
            f"link set {cable.port} up",
        )
        with self._log.open("a") as log:
            relay = subprocess.Popen(
                [sys.executable, "-m", "lab.relay", cable.port, cable.relay_end, str(milliseconds)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=syscalls.die_with_parent,
            )
        self._relays[cable.node, cable.lan] = relay
        assert relay.stdout is not None
        if relay.stdout.readline() != "ready\n":
            raise LabError(f"the relay for {cable.port} did not start", f"see {self._log}")

    def _stop_relay(self, cable: Cable) -> None:
        relay = self._relays.pop((cable.node, cable.lan), None)
        if relay is None:
            return
        relay.kill()
        relay.wait(10)
        assert relay.stdout is not None
        relay.stdout.close()
        remove_link(cable.delayed)
        if subprocess.run(["ip", "link", "show", cable.port], capture_output=True, check=False).returncode == 0:
            ip(f"link set {cable.port} master {cable.bridge}")
