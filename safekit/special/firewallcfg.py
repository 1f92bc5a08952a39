"""firewallcfg add|del [AM|safeagent]: open the ports of SafeKit in the local firewall (guide 10.2.1).

firewalld is asked when it runs; else rules are put into the chains of nftables, or of iptables, that judge what
comes in. Every rule carries a comment of ours, and only rules with it are ever taken away.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from safekit.model import ports
from safekit.paths import ModulePaths, cluster_dir, safe, valid_module_name

USAGE = "usage: firewallcfg add|del [AM|safeagent]"
SNMP_PORT = 3600
CORE, AGENT = "core", "safeagent"
_WEB_PORT = re.compile(r"^\s*Define\s+http(?:admin|control|monitor|s)port\s+(\d{1,5})\s*$", re.MULTILINE)
_MANAGED = "managed by iptables"


class FirewallError(Exception):
    """Why nothing could be done, and the next step."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step


@dataclass(frozen=True, order=True)
class Port:
    """A port that other servers or workstations use."""

    protocol: str
    number: int


def label(what: str) -> str:
    """The comment that marks the rules of one part; also the name of firewalld's service."""
    return f"safekit-{what}"


def core_ports(httpd_conf: str, safeadmin: int) -> tuple[Port, ...]:
    """Ports of safeadmin and of the web service."""
    web = {int(found) for found in _WEB_PORT.findall(httpd_conf)} | {ports.WEB_HTTPS}
    if not httpd_conf:
        web.add(ports.WEB_HTTP)
    return (Port("udp", safeadmin), *(Port("tcp", number) for number in sorted(web)))


def module_ports(number: int, mode: str, *, rfs: bool) -> tuple[Port, ...]:
    """Ports between the servers of a module. Raises ValueError for an id without ports."""
    if mode == "mirror":
        return (Port("udp", ports.heart_port(number)), *((Port("tcp", ports.rfs_port(number)),) if rfs else ()))
    return (Port("udp", ports.farm_port(number)),) if mode == "farm" else ()


def wanted(what: str) -> tuple[Port, ...]:
    """The ports of a part as it is configured now. Raises FirewallError."""
    if what == AGENT:
        return (Port("udp", SNMP_PORT),)
    if what == CORE:
        return core_ports(_text(safe() / "web" / "conf" / "httpd.conf"), _cluster_port())
    if not valid_module_name(what):
        raise FirewallError(f"{what!r} is not the name of a module", "safekit module list")
    try:
        active: dict[str, Any] = json.loads(ModulePaths(what).active_json.read_text())
        return module_ports(int(active["id"]), str(active["service"]["mode"]), rfs=active.get("rfs") is not None)
    except (FileNotFoundError, NotADirectoryError):
        raise FirewallError(f"module {what} is not configured", f"safekit config -m {what}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FirewallError(
            f"the configuration of module {what} is damaged: {error}", f"safekit config -m {what}"
        ) from None


def _text(path: Any) -> str:
    try:
        return str(path.read_text(errors="replace"))
    except FileNotFoundError:
        return ""


def _cluster_port() -> int:
    try:
        return int(json.loads((cluster_dir() / "cluster.json").read_text()).get("port", ports.SAFEADMIN))
    except (FileNotFoundError, ValueError):
        return ports.SAFEADMIN


# The three firewalls: what to run, from what is there. Pure.


