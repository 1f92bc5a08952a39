"""firewallcfg add|del [AM|safeagent|caserv]: open the ports of SafeKit in the local firewall (guide 10.2.1).

firewalld is asked when it runs; else rules are put into every chain of nftables and of iptables that judges what
comes in. Every rule carries a comment of ours, and only rules with it are ever taken away.

firewallcfg probes azure|gcp|NETWORK...|off|status: open the port of the web service to the health probes of a balancer
in a cloud, where it is not open to all (docs/cloud.md).

firewallcfg auto on|off|status: whether configurations and the start of safeadmin do this by themselves. The
installer asks for it (guide 2.1.3).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths, cluster_dir, safe, safevar, valid_module_name
from safekit.model import ports
from safekit.model.httpd import web_ports
from safekit.model.ports import Port
from safekit.model.snmpd import parse_settings
from safekit.net.firewall import automatic, setting_file
from safekit.process import standard

USAGE = """usage: firewallcfg add|del [AM|safeagent|caserv]
       firewallcfg probes azure|gcp|NETWORK...|off|status
       firewallcfg auto on|off|status
example, for a balancer of AWS in two subnets: firewallcfg probes 10.0.1.0/24 10.0.2.0/24"""
CORE, AGENT, CA, PROBES = "core", "safeagent", "caserv", "safekit_probes"
"""The last one is also what marks its rules: no module has that mark."""
PROVIDERS = {
    "azure": ("168.63.129.16/32", "fe80::1234:5678:9abc/128"),
    "gcp": (
        "35.191.0.0/16", "130.211.0.0/22", "209.85.152.0/22", "209.85.204.0/22", "2600:1901:8001::/48",
        "2600:2d00:1:b029::/64", "2600:2d00:1:1::/64",
    ),
}  # fmt: skip
"""Where the probes of a provider's balancers come from, of whichever kind they are. Those of AWS come from the
addresses that the balancer has in its subnets."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
TOOL_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


class FirewallError(Exception):
    """Why nothing could be done, and the next step."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step


def label(what: str) -> str:
    """The comment that marks the rules of one part; also the name of firewalld's service."""
    return PROBES if what == PROBES else f"safekit-{what}"


def core_ports(httpd_conf: str, safeadmin: int) -> tuple[Port, ...]:
    """Ports of safeadmin and of the web service."""
    web = {*web_ports(httpd_conf), ports.WEB_HTTPS}
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


def probes_file() -> Path:
    """Networks of the probes that are let in, one a line."""
    return safevar() / "firewall.probes"


def probing() -> tuple[Network, ...]:
    """Networks of the probes that are let in. A line that is none opens nothing."""
    found: list[Network] = []
    for line in _text(probes_file()).split():
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(line, strict=False))
    return tuple(found)


def networks(words: Sequence[str]) -> tuple[Network, ...]:
    """What the words of `firewallcfg probes` name. Raises FirewallError."""
    found: dict[Network, None] = {}
    for word in words:
        if word.lower() == "aws":
            raise FirewallError(
                "the probes of AWS come from the subnets of the balancer, which have no address of their own",
                "firewallcfg probes 10.0.1.0/24 10.0.2.0/24, with the networks of these subnets",
            )
        try:
            found |= dict.fromkeys(ipaddress.ip_network(each) for each in PROVIDERS.get(word.lower(), (word,)))
        except ValueError as error:
            raise FirewallError(f"{error}", "firewallcfg probes azure, gcp, or networks as 10.0.1.0/24") from None
    return tuple(found)


def wanted(what: str) -> tuple[Port, ...]:
    """The ports of a part as it is configured now. Raises FirewallError."""
    if what == PROBES:
        conf = _text(safe() / "web" / "conf" / "httpd.conf")
        return tuple(
            p for p in core_ports(conf, ports.SAFEADMIN) if p.protocol == "tcp" and p.number != ports.WEB_HTTPS
        )
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
    ruleset: dict[str, Any],
    chains: Iterable[tuple[str, str, str]],
    comment: str,
    opened: Sequence[Port],
    sources: Sequence[Network] | None = None,
) -> str:
    """One transaction: our former rules of this part go, the new ones come first in each chain. With `sources` they are
    for packets from there only.

    What our processes say to each other on this server must pass whatever else is configured (guide 10.2.3.2).
    """
    lines = [f"delete rule {f} {t} {c} handle {h}" for f, t, c, h in nft_own(ruleset, comment)]
    for family, table, chain in chains:
        matches = [f"{port.protocol} dport {port.number}" for port in opened]
        if sources is not None:
            spoken = {"ip": (4,), "ip6": (6,)}.get(family, (4, 6))
            origins = [f"{'ip' if s.version == 4 else 'ip6'} saddr {s}" for s in sources if s.version in spoken]
            matches = [f"{origin} {match}" for origin in origins for match in matches]
        elif opened:
            matches.append('iifname "lo"')
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


def iptables_add(comment: str, opened: Sequence[Port], sources: Sequence[Network] | None = None) -> list[list[str]]:
    """Arguments that insert our rules; see nft_script for the loopback, and for `sources` (None: from everywhere)."""
    marked = ["-m", "comment", "--comment", comment, "-j", "ACCEPT"]
    matches = [["-p", port.protocol, "--dport", str(port.number)] for port in opened]
    if sources is not None:
        matches = [["-s", str(source), *match] for source in sources for match in matches]
    elif opened:
        matches.append(["-i", "lo"])
    return [["-I", "INPUT", *match, *marked] for match in matches]


