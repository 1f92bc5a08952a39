"""Module checkers (guide T4.4.6), programs that misbehave, the demonstration templates, simulate and why."""

from __future__ import annotations

import time

import pytest
from checked import BOTH, SWITCH, Checked, config
from labs import lab_of_the_file
from pair import Mark, Pair, userconfig

from lab.cluster import Lab
from lab.waiting import wait_until

EXPECTED = ("action_rule", "transition_rule", "errd_event", "stopping_loop", "script_timeout", "failover_no_heartbeat")


lab = lab_of_the_file()


def test_t4_4_6_a_module_that_depends_on_another(module: Checked) -> None:
    one, _ = module.nodes
    one.safekit("webserver", "start")
    other = module.beside(one, "othermodule", config("", mode="light"))
    target = f'<to addr="{one.address()}" interval="1" timeout="2"/>'
    check = f'<check><module name="othermodule">{target}</module></check>'
    module.reconfigure(config(check, mode="light"), nodes=[one], **BOTH)
    resource = f"module.othermodule_{one.address()}"
    mark = module.mark()
    one.safekit("start", "-m", module.module)
    module.wait_log(
        one, mark, [f"Resource {resource} set to down by modulecheck", "Action wait from failover rule module_failure"]
    )
    module.wait(one, "WAIT red")
    mark = module.mark()
    one.safekit("start", "-m", "othermodule")
    module.wait_log(
        one,
        mark,
        [f"Resource {resource} set to up by modulecheck", "Transition WAKEUP from failover rule Implicit_WAKEUP"],
    )
    module.wait(one, "UP green")
    time.sleep(1.5)
    mark = module.mark()
    one.safekit("restart", "-m", "othermodule")
    again = ["Action stopstart called by modulecheck", "Action start called automatically", "Local state UP green"]
    module.wait_log(one, mark, again)
    other.stop(one)


WILD = """#!/bin/sh
trap '' TERM
"$SAFE/safekit" set -r "$2" -v up -i wild
(trap '' TERM; while :; do sleep 0.2; done) &
setsid sh -c 'trap "" TERM; while :; do sleep 0.3; done' &
head -c 3000000 /dev/zero | tr '\\0' x
while :; do sleep 0.2; done
"""
DYING = """#!/bin/sh
exit 1
"""
HANGING = """#!/bin/sh
trap '' TERM
[ "$1" = force ] && exit 0
sleep 1000
"""


def test_wild_programs_leave_the_module_controllable(module: Checked) -> None:
    one, _ = module.nodes
    inside = """<check><custom ident="wild" when="both" exec="wild"/><custom ident="dying" when="both" exec="dying"/>
      </check>"""
    module.reconfigure(
        config(inside, mode="light").replace('nicestoptimeout="5"', 'nicestoptimeout="1"'),
        nodes=[one],
        start_both="#!/bin/sh\nexit 0\n",
        stop_both=HANGING,
        wild=WILD,
        dying=DYING,
    )
    module.start_up(one)
    wait_until(lambda: module.value(one, "custom.wild") == "up", 10, "the wild checker speaks")
    begin = time.monotonic()
    one.safekit("restart", "-m", module.module)
    module.wait(one, "UP green", 30)
    one.safekit("stop", "-m", module.module)
    module.wait(one, "STOP red", 40)
    assert time.monotonic() - begin < 40
    left = [line for line in one.run("ps -eo args").stdout.splitlines() if "sleep 0." in line or "sleep 1000" in line]
    assert left == [], "something is left running"


def test_a_start_script_that_hangs_ends_with_forcestop(module: Checked) -> None:
    one, _ = module.nodes
    hang = "#!/bin/sh\ntrap '' TERM\nsleep 2000\n"
    module.reconfigure(config("", mode="light"), nodes=[one], start_both=hang, stop_both="#!/bin/sh\nexit 0\n")
    one.safekit("start", "-m", module.module)
    module.wait(one, "UP magenta")
    one.safekit("forcestop", "-m", module.module)
    module.wait(one, "STOP red", 20)
    assert "sleep 2000" not in one.run("ps -eo args").stdout


