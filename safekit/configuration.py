"""`safekit config`, `deconfig` and `confcheck`: from SAFE/modules/AM to the active configuration (9.6, 13).

Everything is checked before anything is changed; safekit.model.application makes the change.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from safekit.disk.files import locked
from safekit.disk.paths import ModulePaths, node_name, safe, valid_module_name
from safekit.model import directories, dynamic, programs, store
from safekit.model.application import (
    LAST_CONFIG,
    Application,
    ApplyResult,
    ConfigureError,
    run_script,
    schedule_module,
)
from safekit.model.cluster import ClusterError, load_cluster
from safekit.model.codec import CodecError, from_json
from safekit.model.findings import ConfigError, Finding, errors, ordered
from safekit.model.machine import check_machine
from safekit.model.module import Examined, examine_module
from safekit.model.rules_check import advice
from safekit.model.types import ClusterConfig, ModuleConfig
from safekit.process import crontab, vhost
from safekit.wire.keys import MODULE_KEY

STABLE_STATES = ("PRIM", "SECOND", "UP")

__all__ = [
    "ApplyResult",
    "CheckResult",
    "ConfigureError",
    "Stamp",
    "active",
    "active_stamp",
    "apply",
    "confcheck",
    "current_signature",
    "deconfig",
    "list_modules",
    "module_id",
    "other_configurations",
]


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


def _check(
    module: str,
    previous: ModuleConfig | None,
    running_state: str,
    others: Mapping[str, ModuleConfig],
    *,
    advise: bool = False,
) -> tuple[ModuleConfig, tuple[Finding, ...]]:
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
        others=others,
        mounts=directories.mounts(),
    )
    if previous is not None and running_state != "STOP":
        findings += dynamic.refused(previous, config, dynamic.load_table(), places)
        former, peer = previous.peer(cluster, node_name()), config.peer(cluster, node_name())
        if former is not None and peer is not None and former != peer:
            message = f"the other server would be {peer}, not {former}, which a running module does not take"
            step = f"stop the module first: safekit stop -m {module}"
            findings.append(places.finding("heart.heartbeats[0].name", f"{message}; {step}"))
    if previous is not None and previous.rfs is not None and config.rfs is not None:
        same = {r.dir for r in previous.rfs.replicated} & {r.dir for r in config.rfs.replicated}
        if same and previous.rfs.suffix != config.rfs.suffix:
            message = f"the suffix of a configured module cannot change; run safekit deconfig -m {module} first"
            findings.append(places.finding("rfs.suffix", message))
    findings += programs.check(config, places, ModulePaths(module).bin_dir)
    if advise:
        findings += advice(config, places)
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
    config, warnings = _check(module, previous, "STOP", other_configurations(module), advise=True)
    status = run_script(ModulePaths(module), ModulePaths(module).bin_dir / "confcheck", config)
    return CheckResult(config, warnings, status)


# ----------------------------------------------------------------------------- applying


def _nobody(text: str) -> None:
    """Nobody watches."""


def apply(module: str, running_state: str = "STOP", tell: Callable[[str], None] = _nobody) -> ApplyResult:
    """Make SAFE/modules/AM the active configuration.

    `running_state` is the module's state. In ALONE and WAIT (red) only dynamic attributes may differ
    from the active configuration; in PRIM, SECOND and UP (green) only the module's key may: every server accepts
    both keys for a while (10.4). In other running states nothing can be applied. `tell` gets each step. Raises
    ConfigError (findings with lines) or ConfigureError; nothing is changed then.
    """
    possible = ("STOP", *dynamic.DYNAMIC_STATES)
    if running_state not in possible and not (running_state in STABLE_STATES and only_the_key_differs(module)):
        raise ConfigureError(
            f"the module {module} is {running_state}, a configuration is possible in STOP, ALONE and WAIT (red)",
            f"run safekit stop -m {module}, then safekit waitstop -m {module} for its end",
        )
    paths = ModulePaths(module)
    with _exclusive():
        previous = _previous(module, running_state)
        others = other_configurations(module)
        tell("checking")
        config, warnings = _check(module, previous, running_state, others, advise=True)
        return Application(paths, config, previous, running_state, others, warnings, tell).run()


def only_the_key_differs(module: str) -> bool:
    """Whether SAFE/modules/AM is what is active, but for the key of the module. Raises ConfigureError."""
    config, paths = active(module), ModulePaths(module)
    key = f"conf/{MODULE_KEY}"
    made = frozenset(f"bin/{host.envfile}" for host in config.vhost if not os.path.isabs(host.envfile))
    try:
        now, before = store.signature(paths.root, frozenset({key})), store.signature(paths.active, made | {key})
    except (OSError, store.TreeError) as error:
        raise ConfigureError(f"{paths.root} cannot be read ({error})", "repair or install the module again") from error
    return now == before and config.signature != store.signature(paths.root)


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
    except PermissionError as error:
        raise ConfigureError(f"{error.filename}: {error.strerror}", "run the command as root") from error
    except BlockingIOError as error:
        raise ConfigureError("another configuration is being applied on this server", "try again after it") from error


# ------------------------------------------------------------------------------- undoing


def deconfig(module: str, running_state: str = "STOP") -> tuple[str, ...]:
    """Undo the configuration of a stopped module; the warnings, one a line.

    Runs the `deconfig` script, turns the replicated directories back, removes the active configuration.
    The next configuration counts as the first one. Raises ConfigureError; nothing is changed then.
    """
    if running_state != "STOP":
        raise ConfigureError(
            f"the module {module} is {running_state}",
            f"run safekit stop -m {module}, then safekit waitstop -m {module} for its end",
        )
    paths = ModulePaths(module)
    warnings: list[str] = []
    with _exclusive():
        config = active(module)
        status = run_script(paths, paths.userbin / "deconfig", config)
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
        if config.rfs is not None and config.rfs.syncat:
            try:
                schedule_module(module, "")
            except crontab.CrontabError as error:
                warnings.append(f"the crontab of user safekit: {error}; remove the entry of module {module} by hand")
        try:
            vhost.remove_absolute([config], other_configurations(module).values())
        except OSError as error:
            warnings.append(f"{error.filename}: {error.strerror}: remove this environment file by hand")
        try:
            shutil.rmtree(paths.active_store)
        except OSError as error:
            warnings.append(f"{paths.active_store} could not be removed: {error.strerror}; remove it by hand")
    return tuple(warnings)
