"""Guide 4.4 on a mirror: the common tail of every row on a server that is ALONE, and what a SECOND does.

Each row has a module of its own on one server; all faults come at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from checked import SCRIPTS, SWITCH, Checked, config
from labs import lab_of_the_file
from pair import in_order

from lab.cluster import Lab, Node
from lab.waiting import wait_until

ROUNDS = 3
LIMIT = 180.0  # ten modules begin anew at the same time: a bound for what hangs, not for what is slow
EXTRA = "10.123.0.9"
WAKEUP = "Transition WAKEUP from failover rule Implicit_WAKEUP"
SERVE = "setsid /usr/bin/python3 -I -m http.server {port} </dev/null >/dev/null 2>&1 & echo $! > /run/{port}.pid"
TCP = '<check><tcp ident="id" when="{when}"><to addr="127.0.0.1" port="{port}" interval="1" timeout="1"/></tcp></check>'
PROC = '<errd polltimer="5"><proc name="{name}" action="{action}" class="prim"/></errd>'
DEMON = "#!/bin/sh\ncp -f /bin/sleep /var/tmp/{0}\nsetsid /var/tmp/{0} 100000 </dev/null >/dev/null 2>&1 &\n"
END_DEMON = "#!/bin/sh\npkill -9 -x {0}\nexit 0\n"
SERVICE = f"#!/bin/sh\n{SERVE}\n"
END_SERVICE = "#!/bin/sh\nkill -9 $(cat /run/{port}.pid) 2>/dev/null\nexit 0\n"
EXPECTED = ("action_rule", "transition_rule", "stopping_loop", "failover_remote_stop")


lab = lab_of_the_file()


@dataclass(frozen=True)
class Row:
    """A module with one checker, its resource; what breaks it and what is logged then; what mends it."""

    name: str
    text: str
    resource: str
    fail: Callable[[], object]
    messages: Sequence[str]
    mend: Callable[[], object] = lambda: None
    mended: Sequence[str] = ()
    scripts: tuple[tuple[str, str], ...] = ()


def by_rule(verb: str, resource: str, who: str, rule: str) -> list[str]:
    """Messages of an action that a rule asks for."""
    name = {"wait": "WAIT_TR"}.get(verb, verb.upper())
    end = {"wait": ["Local state WAIT red"], "stopstart": ["Action start called automatically"]}.get(verb, [])
    begin = [f"Resource {resource} set to down by {who}", f"Action {verb} from failover rule {rule}"]
    return [*begin, f"Transition {name} from failover rule {rule}", *end]


def dead_process(node: Node, action: str) -> Row:
    name = f"appli{action}"
    again = ["Action start called automatically"] if action == "stopstart" else []
    return Row(
        f"errd{action}",
        config(PROC.format(name=name, action=action)),
        f"proc.{name}",
        lambda: node.kill(name),
        [f"event atleast on proc {name}", f"Action {action} called by errd", "Script stop_prim", *again],
        scripts=(("start_prim", DEMON.format(name)), ("stop_prim", END_DEMON.format(name))),
    )


def closed_port(node: Node, verb: str, rules: str, rule: str, port: int) -> Row:
    scripts = (("start_prim", SERVICE.format(port=port)), ("stop_prim", END_SERVICE.format(port=port)))
    return Row(
        f"tcp{verb}",
        config(TCP.format(when="prim", port=port), rules=rules),
        "tcp.id",
        lambda: node.run(f"kill -9 $(cat /run/{port}.pid)"),
        by_rule(verb, "tcp.id", "tcpcheck", rule),
        scripts=scripts,
    )


def waits(name: str, text: str, resource: str, who: str, rule: str, fail: Callable[[], object],
          mend: Callable[[], object], **scripts: str) -> Row:  # fmt: skip
    up = [f"Resource {resource} set to up by {who}", WAKEUP]
    return Row(name, text, resource, fail, by_rule("wait", resource, who, rule), mend, up, tuple(scripts.items()))


def rows(lab: Lab, node: Node, peer: Node) -> list[Row]:
    """T4.4.1 to T4.4.7 of the guide; T4.4.8 is in test_acceptance_checks."""
    wait, stopstart = "r: if ({} == down) then wait();", "r: if ({} == down) then stopstart();"
    ping = f'<check><ping ident="id"><to addr="{peer.address()}" interval="1" timeout="1"/></ping></check>'
    other = f'<to addr="{node.address()}" interval="1" timeout="2"/>'
    custom = '<check><custom ident="id" when="pre" exec="customscript"/></check>'
    address = f"{EXTRA}/32 dev lo"
    return [
        dead_process(node, "restart"),
        dead_process(node, "stopstart"),
        closed_port(node, "restart", "", "tcp_failure", 8011),
        closed_port(node, "stopstart", stopstart.format("tcp.id"), "r", 8012),
        waits("tcppre", config(TCP.format(when="pre", port=8013), rules=wait.format("tcp.id")), "tcp.id", "tcpcheck",
              "r", lambda: node.run("kill -9 $(cat /run/8013.pid)"), lambda: node.run(SERVE.format(port=8013))),
        waits("intf", config(f'<check><intf ident="id"><to local_addr="{node.address("repli")}"/></intf></check>'),
              "intf.id", "intfcheck", "interface_failure", lambda: node.cut("repli"), lambda: node.join("repli")),
        waits("ping", config(ping), "ping.id", "pingcheck", "ping_failure",
              lambda: lab.block(peer, node, "default"), lambda: lab.unblock(peer, node, "default")),
        waits("module", config(f'<check><module name="other" ident="id">{other}</module></check>'), "module.id",
              "modulecheck", "module_failure", lambda: node.safekit("stop", "-m", "other"),
              lambda: node.safekit("start", "-m", "other")),
        waits("custom", config(custom, rules=wait.format("custom.id")), "custom.id", "customscript", "r",
              lambda: node.run(["touch", SWITCH]), lambda: node.run(["rm", "-f", SWITCH]),
              customscript=SCRIPTS["customscript"]),
        Row("ip", config(f'<check><ip ident="id"><to addr="{EXTRA}"/></ip></check>'), "ip.id",
            lambda: node.run(f"ip addr del {address}"), by_rule("stopstart", "ip.id", "ipcheck", "ip_failure"),
            scripts=(("start_prim", f"#!/bin/sh\nip addr replace {address}\n"),
                     ("stop_prim", f"#!/bin/sh\nip addr del {address} 2>/dev/null\nexit 0\n"))),
    ]  # fmt: skip


def test_a_fault_of_the_secondary_is_its_own(lab: Lab) -> None:
    """A restart leaves it SECOND, a wait takes it out until the fault is mended; the primary goes on."""
    module = Checked(lab)
    module.begin_test()
    module.expect(*EXPECTED)
    one, two = module.nodes
    inside = """<check><custom ident="app" when="both" exec="appscript"/>
      <custom ident="id" when="pre" exec="customscript"/></check>"""
    rules = """app: if (custom.app == down) then restart();
    needed: if (custom.id == down) then wait();"""
    app = SCRIPTS["customscript"].replace(SWITCH, "/var/tmp/app").replace("-i customscript", "-i appscript")
    scripts = {"appscript": app, "stop_both": "#!/bin/sh\nrm -f /var/tmp/app\n"}
    module.reconfigure(config(inside, rules=rules), **scripts)
    module.start(one, two)
    wait_until(lambda: module.sees(two, "custom.app"), 10, "the checker spoke")
    mark = module.mark()
    two.run(["touch", "/var/tmp/app"])
    restarted = [*by_rule("restart", "custom.app", "appscript", "app"), "Local state SECOND green"]
    module.wait_log(two, mark, restarted)
    assert in_order(module.log(one, mark), ["Remote state SECOND magenta", "Remote state SECOND green"]) == ""
    assert module.state(one) == "PRIM green"
    mark = module.mark()
    with module.switched(two):
        module.wait_log(two, mark, by_rule("wait", "custom.id", "customscript", "needed"))
        module.wait(one, "ALONE green")
    module.wait_log(two, mark, ["Resource custom.id set to up by customscript", WAKEUP, "Local state SECOND green"])
    module.wait(one, "PRIM green")
    assert not any(line.code == "script" and "_prim" in line.english for line in module.log(one, mark))
    for node in module.nodes:
        module.stop(node)
    module.check_logs()


def test_a_module_does_not_start_without_an_address_of_the_virtual_one(lab: Lab) -> None:
    """Guide T4.4.4, the note: the interface is disabled instead of unplugged."""
    module = Checked(lab)
    module.begin_test()
    module.expect(*EXPECTED, "vip_not_set", "vip_failed", "vip_unset", "vip_link")
    one, _ = module.nodes
    address = f"""<vip><interface_list><interface check="on" arpreroute="on"><real_interface>
      <virtual_addr addr="{lab.vip}" where="one_side_alias"/></real_interface></interface></interface_list></vip>"""
    module.reconfigure(config(address, mode="light"), nodes=[one])
    module.start_up(one)
    mark = module.mark()
    device = one.run(f"ip -o -4 addr show to {one.address()}").stdout.split()[1]
    length = one.run(f"ip -o -4 addr show to {one.address()}").stdout.split()[3]
    one.run(f"ip addr del {length} dev {device}")
    module.wait_log(one, mark, ["Action wait from failover rule interface_failure", "Local state WAIT red"])
    module.stop(one)
    mark = module.mark()
    one.safekit("start", "-m", module.module)
    module.wait_log(one, mark, ["Action stopstart from failover rule ip_failure", "Stopping loop",
                                "Local state STOP red"], LIMIT)  # fmt: skip
    one.run(f"ip addr add {length} dev {device}")
    module.start_up(one)
    module.stop(one)
    module.check_logs()


def test_three_actions_then_stop_on_a_server_that_is_alone(lab: Lab) -> None:
    node, peer = lab.node("node1"), lab.node("node2")
    node.safekit("webserver", "start")
    other = Checked.beside(node, "other", config("", mode="light"))
    other.start_up(node)
    node.run(SERVE.format(port=8013))
    table = [(row, Checked.beside(node, row.name, row.text, **dict(row.scripts))) for row in rows(lab, node, peer)]
    for _, module in table:
        node.safekit("start", "-m", module.module)
    for turn in range(ROUNDS + 1):
        for row, module in table:
            wait_until(
                lambda row=row, module=module: module.state(node) == "ALONE green" and module.sees(node, row.resource),  # type: ignore[misc]
                LIMIT, lambda module=module: f"{module.module} {module.state(node)}\n{module.tail()}",  # type: ignore[misc]
            )  # fmt: skip
        marks = {row.name: module.mark() for row, module in table}
        for row, _ in table:
            row.fail()
        last = turn == ROUNDS
        end = ["Stopping loop", "Local state STOP red"]
        for row, module in table:
            module.wait_log(node, marks[row.name], [*_begin(row), *end] if last else row.messages, LIMIT)
        for row, _ in table:
            row.mend()
        for row, module in table:
            if row.mended and not last:
                module.wait_log(node, marks[row.name], [*row.messages, *row.mended, "Local state ALONE green"], LIMIT)
    for _, module in table:
        module.wait(node, "STOP red")
    other.stop(node)
    node.run("kill -9 $(cat /run/8013.pid)")


def _begin(row: Row) -> Sequence[str]:
    """What the fourth detection says before the loop is stopped."""
    return [message for message in row.messages if message.startswith(("Resource ", "event ", "Action "))
            and message != "Action start called automatically"]  # fmt: skip