def test_simulate_and_why_on_both_servers(module: Checked) -> None:
    one, two = module.nodes
    target = '<to addr="127.0.0.1" port="8000" interval="1" timeout="1"/>'
    tcp = f'<check><tcp ident="id" when="prim">{target}</tcp></check>'
    module.reconfigure(config(tcp))
    told = one.safekit("simulate", "-m", module.module, "--state", "PRIM", "--set", "tcp.id=down").stdout
    assert "Action restart from failover rule tcp_failure" in told
    assert "Begin: node1 PRIM, node2 SECOND" in told and "End: node1 PRIM green, node2 SECOND green" in told
    told = one.safekit("simulate", "-m", module.module, "--set", "tcp.idd=down").stdout
    assert "Note: nothing in this module sets tcp.idd" in told
    path = f"/opt/safekit/modules/{module.module}/conf/userconfig.xml"
    one.write(path, config(tcp, rules="mine: if (tcp.id == down) then stopstart();"))
    told = one.safekit("simulate", "-m", module.module, "--set", "tcp.id=down").stdout
    assert "not applied yet" in told and "Action stopstart from failover rule mine" in told
    assert "Action restart" in one.safekit("simulate", "-m", module.module, "--active", "--set", "tcp.id=down").stdout
    assert "no rule acts" in one.safekit("simulate", "-m", module.module, "--set", "custom.x=down").stdout
    refused = one.safekit("simulate", "-m", module.module, "--set", "nonsense", check=False)
    assert refused.returncode == 1 and "Next step" in refused.stderr
    assert module.state(one).startswith("STOP"), "nothing was changed"
    module.start(one, two)
    wait_until(lambda: module.value(one, "tcp.id") == "up", 10, "the service is seen")
    told = two.safekit("simulate", "-m", module.module, "--node-down", "node1").stdout
    assert "Begin: node2 SECOND, node1 PRIM" in told and "End: node2 ALONE green, node1 off" in told, told
    module.stop_web(one)
    wait_until(
        lambda: "restart()  (rule tcp_failure)" in two.safekit("why", "-v", "-m", module.module, "-s", "60").stdout,
        15,
        "the other one knows",
    )
    for node in (one, two):
        text = node.safekit("why", "-v", "-m", module.module, "-s", "60").stdout
        assert "node1  restart()  (rule tcp_failure)" in text, text
        assert "tcp.id = down, set by tcpcheck at" in text, text
        assert "node2  WAIT -> SECOND  (rule become_second)" in text, text


@pytest.mark.parametrize("template", ["softerrd", "vhost"])
def test_a_demonstration_template(lab: Lab, template: str) -> None:
    one = lab.node("node1")
    made = Checked(lab, template)
    one.safekit("module", "install", "-m", template, f"/opt/safekit/Application_Modules/demo/{template}.safe")
    one.safekit("config", "-m", template)
    one.safekit("prim", "-m", template)
    made.wait(one, "ALONE green", 60)
    if template == "softerrd":
        wait_until(
            lambda: made.value(one, "proc.myappli") == "up" and made.value(one, "proc.mybin") == "up", 10, "seen"
        )
        mark = made.mark()
        one.safekit("kill", "-m", template, "-name=myappli", "-level=9")
        made.wait_log(one, mark, ["event atleast on proc myappli", "restart_myappli"], levels="EI")
        wait_until(lambda: one.pids("myappli"), 10, "the handler started it again")
        mark = made.mark()
        one.safekit("kill", "-m", template, "-name=mybin", "-level=terminate")
        messages = ["event atleast on proc mybin", "Action restart called by errd", "Local state ALONE green"]
        made.wait_log(one, mark, messages)
    else:
        texts = [line.english for line in made.log(one, Mark({}), "I")]
        assert "hostname out of vhost environment is node1" in texts, texts
        assert "hostname in vhost environment is virtualname" in texts, texts
    one.safekit("stop", "-m", template)
    made.wait(one, "STOP red")
    assert not one.pids("mybin") and not one.pids("myappli")


