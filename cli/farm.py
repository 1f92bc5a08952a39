"""safekit farm: who shares the load of a farm module, and which server takes a client (beyond the guide).

`safekit -r vip_if_ctrl -l` (guide 4.3.5) prints the bitmaps in the guide's form; it is here too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from cli.base import Failure, command, installed_modules, module_option, module_paths, on_terminal
from safekit.disk.paths import ModulePaths
from safekit.net.jhash import BUCKETS, client_bucket
from safekit.process import standard

WATCH_SECONDS = 1.0
ASK_SECONDS = 1.0


def status(paths: ModulePaths) -> tuple[dict[str, Any], bool]:
    """What vipd says of the farm, and whether it says it now: else it is what it wrote down last.

    Raises Failure when there is neither.
    """
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests import vipd

    try:
        return ask_sync(paths.module, vipd.GetStatus(), ASK_SECONDS), True
    except BusError:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            view = json.loads((paths.var / "farm.json").read_text())["view"]
            if view.get("groups"):
                return dict(view), False
    raise Failure(
        f"vipd of module {paths.module} does not answer",
        f"safekit start -m {paths.module}   (only a running farm module shares a load)",
    )


def _counters(paths: ModulePaths) -> list[dict[str, Any]]:
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests import vipd

    try:
        return list(ask_sync(paths.module, vipd.GetCounters(), ASK_SECONDS).get("rules", []))
    except BusError:
        return []


def table(view: dict[str, Any], counters: Sequence[dict[str, Any]], live: bool) -> Iterator[str]:
    """The farm for people."""
    nodes, members, sharing = view["nodes"], view.get("members", []), view.get("participants", [])
    if not live:
        yield "vipd does not answer; this is what it wrote down last, and the packet filters still do."
    names = ", ".join(sharing) if sharing else "nobody"
    yield f"{view['node']}: the load is shared by {names}" + ("" if view.get("final", True) else " (changing)")
    for interface in view.get("interfaces", []):
        addresses = ", ".join(interface["addresses"])
        yield f"  {interface['name']}  {addresses}  vmac_{interface['mode']}  {interface['mac']}"
    for found in view.get("flooding", []):
        missing = ", ".join(found["missing"])
        yield f"  {found['interface']}: virtual MAC {found['problem']}: no frames from {missing} come here"
    for group in view["groups"]:
        yield f"group {group['name']}"
        for number, node in enumerate(nodes):
            state = "takes part" if node in sharing else "member, takes no part" if node in members else "not heard"
            yield f"  {node:<16} {group['percent'][number]:>3}%  {group['bits'][number]:>3}/256  {state}"
        for rule in group["rules"]:
            seen = next((c for c in counters if c["label"] == rule["label"] and c["group"] == group["name"]), None)
            tail = f"  {seen['packets']} packets seen, {seen['connections']} connections here" if seen else ""
            yield f"  rule {rule['label']}{tail}"


def client(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int | None]:
    """ADDR, ADDR:PORT, [IPv6]:PORT. Raises Failure."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        number = int(port) if port else None
        if number is not None and not 0 < number < 65536:
            raise ValueError(port)
        return ipaddress.ip_address(host), number
    except ValueError:
        raise Failure(f"{text!r} is not a client", "write ADDRESS, ADDRESS:PORT or [IPV6-ADDRESS]:PORT") from None


def who(
    view: dict[str, Any], address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int | None
) -> list[dict[str, Any]]:
    """For each rule the bucket and the server of this client; of all its ports when port is None and the rule
    balances by port: then the servers and their shares of the ports in percent."""
    found: list[dict[str, Any]] = []
    for group in view["groups"]:
        for rule in group["rules"]:
            if rule["addr"] is not None and ipaddress.ip_address(rule["addr"]).version != address.version:
                continue
            answer: dict[str, Any] = {"group": group["name"], "rule": rule["label"]}
            kind = "on_addr" if rule["proto"] == "arp" else rule["filter"]
            if kind == "on_ipid" and address.version == 4:
                answer["servers"] = _shares(view, group["bits"])
            elif kind != "on_addr" and port is None:
                counts = [0] * len(view["nodes"])
                for each in range(1024, 65536, 16):
                    owner = group["owners"][client_bucket(kind, address, each)]
                    if owner >= 0:
                        counts[owner] += 1
                answer["servers"] = _shares(view, counts)
            else:
                bucket = client_bucket(kind, address, port or 0)
                owner = group["owners"][bucket]
                answer |= {"bucket": bucket, "server": view["nodes"][owner] if owner >= 0 else None}
            found.append(answer)
    return found


def _shares(view: dict[str, Any], counts: Sequence[int]) -> dict[str, int]:
    whole = sum(counts) or 1
    return {node: round(100 * count / whole) for node, count in zip(view["nodes"], counts, strict=True) if count}


