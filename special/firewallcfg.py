"""firewallcfg add|del [AM|safeagent|caserv]: open the ports of SafeKit in the local firewall (guide 10.2.1).

firewalld is asked when it runs; else rules are put into every chain of nftables and of iptables that judges what
comes in. Every rule carries a comment of ours, and only rules with it are ever taken away.

firewallcfg auto on|off|status: whether configurations and the start of safeadmin do this by themselves. The
installer asks for it (guide 2.1.3).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths, cluster_dir, safe, valid_module_name
from safekit.model import ports
from safekit.model.ports import Port
from safekit.model.snmpd import parse_settings
from safekit.net.firewall import automatic, setting_file
from safekit.process import standard

USAGE = "usage: firewallcfg add|del [AM|safeagent|caserv]\n       firewallcfg auto on|off|status"
CORE, AGENT, CA = "core", "safeagent", "caserv"
TOOL_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_WEB_PORT = re.compile(r"^\s*Define\s+http(?:admin|control|monitor|s)port\s+(\d{1,5})\s*$", re.MULTILINE)


class FirewallError(Exception):
    """Why nothing could be done, and the next step."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step


def label(what: str) -> str:
    """The comment that marks the rules of one part; also the name of firewalld's service."""
    return f"safekit-{what}"


def core_ports(httpd_conf: str, safeadmin: int) -> tuple[Port, ...]:
    """Ports of safeadmin and of the web service."""
    web = {int(found) for found in _WEB_PORT.findall(httpd_conf)} | {ports.WEB_HTTPS}
    if not httpd_conf:
        web.add(ports.WEB_HTTP)
    return (Port("udp", safeadmin), *(Port("tcp", number) for number in sorted(web)))


def agent_ports(snmpd_conf: str) -> tuple[Port, ...]:
    """Ports of the SNMP agent: those that others than this server can reach."""
    places = parse_settings(snmpd_conf).listen
    return tuple(Port("udp", number) for number in sorted({p.port for p in places if not _is_own(p.address)}))


def ca_ports(caserv_conf: str) -> tuple[Port, ...]:
    """Port of the CA web service, which startcaserv opens and stopcaserv closes."""
    try:
        return (Port("tcp", ports.ca_service_port(caserv_conf)),)
    except ValueError as error:
        raise FirewallError(f"SAFE/web/conf/httpd.caserv.conf: {error}", "correct it, then startcaserv") from None


def _is_own(address: str) -> bool:
    return bool(address) and ipaddress.ip_address(address.partition("%")[0]).is_loopback


def wanted(what: str) -> tuple[Port, ...]:
    """The ports of a part as it is configured now. Raises FirewallError."""
    if what == AGENT:
        return agent_ports(_text(safe() / "snmp" / "conf" / "snmpd.conf"))
    if what == CA:
        return ca_ports(_text(safe() / "web" / "conf" / "httpd.caserv.conf"))
    if what == CORE:
        return core_ports(_text(safe() / "web" / "conf" / "httpd.conf"), _cluster_port())
    if not valid_module_name(what):
        raise FirewallError(f"{what!r} is not the name of a module", "safekit module list")
    try:
        active: dict[str, Any] = json.loads(ModulePaths(what).active_json.read_text())
        return ports.module_ports(active)
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


def configured_modules() -> list[str]:
    """Modules with an active configuration."""
    try:
        names = os.listdir(safe() / "private" / "modules")
    except FileNotFoundError:
        return []
    return sorted(name for name in names if valid_module_name(name) and ModulePaths(name).active_json.exists())


# The three firewalls: what to run, from what is there. Pure.


def input_chains(ruleset: dict[str, Any], *, iptables: bool) -> list[tuple[str, str, str]]:
    """(family, table, chain) of every chain of nftables that filters what comes in.

    `iptables`: that tool is there, so the chain that it calls INPUT is its own and left to it.
    """
    found = []
    for item in ruleset.get("nftables", ()):
        chain = item.get("chain")
        if chain and chain.get("hook") == "input" and chain.get("type") == "filter":
            place = (str(chain["family"]), str(chain["table"]), str(chain["name"]))
            foreign = iptables and place[0] in ("ip", "ip6") and place[1:] == ("filter", "INPUT")
            if place[0] in ("inet", "ip", "ip6") and place[1] != "safekit" and not foreign:
                found.append(place)
    return found


