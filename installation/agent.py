"""For what speaks to other systems: SAFE/snmp (guide 10.8), SAFE/KairosDB (10.7), SAFE/conf/notify.conf."""

from __future__ import annotations

from installation.source import Source
from installation.target import Target, make_directory, write_file
from installation.web import save_changed


def install_agent(target: Target, gid: int) -> str:
    """SAFE/snmp. Settings that an administrator changed stay in force, with a dated copy whose name is returned."""
    snmp, delivered = target.safe / "snmp", target.safe / "private" / "conf" / "snmp"
    make_directory(snmp, mode=0o755, gid=gid)
    make_directory(snmp / "conf", mode=0o2750, gid=gid)
    make_directory(snmp / "mib", mode=0o755, gid=gid)
    write_file(snmp / "mib" / "safekit.mib", (delivered / "safekit.mib").read_text())
    default = (delivered / "snmpd.conf.default").read_text()
    settings, former = snmp / "conf" / "snmpd.conf", snmp / "conf" / "snmpd.conf.default"
    saved = save_changed(settings, former, gid, "snmpd")
    write_file(former, default, mode=0o640, gid=gid)
    if not settings.exists():
        write_file(settings, default, mode=0o640, gid=gid)
    return saved


def install_notify(target: Target, gid: int) -> None:
    """The settings of notification, which tell nobody yet; those that are there stay."""
    settings = target.safe / "conf" / "notify.conf"
    if not settings.exists():
        default = (target.safe / "private" / "conf" / "notify.conf.default").read_text()
        write_file(settings, default, mode=0o640, gid=gid)


def install_kairosdb(source: Source, target: Target) -> None:
    """SAFE/KairosDB: README and dashboard.json (guide 10.7.2)."""
    for name in ("README", "dashboard.json"):
        write_file(target.safe / "KairosDB" / name, (source.path / "private" / "KairosDB" / name).read_text())
