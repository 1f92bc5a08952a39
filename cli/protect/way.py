"""Makes way for the module on a server: the service stops, does not start at boot any more, and what stands in the
place of the data on the other server is set aside. What was done is noted durably, so that it can be taken back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.base import Failure
from cli.protect.facts import Directory
from cli.protect.look import systemctl
from safekit.disk.files import sync_directory, write_atomic
from safekit.disk.paths import ModulePaths, safevar
from safekit.model.codec import from_json, to_json

STOP_SECONDS = 600.0


@dataclass(frozen=True)
class Order:
    """What is to be done. `directories`: as they are on the server that has the data; empty on that server itself.
    `aside`: the end of the name under which what is there now is kept."""

    module: str
    units: tuple[str, ...]
    disabled: tuple[str, ...]
    directories: tuple[Directory, ...] = ()
    aside: str = ""


@dataclass(frozen=True)
class Done:
    """What was done: `moved` has (directory, its new name, "" for one that was made)."""

    active: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()


def note_file(module: str) -> Path:
    """Where it is noted, until it is taken back or the service is protected."""
    return safevar() / f"protect.{module}"


def make(order: Order) -> Done:
    """Do it. Raises Failure; what was done until then is in the note."""
    # What an interrupted run has stopped and disabled must not be noted as what there was.
    take_back(order.module)
    done = Done(
        tuple(unit for unit in order.units if _said("is-active", unit) in ("active", "activating", "reloading")),
        tuple(unit for unit in order.disabled if _said("is-enabled", unit) == "enabled"),
    )
    _note(order.module, done)
    for unit in reversed(order.units):
        _tell("stop", unit)
    for unit in done.enabled:
        _tell("disable", unit)
    moved: list[tuple[str, str]] = []
    for each in order.directories:
        moved.append((each.path, _free_name(each.path + order.aside) if _filled(each.path) else ""))
        # On disk before it is done: whoever takes it back must know the name.
        _note(order.module, Done(done.active, done.enabled, tuple(moved)))
        _place(each, moved[-1][1])
    return Done(done.active, done.enabled, tuple(moved))


def take_back(module: str) -> None:
    """Everything as it was, as far as the note says. Raises Failure, also while the module has the directories."""
    path = note_file(module)
    try:
        done = from_json(Done, path.read_bytes())
    except FileNotFoundError:
        return
    if ModulePaths(module).root.exists() or ModulePaths(module).active_json.exists():
        raise Failure(
            f"module {module} is still on this server, and the data is its own",
            f"safekit stop -m {module}, safekit module uninstall -m {module}, then the same command again",
        )
    for directory, kept in done.moved:
        if kept and os.path.isdir(kept):
            if os.path.isdir(directory) and not os.path.islink(directory):
                _remove_empty(directory, kept)
            os.rename(kept, directory)
            sync_directory(Path(directory).parent)
    for unit in done.enabled:
        _tell("enable", unit)
    for unit in done.active:
        _tell("start", unit)
    path.unlink()


def forget(module: str) -> None:
    """It will not be taken back."""
    note_file(module).unlink(missing_ok=True)


def _note(module: str, done: Done) -> None:
    write_atomic(note_file(module), json.dumps(json.loads(to_json(done))).encode() + b"\n")


def _said(verb: str, unit: str) -> str:
    done = subprocess.run(["systemctl", verb, unit], capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip()


def _tell(verb: str, unit: str) -> None:
    try:
        done = subprocess.run(
            ["systemctl", verb, unit], capture_output=True, text=True, check=False, timeout=STOP_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Failure(
            f"systemctl {verb} {unit} did not end within {STOP_SECONDS:.0f} s", f"journalctl -u {unit}"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise Failure(f"systemctl {verb} {unit}: {said[0]}", f"journalctl -u {unit}")


def _filled(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False


def _free_name(wanted: str) -> str:
    names = [wanted, *(f"{wanted}.{number}" for number in range(2, 100))]
    free = next((name for name in names if not os.path.lexists(name)), None)
    if free is None:
        raise Failure(f"{wanted} and 98 more names are taken", "remove those that are not needed any more")
    return free


def _place(like: Directory, kept: str) -> None:
    """An empty directory with the owner and mode of that of the other server."""
    parent = os.path.dirname(like.path)
    if kept:
        os.rename(like.path, kept)
        sync_directory(Path(parent))
    for above in reversed([each for each in (Path(parent), *Path(parent).parents) if not each.is_dir()]):
        above.mkdir()
        above.chmod(0o755)  # whatever the umask is: whoever owns the data has to reach it
    if not os.path.isdir(like.path):
        os.mkdir(like.path, 0o700)
    try:
        # By descriptor: who owns the directory above may have put a link to another one there meanwhile.
        descriptor = os.open(like.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{like.path} is no directory of its own ({error.strerror})", f"ls -ld {like.path}") from None
    try:
        if kept:
            shutil.copystat(kept, f"/proc/self/fd/{descriptor}")
        os.fchown(descriptor, like.uid, like.gid)
        os.fchmod(descriptor, like.mode)
    finally:
        os.close(descriptor)
    sync_directory(Path(parent))


def _remove_empty(directory: str, kept: str) -> None:
    try:
        os.rmdir(directory)
    except OSError as error:
        raise Failure(
            f"{directory} is not empty ({error.strerror}), and what was there before is in {kept}",
            f"look at both, keep the right one as {directory}",
        ) from None


def waiting(units: Sequence[str]) -> list[str]:
    """Those of the units that are not active."""
    return [unit for unit in units if (systemctl("is-active", unit) or "").strip() != "active"]
