"""The campaign of a farm: three servers, clients that connect all the time, faults, audits."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from lab.archive import archive
from lab.chaos import audits, rules
from lab.chaos.audits import Answer
from lab.chaos.faults import FARM, Cost, Fault, Step, cost, die
from lab.chaos.programs import server, visitor
from lab.chaos.subject import MODULE_PROCESSES, PYTHON, Finding, Subject, in_time, together
from lab.chaos.watch import Look, Watch
from lab.cluster import Lab, Node

NOTES: Final = "/var/tmp/visits"
THREADS: Final = 3
PULSE, COUNT = 0.2, 8
ENOUGH: Final = 60  # answers that an audit looks at
_SMALL = ("heart", "vipd", "circlog", "arpreroute", "errd", "safeadmin")
_BITMAP = re.compile(r"^Bitmap \d+:((?:[0-9a-f]{8}:){7}[0-9a-f]{8})$", re.MULTILINE)
_LOST_SERVER = ("poweroff", "cut", "freeze_server", "kill_application", "stop", "reboot")
SCRIPT = '#!/bin/sh\n{python} -I "$SAFEUSERBIN/server.py" {word} {vip} 2>>/var/tmp/{word}.err\n'


def userconfig(vip: str, kind: str) -> str:
    """userconfig.xml of the module."""
    return f"""<!DOCTYPE safe>
<safe>
 <service mode="farm" maxloop="1000">
  <farm pulse="{PULSE * 1000:.0f}" mlost_count="{COUNT}" slost_count="{COUNT}"><lan name="default"/></farm>
  <vip><interface_list><interface arpreroute="on" check="off"><virtual_interface type="{kind}">
   <virtual_addr addr="{vip}" where="alias" check="off"/>
  </virtual_interface></interface></interface_list>
  <loadbalancing_list><group name="Visits"><rule port="80" proto="tcp" filter="on_port"/></group></loadbalancing_list>
  </vip>
  <user nicestoptimeout="6" forcestoptimeout="4"/>
  <errd polltimer="5"><proc name="{server.NAME}" atleast="1" action="restart" class="both"/></errd>
 </service>
