"""Large trees: how long an unchanged one takes to reintegrate, and whether a very large one can be mounted."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from safekit.model.types import Replicated, Rfs
from tests.bench.rfs_beds import veth
from tests.t2_process.rfs_pair import Pair

PER_DIRECTORY = 500


def grow(base: Path, files: int, content: bytes = b"") -> None:
    """Small files, PER_DIRECTORY in a directory."""
    for number in range(files):
        if number % PER_DIRECTORY == 0:
            directory = base / f"d{number // PER_DIRECTORY}"
            directory.mkdir(parents=True)
        descriptor = os.open(directory / f"file{number}", os.O_CREAT | os.O_WRONLY, 0o644)
        if content:
            os.write(descriptor, content)
        os.close(descriptor)


def unchanged(base: Path, files: int) -> None:
    """The secondary is stopped in order and started again; nothing changed. Both have the tree beforehand."""
    with (
        veth() as (namespaces, addresses),
        Pair(base, Rfs((Replicated("/replicated"),)), addresses, 5600, namespaces) as pair,
    ):
        grow(pair.n1.backing, files)
        subprocess.run(["cp", "-a", f"{pair.n1.backing}/.", str(pair.n2.backing)], check=True)
        pair.start_primary(pair.n1)
        begin = time.monotonic()
        pair.start_secondary(pair.n2, 600)
        print(f"\nfirst synchronisation of {files} files that are there already: {time.monotonic() - begin:.1f} s")
        pair.n2.ask("standby")
        pair.n1.ask("alone")
        pair.n2.ask("release")
        for name in ("nfsadmin", "nfsbox"):
            pair.n2.kill(name, 15)
        begin = time.monotonic()
        pair.n2.up()
        pair.n2.ask("prepare")
        started = time.monotonic() - begin
        begin = time.monotonic()
        pair.reintegrate(pair.n2, 600)
        print(
            f"reintegration of {files} unchanged files: {time.monotonic() - begin:.1f} s "
            f"(processes and mount before it: {started:.1f} s)"
        )


def first(base: Path, files: int) -> None:
    """The secondary has nothing: every file is made there and filled."""
    with (
        veth() as (namespaces, addresses),
        Pair(base, Rfs((Replicated("/replicated"),)), addresses, 5600, namespaces) as pair,
    ):
        grow(pair.n1.backing, files, b"x" * 1024)
        pair.start_primary(pair.n1)
        begin = time.monotonic()
        pair.start_secondary(pair.n2, 600)
        print(
            f"first synchronisation of {files} files of 1 KiB to an empty secondary: {time.monotonic() - begin:.1f} s",
            flush=True,
        )


def mountable(base: Path, files: int) -> None:
    """Mount a tree, list it, look at every file."""
    with Pair(base) as pair:
        begin = time.monotonic()
        grow(pair.n1.backing, files)
        print(f"\n{files} files made in {time.monotonic() - begin:.0f} s")
        begin = time.monotonic()
        pair.start_primary(pair.n1)
        print(f"mounted in {time.monotonic() - begin:.1f} s")
        begin = time.monotonic()
        found = subprocess.run(
            ["find", str(pair.n1.dir) + "/", "-type", "f", "-size", "-1"], check=True, capture_output=True
        ).stdout.count(b"\n")
        print(f"{found} of {files} files looked at in {time.monotonic() - begin:.0f} s")
