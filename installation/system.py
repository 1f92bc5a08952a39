"""What an installation adds to the operating system around SAFE: accounts, service, settings."""

from __future__ import annotations

import subprocess
from pathlib import Path

from installation.target import SAFE, InstallError, Target, make_directory, write_file
from safekit.process.confined import USER as WEB_ACCOUNT

ACCOUNT = "safekit"
UNIT = "safeadmin.service"
WEB_UNIT = "safewebserver.service"
AGENT_UNIT = "safeagent.service"
NOTIFY_UNIT = "safenotify.service"
CA_UNIT = "safecaserv.service"
"""Never started at boot: startcaserv gives it a password, for as long as certificates are made."""
UNITS = (UNIT, WEB_UNIT, AGENT_UNIT, NOTIFY_UNIT, CA_UNIT)
BOOT_SETTINGS = {
    WEB_UNIT: ("boot.web", "on"), AGENT_UNIT: ("boot.snmp", "off"), NOTIFY_UNIT: ("boot.notify", "off")
}  # fmt: skip
"""Files of SAFEVAR that say whether a unit starts at boot, and what holds without one (`safekit boot`)."""
UNIT_FILES = "/etc/systemd/system"
WANTED_BY = "/etc/systemd/system/multi-user.target.wants"
SAFEINI = "/etc/safeini.xml"
PROFILE = "/etc/profile.d/safekit.sh"
COMPLETION = "/usr/share/bash-completion/completions/safekit"
COMMAND = "/usr/local/bin/safekit"


def group_id(target: Target, account: str = ACCOUNT) -> int | None:
    """Number of a group in the target; None when it is not there."""
    try:
        text = target.at("/etc/group").read_text()
    except FileNotFoundError:
        return None
    for line in text.splitlines():
        fields = line.split(":")
        if fields[0] == account and len(fields) > 2:
            return int(fields[2])
    return None


def make_account(target: Target) -> int:
    """User and group safekit: members of the group may run the commands (guide 2.1.6). And safekit-web, which owns
    nothing and is in no other group: as it run the processes that strangers speak to. Returns the number of group
    safekit.

    Raises InstallError when the account tools refuse.
    """
    _make_user(target, ACCOUNT, SAFE)
    _make_user(target, WEB_ACCOUNT, "/nonexistent")
    gid = group_id(target)
    assert gid is not None
    return gid


def _make_user(target: Target, name: str, home: str) -> None:
    """A user of the system with a group of that name."""
    prefix = [] if target.is_this_system else ["--prefix", str(target.root)]
    if group_id(target, name) is None:
        _account_tool(["groupadd", "--system", *prefix, name], name)
    passwd = target.at("/etc/passwd").read_text()
    if not any(line.startswith(f"{name}:") for line in passwd.splitlines()):
        options = ["--system", "--gid", name, "--home-dir", home, "--no-create-home", "--shell", "/usr/sbin/nologin"]
        _account_tool(["useradd", *options, *prefix, name], name)


def _account_tool(command: list[str], account: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(
            f"{command[0]} failed ({done.returncode}): {done.stderr.strip()}",
            f"create the system user and group '{account}' by hand, then run safekitinstall again",
        )


def prepare_safevar(target: Target, gid: int, new_key: bytes) -> bool:
    """SAFEVAR with the key of the local bus. An existing key and all state stay. True when the key was made."""
    make_directory(target.safevar, mode=0o2770, gid=gid)
    for name in ("modules", "cluster", "snapshot"):
        make_directory(target.safevar / name, mode=0o2770, gid=gid)
    key = target.safevar / "bus.key"
    if key.is_file() and key.stat().st_size > 0:
        return False
    write_file(key, new_key.hex() + "\n", mode=0o640, gid=gid)
    return True


def install_settings(target: Target) -> None:
    """/etc/safeini.xml (kept when it is there), PATH, completion and the command in /usr/local/bin."""
    if not target.at(SAFEINI).exists():
        write_file(target.at(SAFEINI), '<?xml version="1.0"?>\n<safeini mapper="6259"/>\n')
    write_file(target.at(PROFILE), f'case ":$PATH:" in *":{SAFE}:"*) ;; *) PATH="$PATH:{SAFE}" ;; esac\n')
    write_file(target.at(COMPLETION), f'source <("{SAFE}/safekit" completion bash)\n')
    command = target.at(COMMAND)
    if not command.exists() and not command.is_symlink():
        command.parent.mkdir(parents=True, exist_ok=True)
        command.symlink_to(f"{SAFE}/safekit")


def systemd_is_running(target: Target) -> bool:
    return target.is_this_system and Path("/run/systemd/system").is_dir()


def systemctl(*arguments: str) -> None:
    """Raises InstallError with what systemd said."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise InstallError(
            f"systemctl {' '.join(arguments)} failed: {(done.stderr or done.stdout).strip()}",
            f"see: systemctl status {UNIT}; journalctl -u {UNIT}",
        )


def _at_boot(target: Target, unit: str) -> bool:
    """What `safekit boot webon|weboff|snmpon|snmpoff` has set, which an upgrade respects."""
    if unit not in BOOT_SETTINGS:
        return unit != CA_UNIT
    name, default = BOOT_SETTINGS[unit]
    setting = target.safevar / name
    return (setting.read_text().strip() if setting.exists() else default) == "on"


def install_service(target: Target) -> str:
    """The units, enabled as `safekit boot` says, and (re)started where systemd runs. What was done.

    An SNMP agent that was started by hand is started again, too.
    """
    for unit in UNITS:
        text = (target.safe / "private" / "conf" / "systemd" / unit).read_text()
        write_file(target.at(f"{UNIT_FILES}/{unit}"), text)
    enabled = [unit for unit in UNITS if _at_boot(target, unit)]
    names = " and ".join(unit.removesuffix(".service") for unit in enabled)
    if systemd_is_running(target):
        systemctl("daemon-reload")
        for unit in enabled:
            systemctl("enable", unit)
            systemctl("restart", unit)
        for unit in UNITS:
            if unit not in enabled and unit != WEB_UNIT:
                systemctl("try-restart", unit)  # one that was started by hand
        return f"{names}: started, and start at boot"
    for unit in enabled:
        link = target.at(f"{WANTED_BY}/{unit}")
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"{UNIT_FILES}/{unit}")
    return f"{names}: start at boot"


def remove_service(target: Target) -> None:
    for unit in reversed(UNITS):
        if systemd_is_running(target) and target.at(f"{UNIT_FILES}/{unit}").exists():
            systemctl("disable", "--now", unit)
        for folder in (WANTED_BY, UNIT_FILES):
            target.at(f"{folder}/{unit}").unlink(missing_ok=True)
    if systemd_is_running(target):
        systemctl("daemon-reload")


def remove_settings(target: Target) -> None:
    for path in (PROFILE, COMPLETION):
        target.at(path).unlink(missing_ok=True)
    command = target.at(COMMAND)
    if command.is_symlink() and str(command.readlink()) == f"{SAFE}/safekit":
        command.unlink()
