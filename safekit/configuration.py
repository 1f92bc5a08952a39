"""`safekit config`, `deconfig` and `confcheck`: from SAFE/modules/AM to the active configuration (9.6, 13).

Order of an application, so that a failure or a power cut at any point leaves the old configuration or
the new one, never a mixture:

1. everything is checked;
2. the new configuration is built in a directory of its own and put on disk;
3. what must be remembered (full resynchronisation, data not up to date) is recorded;
4. replicated directories are converted;
5. one symbolic link is swapped: from here on the new configuration is the active one;
6. the module's `config` script runs; its failure undoes 5, 4 and 3;
7. directories that are no longer replicated are turned back, old configurations removed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safekit.files import locked, sync_directory
from safekit.model import directories, dynamic, store
from safekit.model.cluster import ClusterError, load_cluster
from safekit.model.codec import CodecError, from_json, to_json
from safekit.model.findings import ConfigError, Finding, errors, ordered
from safekit.model.machine import check_machine
from safekit.model.module import Examined, examine_module
from safekit.model.types import ClusterConfig, ModuleConfig, Replicated, Rfs
from safekit.paths import ModulePaths, node_name, safe, valid_module_name
from safekit.resources import ResourceWriter

LAST_CONFIG = "lastconfig"
LAST_CONFIG_KEPT = 3
FULL_REQUIRED = "full_required"
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


@dataclass(frozen=True)
class CheckResult:
    """What `confcheck` found in a configuration that may be applied."""

    config: ModuleConfig
    warnings: tuple[Finding, ...]
    script_status: int


@dataclass(frozen=True)
class Stamp:
    """Signature and last modification (Unix time) of a configuration, as `confinfo` shows them."""

    signature: str
    date: float


# ------------------------------------------------------------------------------ reading


def list_modules() -> tuple[str, ...]:
    """The installed modules, sorted."""
    try:
        names = [entry.name for entry in os.scandir(safe() / "modules") if entry.is_dir()]
    except FileNotFoundError:
        return ()
    return tuple(sorted(name for name in names if valid_module_name(name) and name != LAST_CONFIG))


def module_id(module: str) -> int:
    """The id of an installed module. Raises ConfigureError."""
    path = ModulePaths(module).id_file
    try:
        return int(path.read_text().strip())
    except FileNotFoundError as error:
        raise ConfigureError(
            f"the module {module} is not installed", f"run safekit module install -m {module} FILE.safe"
        ) from error
    except ValueError as error:
        raise ConfigureError(
            f"{path} does not hold a module id", f"run safekit module install -r -m {module} FILE.safe"
        ) from error


def active(module: str) -> ModuleConfig:
    """The active configuration. Raises ConfigureError when there is none or it cannot be read."""
    path = ModulePaths(module).active_json
    try:
        return from_json(ModuleConfig, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigureError(f"the module {module} is not configured", f"run safekit config -m {module}") from error
    except (OSError, CodecError) as error:
        raise ConfigureError(f"{path} cannot be read ({error})", f"run safekit config -m {module} again") from error


def active_stamp(module: str) -> Stamp:
    """Signature of the active configuration and when it was applied. Raises ConfigureError."""
    config = active(module)
    return Stamp(config.signature, config.configured_at)


def current_signature(module: str) -> Stamp:
    """Signature and last modification of SAFE/modules/AM. Raises ConfigureError."""
    root = ModulePaths(module).root
    try:
        return Stamp(store.signature(root), store.modified(root))
    except (OSError, store.TreeError) as error:
        raise ConfigureError(f"{root} cannot be read ({error})", "repair or install the module again") from error


def other_configurations(module: str) -> dict[str, ModuleConfig]:
    """The active configurations of the other modules of this server; those that cannot be read are left out."""
    found = {}
    for name in list_modules():
        if name != module:
            with contextlib.suppress(ConfigureError):
                found[name] = active(name)
    return found


# ----------------------------------------------------------------------------- checking


def _examine(module: str) -> tuple[Examined, ClusterConfig]:
    paths = ModulePaths(module)
    if not paths.root.is_dir():
        raise ConfigureError(
            f"the module {module} is not installed", f"run safekit module install -m {module} FILE.safe"
        )
    try:
        cluster = load_cluster()
    except ClusterError as error:
        text, _, step = str(error).partition("; ")
        raise ConfigureError(text, step) from error
    return examine_module(paths.userconfig, module, module_id(module), cluster), cluster


def _check(module: str, previous: ModuleConfig | None, running_state: str) -> tuple[ModuleConfig, tuple[Finding, ...]]:
    """The new configuration and the warnings. Raises ConfigError with everything that was found."""
    examined, cluster = _examine(module)
    config, places, findings = examined.config, examined.places, list(examined.findings)
    if config is None:
        raise ConfigError(examined.findings)
    findings += check_machine(
        config,
        places,
        cluster=cluster,
        node=node_name(),
        others=other_configurations(module),
        mounts=directories.mounts(),
    )
    if previous is not None and running_state != "STOP":
        findings += dynamic.refused(previous, config, dynamic.load_table(), places)
    if previous is not None and previous.rfs is not None and config.rfs is not None:
        same = {r.dir for r in previous.rfs.replicated} & {r.dir for r in config.rfs.replicated}
        if same and previous.rfs.suffix != config.rfs.suffix:
            message = f"the suffix of a configured module cannot change; run safekit deconfig -m {module} first"
            findings.append(places.finding("rfs.suffix", message))
    if errors(findings):
        raise ConfigError(ordered(findings))
    return config, ordered(findings)


def confcheck(module: str) -> CheckResult:
    """Check SAFE/modules/AM without applying it and run its `confcheck` script (14.3).

    Raises ConfigError, ConfigureError.
    """
    try:
        previous = active(module)
    except ConfigureError:
        previous = None
    config, warnings = _check(module, previous, "STOP")
    status = _run_script(ModulePaths(module), ModulePaths(module).bin_dir / "confcheck", config)
    return CheckResult(config, warnings, status)


# ----------------------------------------------------------------------------- applying


def apply(module: str, running_state: str = "STOP") -> ApplyResult:
    """Make SAFE/modules/AM the active configuration.

    `running_state` is the module's state. In ALONE and WAIT (red) only dynamic attributes may differ
    from the active configuration; in other running states nothing can be applied. Raises ConfigError
    (findings with lines) or ConfigureError; nothing is changed then.
    """
    if running_state != "STOP" and running_state not in dynamic.DYNAMIC_STATES:
        raise ConfigureError(
            f"the module {module} is {running_state}, a configuration is possible in STOP, ALONE and WAIT (red)",
            f"run safekit stop -m {module} first",
        )
    paths = ModulePaths(module)
    with _exclusive():
        previous = _previous(module, running_state)
        config, warnings = _check(module, previous, running_state)
        return _Application(paths, config, previous, running_state, warnings).run()


def _previous(module: str, running_state: str) -> ModuleConfig | None:
    """What is active now. A stopped module may be configured over a damaged configuration; a running one not."""
    try:
        return active(module)
    except ConfigureError:
        if running_state != "STOP":
            raise
        return None


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """One configuration at a time on a server: modules are compared with each other."""
    directory = safe() / "private" / "modules"
    try:
        directory.mkdir(mode=0o770, parents=True, exist_ok=True)
        with locked(directory / ".lock", wait=False):
            yield
    except BlockingIOError as error:
        raise ConfigureError("another configuration is being applied on this server", "try again after it") from error


class _Application:
    """One run of `apply`, with what undoes its steps."""

    def __init__(
        self,
        paths: ModulePaths,
        config: ModuleConfig,
        previous: ModuleConfig | None,
        running_state: str,
        warnings: tuple[Finding, ...],
    ) -> None:
        self.paths = paths
        self.config = config
        self.previous = previous
        self.running_state = running_state
        self.warnings = list(warnings)
        self.undo: list[tuple[str, Callable[[], object]]] = []

    def run(self) -> ApplyResult:
        try:
            number = self._prepare()
            full = self._remember()
            converted = self._convert()
            self._activate(number)
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
        root, place = self.paths.root, self.paths.active_store
        self.config = replace(self.config, signature=store.signature(root), configured_at=time.time())
        place.mkdir(mode=0o770, parents=True, exist_ok=True)
        number = max((*store.numbers(place), 0)) + 1
        building = place / f"new.{os.getpid()}"
        if building.exists():
            shutil.rmtree(building)
        self.undo.append(("remove the new configuration", lambda: _remove(building, place / str(number))))
        store.prepare(root, building, to_json(self.config, indent=1).encode())
        os.rename(building, place / str(number))
        sync_directory(place)
        return number

    def _remember(self) -> bool:
        """Record before anything becomes active that the data of this server counts for nothing yet."""
        if self.config.rfs is None or not _data_changed(self.previous, self.config.rfs):
            return False
        self.paths.rfs.mkdir(mode=0o770, parents=True, exist_ok=True)
        marker = self.paths.rfs / FULL_REQUIRED
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

    def _script(self) -> None:
        status = _run_script(self.paths, self.paths.userbin / "config", self.config)
        if status:
            raise ConfigureError(
                f"the script {self.paths.bin_dir / 'config'} failed with status {status}, nothing is changed",
                f"repair the script, then run safekit config -m {self.paths.module} again",
            )

    def _roll_back(self, cause: BaseException) -> None:
        for what, step in reversed(self.undo):
            try:
                step()
            except OSError as error:
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
        from safekit.cli.archive import pack

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
        kept = {r.dir for c in (self.config, *other_configurations(self.paths.module).values()) for r in _replicated(c)}
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


def _replicated(config: ModuleConfig) -> tuple[Replicated, ...]:
    return config.rfs.replicated if config.rfs is not None else ()


def _data_changed(previous: ModuleConfig | None, rfs: Rfs) -> bool:
    """Whether what is replicated is no longer what both servers hold."""
    if previous is None or previous.rfs is None:
        return True

    def data(of: Rfs) -> set[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        return {
            (r.dir, tuple(sorted(r.notreplicated_paths)), tuple(sorted(r.notreplicated_regex))) for r in of.replicated
        }

    return data(previous.rfs) != data(rfs)


def _remove(*trees: Path) -> None:
    for tree in trees:
        if tree.exists():
            shutil.rmtree(tree)


# ------------------------------------------------------------------------------- undoing


def deconfig(module: str, running_state: str = "STOP") -> tuple[str, ...]:
    """Undo the configuration of a stopped module; the warnings, one a line.

    Runs the `deconfig` script, turns the replicated directories back, removes the active configuration.
    The next configuration counts as the first one. Raises ConfigureError; nothing is changed then.
    """
    if running_state != "STOP":
        raise ConfigureError(f"the module {module} is {running_state}", f"run safekit stop -m {module} first")
    paths = ModulePaths(module)
    warnings: list[str] = []
    with _exclusive():
        config = active(module)
        status = _run_script(paths, paths.userbin / "deconfig", config)
        if status:
            script = paths.bin_dir / "deconfig"
            warnings.append(f"the script {script} failed with status {status}; finish its work by hand")
        done: list[str] = []
        suffix = config.rfs.suffix if config.rfs is not None else ""
        try:
            for replicated in config.rfs.replicated if config.rfs is not None else ():
                if directories.restore(replicated.dir, suffix, directories.mounts()):
                    done.append(replicated.dir)
            store.point(paths.active, paths.active_store, None)
        except OSError as error:
            left = []
            for directory in reversed(done):
                try:
                    directories.convert(directory, suffix, directories.mounts())
                except OSError as second:
                    left.append(f"{directory} stays a plain directory ({second.strerror})")
            consequence = "; ".join(left) or "nothing is changed"
            text = error.strerror or str(error)
            raise ConfigureError(
                f"{error.filename + ': ' if error.filename else ''}{text}; {consequence}",
                f"then run safekit deconfig -m {module} again",
            ) from error
        try:
            shutil.rmtree(paths.active_store)
        except OSError as error:
            warnings.append(f"{paths.active_store} could not be removed: {error.strerror}; remove it by hand")
    return tuple(warnings)


# ------------------------------------------------------------------------------- scripts


def _run_script(paths: ModulePaths, script: Path, config: ModuleConfig) -> int:
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
