"""safekit level (guide 4.1, 9.5): host, system, version, licence, and the module's own level script."""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path

import click

from cli.base import command, json_option, module_option, module_paths, session, show_json
from safekit import __version__

_OS_RELEASE = Path("/etc/os-release")
_FIELD = re.compile(r"^\s*([A-Za-z_ ]+?)\s*[:=]\s*(.*?)\s*$")
DEMO = "Demo (No license)"
FREE = "SafeKit is free software (GPL-3.0-or-later): nothing here ends or stops for lack of a license"


def os_name(text: str) -> str:
    """PRETTY_NAME of an os-release file, else what it has."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[name.strip()] = value.strip().strip("\"'")
    return (
        fields.get("PRETTY_NAME") or " ".join(filter(None, (fields.get("NAME"), fields.get("VERSION_ID")))) or "Linux"
    )


def licence(text: str | None, host: str, today: date) -> str:
    """The licence line (guide 4.1.2). Nothing depends on it: this is free software (G5).

    `text` is license.txt (None: there is none), with lines `id`, `host`, `expires` (ISO date), `name: value`.
    """
    if text is None:
        return DEMO
    fields = {m[1].lower().replace(" ", "_"): m[2] for m in map(_FIELD.match, text.splitlines()) if m}
    number = fields.get("id") or fields.get("license") or fields.get("license_id")
    if not number:
        return "Invalid Product"
    bound = fields.get("host") or fields.get("hostname") or "*"
    if bound != "*" and bound.lower() not in (host.lower(), host.split(".")[0].lower()):
        return "Invalid Host"
    expires = fields.get("expires") or fields.get("expiration")
    if expires:
        try:
            last = date.fromisoformat(expires)
        except ValueError:
            return "Invalid Product"
        return "Expired license" if last < today else f"{number} Expiration {last.isoformat()}"
    return f"{number} for {host if bound == '*' else bound}"


@command("level", example="safekit level\nsafekit level -m mirror")
@module_option
@json_option
def level_command(module: str | None, as_json: bool) -> int:
    """Show the host, its operating system, the version of SafeKit and the licence.

    With -m, also the output of the level script of the module: the version of its application (not in the JSON).
    """
    from safekit.disk.paths import safe

    host = os.uname().nodename
    try:
        key: str | None = (safe() / "conf" / "license.txt").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        key = None
    try:
        system = os_name(_OS_RELEASE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        system = f"{os.uname().sysname} {os.uname().release}"
    facts = {"Host": host, "OS": system, "SafeKit": __version__, "License": licence(key, host, date.today())}
    if as_json:
        return show_json({name.lower(): value for name, value in facts.items()})
    for name, value in facts.items():
        click.echo(f"{name} : {value}")
    click.echo(FREE)
    if module or session().module:
        from cli.scripts import run_module_script

        return run_module_script(module_paths(module, configured=True).module, "level")
    return 0
