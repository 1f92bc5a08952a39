"""One application of a module's configuration, with what undoes each of its steps.

Order, so that a failure or a power cut at any point leaves the old configuration or the new one, never a
mixture:

1. the new configuration is built in a directory of its own and put on disk;
2. what must be remembered (full resynchronisation, data not up to date) is recorded;
3. replicated directories are converted;
4. one symbolic link is swapped: from here on the new configuration is the active one;
5. the entry of the crontab for a scheduled synchronisation is written or removed;
6. the module's `config` script runs; its failure undoes 5, 4, 3, 2 and 1;
7. directories that are no longer replicated are turned back, old configurations removed.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safekit.disk.files import locked, sync_directory
from safekit.disk.paths import ModulePaths, safe
from safekit.disk.resources import ResourceWriter
from safekit.model import directories, programs, schedule, store
from safekit.model.codec import CodecError, from_json, to_json
from safekit.model.findings import Finding
from safekit.model.types import ModuleConfig, Replicated
from safekit.process import crontab, vhost

LAST_CONFIG = "lastconfig"
LAST_CONFIG_KEPT = 3
SCRIPT_SECONDS = 600.0
_COPY = re.compile(r"(.+)_\d{4}-\d\d-\d\d_\d\d:\d\d:\d\d\.safe")


class ConfigureError(Exception):
    """The work could not be done and nothing is changed. `next_step` tells what to do."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(f"{text}; {next_step}")
        self.text = text
        self.next_step = next_step


@dataclass(frozen=True)
class ApplyResult:
    """What `apply` did. `full_required`: the next synchronisation copies every file."""

    config: ModuleConfig
    number: int
    first: bool
    full_required: bool
    converted: tuple[str, ...]
    restored: tuple[str, ...]
    warnings: tuple[Finding, ...]


