"""Special commands: what they decide."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekit.model import ports
from safekit.process.table import Process, chosen, tree_lines
from special import firewallcfg, gencron
from special.flatlogdump import flatten

CRONTAB = """SHELL=/bin/sh
# m h dom
5 0 * * * $HOME/bin/daily.job >> $HOME/tmp/out 2>&1
#5 1 * * * old.job
@daily other.job
"""


def test_gencron_disables_one_command_and_restores_it_exactly() -> None:
    text, count = gencron.disable(CRONTAB, "daily.job", "SafeKit configuration for web")
    assert count == 1
    assert "\n# SafeKit configuration for web\n#5 0 * * * $HOME/bin/daily.job" in text and "\n@daily other.job" in text
    assert gencron.disable(text, "daily.job", "SafeKit configuration for web") == (text, 0)
    assert gencron.enable(text, "other.job", "SafeKit configuration for web") == (text, 0)
    assert gencron.enable(text, "daily.job", "another comment") == (text, 0)
    assert gencron.enable(text, "daily.job", "SafeKit configuration for web") == (CRONTAB, 1)


def test_gencron_all_leaves_comments_and_variables() -> None:
    text, count = gencron.disable(CRONTAB, "all", "off")
    assert count == 2 and "SHELL=/bin/sh\n# m h dom\n" in text
    assert gencron.enable(text, "all", "off") == (CRONTAB, 2)


@given(st.text(alphabet="ab#=*5 @/\n", max_size=80), st.sampled_from(["all", "a", "b"]))
def test_gencron_round_trip(text: str, command: str) -> None:
    disabled, count = gencron.disable(text, command, "never written by hand")
    assert gencron.enable(disabled, command, "never written by hand") == (text, count)


TABLE = [
    Process(1, 0, "init", ("/sbin/init",)),
    Process(10, 1, "sh", ("sh", "-c", "x")),
    Process(11, 10, "vi", ("/usr/bin/vi", "/tmp/myfile")),
    Process(12, 1, "averylongprogra", ("/opt/averylongprogram", "--x")),
    Process(13, 99, "orphan"),
    Process(14, 1, "averylongprogra", ("/opt/averylongprogress", "--x")),
]


def test_processes_are_chosen_by_name_and_arguments() -> None:
    assert [p.pid for p in chosen(TABLE, "vi", None)] == [11]
    assert [p.pid for p in chosen(TABLE, "vi", ".*other.*")] == []
    assert [p.pid for p in chosen(TABLE, None, ".*myfile.*")] == [11]
    assert [p.pid for p in chosen(TABLE, "averylongprogram", None)] == [12], "and not its neighbour"


def test_the_tree_shows_every_process_once() -> None:
    lines = tree_lines(TABLE)
    assert lines[:3] == ["1 init /sbin/init", "  10 sh sh -c x", "    11 vi /usr/bin/vi /tmp/myfile"]
    assert len(lines) == len(TABLE) and lines[-1] == "13 orphan [orphan]"


def flat(data: bytes) -> tuple[list[str], str]:
    target = io.StringIO()
    problem = flatten(io.BytesIO(data), target)
    return target.getvalue().splitlines(), problem


def test_logs_become_lines() -> None:
    lines, problem = flat(b'<log module="m"><file path="/a" state="diff">size &amp; time</file><file path="/b"/></log>')
    assert (lines, problem) == (["log module=m", "file path=/a state=diff size & time", "file path=/b"], "")


def test_unfinished_and_hostile_logs() -> None:
    lines, problem = flat(b'<log><file path="/a">x</file><file pa')
    assert "file path=/a x" in lines and problem
    bomb = b'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><l>&b;</l>'
    assert "entities" in flat(bomb)[1]
    assert flat(b'<!DOCTYPE l SYSTEM "/etc/passwd"><l/>')[0] == ["l"]
    assert flat(b"<l a='1&#10;2'>x\ny</l>")[0] == ["l a=1 2 x y"]


def test_ports_to_open() -> None:
    port = ports.Port
    conf = "Define httpadminport 9010\n#Define httpcontrolport 9011\nDefine httpmonitorport 9012\n"
    assert firewallcfg.core_ports(conf, 4900) == (
        port("udp", 4900),
        port("tcp", 9010),
        port("tcp", 9012),
        port("tcp", 9453),
    )
    assert firewallcfg.core_ports("", 4800)[1] == port("tcp", 9010)
    assert firewallcfg.wanted("safeagent") == (port("udp", 3600),)
    assert firewallcfg.wanted("caserv") == (port("tcp", 9001),)
    for name in ("../x", "missing"):
        with pytest.raises(firewallcfg.FirewallError):
            firewallcfg.wanted(name)


def test_iptables_rules_of_others_are_left_alone() -> None:
    listing = (
        "-P INPUT DROP\n-A INPUT -p udp -m udp --dport 4800 -m comment --comment safekit-core -j ACCEPT\n"
        '-A INPUT -p tcp -m comment --comment "safekit-core of mine" -j ACCEPT\n'
        "-A INPUT -p udp -m comment --comment safekit-web -j ACCEPT\n"
    )
    own = firewallcfg.iptables_own(listing, "safekit-core")
    assert [words[:2] for words in own] == [["-D", "INPUT"]] and "4800" in own[0]


def test_zones_of_firewalld_are_read_at_once() -> None:
    listing = (
        "public (active)\n  target: default\n  services: ssh safekit_probes-x safekit-core\n  rich rules: \n"
        '\trule family="ipv4" source address="10.0.0.0/8" service name="safekit_probes" accept\n'
        '\trule family="ipv4" source address="10.0.0.0/8" service name="other" accept\n\n'
        "trusted\n  target: ACCEPT\n  services: \n  rich rules: \n"
    )
    rule = 'rich-rule=rule family="ipv4" source address="10.0.0.0/8" service name="safekit_probes" accept'
    assert firewallcfg.ways_in(listing, "safekit_probes") == {"public": {rule}, "trusted": set()}
    assert firewallcfg.ways_in(listing, "safekit-core")["public"] == {"service=safekit-core"}


def test_ports_are_those_of_the_configuration() -> None:
    """The attribute `port` of <heart>, <heartbeat> and <farm> may name others than the module's id gives."""
    port = ports.Port
    beats = [{"port": 9101}, {"port": 8888}, {"port": 9101}]
    mirror = {"heart": {"heartbeats": beats}, "rfs": {"port": 5600}, "farm": None}
    assert ports.module_ports(mirror) == (port("udp", 8888), port("udp", 9101), port("tcp", 5600))
    assert ports.module_ports({"heart": None, "rfs": None, "farm": {"port": 4806}}) == (port("udp", 4806),)
    assert ports.module_ports({"heart": None}) == ()


def test_special_commands_run_without_an_environment_too() -> None:
    """$SAFEBIN/COMMAND in a script, and /opt/safekit/private/bin/COMMAND in a shell (guide 14.5)."""
    scripts = sorted((Path(__file__).resolve().parents[2] / "private" / "bin").iterdir())
    assert {path.name for path in scripts} >= {"boundcmd", "errdpoll_running", "gencron", "processtree", "vip_if_ctrl"}
    for path in scripts:
        text = path.read_text()
        assert 'exec "${SAFE:-/opt/safekit}/private/env/bin/python" -I -m ' in text, path.name
        assert os.access(path, os.X_OK), path.name