def test_leader_and_follower(lab: Lab) -> None:
    """Guide 15.14: the followers wait for the leader, go with it, and come back with it."""
    one = lab.node("node1")
    one.safekit("webserver", "start")
    leader, follower = Checked(lab, "leader"), Checked(lab, "follower")
    for name in ("leader", "follower"):
        one.safekit("module", "install", "-m", name, f"/opt/safekit/Application_Modules/demo/{name}.safe")
    path = "/opt/safekit/modules/leader/conf/userconfig.xml"
    one.write(path, one.read(path).replace("192.168.4.10", lab.vip))
    one.run(["mkdir", "-p", "/shared"])
    for name in ("leader", "follower"):
        one.safekit("config", "-m", name)
    one.safekit("start", "-m", "follower")
    follower.wait(one, "WAIT red", 40)
    one.safekit("stop", "-m", "follower")
    follower.wait(one, "STOP red")
    mark = follower.mark()
    one.safekit("prim", "-m", "leader")
    leader.wait(one, "ALONE green", 60)
    follower.wait(one, "UP green", 60)
    follower.wait_log(one, mark, ["Action start called by root", "Script start_both", "Local state UP green"])
    mark = follower.mark()
    one.safekit("restart", "-m", "leader")
    follower.wait_log(one, mark, ["Script stop_both", "End of stop", "Script start_both", "Local state UP green"], 60)
    leader.wait(one, "ALONE green")
    one.safekit("stop", "-m", "leader")
    leader.wait(one, "STOP red", 60)
    assert follower.state(one) == "STOP red"


def test_syncdelta_lets_a_server_start_on_young_data_when_it_is_alone(lab: Lab) -> None:
    """Guide 13.6.4.4: the server with the latest data is lost after the other one was stopped."""
    pair = Pair(lab, "delta", "/delta")
    pair.begin_test()
    pair.expect("not_uptodate", "advice_prim", "previous_halt", *EXPECTED)
    pair.install(userconfig(rfs='syncdelta="2"', directory="/delta"), number=8)
    one, two = pair.nodes
    pair.first_start(one)
    wait_until(lambda: pair.value(two, "rfs.synced") == "up", 20, "the time of the data is noted")
    two.safekit("stop", "-m", "delta")
    pair.wait(two, "STOP red")
    one.poweroff()
    two.safekit("start", "-m", "delta")
    pair.wait(two, "ALONE green", 60)
    why = two.safekit("why", "-v", "-m", "delta", "-s", "80").stdout
    assert "force_uptodate" in why and "rfs.synced = up, set by syncedcheck" in why, why
    one.poweron()
    wait_until(lambda: one.safekit("state", "-m", "delta", check=False).returncode == 0, 30, "safeadmin of node1")
    pair.start_stopped()
    pair.wait_protected(two)
    for node in pair.nodes:
        node.safekit("stop", "-m", "delta")
        pair.wait(node, "STOP red")


CRONTAB = """#!/bin/sh
# crontab -u USER -l|-, as cron's: the image of the lab has no cron
tab=/var/spool/crontab.$2
case $3 in -l) cat "$tab" 2>/dev/null || { echo "no crontab for $2" >&2; exit 1; } ;; -) cat >"$tab" ;; esac
"""


