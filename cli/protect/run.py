"""Does what a plan says: on this server, which has the data, and on the other one, with the key of the cluster. Until
the service runs under the module everything is taken back when something fails."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from cli.base import Failure, module_paths, require_admin, session
from cli.boot import set_boot
from cli.configure import running_state, undo
from cli.control import control
from cli.distributed import command_ask, module_ask
from cli.ids import elsewhere
from cli.module import install_archive, remove
from cli.protect import way
from cli.protect.files import SCRIPTS, Files, files_of
from cli.protect.plan import SET_ASIDE, Plan
from cli.wait import wait_until
from safekit.configuration import ConfigureError, apply
from safekit.disk.archive import pack
from safekit.disk.paths import ModulePaths
from safekit.model.codec import to_json
from safekit.model.findings import ConfigError, errors
from safekit.net.firewall import follow
from safekit.view.module import ModuleView, read_module
from safekit.view.verdict import Verdict
from safekit.wire.keys import asking_keys
from safekit.wire.targets import Target
from safekit.wire.webclient import Ask, CallError, call

START_SECONDS = 300.0
APPLICATION_SECONDS = 10.0
LOG_LINES = 12
Act = Callable[[], object]


def ask_there(target: Target, ask: Ask) -> str:
    """What the other server says. Raises Failure."""
    try:
        answer, _ = call(target, ask, asking_keys())
    except CallError as error:
        step = error.next_step
        if error.kind in ("key", "credentials"):
            step = f"bring it into this cluster: safekit -H {target.node} -G"
        raise Failure(f"{target.label}: {error.text}", step) from None
    said = str(answer.get("output", ""))
    if int(answer.get("status", 1)):
        lines = [line for line in said.splitlines() if line.strip()]
        text = "; ".join(line.removeprefix("Error: ") for line in lines if not line.startswith("Next step: "))
        step = next((line.removeprefix("Next step: ") for line in lines if line.startswith("Next step: ")), "")
        raise Failure(f"{target.label}: {text or 'it failed'}", step or f"look at {target.label}: safekit log")
    return said


def command_there(target: Target, *words: str) -> str:
    """A command on the other server. Raises Failure."""
    return ask_there(target, command_ask(words))


class Steps:
    """What has been done, to be taken back in the other order."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._back: list[tuple[str, Act]] = []

    def step(self, text: str, do: Act, back: Act, what: str) -> None:
        """Do one thing. It is taken back also when it fails half-way. Raises what it raises."""
        self._tell(text)
        self._back.append((what, back))
        do()

    def settled(self) -> None:
        """Nothing is taken back any more."""
        self._back.clear()

    def take_back(self) -> list[str]:
        """Everything; what could not be, with the next step."""
        left = []
        for what, back in reversed(self._back):
            self._tell(f"taking back: {what}")
            try:
                back()
            except (Failure, ConfigureError, ConfigError, OSError) as error:
                step = (
                    f" ({error.next_step})" if isinstance(error, Failure | ConfigureError) and error.next_step else ""
                )
                left.append(f"{what}: {error}{step}")
        self._back.clear()
        return left


def carry_out(plan: Plan, target: Target, tell: Callable[[str], None]) -> Verdict:
    """The verdict at the end. Raises Failure: then the service runs as before, or the text says what does not."""
    name, steps = plan.module, Steps(tell)
    there = way.Order(name, plan.units, plan.disabled, plan.directories, SET_ASIDE.format(module=name))
    here = way.Order(name, plan.units, plan.disabled)
    units = " and ".join(plan.units)
    try:
        steps.step(
            f"{plan.there}: {units} stops there, an empty place for the data",
            lambda: command_there(target, "protect", "--step", "make-way", "--order", to_json(there)),
            lambda: command_there(target, "protect", "--step", "take-back", "--module", name),
            f"the way on {plan.there}",
        )
        steps.step(
            f"{plan.here}: {units} stops, until the module starts it",
            lambda: way.make(here), lambda: way.take_back(name), f"{units} runs again on {plan.here}",
        )  # fmt: skip
        steps.step(
            f"{plan.here}: module {name}", lambda: _install(name, files_of(plan)), lambda: _uninstall(name),
            f"module {name} on {plan.here}",
        )  # fmt: skip
        steps.step(
            f"{plan.there}: module {name}", lambda: _deploy(target, name), lambda: _uninstall_there(target, name),
            f"module {name} on {plan.there}",
        )  # fmt: skip
        steps.step(
            f"{plan.here}: {units} starts under the module", lambda: _first(plan), lambda: _stop(name), "the start"
        )
    except (Failure, ConfigureError, ConfigError, OSError, KeyboardInterrupt) as error:
        raise _failed(error, name, steps, plan) from None
    steps.settled()
    set_boot(name, "on")
    way.forget(name)
    return _second(plan, target, tell)