def nft_own(ruleset: dict[str, Any], comment: str) -> list[tuple[str, str, str, int]]:
    """(family, table, chain, handle) of our rules."""
    rules = [item["rule"] for item in ruleset.get("nftables", ()) if "rule" in item]
    return [(r["family"], r["table"], r["chain"], int(r["handle"])) for r in rules if r.get("comment") == comment]


def nft_script(
    ruleset: dict[str, Any], chains: Iterable[tuple[str, str, str]], comment: str, opened: Sequence[Port]
) -> str:
    """One transaction: our former rules of this part go, the new ones come first in each chain.

    What our processes say to each other on this server must pass whatever else is configured (guide 10.2.3.2).
    """
    lines = [f"delete rule {f} {t} {c} handle {h}" for f, t, c, h in nft_own(ruleset, comment)]
    matches = [f"{port.protocol} dport {port.number}" for port in opened]
    matches += ['iifname "lo"'] if opened else []
    for family, table, chain in chains:
        lines += [f'insert rule {family} {table} {chain} {match} accept comment "{comment}"' for match in matches]
    return "".join(f"{line}\n" for line in lines)


def iptables_own(listing: str, comment: str) -> list[list[str]]:
    """Arguments that delete our rules, from the output of `iptables -S INPUT`."""
    found = []
    for line in listing.splitlines():
        words = shlex.split(line)
        if words[:1] == ["-A"] and "--comment" in words and words[words.index("--comment") + 1] == comment:
            found.append(["-D", *words[1:]])
    return found


def iptables_add(comment: str, opened: Sequence[Port]) -> list[list[str]]:
    """Arguments that insert our rules; see nft_script for the loopback."""
    marked = ["-m", "comment", "--comment", comment, "-j", "ACCEPT"]
    matches = [["-p", port.protocol, "--dport", str(port.number)] for port in opened]
    matches += [["-i", "lo"]] if opened else []
    return [["-I", "INPUT", *match, *marked] for match in matches]


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


def _permanent(*options: str) -> str:
    return _run(["firewall-cmd", "--permanent", *options]).stdout


def with_firewalld(name: str, opened: Sequence[Port]) -> bool:
    """True when firewalld runs and has done it: a service of ours, allowed in the zones that are in use.

    firewalld lets the loopback pass by itself. Nothing is loaded again when nothing changes.
    """
    try:
        if _run(["firewall-cmd", "--state"], fails=False).returncode:
            return False
    except FileNotFoundError:
        return False
    known = name in _permanent("--get-services").split()
    used = [
        line.split()[0] for line in _run(["firewall-cmd", "--get-active-zones"]).stdout.splitlines() if line[:1] > " "
    ]
    zones = sorted({_run(["firewall-cmd", "--get-default-zone"]).stdout.strip(), *used})
    wanted_ports = {f"{port.number}/{port.protocol}" for port in opened}
    allowed = [
        z for z in _permanent("--get-zones").split() if name in _permanent(f"--zone={z}", "--list-services").split()
    ]
    if not opened and not known:
        return True
    same = known and wanted_ports == set(_permanent(f"--service={name}", "--get-ports").split())
    if same and set(zones) <= set(allowed):
        return True
    if known:
        for zone in allowed:
            _permanent(f"--zone={zone}", f"--remove-service={name}")
        _permanent(f"--delete-service={name}")
    if opened:
        _permanent(f"--new-service={name}")
        for port in sorted(wanted_ports):
            _permanent(f"--service={name}", f"--add-port={port}")
        for zone in zones:
            _permanent(f"--zone={zone}", f"--add-service={name}")
    _run(["firewall-cmd", "--reload"])
    return True