def test_a_scheduled_synchronisation(lab: Lab) -> None:
    """RUL-014, RFS-002 to RFS-005 (guide 13.6.4.10); the test is cron."""
    pair = Pair(lab, "later", "/later")
    pair.begin_test()
    pair.expect("not_uptodate", "advice_prim", *EXPECTED)
    for node in lab:
        node.write("/usr/local/bin/crontab", CRONTAB, mode=0o755)
    pair.install(userconfig(rfs='syncat="01 0 * * *"', directory="/later"), number=9)
    one, two = pair.nodes
    entry = one.read("/var/spool/crontab.safekit").splitlines()[-1]
    at_its_time = entry.partition(" * * * ")[2]
    assert entry.startswith("01 0 * * * [ -x ") and "set -m later -r rfs.syncat -v up" in at_its_time

    two.run(at_its_time)
    assert "rfs.syncat" not in two.safekit("state", "-v", "-m", "later").stdout, "a stopped module: no effect"
    one.safekit("prim", "-m", "later")
    pair.wait(one, "ALONE green")
    one.run("echo first >/later/file")
    two.safekit("second", "-m", "later")
    wait_until(lambda: pair.value(two, "rfs.syncat") == "down", 60, "the first synchronisation")
    pair.wait(two, "WAIT red", 60)
    assert "syncat_wait" in two.safekit("why", "-v", "-m", "later").stdout
    assert two.run("cat /later_For_SafeKit_Replication/file").stdout == "first\n"
    assert "00:01" in two.safekit("state", "-m", "later", check=False).stdout, "when the next one is"

    one.run("echo second >/later/file")
    one.run(at_its_time)
    assert "nothing to do" in one.safekit("set", "-m", "later", "-r", "rfs.syncat", "-v", "up").stdout
    pair.wait(one, "ALONE green")
    assert pair.value(one, "rfs.syncat") == "init", "the schedule says nothing to a primary"
    mark = pair.mark()
    for command in (at_its_time, "/opt/safekit/safekit set -m later -r rfs.syncat -v up"):
        two.run(command)
        wait_until(lambda: pair.value(two, "rfs.syncat") == "up", 10, "it is time")
        wait_until(lambda: pair.value(two, "rfs.syncat") == "down", 60, "the synchronisation has ended")
        pair.wait(two, "WAIT red", 60)
        assert two.run("cat /later_For_SafeKit_Replication/file").stdout == "second\n"
    assert sum(line.code == "resource_set" and "rfs.syncat" in str(line) for line in pair.log(two, mark)) >= 2

    one.poweroff()
    wait_until(lambda: "data at risk" in two.safekit("state", "-m", "later", check=False).stdout, 40, "nobody serves")
    assert pair.state(two) == "WAIT red", "a server with older data does not take over"
    two.safekit("stop", "-m", "later")
    pair.wait(two, "STOP red")
    two.safekit("prim", "-m", "later")
    pair.wait(two, "ALONE green", 60)
    two.safekit("stop", "-m", "later")
    pair.wait(two, "STOP red")
    two.safekit("deconfig", "-m", "later")
    assert "later" not in two.read("/var/spool/crontab.safekit")
    one.poweron()
    wait_until(lambda: one.safekit("state", "-m", "later", check=False).returncode == 0, 30, "safeadmin of node1")


def test_an_automatic_stopstart_reboots_and_its_count_outlives_the_reboot(module: Checked) -> None:
    """automatic_reboot="on", with a program that only notes that the machine should have been restarted."""
    one, _ = module.nodes
    rules = "customid_failure: if (custom.id == down) then stopstart();"
    inside = '<check><custom ident="id" when="both" exec="customscript"/></check>'
    text = config(inside, mode="light", service='automatic_reboot="on"', rules=rules)
    module.expect("rebooting", "action_boot")
    module.reconfigure(text, nodes=[one], **BOTH)
    real = one.run("command -v systemctl").stdout.strip()
    one.run(f"mv {real} {real}.real")
    reboot = f'#!/bin/sh\n[ "$1" = reboot ] && exec touch /var/tmp/rebooted\nexec {real}.real "$@"\n'
    one.write(real, reboot, mode=0o755)
    one.safekit("boot", "-m", module.module, "on")
    module.start_up(one)
    wait_until(lambda: module.sees(one, "custom.id"), 10, "the checker spoke")
    mark = module.mark()
    one.run(["touch", SWITCH])
    module.wait_log(one, mark, ["Action stopstart from failover rule customid_failure", "End of stop"])
    wait_until(lambda: one.run(["test", "-e", "/var/tmp/rebooted"], check=False).returncode == 0, 10, "the reboot")
    module.wait(one, "STOP red")
    assert not any(line.code == "action_auto" for line in module.log(one, mark))
    one.run(["rm", "-f", SWITCH])
    one.poweroff()
    one.poweron()
    wait_until(lambda: module.state(one) == "UP green", 60, lambda: module.tail())
    assert "1 automatic actions" in one.safekit("checkloop", "-m", module.module).stdout
    one.safekit("restart", "-m", module.module)
    assert "0 automatic actions" in one.safekit("checkloop", "-m", module.module).stdout
    one.safekit("boot", "-m", module.module, "off")
    one.run(f"mv {real}.real {real}")