def ways_in(listing: str, name: str) -> dict[str, set[str]]:
    """How each zone of firewalld lets a service in, as options of firewall-cmd, from `--list-all-zones`."""
    found: dict[str, set[str]] = {}
    here: set[str] = set()
    for line in listing.splitlines():
        if line[:1].strip():
            here = found[line.split()[0]] = set()
        elif line.strip().startswith("services:"):
            here |= {f"service={name}"} & {f"service={each}" for each in line.split()[1:]}
        elif line.strip().startswith("rule ") and f'service name="{name}"' in line:
            here.add(f"rich-rule={line.strip()}")
    return found


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


def rich_rules(name: str, sources: Sequence[Network]) -> set[str]:
    """Rules of firewalld, as it writes them, that let these networks reach a service."""
    return {f'rule family="ipv{s.version}" source address="{s}" service name="{name}" accept' for s in sources}


def with_firewalld(name: str, opened: Sequence[Port], sources: Sequence[Network] | None = None) -> bool:
    """True when firewalld runs and has done it: a service of ours, allowed in the zones that are in use; with `sources`
    to these networks only.

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
    if not opened and not known:
        return True
    former = ways_in(_permanent("--list-all-zones"), name)
    ways = {f"service={name}"} if sources is None else {f"rich-rule={rule}" for rule in rich_rules(name, sources)}
    same = known and wanted_ports == set(_permanent(f"--service={name}", "--get-ports").split())
    if opened and same and all(former.get(zone) == ways for zone in zones):
        return True
    for zone, found in former.items():
        for way in sorted(found):
            _permanent(f"--zone={zone}", f"--remove-{way}")
    if known:
        _permanent(f"--delete-service={name}")
    if opened:
        _permanent(f"--new-service={name}")
        for port in sorted(wanted_ports):
            _permanent(f"--service={name}", f"--add-port={port}")
        for zone in zones:
            for way in sorted(ways):
                _permanent(f"--zone={zone}", f"--add-{way}")
    _run(["firewall-cmd", "--reload"])
    return True


def _has(tool: str) -> bool:
    return shutil.which(tool, path=TOOL_PATH) is not None


def with_nftables(comment: str, opened: Sequence[Port], sources: Sequence[Network] | None = None) -> bool:
    """True when nftables filters what comes in by chains that are not iptables' own."""
    if not _has("nft"):
        return False
    ruleset = json.loads(_run(["nft", "-j", "-a", "list", "ruleset"]).stdout or "{}")
    chains = input_chains(ruleset, iptables=_has("iptables"))
    script = nft_script(ruleset, chains, comment, opened, sources)
    if script:
        _run(["nft", "-f", "-"], text=script)
    return bool(chains)


def with_iptables(comment: str, opened: Sequence[Port], sources: Sequence[Network] | None = None) -> bool:
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
        version = 4 if tool == "iptables" else 6
        here = None if sources is None else [source for source in sources if source.version == version]
        active = lines > 1 or "-P INPUT ACCEPT" not in listing.stdout
        # The new rules stand before the former ones go: no packet of a running module meets a closed port. A rule
        # is deleted by its words, so one of two equal ones stays.
        for arguments in [*(iptables_add(comment, opened, here) if active else ()), *own]:
            _run([tool, "-w", "5", *arguments])
        done = done or active
    return done


def apply(what: str, *, adding: bool) -> str:
    """Open or close the ports of one part; one line of what was done. Raises FirewallError.

    A server may have chains of nftables and of iptables at once, and a packet must pass all of them.
    """
    name = label(what)
    sources = probing() if what == PROBES else None
    opened = wanted(what) if adding and sources != () else ()
    found = ["firewalld"] if with_firewalld(name, opened, sources) else []
    found = found or [kind for kind, tool in _LOADED if tool(name, opened, sources)]
    if not found:
        return "no firewall is active on this server: nothing to do"
    firewall = " and ".join(found)
    if not adding:
        return f"{firewall}: the rules of {name} are removed"
    listed = ", ".join(f"{port.protocol.upper()} {port.number}" for port in opened) or "none"
    line = f"{firewall}: open for {name}: {listed}"
    if sources is not None:
        line += f" from {', '.join(map(str, sources))}"
    if found != ["firewalld"] and not automatic():
        line += "\nthese rules last until the firewall's own rules are loaded again: save them there"
    return line


_LOADED = (("nftables", with_nftables), ("iptables", with_iptables))


def apply_all(*, adding: bool) -> list[str]:
    """The same for the services and every configured module. Raises FirewallError.

    The agent's port, and what probes need, is opened only for who asks for it, and closed with all others.
    """
    wished = (PROBES,) if probing() or not adding else ()
    parts = (CORE, *wished, *configured_modules()) if adding else (CORE, AGENT, *wished, *configured_modules())
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


def _probes(words: Sequence[str]) -> list[str]:
    if words == ["status"]:
        return [str(source) for source in probing()] or ["off"]
    if words == ["off"]:
        lines = [apply(PROBES, adding=False)]
        probes_file().unlink(missing_ok=True)
        return lines
    write_atomic(probes_file(), "".join(f"{source}\n" for source in networks(words)).encode())
    return [apply(PROBES, adding=True)]


def run(arguments: Sequence[str]) -> int:
    """0 done, or no firewall is active; 1 an error, 2 wrong usage."""
    words = list(arguments)
    try:
        match words:
            case ["auto", "on" | "off" | "status" as word]:
                lines = _automatic(word)
            case ["probes", *rest] if rest:
                lines = _probes(rest)
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
