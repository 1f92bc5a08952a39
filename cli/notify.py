"""safekit notify: messages for people, by mail and webhook."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from cli.base import Failure, command, json_option, show_json
from cli.boot import systemctl
from safekit.disk.files import write_atomic
from safekit.disk.paths import safevar

if TYPE_CHECKING:
    from safekit.notify.settings import NotifySettings

CONF = "SAFE/conf/notify.conf"


def _only_reads(parameters: dict[str, Any]) -> bool:
    return str(parameters["verb"]) == "status"


@command(
    "notify",
    example="safekit notify test\nsafekit notify on\nsafekit notify status",
    modifies=True,
    reads=_only_reads,
    admin=False,
)
@click.argument("verb", required=False, default="status", type=click.Choice(["on", "off", "status", "test"]))
@json_option
def notify_command(verb: str, as_json: bool) -> int:
    """Tell people by mail or webhook what happens to the modules: one message per event, with its cause.

    Whom and through what: SAFE/conf/notify.conf, on every server. test sends a message now, through each channel, and
    says what the mail server or the webhook answered (exit code 1 when one refused). on, off: now and at each boot.
    """
    if verb == "test":
        return _test(as_json)
    if verb == "status":
        return _status(as_json)
    if verb == "on":
        _settings()
    systemctl("enable" if verb == "on" else "disable", "safenotify")
    write_atomic(safevar() / "boot.notify", f"{verb}\n".encode())
    systemctl("restart" if verb == "on" else "stop", "safenotify")
    return 0


def _settings() -> NotifySettings:
    """Raises Failure for settings that cannot be used, or tell nobody."""
    from safekit.notify.queue import settings_file
    from safekit.notify.settings import BadSettings, parse_settings

    try:
        settings = parse_settings(settings_file().read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        raise Failure(
            f"{settings_file()} is not there", f"see SAFE/private/conf/notify.conf.default for {CONF}"
        ) from None
    except BadSettings as error:
        raise Failure(f"{settings_file()}: {error}", f"correct {CONF}, then safekit notify test") from None
    if not settings.channels:
        raise Failure(f"{CONF} names nobody to tell", "uncomment [mail] or [webhook] in it, then safekit notify test")
    return settings


def _test(as_json: bool) -> int:
    from safekit.disk.paths import node_name
    from safekit.notify.deliver import NotDelivered, deliver

    settings, node = _settings(), node_name()
    message = {
        "date": time.time(),
        "subject": f"[SafeKit] test message of {node}",
        "text": f"Somebody ran safekit notify test on {node}.\nMessages of its modules come this way.\n",
        "node": node,
        "test": True,
    }
    results: dict[str, dict[str, str]] = {}
    for channel in settings.channels:
        try:
            deliver(settings, channel, message)
            results[channel] = {"result": "delivered"}
        except NotDelivered as error:
            results[channel] = {
                "result": "not delivered",
                "text": error.text,
                "next_step": f"{CONF}: {error.next_step}",
            }
    if as_json:
        show_json(results)
    else:
        for channel, told in results.items():
            who = f" to {', '.join(settings.mail.to)}" if channel == "mail" and settings.mail else ""
            click.echo(f"{channel}: {told['result']}{who}" + (f": {told['text']}" if "text" in told else ""))
            if "next_step" in told:
                click.echo(f"Next step: {told['next_step']}", err=True)
    return 0 if all(told["result"] == "delivered" for told in results.values()) else 1


def _running() -> bool:
    from safekit.bus.asking import ask_sync
    from safekit.bus.message import BusError
    from safekit.bus.requests.safenotify import Ping

    try:
        return bool(ask_sync("", Ping(), 0.5).pid)
    except BusError:
        return False


def _status(as_json: bool) -> int:
    from safekit.notify.queue import settings_file, waiting
    from safekit.notify.settings import BadSettings, parse_settings

    problem, channels = "", []
    try:
        channels = list(parse_settings(settings_file().read_text(encoding="utf-8", errors="replace")).channels)
    except FileNotFoundError:
        pass
    except BadSettings as error:
        problem = str(error)
    items = list(waiting())
    facts: dict[str, Any] = {"running": _running(), "channels": channels, "waiting": len(items), "problem": problem}
    facts["last_error"] = next((item.error for item in reversed(items) if item.error), "")
    if as_json:
        return show_json(facts)
    click.echo(
        f"safenotify {'runs' if facts['running'] else 'does not run'}; it tells by: {', '.join(channels) or 'nothing'}"
    )
    if problem:
        click.echo(f"{os.fspath(settings_file())}: {problem}")
    if items:
        age = int(time.time() - items[0].since)
        click.echo(
            f"{len(items)} messages wait, the oldest for {age} s"
            + (f": {facts['last_error']}" if facts["last_error"] else "")
        )
    return 0