@command(
    "farm",
    example="safekit farm -m farm\nsafekit farm -m farm --watch\nsafekit farm who --client 192.168.1.7:40312 -m farm",
    admin=False,
)
@module_option
@click.argument("question", required=False, type=click.Choice(["who"]))
@click.option("--client", "client_text", metavar="ADDR[:PORT]", help="With who: the client.")
@click.option("--json", "as_json", is_flag=True, help="JSON.")
@click.option("--watch", is_flag=True, help="Show it again every second, until interrupted.")
def farm_command(module: str | None, question: str | None, client_text: str | None, as_json: bool, watch: bool) -> int:
    """Show how a farm module shares its load; with `who`, which server takes a client.

    The answer to `who` is computed by the hash of the packet filters: no packet is sent.
    """
    paths = module_paths(module)
    if question == "who":
        if client_text is None:
            raise Failure("who? the client is missing", "safekit farm who --client ADDRESS:PORT -m AM")
        return _who(paths, client_text, as_json)
    if client_text is not None:
        raise Failure("--client belongs to who", f"safekit farm who --client {client_text} -m {paths.module}")
    if not watch:
        _show(paths, as_json)
        return 0
    while True:
        if on_terminal() and not as_json:
            click.clear()
        try:
            _show(paths, as_json)
        except Failure as failure:
            # Stopped or not started yet: whoever watches wants to see it come.
            click.echo(json.dumps({"live": False, "reason": failure.text}) if as_json else failure.text)
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


def _show(paths: ModulePaths, as_json: bool) -> None:
    """Print the farm once. Raises Failure."""
    view, live = status(paths)
    counters = _counters(paths) if live else []
    if as_json:
        click.echo(json.dumps({**view, "live": live, "counters": counters}))
        return
    for line in table(view, counters, live):
        click.echo(line)


def _who(paths: ModulePaths, text: str, as_json: bool) -> int:
    view, _ = status(paths)
    address, port = client(text)
    answers = who(view, address, port)
    if as_json:
        click.echo(json.dumps({"client": str(address), "port": port, "answers": answers}))
        return 0
    if not answers:
        raise Failure(f"no rule of module {paths.module} balances {address}", f"safekit farm -m {paths.module}")
    for answer in answers:
        if "servers" in answer:
            shares = ", ".join(f"{node} {share}%" for node, share in answer["servers"].items()) or "nobody"
            click.echo(f"{answer['rule']} (group {answer['group']}): depends on the packet: {shares}")
        else:
            server = answer["server"] or "nobody"
            click.echo(f"{answer['rule']} (group {answer['group']}): {server} (bucket {answer['bucket']} of {BUCKETS})")
    return 0


# ------------------------------------------------------------------------------- vip_if_ctrl


def bitmaps(view: dict[str, Any], *, long: bool) -> Iterator[str]:
    """The bitmap of each rule on this server, as the guide prints it (4.3.5). The number is the one of this
    server in the farm, as in the guide. long: also who owns the rest."""
    number = view.get("number", 0) + 1
    for group in view["groups"]:
        for rule in group["rules"]:
            yield f"{rule['label']} (group {group['name']})"
            yield f"Bitmap {number}:{group['bitmap']}"
            if long:
                for index, node in enumerate(view["nodes"]):
                    bits = 0
                    for bucket, owner in enumerate(group["owners"]):
                        bits |= (owner == index) << bucket
                    digits = f"{bits:064x}"
                    text = ":".join(digits[i : i + 8] for i in range(0, 64, 8))
                    yield f"  {index + 1} {node:<16} {group['bits'][index]:>3}/256 {text}"
    if long:
        for interface in view.get("interfaces", []):
            yield f"{interface['name']} vmac_{interface['mode']} {interface['mac']} {' '.join(interface['addresses'])}"


def vip_if_ctrl(arguments: Sequence[str]) -> int:
    """The special command: -l bitmaps, -L with the shares of the other servers and the interfaces."""
    if list(arguments) not in (["-l"], ["-L"]):
        click.echo("usage: safekit -r vip_if_ctrl -l|-L", err=True)
        return 2
    named = os.environ.get("SAFEMODULE")
    shown = 0
    for module in [named] if named else installed_modules():
        paths = ModulePaths(module)
        try:
            view, live = status(paths)
        except Failure:
            if named:
                raise
            continue
        if not view["groups"]:
            continue
        shown += 1
        click.echo(
            f"module {module}, {view['node']}" + ("" if live else " (vipd does not answer: as it wrote down last)")
        )
        for line in bitmaps(view, long=arguments[0] == "-L"):
            click.echo(line)
    if not shown:
        click.echo("no farm module with load balancing runs on this server: safekit start -m AM", err=True)
        return 1
    return 0


def main() -> int:
    """Entry point of private/bin/vip_if_ctrl."""
    try:
        return vip_if_ctrl(sys.argv[1:])
    except Failure as failure:
        failure.show()
        return failure.code


if __name__ == "__main__":
    standard.run(main)