class Application:
    """One run of `apply`, with what undoes its steps."""

    def __init__(
        self,
        paths: ModulePaths,
        config: ModuleConfig,
        previous: ModuleConfig | None,
        running_state: str,
        others: Mapping[str, ModuleConfig],
        warnings: tuple[Finding, ...],
        tell: Callable[[str], None],
    ) -> None:
        self.paths = paths
        self.config = config
        self.previous = previous
        self.running_state = running_state
        self.others = others
        self.warnings = list(warnings)
        self.tell = tell
        self.undo: list[tuple[str, Callable[[], object]]] = []

    def run(self) -> ApplyResult:
        try:
            number = self._prepare()
            full = self._remember()
            converted = self._convert()
            self._activate(number)
            self._schedule()
            self._script()
        except BaseException as error:
            self._roll_back(error)
            if isinstance(error, (OSError, store.TreeError)):
                raise self._explained(error) from error
            raise
        restored = self._clean_up(number)
        return ApplyResult(
            config=self.config,
            number=number,
            first=self.previous is None,
            full_required=full,
            converted=converted,
            restored=restored,
            warnings=tuple(self.warnings),
        )

    def _prepare(self) -> int:
        self.tell("copying configuration and scripts")
        root, place = self.paths.root, self.paths.active_store
        self.config = replace(self.config, signature=store.signature(root), configured_at=time.time())
        place.mkdir(mode=0o770, parents=True, exist_ok=True)
        number = max((*store.numbers(place), 0)) + 1
        building = place / f"new.{os.getpid()}"
        if building.exists():
            shutil.rmtree(building)
        self.undo.append(("remove the new configuration", lambda: _remove(building, place / str(number))))
        store.prepare(root, building, to_json(self.config, indent=1).encode(), programs.scripts(self.config))
        vhost.generate(self.config, self.paths, building / "bin")
        os.rename(building, place / str(number))
        sync_directory(place)
        return number

    def _remember(self) -> bool:
        """Record before anything becomes active that the next synchronisation is a full one: after every
        configuration of a stopped module (13.6.4.9), because nobody watched the directories meanwhile."""
        if self.config.rfs is None or self.running_state != "STOP":
            return False
        self.paths.rfs.mkdir(mode=0o770, parents=True, exist_ok=True)
        marker = self.paths.full_required
        if not marker.exists():
            self.undo.append(("forget the full resynchronisation", lambda: marker.unlink(missing_ok=True)))
        store.write(marker, b"", 0o660)
        sync_directory(self.paths.rfs)
        if self.previous is None:
            with locked(self.paths.var / "resources.lock"):
                ResourceWriter(self.paths.resources).set("rfs.uptodate", "down", "config")
        return True

    def _convert(self) -> tuple[str, ...]:
        if self.config.rfs is None or self.running_state != "STOP":
            return ()
        table, suffix = directories.mounts(), self.config.rfs.suffix
        converted = []
        for replicated in self.config.rfs.replicated:
            self.tell(f"converting {replicated.dir}")
            found = directories.convert(replicated.dir, suffix, table)
            if found is not None:
                converted.append(replicated.dir)
            if found is directories.State.PLAIN:
                step = functools.partial(directories.restore, replicated.dir, suffix, table)
                self.undo.append((f"turn {replicated.dir} back", step))
        return tuple(converted)

    def _activate(self, number: int) -> None:
        old = store.active_number(self.paths.active)
        self.undo.append(
            (
                "make the previous configuration active again",
                lambda: store.point(self.paths.active, self.paths.active_store, old),
            )
        )
        store.point(self.paths.active, self.paths.active_store, number)
        vhost.generate_absolute(self.config, self.paths)

    def _schedule(self) -> None:
        before, after = (_syncat(config) for config in (self.previous, self.config))
        if before or after:
            try:
                former = schedule_module(self.paths.module, after)
            except crontab.CrontabError as error:
                raise ConfigureError(
                    f"the crontab of {schedule.USER} cannot be changed ({error}); nothing is changed",
                    f"remove the cause, then run safekit config -m {self.paths.module} again",
                ) from None
            self.undo.append(("put the crontab back", functools.partial(crontab.write, schedule.USER, former)))

    def _script(self) -> None:
        self.tell(f"script config (at most {SCRIPT_SECONDS:.0f} s), replacing the active configuration")
        status = run_script(self.paths, self.paths.userbin / "config", self.config)
        if status:
            raise ConfigureError(
                f"the script {self.paths.bin_dir / 'config'} failed with status {status}, nothing is changed",
                f"repair the script, then run safekit config -m {self.paths.module} again",
            )

    def _roll_back(self, cause: BaseException) -> None:
        for what, step in reversed(self.undo):
            try:
                step()
            except (OSError, crontab.CrontabError) as error:
                # The cause is what the user must see; what could not be undone is told with it.
                self.warnings.append(Finding(str(self.paths.root), 0, "", f"could not {what}: {error}", "error"))
                cause.add_note(f"could not {what}: {error}")

    def _explained(self, error: Exception) -> ConfigureError:
        left = "; ".join(str(f.message) for f in self.warnings if f.severity == "error")
        consequence = f"roll-back incomplete: {left}" if left else "nothing is changed"
        again = f"then run safekit config -m {self.paths.module} again"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = self.paths.active_store
            where = error.filename or str(place)
            needed = store.size(self.paths.root) + 65536
            free = store.free_bytes(place)
            return ConfigureError(
                f"{where}: {os.strerror(error.errno or 0)}: the configuration needs {needed} bytes, "
                f"{free} are free; {consequence}",
                f"free space there, {again}",
            )
        if isinstance(error, OSError) and error.filename:
            return ConfigureError(f"{error.filename}: {error.strerror}; {consequence}", f"remove the cause, {again}")
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ConfigureError(f"{text}; {consequence}", f"remove the cause, {again}")

    def _clean_up(self, number: int) -> tuple[str, ...]:
        """What may fail without harm: each failure is a warning, the configuration stays active."""
        restored = []
        try:
            vhost.remove_absolute([self.previous] if self.previous else [], [self.config, *self.others.values()])
        except OSError as error:
            self._warn(f"{error.filename}: {error.strerror}: remove this environment file by hand")
        for directory, suffix in self._dropped():
            try:
                if directories.restore(directory, suffix, directories.mounts()):
                    restored.append(directory)
            except OSError as error:
                self._warn(f"{directory} is not replicated any more but stays a link: {error.strerror or error}")
        try:
            store.sweep(self.paths.active_store, number)
            self._keep_copy()
        except OSError as error:
            self._warn(f"old configurations could not be tidied up: {error}")
        return tuple(restored)

    def _keep_copy(self) -> None:
        """A copy of the last applied modules in SAFE/modules/lastconfig, for going back (3.8)."""
        from safekit.disk.archive import pack

        directory = safe() / "modules" / LAST_CONFIG
        directory.mkdir(mode=0o770, parents=True, exist_ok=True)
        stamp = time.strftime("%Y-%m-%d_%H:%M:%S", time.localtime(self.config.configured_at))
        pack(self.paths.root, directory / f"{self.paths.module}_{stamp}.safe")
        copies = sorted(p for p in directory.iterdir() if (m := _COPY.fullmatch(p.name)) and m[1] == self.paths.module)
        for old in copies[:-LAST_CONFIG_KEPT]:
            old.unlink()

    def _dropped(self) -> list[tuple[str, str]]:
        """Directories of earlier configurations that no module replicates now, with their suffix. The kept
        configurations are asked, not the previous one alone: a power cut may have come before a clean-up."""
        kept = {r.dir for c in (self.config, *self.others.values()) for r in _replicated(c)}
        dropped: dict[str, str] = {}
        for number in store.numbers(self.paths.active_store):
            path = self.paths.active_store / str(number) / "conf" / store.ACTIVE_JSON
            try:
                earlier = from_json(ModuleConfig, path.read_bytes())
            except (OSError, CodecError) as error:
                self._warn(f"{path} cannot be read: {error}")
                continue
            if earlier.rfs is not None:
                dropped |= {r.dir: earlier.rfs.suffix for r in earlier.rfs.replicated if r.dir not in kept}
        return list(dropped.items())

    def _warn(self, message: str) -> None:
        self.warnings.append(Finding(str(self.paths.userconfig), 0, "", message, "warning"))