def _failed(error: BaseException, name: str, steps: Steps, plan: Plan) -> Failure:
    left = steps.take_back()
    cause = "interrupted" if isinstance(error, KeyboardInterrupt) else _text(error)
    step = error.next_step if isinstance(error, Failure | ConfigureError) else ""
    if left:
        return Failure(f"{cause}\nNot everything could be taken back: {'; '.join(left)}", step)
    return Failure(f"{cause}\n{' and '.join(plan.units)} runs on {plan.here} as before, without {name}", step)


def _text(error: BaseException) -> str:
    if isinstance(error, ConfigError):
        return "; ".join(str(finding) for finding in errors(error.findings))
    if isinstance(error, OSError):
        return f"{error.filename + ': ' if error.filename else ''}{error.strerror or error}"
    return str(error)


def write(files: Files, root: Path) -> None:
    """The files of a module, the scripts ready to be run."""
    for path, text in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        place.chmod(0o750 if path in SCRIPTS else 0o640)


def _install(name: str, files: Files) -> None:
    with tempfile.TemporaryDirectory(prefix="protect-") as directory:
        root, archive = Path(directory) / "module", Path(directory) / f"{name}.safe"
        write(files, root)
        pack(root, archive)
        install_archive(name, archive, None, elsewhere(), again=False)
    apply(name, running_state(name))
    problem = follow(name, configured=True)
    if problem:
        click.echo(f"Warning: {problem}", err=True)


def _uninstall(name: str) -> None:
    paths = ModulePaths(name)
    if paths.active_json.exists():
        undo(name)
    if paths.root.exists():
        remove(paths)


def _deploy(target: Target, name: str) -> None:
    ask_there(target, module_ask(name))
    command_there(target, "boot", "-m", name, "on")


def _uninstall_there(target: Target, name: str) -> None:
    if name in command_there(target, "module", "list").split():
        command_there(target, "module", "uninstall", "-m", name)


def _stop(name: str) -> None:
    session().admin_state = None
    if running_state(name) == "STOP":
        return
    with contextlib.suppress(Failure):
        control(name, "stop")
    wait_until(name, lambda view: not view.running, START_SECONDS, "stop", "")


def _first(plan: Plan) -> None:
    """Primary here, and the service runs. Raises Failure with what its script said."""
    session().admin_state = None
    control(plan.module, "prim", mirror=True)

    def alone(view: ModuleView) -> bool | None:
        if not view.running:
            return None
        return view.state in ("ALONE", "PRIM") and view.color == "green"

    try:
        wait_until(plan.module, alone, START_SECONDS, "start", "the module stopped while it started")
    except Failure as failure:
        raise Failure(failure.text + _script_said(plan.module), failure.next_step) from None
    deadline = time.monotonic() + APPLICATION_SECONDS
    while missing := way.waiting(plan.units):
        if time.monotonic() > deadline:
            text = f"{' and '.join(missing)} did not start under the module{_script_said(plan.module)}"
            raise Failure(text, f"journalctl -u {missing[0]}")
        time.sleep(0.2)


def _script_said(name: str) -> str:
    """The last lines of the module's scripts."""
    try:
        lines = (ModulePaths(name).var / "userlog.ulog").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-LOG_LINES:])


def _second(plan: Plan, target: Target, tell: Callable[[str], None]) -> Verdict:
    """The other server gets the data. The service runs here already, whatever comes of it. Raises Failure."""
    tell(f"{plan.there}: the first copy of the data")
    name = plan.module
    try:
        command_there(target, "protect", "--step", "done", "--module", name)
        command_there(target, "second", "-m", name)

        def both(view: ModuleView) -> bool | None:
            if not view.running:
                return None
            return (view.state, view.color, view.remote_state, view.remote_color) == (
                "PRIM",
                "green",
                "SECOND",
                "green",
            )

        wait_until(name, both, 0, "the first copy", f"module {name} stopped on {plan.here}")
    except Failure as failure:
        text = f"{' and '.join(plan.units)} runs on {plan.here} under module {name}, but {plan.there} is not ready: "
        raise Failure(
            text + failure.text, f"{failure.next_step}; then safekit -H {plan.there} start -m {name}"
        ) from None
    return _verdict(name)


def _verdict(name: str) -> Verdict:
    session().admin_state = None
    return read_module(module_paths(name).module, require_admin().get("modules", {}).get(name, {})).verdict


def counted() -> Callable[[str], None]:
    """Tells each step with its number."""
    number = 0

    def tell(text: str) -> None:
        nonlocal number
        number += 1
        click.echo(f"[{number}] {text}")

    return tell
