"""Names and addresses of this server: SAFE/web/conf/ipv4.json, ipv6.json, ipnames.json (guide 11.6.1.3).

An administrator may add some (a public address that is translated) and take some away; what he did stays when the
lists are made again.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from caserv import places
from caserv.errors import PkiError
from caserv.judge import Address, Names, address, dns_name
from safekit.disk.paths import cluster_dir, node_name

FILES = ("ipv4.json", "ipv6.json", "ipnames.json")
RESOLVE_SECONDS = 5.0


def _own_addresses() -> list[str]:
    """Addresses of the interfaces that are up, as the kernel tells them."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return [str(message.get_attr("IFA_ADDRESS")) for message in route.get_addr()]


def _usable(texts: Iterable[str]) -> list[Address]:
    found = []
    for text in texts:
        try:
            found.append(address(text.partition("%")[0]))
        except PkiError:
            continue  # the loopback, link-local addresses
    return list(dict.fromkeys(found))


def _usable_names(texts: Iterable[str]) -> list[str]:
    found = []
    for text in texts:
        try:
            found.append(dns_name(text))
        except PkiError:
            continue
    return list(dict.fromkeys(found))


def _resolved(addresses: Iterable[Address]) -> list[str]:
    """The DNS names of the addresses; a name server that does not answer costs RESOLVE_SECONDS, and nothing else."""

    def ask(each: Address) -> str:
        try:
            return socket.getnameinfo((str(each), 0), socket.NI_NAMEREQD)[0]
        except OSError:
            return ""

    pool = ThreadPoolExecutor(max_workers=16)
    futures = [pool.submit(ask, each) for each in addresses]
    names = []
    try:
        for future in futures:
            try:
                names.append(future.result(timeout=RESOLVE_SECONDS))
            except TimeoutError:
                break
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [name for name in names if name]


def cluster_owners() -> dict[str, str]:
    """Name or address of cluster.xml -> its server; empty without a cluster."""
    owners = {}
    try:
        lans = json.loads((cluster_dir() / "cluster.json").read_bytes())["lans"]
        for node in (each for lan in lans for each in lan["nodes"]):
            owners[str(node["addr"]).lower()] = str(node["name"])
            owners[str(node["name"]).lower()] = str(node["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return owners


def detected() -> Names:
    """What this server is reached by: its interfaces, its names, and what cluster.xml calls it."""
    here = node_name()
    ours = [name for name, owner in cluster_owners().items() if owner == here]
    addresses = _usable([*_own_addresses(), *ours])
    full = socket.getfqdn()
    names = _usable_names([places.hostname(), full, *ours, *_resolved(addresses)])
    return Names(tuple(names), tuple(addresses))


def merged(now: Iterable[str], listed: Iterable[str] | None, before: Iterable[str]) -> list[str]:
    """The new list: what is found now, without what an administrator took away and with what he added, which is
    where `listed` differs from what was found `before`."""
    if listed is None:
        return list(now)
    kept, former = list(listed), set(before)
    removed = former - set(kept)
    found = [each for each in now if each not in removed]
    return [*found, *(each for each in kept if each not in former and each not in found)]


def update() -> Names:
    """Make the three lists anew; what they hold. Raises PkiError for a damaged one, OSError."""
    places.make_directories()
    names = detected()
    memory = places.ca() / "detected.json"
    before: dict[str, Any] = json.loads(memory.read_text()) if memory.exists() else {}
    lists = {
        "ipv4.json": [str(each) for each in names.addresses if each.version == 4],
        "ipv6.json": [str(each) for each in names.addresses if each.version == 6],
        "ipnames.json": list(names.dns),
    }
    for file, found in lists.items():
        listed = read_list(file) if (places.conf() / file).exists() else None
        write_list(file, merged(found, listed, before.get(file, [])))
    places.write(memory, json.dumps(lists).encode(), places.SECRET)
    return load()


def write_list(file: str, values: Iterable[str]) -> None:
    """One of FILES, a value a line. Raises OSError."""
    places.write(places.conf() / file, (json.dumps(list(values), indent=1) + "\n").encode(), places.READABLE)


def read_list(file: str) -> list[str]:
    """Raises PkiError with the file's name."""
    path: Path = places.conf() / file
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise ValueError("expected a list of texts")
    except FileNotFoundError:
        raise PkiError(f"{path}: no such file", f"{places.conf().parent}/bin/getipandnames") from None
    except (OSError, ValueError) as error:
        raise PkiError(
            f"{path}: {error}", f'correct it: ["10.0.0.1", "10.0.1.1"]; or remove it and run {BIN}'
        ) from None
    return [each.strip() for each in values if each.strip()]


BIN = "getipandnames"


def load() -> Names:
    """What the lists hold, judged as the authority will. Raises PkiError."""
    found: dict[str, list[Any]] = {}
    for file in FILES:
        judged = dns_name if file == "ipnames.json" else address
        try:
            found[file] = [judged(each) for each in read_list(file)]
        except PkiError as error:
            path = places.conf() / file
            text = error.text if str(path) in error.text else f"{path}: {error.text}"
            raise PkiError(text, error.next_step) from None
    addresses = [*found["ipv4.json"], *found["ipv6.json"]]
    if not addresses and not found["ipnames.json"]:
        raise PkiError(f"{places.conf()}: ipv4.json, ipv6.json and ipnames.json are empty", BIN)
    return Names(tuple(dict.fromkeys(found["ipnames.json"])), tuple(dict.fromkeys(addresses)))
