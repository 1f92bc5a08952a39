"""The files of the module that a plan becomes: an ordinary one (guide 13), for people to read and edit. Pure."""

from __future__ import annotations

import shlex
from xml.sax.saxutils import escape, quoteattr

from cli.protect.plan import Plan

Files = dict[str, str]
"""Path in the module -> text."""
SCRIPTS = ("bin/prestart", "bin/start_prim", "bin/stop_prim")


def files_of(plan: Plan) -> Files:
    """All of them."""
    return {
        "conf/userconfig.xml": _userconfig(plan),
        "bin/prestart": PRESTART,
        "bin/start_prim": START,
        "bin/stop_prim": STOP,
    }


def _userconfig(plan: Plan) -> str:
    lines = [
        "<!DOCTYPE safe>",
        f"<!-- {_comment(', '.join(plan.units))} on {_comment(plan.here)} and {_comment(plan.there)}:",
        "     one of them runs it, its files are replicated to the other one in real time, and it moves there when its",
        "     server fails. Made by safekit protect, and yours to edit. After a change:",
        f"     safekit confcheck -m {plan.module}, safekit config -m {plan.module},"
        f' safekit -H "*" -E {plan.module}. -->',
        "<safe>",
    ]
    if plan.address:
        lines += [
            "  <!-- The address of the clients. It is on the server that runs the service. -->",
            f'  <macro name="VIRTUAL_IP" value={quoteattr(plan.address)}/>',
        ]
    lines += [
        "",
        '  <service mode="mirror" defaultprim="alone" maxloop="3" loop_interval="24" failover="on">',
        "",
        "    <!-- A heartbeat on each network that the two servers share: the loss of one network is then not taken",
        "         for the loss of a server. Milliseconds: between two heartbeats, and how long a silent server is",
        "         still believed to live. The replication goes over the one with the ident flow. -->",
        f'    <heart pulse="{_pulse(plan.timeout)}" timeout="{round(plan.timeout * 1000)}">',
    ]
    for lan in plan.lans:
        ident = "flow" if lan == plan.flow else lan
        lines.append(f"      <heartbeat name={quoteattr(lan)} ident={quoteattr(ident)}/>")
    lines += [
        "    </heart>",
        "",
        '    <!-- async="second": a write returns when both servers have it, async="none": when it is on the disk of',
        "         the other one too. What the service syncs is on the disk here in both cases. -->",
        '    <rfs async="second" acl="off" nbrei="3">',
        *(f'      <replicated dir={quoteattr(each.path)} mode="read_only"/>' for each in plan.directories),
        "    </rfs>",
        "",
    ]
    if plan.address:
        lines += [
            "    <vip>",
            "      <interface_list>",
            '        <interface check="on" arpreroute="on">',
            "          <real_interface>",
            '            <virtual_addr addr="%VIRTUAL_IP%" where="one_side_alias" check="on"/>',
            "          </real_interface>",
            "        </interface>",
            "      </interface_list>",
            "    </vip>",
            "",
        ]
    lines += [
        "    <!-- bin/start_prim and bin/stop_prim with these variables; their output is in userlog.ulog. -->",
        '    <user nicestoptimeout="300" forcestoptimeout="60" logging="userlog">',
        f'      <var name="UNITS" value={quoteattr(" ".join(plan.units))}/>',
    ]
    lines.append(f'      <var name="AT_BOOT" value={quoteattr(" ".join(plan.disabled))}/>')
    if plan.checked is not None:
        lines.append(f'      <var name="PORT" value="{plan.checked.port}"/>')
    lines += [
        f'      <var name="DATA" value={quoteattr(" ".join(shlex.quote(each.path) for each in plan.directories))}/>',
        "    </user>",
        "",
        "    <!-- What systemd says of the service, every 10 seconds: one that has ended is started again here, three",
        "         times a day (maxloop), then the other server takes over. -->",
        '    <errd polltimer="10">',
        *(
            f'      <proc name={quoteattr(unit)} service="yes" atleast="1" action="restart" class="prim"/>'
            for unit in plan.units
        ),
        "    </errd>",
    ]
    lines += _check(plan)
    lines += ["  </service>", "</safe>", ""]
    return "\n".join(lines)