def _has(tool: str) -> bool:
    return shutil.which(tool, path=TOOL_PATH) is not None


def with_nftables(comment: str, opened: Sequence[Port]) -> bool:
    """True when nftables filters what comes in by chains that are not iptables' own."""
    if not _has("nft"):
        return False
    ruleset = json.loads(_run(["nft", "-j", "-a", "list", "ruleset"]).stdout or "{}")
    chains = input_chains(ruleset, iptables=_has("iptables"))
    script = nft_script(ruleset, chains, comment, opened)
    if script:
        _run(["nft", "-f", "-"], text=script)
    return bool(chains)


def with_iptables(comment: str, opened: Sequence[Port]) -> bool:
    """True when iptables judges what comes in and has been given (or relieved of) the rules."""
    done = False
    for tool in ("iptables", "ip6tables"):
        if not _has(tool):
            continue
        listing = _run([tool, "-w", "5", "-S", "INPUT"], fails=False)
        if listing.returncode:
            continue  # this kernel has no such table: nothing is filtered by it
        own = iptables_own(listing.stdout, comment)
        lines = len(listing.stdout.splitlines()) - len(own)
        active = lines > 1 or "-P INPUT ACCEPT" not in listing.stdout
        # The new rules stand before the former ones go: no packet of a running module meets a closed port. A rule
        # is deleted by its words, so one of two equal ones stays.
        for arguments in [*(iptables_add(comment, opened) if active else ()), *own]:
            _run([tool, "-w", "5", *arguments])
        done = done or active
    return done


def apply(what: str, *, adding: bool) -> str:
    """Open or close the ports of one part; one line of what was done. Raises FirewallError.

    A server may have chains of nftables and of iptables at once, and a packet must pass all of them.
    """
    name = label(what)
    opened = wanted(what) if adding else ()
    found = ["firewalld"] if with_firewalld(name, opened) else []
    found = found or [kind for kind, tool in _LOADED if tool(name, opened)]
    if not found:
        return "no firewall is active on this server: nothing to do"
    firewall = " and ".join(found)
    if not adding:
        return f"{firewall}: the rules of {name} are removed"
    listed = ", ".join(f"{port.protocol.upper()} {port.number}" for port in opened) or "none"
    line = f"{firewall}: open for {name}: {listed}"
    if found != ["firewalld"] and not automatic():
        line += "\nthese rules last until the firewall's own rules are loaded again: save them there"
    return line


_LOADED = (("nftables", with_nftables), ("iptables", with_iptables))


def apply_all(*, adding: bool) -> list[str]:
    """The same for the services and every configured module. Raises FirewallError.

    The agent's port is opened only by who asks for it, and closed with all others.
    """
    parts = (CORE, *configured_modules()) if adding else (CORE, AGENT, *configured_modules())
    return [apply(what, adding=adding) for what in parts]


def _automatic(word: str) -> list[str]:
    if word == "status":
        return ["on" if automatic() else "off"]
    if word == "off":
        lines = apply_all(adding=False)
        write_atomic(setting_file(), b"off\n")
        return lines
    write_atomic(setting_file(), b"on\n")
    return apply_all(adding=True)


def run(arguments: Sequence[str]) -> int:
    """0 done, or no firewall is active; 1 an error, 2 wrong usage."""
    words = list(arguments)
    try:
        match words:
            case ["auto", "on" | "off" | "status" as word]:
                lines = _automatic(word)
            case ["add" | "del" as verb]:
                lines = [apply(CORE, adding=verb == "add")]
            case ["add" | "del" as verb, what]:
                lines = [apply(what, adding=verb == "add")]
            case _:
                print(USAGE, file=sys.stderr)
                return 2
    except FirewallError as error:
        print(f"firewallcfg: {error.text}\nNext step: {error.next_step}", file=sys.stderr)
        return 1
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"firewallcfg: {error}", file=sys.stderr)
        return 1
    print("\n".join(dict.fromkeys(lines)))
    return 0


if __name__ == "__main__":
    standard.run(lambda: run(sys.argv[1:]))