</safe>
"""


def whole(look: Look) -> bool:
    """Every server says that it is up."""
    return all(sample.state == "UP green" and sample.runner and sample.address for sample in look)


class Farm(Subject):
    """See above."""

    kinds = FARM

    def __init__(self, lab: Lab, seed: int, keep: Path, settings: rules.Settings) -> None:
        super().__init__(lab, seed, keep, replace(settings, timeout=PULSE * COUNT, witness=False))
        self.kind = ("vmac_directed", "vmac_invisible")[int(die(seed, "vmac") * 2)]
        self._client: subprocess.Popen[bytes] | None = None
        self._answers: list[Answer] = []
        self._end = 0

    def about(self) -> str:
        return f"three servers, {self.kind}"

    def set_up(self) -> None:
        words = {"python": PYTHON, "vip": self.lab.vip}
        data = archive(
            userconfig(self.lab.vip, self.kind),
            {
                "start_both": SCRIPT.format(word="start", **words),
                "stop_both": SCRIPT.format(word="stop", **words) + "exit 0\n",
                "server.py": Path(server.__file__).read_text(),
            },
        )
        together(*(lambda node=node: self.install(node, data) for node in self.lab))
        self.watch = Watch(self.lab, self.MODULE, (self.keep / f"seed{self.seed}.timeline").open("w"))
        together(*(lambda node=node: self.safekit(node, "start") for node in self.lab))
        if not self.watch.wait(whole, 60):
            raise Finding([f"the first start: {self.watch.states()}"])
        place = self.outside(self.lab.client, "/var/tmp/visitor.py")
        place.write_text(Path(visitor.__file__).read_text())
        self._client = self.lab.client.popen([PYTHON, "-I", "/var/tmp/visitor.py", self.lab.vip, str(THREADS), NOTES])
        self.logs()

    def close(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client.wait()
        super().close()

    # --- the clients

    def answers(self, since: float) -> list[Answer]:
        """What the clients have noted of connections begun since then."""
        path = self.outside(self.lab.client, NOTES)
        if path.exists():
            with path.open() as file:
                file.seek(self._end)
                text = file.read()
            text = text[: text.rfind("\n") + 1]
            self._end += len(text)
            for line in text.splitlines():
                begun, took, who = line.split()
                self._answers.append(Answer(float(begun), float(took), who))
        return [answer for answer in self._answers if answer.time >= since]

    def _await_answers(self, since: float, count: int) -> list[Answer]:
        """That many of them. Raises Finding."""
        found: list[Answer] = []

        def enough() -> bool:
            found[:] = self.answers(since)
            return len(found) >= count

        in_time(enough, 20, lambda: f"the clients made {len(found)} connections: {found[-5:]}")
        return found

    # --- a step

    def run(self, step: Step) -> str:
        self.history.append(f"--- step {step.number}: {' + '.join(f.kind.name for f in step.faults)}")
        begin = time.monotonic()
        self.account.records += len(self._answers)
        self._answers.clear()
        self.watch.forget()
        allowed = cost(step.faults, witness=False)
        gap = 0.0
        for number, fault in enumerate(step.faults):
            if number and step.gaps[number - 1] == "recovering":
                self.heal()
                self.order()
            victim = fault.pick(0, list(self.lab))
            others = [node for node in self.lab if node is not victim]
            hit = time.monotonic()
            self.hit(fault, victim, *others)
            self.account.kinds[fault.kind.name] = self.account.kinds.get(fault.kind.name, 0) + 1
            self.account.faults += 1
            if len(step.faults) == 1 and fault.hold != "short" and fault.kind.name in _LOST_SERVER:
                gap = self._served_by_the_others(fault, victim, hit)
            if fault.hold != "short" and self.watch.at_rest(0.2, 0.5):
                self.audit_words()
        took = self._recover(step, allowed)
        self.account.steps += 1
        self.account.recoveries.append(took)
        failed = [answer for answer in self.answers(begin) if answer.who.startswith("!")]
        return f"recovered in {took:.1f} s, {len(failed)} connections failed, {gap:.1f} s until the others served all"

    def _served_by_the_others(self, fault: Fault, victim: Node, hit: float) -> float:
        """Who is left serves everybody, within a bound. The seconds until then. Raises Finding."""
        bound = self.settings.slack * (2 * PULSE * COUNT + visitor.LIMIT + 2.0)
        while True:
            since = time.monotonic()
            if not [answer for answer in self._await_answers(since, 20) if answer.who.startswith("!")]:
                name = fault.kind.name
                self.account.gaps[name] = max(since - hit, self.account.gaps.get(name, 0.0))
                return since - hit
            if time.monotonic() - hit > bound:
                raise Finding([f"connections still fail {bound:.0f} s after {fault.kind.name} of {victim.name}"])

    def _recover(self, step: Step, allowed: Cost) -> float:
        repaired = time.monotonic()
        bound = rules.farm_recovery(PULSE, COUNT) * len(step.faults)
        asked = repaired
        wrong: Sequence[str] = ()
        while True:
            self.heal()
            self.order()
            if self.watch.wait(whole, 1.0):
                took = time.monotonic() - repaired
                wrong = self._audit()
                if not wrong:
                    return took
            if time.monotonic() - repaired > bound:
                raise Finding([f"the farm is not whole within {bound:.0f} s: {self.watch.states()}", *wrong])
            if time.monotonic() - asked > 4.0:
                asked = time.monotonic()
                self.start_the_silent()

    def _audit(self) -> list[str]:
        """What is not yet as it has to be. Raises Finding for what may never be."""
        look = self.watch.last
        names = [node.name for node in self.lab]
        bitmaps: dict[str, list[int]] = {}
        for node in self.lab:
            done = self.safekit(node, "farm", "--json")
            view = json.loads(done.stdout) if done is not None and done.returncode == 0 else {}
            if (view.get("participants"), view.get("final")) != (names, True):
                return [f"{node.name} says that {view.get('participants')} share the load"]
        for node in self.lab:
            shown = node.safekit("-r", "vip_if_ctrl", "-l", check=False).stdout
            bitmaps[node.name] = [int(text.replace(":", ""), 16) for text in _BITMAP.findall(shown)]
        wrong = audits.one_owner(bitmaps, names)
        wrong += audits.served(self._await_answers(time.monotonic(), ENOUGH), names)
        for node in self.lab:
            wrong += audits.says_what_is(node.name, self.said(node), self.seen(node))
        if not self.rested(look):
            return ["a server changed under the audit", *wrong]
        crashed = self.audit_logs()
        if crashed:
            raise Finding([*crashed, *wrong])
        return wrong

    def replay(self, number: int) -> str:
        words = f"safelab chaos --subject farm --seed {self.seed} --faults {self.account.faults}"
        return f"seed {self.seed}, step {number}; replay: {words}   (only this step: add --from {number})"

    def more_evidence(self, place: Path) -> None:
        path = self.outside(self.lab.client, NOTES)
        if path.exists():
            (place / "visits").write_text("\n".join(path.read_text().splitlines()[-5000:]))

    # --- the faults

    def _do_poweroff(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.off(victim)

    def _do_reboot(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.shut_down(victim)

    def _do_kill_small(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.kill(victim, [fault.pick(1, _SMALL)])

    def _do_kill_all(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.kill(victim, MODULE_PROCESSES | ({server.NAME} if fault.dice[1] < 0.5 else frozenset()))

    def _do_kill_application(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.kill(victim, [server.NAME], signal.SIGKILL)

    def _do_freeze_vipd(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.freeze(victim, "vipd")

    def _do_freeze_server(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.freeze(victim, None)

    def _do_cut(self, fault: Fault, victim: Node, *others: Node) -> None:
        self.network(lambda: victim.cut(), lambda: victim.join(), f"{victim.name} cut")

    def _do_isolate(self, fault: Fault, victim: Node, *others: Node) -> None:
        for other in others:
            for pair in ((victim, other), (other, victim)):
                self._one_way(*pair)

    def _do_block(self, fault: Fault, victim: Node, *others: Node) -> None:
        self._one_way(victim, others[0])

    def _one_way(self, source: Node, target: Node) -> None:
        self.network(
            lambda: self.lab.block(source, target),
            lambda: self.lab.unblock(source, target),
            f"{source.name} to {target.name} is blocked",
        )

    def _do_loss(self, fault: Fault, victim: Node, *others: Node) -> None:
        share = 2 + 8 * fault.dice[1]
        self.network(
            lambda: self.lab.loss(victim, share), lambda: self.lab.loss(victim, 0), f"{victim.name} loses {share:.0f} %"
        )

    def _do_stop(self, fault: Fault, victim: Node, *others: Node) -> None:
        self._command(victim, "stop")

    def _do_stop_all(self, fault: Fault, victim: Node, *others: Node) -> None:
        for node in (victim, *others):
            self._command(node, "stop")

    def _do_restart(self, fault: Fault, victim: Node, *others: Node) -> None:
        self._command(victim, "restart")

    def _do_stopstart(self, fault: Fault, victim: Node, *others: Node) -> None:
        self._command(victim, "stopstart")

    def _do_config(self, fault: Fault, victim: Node, *others: Node) -> None:
        self._command(victim, "config")

    def _command(self, node: Node, word: str) -> None:
        if node.is_on:
            self.safekit(node, word)