def _check(plan: Plan) -> list[str]:
    lines: list[str] = []
    if plan.checked is not None:
        address = "%VIRTUAL_IP%" if plan.address and plan.checked.address == plan.address else plan.checked.address
        lines += [
            "    <!-- Does it take connections? When it does not, it is started again here. -->",
            f'    <tcp ident={quoteattr(_label(plan.module))} when="prim">',
            f'      <to addr={quoteattr(address)} port="{plan.checked.port}" interval="10" timeout="5"/>',
            "    </tcp>",
        ]
    if plan.witness:
        lines += [
            "    <!-- When all networks between the servers fail, only the one that reaches the witness goes on. -->",
            f'    <splitbrain ident="witness" exec="ping" arg={quoteattr(plan.witness)}/>',
        ]
    return ["", "    <check>", *(f"  {line}" for line in lines), "    </check>"] if lines else []


def _pulse(timeout: float) -> int:
    """The guide's pulse of 700 ms goes with its time-out of 30 s; a short time-out needs a quicker one."""
    return min(700, max(100, round(timeout * 1000 / 10)))


def _label(text: str) -> str:
    return "".join(c if (c.isalnum() and c.isascii()) or c in "_.:-" else "-" for c in text)[:128]


def _comment(text: str) -> str:
    return escape(text).replace("--", "- -")


PRESTART = """#!/bin/sh
# Runs first when the module starts, before this server has a role. The service must not run outside the control of
# the module, and must not start at boot by itself: it would find no data, or write past the replication.
#
# Arguments: $1 state being left, $2 state being entered, $3 action.

echo "$(date) prestart $*"

for unit in $AT_BOOT; do
    if [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = enabled ]; then
        echo "$unit was to start at boot; the module does that"
        systemctl disable "$unit"
    fi
done
"$SAFEUSERBIN/stop_prim" "$@" || "$SAFEUSERBIN/stop_prim" force "$@"
exit 0
"""

START = """#!/bin/sh
# Starts the service on the server that becomes PRIM or ALONE, and returns when it serves.
#
# Arguments: $1 state being left, $2 state being entered, $3 action (start, swap, restart, ...).
# Environment: SAFE, SAFEVAR, SAFEMODULE, SAFEUSERBIN, SAFEUSERVAR, and the variables of <user> in userconfig.xml.
# The replicated directories are writable and the virtual address is set when this script runs.

echo "$(date) start_prim $*"

give_up() {
    echo "$1"
    "$SAFE/safekit" printe "start_prim: $1"
    exit 1
}

# An empty directory where there was data is a file system that is not mounted, or a mistake: the service would begin
# with nothing, and nothing would be replicated over everything.
SEEN=$SAFEUSERVAR/data.seen
eval "set -- $DATA"
for directory in "$@"; do
    if [ -z "$(ls -A "$directory")" ] && grep -qxF "$directory" "$SEEN" 2>/dev/null; then
        give_up "$directory is empty and was not: restore it (or, if that is right: rm $SEEN)"
    fi
done

for unit in $UNITS; do
    systemctl reset-failed "$unit" 2>/dev/null
    systemctl start "$unit" ||
        give_up "$unit did not start: $(journalctl -q -n 1 -o cat -u "$unit" 2>/dev/null) (journalctl -u $unit)"
done

# systemd says that a service runs before some services take connections.
tries=0
until [ -z "${PORT:-}" ] || ss -Hltn "sport = :$PORT" | grep -q .; do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || give_up "$UNITS runs, and nothing listens on port $PORT after two minutes"
    for unit in $UNITS; do
        systemctl is-active --quiet "$unit" || give_up "$unit ended while it started (journalctl -u $unit)"
    done
    sleep 0.2
done

for directory in "$@"; do
    [ -z "$(ls -A "$directory")" ] || echo "$directory"
done >"$SEEN"
exit 0
"""

STOP = """#!/bin/sh
# Stops the service on the server that leaves PRIM or ALONE. It is called twice:
#
#   stop_prim FROM TO ACTION          stop in good order, and return when everything is stopped
#   stop_prim force FROM TO ACTION    whatever still runs must go now
#
# Nothing may use the replicated directories afterwards. A stop of what does not run is a success.

echo "$(date) stop_prim $*"

backwards=
for unit in $UNITS; do
    backwards="$unit $backwards"
done
status=0
for unit in $backwards; do
    case $(systemctl show -p ActiveState "$unit") in
    *=inactive | *=failed) continue ;;
    esac
    if [ "${1:-}" = force ]; then
        systemctl kill -s KILL "$unit"
    fi
    systemctl stop "$unit" || status=$?
done
if [ "$status" -ne 0 ]; then
    "$SAFE/safekit" printe "stop_prim: $UNITS did not stop in good order (status $status)"
fi
exit "$status"
"""