def _syncat(config: ModuleConfig | None) -> str:
    return (config.rfs.syncat or "") if config is not None and config.rfs is not None else ""


def schedule_module(module: str, expression: str) -> str:
    """Give the module this entry in the crontab, none for "". Returns the text before. Raises CrontabError."""
    before = crontab.read(schedule.USER)
    after = schedule.with_entry(before, module, expression) if expression else schedule.without(before, module)
    if after != before:
        crontab.write(schedule.USER, after)
    return before


def _replicated(config: ModuleConfig) -> tuple[Replicated, ...]:
    return config.rfs.replicated if config.rfs is not None else ()


def _remove(*trees: Path) -> None:
    for tree in trees:
        if tree.exists():
            shutil.rmtree(tree)


def run_script(paths: ModulePaths, script: Path, config: ModuleConfig) -> int:
    """Run a configuration script of the module if it has one (14.3): its exit status, 0 without one.

    It gets SAFE*, the variables of <user>, our standard output and error. After ten minutes the script
    and its children are killed, status 124.
    """
    if not os.access(script, os.X_OK):
        return 0
    environment = {**os.environ, **(dict(config.user.vars) if config.user is not None else {}), **paths.environment()}
    try:
        process = subprocess.Popen(
            [str(script)],
            cwd=script.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigureError(
            f"the script {script} cannot be run: {error.strerror}", "check its first line (#!) and its mode"
        ) from error
    try:
        return process.wait(SCRIPT_SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return 124
        raise
