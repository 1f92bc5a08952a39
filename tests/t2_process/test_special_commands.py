"""Special commands on real processes and on a real firewall in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def special(
    name: str, *arguments: str, prefix: tuple[str, ...] = (), text: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", f"special.{name}", *arguments],
        cwd=CHECKOUT, env={**os.environ, **env}, input=text, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_boundcmd_gives_the_status_of_the_command() -> None:
    assert special("boundcmd", "10", "sh", "-c", "echo out; exit 7").returncode == 7
    assert special("boundcmd", "10", "sh", "-c", "kill -9 $$").returncode == 137
    assert special("boundcmd", "10", "/no/such/command").returncode == 127
    assert special("boundcmd", "x").returncode == 2
    assert special("boundcmd", "10", "cat", text="input").stdout == "input"


def test_boundcmd_ends_the_command_and_its_children(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 61.5 & echo $! > {tmp_path}/child; wait; sleep 62.5"
    begun = time.monotonic()
    done = special("boundcmd", "1", "sh", "-c", script)
    assert done.returncode == 2 and "did not end within 1 s" in done.stderr
    assert 1 <= time.monotonic() - begun < 15
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]


CRONTAB = """#!/bin/sh
# crontab -u USER -l|-  as cron's: one file for each user
place=$(dirname "$0")/tab.$2
case $3 in
-l) [ -e "$place" ] || { echo "no crontab for $2" >&2; exit 1; }; cat "$place" ;;
-) [ ! -e "$place.full" ] || { echo "No space left on device" >&2; exit 1; }; cat > "$place" ;;
esac
"""


def test_gencron_changes_the_crontab_of_one_user_and_restores_it(tmp_path: Path) -> None:
    (tmp_path / "crontab").write_text(CRONTAB)
    (tmp_path / "crontab").chmod(0o755)
    tab = tmp_path / "tab.admin"
    before = "MAILTO=ops\n5 0 * * * $HOME/bin/daily.job >> $HOME/tmp/out 2>&1\n@reboot other.job\n"
    tab.write_text(before)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    comment = ("-c", "SafeKit configuration for mirror")
    done = special("gencron", "del", "admin", "daily.job", *comment, **env)
    assert (done.returncode, done.stdout) == (0, "1 entries of the crontab of admin are disabled\n")
    assert tab.read_text().splitlines()[1:3] == [
        "# SafeKit configuration for mirror",
        "#5 0 * * * $HOME/bin/daily.job >> $HOME/tmp/out 2>&1",
    ]
    assert special("gencron", "add", "admin", "daily.job", *comment, **env).returncode == 0
    assert tab.read_text() == before
    assert special("gencron", "del", "admin", "all", *comment, **env).stdout.startswith("2 entries")
    assert special("gencron", "add", "admin", "all", *comment, **env).returncode == 0 and tab.read_text() == before
    assert special("gencron", "del", "nobody", "all", *comment, **env).stdout.startswith("0 entries")
    (tmp_path / "tab.admin.full").touch()
    done = special("gencron", "del", "admin", "all", *comment, **env)
    assert done.returncode == 1 and "No space left" in done.stderr and tab.read_text() == before
    assert special("gencron", "del", "admin", "all", **env).returncode == 2
    (tmp_path / "crontab").unlink()
    done = special("gencron", "del", "admin", "all", *comment, PATH=str(tmp_path))
    assert done.returncode == 1 and "install cron" in done.stderr


def test_processtree_kills_what_is_meant_only(tmp_path: Path) -> None:
    program = tmp_path / "sk-sleeper"
    shutil.copy("/bin/sleep", program)
    mine, other = (subprocess.Popen([program, seconds]) for seconds in ("71.25", "72.5"))
    try:
        assert str(mine.pid) in special("processtree", "list", "sk-sleeper").stdout
        listed = special("processtree", "list", "all", r"sk-sleeper 71\.25").stdout.splitlines()
        assert [line.split()[0] for line in listed if "special" not in line] == [str(mine.pid)]
        assert special("processtree", "kill", "sk-sleeper", r" 71\.25").returncode == 0
        assert mine.wait(5) != 0 and other.poll() is None
        assert special("processtree", "kill", "all").returncode == 2
        assert special("processtree", "list", "sk-sleeper", "(").returncode == 2
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_processtree_spares_a_neighbour_whose_name_begins_alike(tmp_path: Path) -> None:
    """The kernel keeps 15 characters of a name."""
    started = {}
    for name in ("my-application-one", "my-application-two"):
        shutil.copy("/bin/sleep", tmp_path / name)
        started[name] = subprocess.Popen([tmp_path / name, "73.25"])
    try:
        assert special("processtree", "kill", "my-application-two").returncode == 0
        assert started["my-application-two"].wait(5) != 0 and started["my-application-one"].poll() is None
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_processtree_lists_every_process() -> None:
    total = len([entry for entry in os.listdir("/proc") if entry.isdecimal()])
    for arguments in (("list",), ("list", "all")):
        assert abs(len(special("processtree", *arguments).stdout.splitlines()) - total) < total / 4 + 10


def test_flatlogdump_writes_a_file(tmp_path: Path) -> None:
    done = special("flatlogdump", "-O", str(tmp_path / "out"), text='<log><file path="/a"/></log>')
    assert done.returncode == 0 and (tmp_path / "out").read_text() == "log\nfile path=/a\n"
    assert special("flatlogdump", "-O", "stdout", text="<log>").returncode == 1
    assert special("flatlogdump", text="").returncode == 2


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"sk{os.getpid()}fw"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def nft(netns: str, *arguments: str, text: str | None = None) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", netns, "nft", *arguments], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


RULES = """
table inet filter {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established accept
    udp dport 4800 counter comment "safekit-other"
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
  }
}
table ip nat {
  chain post {
    type nat hook postrouting priority 100;
  }
}
"""


def test_nftables_gets_and_loses_our_rules_only(netns: str, tmp_path: Path) -> None:
    env = {"SAFE": str(tmp_path), "SAFEVAR": str(tmp_path)}
    prefix = ("ip", "netns", "exec", netns)
    assert "no firewall is active" in special("firewallcfg", "add", prefix=prefix, **env).stdout
    nft(netns, "-f", "-", text=RULES)
    before = nft(netns, "list", "ruleset")
    for _ in range(2):  # again gives the same
        done = special("firewallcfg", "add", prefix=prefix, **env)
        assert done.returncode == 0 and done.stdout.startswith("nftables: open for safekit-core: UDP 4800, TCP 9010"), (
            done
        )
        rules = nft(netns, "list", "chain", "inet", "filter", "input")
        assert [rules.count(f"dport {port} accept") for port in (4800, 9010, 9453)] == [1, 1, 1]
        assert rules.count('iifname "lo" accept comment "safekit-core"') == 1
    assert rules.index("dport 9010 accept") < rules.index("ct state"), "before the rules that refuse"
    assert special("firewallcfg", "add", "safeagent", prefix=prefix, **env).returncode == 0
    assert special("firewallcfg", "del", prefix=prefix, **env).returncode == 0
    assert "udp dport 3600 accept" in nft(netns, "list", "ruleset")
    assert special("firewallcfg", "del", "safeagent", prefix=prefix, **env).returncode == 0
    assert nft(netns, "list", "ruleset") == before


def test_probes_of_a_balancer_reach_the_web_service_only(netns: str, tmp_path: Path) -> None:
    """From their networks, in each family; a boot brings them back with the other rules."""
    env = {"SAFE": str(tmp_path), "SAFEVAR": str(tmp_path)}
    prefix = ("ip", "netns", "exec", netns)
    nft(netns, "-f", "-", text=RULES)
    before = nft(netns, "list", "ruleset")
    assert special("firewallcfg", "probes", "status", prefix=prefix, **env).stdout == "off\n"
    done = special("firewallcfg", "probes", "gcp", "10.0.1.7", prefix=prefix, **env)
    assert done.returncode == 0 and "TCP 9010 from 35.191.0.0/16" in done.stdout, done
    rules = nft(netns, "list", "chain", "inet", "filter", "input")
    for source in (
        "ip saddr 35.191.0.0/16",
        "ip saddr 209.85.204.0/22",
        "ip6 saddr 2600:1901:8001::/48",
        "ip saddr 10.0.1.7",
    ):
        assert rules.count(f'{source} tcp dport 9010 accept comment "safekit_probes"') == 1, rules
    assert "4800 accept" not in rules and '"lo"' not in rules and "9453" not in rules
    special("firewallcfg", "probes", "azure", prefix=prefix, **env)
    rules = nft(netns, "list", "chain", "inet", "filter", "input")
    assert "35.191" not in rules and "ip saddr 168.63.129.16 tcp dport 9010 accept" in rules
    assert special("firewallcfg", "probes", "status", prefix=prefix, **env).stdout.startswith("168.63.129.16/32\n")
    special("firewallcfg", "auto", "off", prefix=prefix, **env)
    assert nft(netns, "list", "ruleset") == before
    special("firewallcfg", "auto", "on", prefix=prefix, **env)
    rules = nft(netns, "list", "chain", "inet", "filter", "input")
    assert "ip saddr 168.63.129.16 tcp dport 9010" in rules and "udp dport 4800 accept" in rules
    special("firewallcfg", "auto", "off", prefix=prefix, **env)
    special("firewallcfg", "probes", "off", prefix=prefix, **env)
    special("firewallcfg", "auto", "on", prefix=prefix, **env)
    assert "safekit_probes" not in nft(netns, "list", "ruleset")


def test_probes_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    env = {"SAFE": str(tmp_path), "SAFEVAR": str(tmp_path)}
    for word, said in (
        ("aws", "firewallcfg probes 10.0.1.0/24"),
        ("oracle", "azure, gcp"),
        ("10.0.1.7/24", "azure, gcp"),
    ):
        done = special("firewallcfg", "probes", word, **env)
        assert done.returncode == 1 and said in done.stderr, done
        assert not (tmp_path / "firewall.probes").exists()
    assert special("firewallcfg", "probes").returncode == 2


def test_firewallcfg_says_what_is_wrong(tmp_path: Path) -> None:
    env = {"SAFE": str(tmp_path), "SAFEVAR": str(tmp_path)}
    done = special("firewallcfg", "add", "mirror", **env)
    assert done.returncode == 1 and "Next step: safekit config -m mirror" in done.stderr
    assert special("firewallcfg", "open").returncode == 2
