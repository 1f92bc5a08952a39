"""SAFE/web: what the web service needs beside its code (guide 10.5.1, 11.4.4)."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from installation.target import SAFE, InstallError, Target, make_directory, write_file

USER = "admin"
PROGRAMS = ("htpasswd", "startcaserv", "stopcaserv", "initssl", "makeusercert", "getipandnames", "checkcert")
PASSWORD_VARIABLE = "SAFEKIT_PASSWORD"
LANGPACK = "jquery.lang/langpack"
"""Where the guide places the texts of the console (3.1.1), below SAFE/web/htdocs; the web service reads them there."""
OPEN_WARNING = (
    "Warning: the web service is open: whoever reaches port 9010 commands this server. To ask for passwords: "
    f"uncomment `Define usefile` in {SAFE}/web/conf/httpd.conf, then safekit webserver restart"
)


@dataclass(frozen=True)
class WebSetup:
    """What the installer did for the web service. `password`: of the new user, shown once; None when users were
    there already or nobody is asked for one."""

    password: str | None
    opened: bool
    saved: str = ""
    """Name of the copy of settings that an administrator had changed."""


def install_web(target: Target, gid: int, *, opened: bool) -> WebSetup:
    """SAFE/web with its settings and a first user; what an administrator changed stays.

    The password is SAFEKIT_PASSWORD of the environment, so that several servers can be given the same one,
    else a generated one. Raises InstallError.
    """
    web = target.safe / "web"
    for name in ("conf", "conf/ssl", "bin", "htdocs", "htdocs/jquery.lang", f"htdocs/{LANGPACK}"):
        make_directory(web / name, mode=0o2750, gid=gid)
    _install_texts(target, web / "htdocs" / LANGPACK, gid)
    default = (target.safe / "private" / "conf" / "httpd.conf.default").read_text()
    settings = web / "conf" / "httpd.conf"
    saved = save_changed(settings, web / "conf" / "httpd.conf.default", gid, "httpd.conf")
    write_file(web / "conf" / "httpd.conf.default", default, mode=0o640, gid=gid)
    if not settings.exists():
        write_file(settings, default, mode=0o640, gid=gid)
    if opened:
        text = re.sub(r"(?m)^(\s*)Define usefile", r"\1#Define usefile", settings.read_text())
        write_file(settings, text, mode=0o640, gid=gid)
    elif not re.search(r"(?m)^\s*Define use", settings.read_text()):
        opened = True  # as an administrator left it
    _install_programs(target, web, gid)
    users = web / "conf" / "user.conf"
    if opened or (users.exists() and users.stat().st_size):
        return WebSetup(None, opened, saved)
    password = os.environ.get(PASSWORD_VARIABLE) or _generated()
    write_file(users, f"{USER}:{_hashed(target, password)}\n", mode=0o640, gid=gid)
    return WebSetup(password, opened, saved)


def _install_programs(target: Target, web: Path, gid: int) -> None:
    """SAFE/web/bin (guide 7.2.3, 11.4.4, 11.6.4), and what switches on HTTPS and the CA service."""
    delivered = target.safe / "private" / "conf"
    for name in PROGRAMS:
        program = web / "bin" / name
        program.unlink(missing_ok=True)
        program.symlink_to(f"../../private/env/bin/{name}")
    write_file(web / "bin" / "openssl", (delivered / "openssl").read_text(), mode=0o755)
    default = (delivered / "httpd.caserv.conf.default").read_text()
    # Its copy in conf/ssl switches HTTPS on (10.5.4).
    https = (delivered / "httpd.webconsolessl.conf.default").read_text()
    write_file(web / "conf" / "httpd.webconsolessl.conf", https, mode=0o640, gid=gid)
    for name in ("httpd.caserv.conf.default", "httpd.caserv.conf"):
        if name.endswith(".default") or not (web / "conf" / name).exists():
            write_file(web / "conf" / name, default, mode=0o640, gid=gid)


def authority_line(target: Target) -> str:
    """Tells an administrator who upgrades that this server has the authority of the cluster; empty where it has not."""
    if not (target.safe / "web/conf/ca/private/cacert.key").exists():
        return ""
    return (
        f"the certification authority of the cluster is in {SAFE}/web/conf/ca and stays; it is in no snapshot: keep a "
        "copy in a safe place, and remove it from this server while nobody needs certificates"
    )


def _install_texts(target: Target, place: Path, gid: int) -> None:
    """The texts of the console in each language; those of the former version are replaced."""
    for file in sorted(target.environment.glob("lib/python*/site-packages/safewebserver/console/i18n/*.json")):
        write_file(place / file.name, file.read_text(encoding="utf-8"), mode=0o640, gid=gid)


def save_changed(settings: Path, default: Path, gid: int, stem: str) -> str:
    """Keep a dated copy, STEM.<date>, of settings that differ from what was delivered (guide 2.4.4); they stay in
    force. The name of the copy, empty when there is nothing new to keep."""
    if not settings.exists() or not default.exists():
        return ""
    text = settings.read_bytes()
    copies = [*settings.parent.glob(f"{stem}.2*")]
    if text == default.read_bytes() or any(copy.read_bytes() == text for copy in copies):
        return ""
    name = f"{stem}.{time.strftime('%Y-%m-%d')}"
    if (settings.parent / name).exists():
        name += time.strftime("-%H%M%S")
    write_file(settings.parent / name, text, mode=0o640, gid=gid)
    return name


def _generated() -> str:
    import secrets

    return "".join(secrets.choice("abcdefghjkmnpqrstuvwxyzABCDEFGH23456789") for _ in range(20))


def _hashed(target: Target, password: str) -> str:
    """The bcrypt hash, made by the product that was just installed: the installer's own Python may lack the library."""
    site = next((target.environment / "lib").glob("python*/site-packages"), None)
    done = subprocess.run(
        [
            str(target.environment / "bin" / "python3"),
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(site)!r}); from safewebserver.htpasswd import hashed; "
            "print(hashed(sys.stdin.read()))",
        ],
        input=password,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise InstallError(
            f"the first user of the web service could not be made: {done.stderr.strip()[-300:]}",
            f"{SAFE}/web/bin/htpasswd -c {SAFE}/web/conf/user.conf {USER}",
        )
    return done.stdout.strip()