def input_chains(ruleset: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(family, table, chain) of every chain of nftables that filters what comes in, those of iptables left out."""
    found = []
    for item in ruleset.get("nftables", ()):
        chain = item.get("chain")
        if chain and chain.get("hook") == "input" and chain.get("type") == "filter":
            family = str(chain["family"])
            if family in ("inet", "ip", "ip6") and chain["table"] != "safekit":
                found.append((family, str(chain["table"]), str(chain["name"])))
    return found


def nft_own(ruleset: dict[str, Any], comment: str) -> list[tuple[str, str, str, int]]:
    """(family, table, chain, handle) of our rules."""
    rules = [item["rule"] for item in ruleset.get("nftables", ()) if "rule" in item]
    return [(r["family"], r["table"], r["chain"], int(r["handle"])) for r in rules if r.get("comment") == comment]


def nft_script(ruleset: dict[str, Any], comment: str, opened: Iterable[Port]) -> str:
    """One transaction: our former rules of this part go, the new ones come first in each chain."""
    lines = [f"delete rule {f} {t} {c} handle {h}" for f, t, c, h in nft_own(ruleset, comment)]
    for family, table, chain in input_chains(ruleset):
        lines += [
            f'insert rule {family} {table} {chain} {port.protocol} dport {port.number} accept comment "{comment}"'
            for port in opened
        ]
    return "".join(f"{line}\n" for line in lines)


def iptables_own(listing: str, comment: str) -> list[list[str]]:
    """Arguments that delete our rules, from the output of `iptables -S INPUT`."""
    found = []
    for line in listing.splitlines():
        words = shlex.split(line)
        if words[:1] == ["-A"] and "--comment" in words and words[words.index("--comment") + 1] == comment:
            found.append(["-D", *words[1:]])
    return found


def iptables_add(comment: str, opened: Iterable[Port]) -> list[list[str]]:
    """Arguments that insert our rules."""
    return [
        [
            "-I",
            "INPUT",
            "-p",
            p.protocol,
            "--dport",
            str(p.number),
            "-m",
            "comment",
            "--comment",
            comment,
            "-j",
            "ACCEPT",
        ]
        for p in opened
    ]


# Doing it


def _run(command: Sequence[str], *, text: str | None = None, fails: bool = True) -> subprocess.CompletedProcess[str]:
    """Raises FirewallError with what the tool said, FileNotFoundError when it is not there."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    if fails and done.returncode:
        raise FirewallError(
            f"{' '.join(command[:4])}: {(done.stderr or done.stdout).strip()}",
            "run it as root; look at the firewall's rules",
        )
    return done


def with_firewalld(name: str, opened: Sequence[Port]) -> bool:
    """True when firewalld runs and has done it."""
    try:
        if _run(["firewall-cmd", "--state"], fails=False).returncode:
            return False
    except FileNotFoundError:
        return False
    known = name in _run(["firewall-cmd", "--permanent", "--get-services"]).stdout.split()
    if known:
        _run(["firewall-cmd", "--permanent", f"--remove-service={name}"], fails=False)
        _run(["firewall-cmd", "--permanent", f"--delete-service={name}"])
    if opened:
        _run(["firewall-cmd", "--permanent", f"--new-service={name}"])
        for port in opened:
            _run(["firewall-cmd", "--permanent", f"--service={name}", f"--add-port={port.number}/{port.protocol}"])
        _run(["firewall-cmd", "--permanent", f"--add-service={name}"])
    _run(["firewall-cmd", "--reload"])
    return True


def with_nftables(comment: str, opened: Sequence[Port]) -> bool:
    """True when nftables filters what comes in by chains that are not iptables' own."""
    try:
        text = _run(["nft", "list", "ruleset"]).stdout
        ruleset = json.loads(_run(["nft", "-j", "-a", "list", "ruleset"]).stdout or "{}")
    except FileNotFoundError:
        return False
    chains = input_chains(ruleset)
    if not chains or (_MANAGED in text and all(t == "filter" and f != "inet" for f, t, _ in chains)):
        return False
    script = nft_script(ruleset, comment, opened)
    if script:
        _run(["nft", "-f", "-"], text=script)
    return True


def with_iptables(comment: str, opened: Sequence[Port]) -> bool:
    """True when iptables is there and has been given (or relieved of) the rules."""
    done = False
    for tool in ("iptables", "ip6tables"):
        try:
            listing = _run([tool, "-w", "5", "-S", "INPUT"], fails=False)
        except FileNotFoundError:
            continue
        if listing.returncode:
            continue
        active = len(listing.stdout.splitlines()) > 1 or "-P INPUT ACCEPT" not in listing.stdout
        for arguments in iptables_own(listing.stdout, comment):
            _run([tool, "-w", "5", *arguments])
        if active:
            for arguments in iptables_add(comment, opened):
                _run([tool, "-w", "5", *arguments])
            done = True
    return done


def run(arguments: Sequence[str]) -> int:
    """0 done, or no firewall is active; 1 an error, 2 wrong usage."""
    if not 1 <= len(arguments) <= 2 or arguments[0] not in ("add", "del"):
        print(USAGE, file=sys.stderr)
        return 2
    adding, what = arguments[0] == "add", arguments[1] if len(arguments) == 2 else CORE
    name = label(what)
    try:
        opened = wanted(what) if adding else ()
        tools = (("firewalld", with_firewalld), ("nftables", with_nftables), ("iptables", with_iptables))
        firewall = next((kind for kind, tool in tools if tool(name, opened)), "")
    except FirewallError as error:
        print(f"firewallcfg: {error.text}\nNext step: {error.next_step}", file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"firewallcfg: {error}", file=sys.stderr)
        return 1
    if not firewall:
        print("no firewall is active on this server: nothing to do")
        return 0
    if adding:
        listed = ", ".join(f"{port.protocol.upper()} {port.number}" for port in opened) or "none"
        print(f"{firewall}: open for {name}: {listed}")
        if firewall != "firewalld":
            print("these rules last until the firewall's own rules are loaded again: save them there")
    else:
        print(f"{firewall}: the rules of {name} are removed")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
