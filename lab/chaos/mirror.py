"""The campaign of a mirror: an application with ledgers on two servers, clients of its database, faults, audits."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.archive import archive
from lab.chaos import audits, rules
from lab.chaos.audits import Lost
from lab.chaos.faults import MIRROR, Cost, Fault, Step, cost, die
from lab.chaos.programs import application, client
from lab.chaos.subject import (
    MODULE_PROCESSES,
    PYTHON,
    VAR,
    Finding,
    Subject,
    answered,
    boot,
    in_time,
    manifest,
    together,
)
from lab.chaos.watch import Look, Watch, beside
from lab.cluster import Lab, Node
from lab.errors import LabError
from lab.state import lab_directory

DIRECTORY = "/replicated"
BACKING = f"{DIRECTORY}_For_SafeKit_Replication"
ACKNOWLEDGED = "/var/tmp/acknowledged"
WORKERS = 2
PRUNE_EVERY = 8
UNNOTICED = 15.0
"""Seconds in which a state must tell that a process has gone, on a machine with much other work."""
ASKED = 0.5
"""Part of the faults in the middle of which the servers are asked."""
_SMALL = ("heart", "nfsadmin", "vipd", "circlog", "arpreroute", "errd", "safeadmin")
_ANY = ("heart", "nfsbox", "nfsbox", "nfsadmin", "reintegre", "circlog", "errd", "safeadmin")
_APPLICATION = frozenset({application.NAME, "postgres"})
OTHER_ADDRESS = "10.88.1.51"
_FILL = "/var/tmp/chaos.fill"
_HOLDER = "/run/chaos.holder"

START_PRIM = (
    '#!/bin/sh\nexec {python} -I "$SAFEUSERBIN/application.py" start {directory} >/dev/null 2>>/var/tmp/start.err\n'
)
STOP_PRIM = '#!/bin/sh\n{python} -I "$SAFEUSERBIN/application.py" stop {directory} 2>>/var/tmp/stop.err\nexit 0\n'
POSTGRES = """
listen_addresses = '*'
unix_socket_directories = '/var/run/postgresql'
max_connections = 20
shared_buffers = 4MB
min_wal_size = 2MB
max_wal_size = 6MB
checkpoint_timeout = 30s
autovacuum = off
jit = off
"""


def userconfig(settings: rules.Settings, vip: str, rfs: str, *, witness: str = "", directory: str = DIRECTORY) -> str:
    """userconfig.xml of the module."""
    check = f'<check><splitbrain ident="witness" exec="ping" arg="{witness}"/></check>' if witness else ""
    s = settings
    return f"""<!DOCTYPE safe>
<safe>
 <service mode="mirror" maxloop="1000">
  <heart pulse="{s.pulse * 1000:.0f}" timeout="{s.timeout * 1000:.0f}">
   <heartbeat name="default"/>
   <heartbeat name="repli" ident="flow"/>
  </heart>
  <rfs locktimeout="{s.locktimeout:.0f}" sendtimeout="{s.sendtimeout:.0f}" {rfs}>
   <replicated dir="{directory}" mode="read_only"/>
  </rfs>
  <vip><interface_list><interface check="off" arpreroute="on"><real_interface>
   <virtual_addr addr="{vip}" where="one_side_alias"/>
  </real_interface></interface></interface_list></vip>
  <user nicestoptimeout="{s.nicestop:.0f}" forcestoptimeout="{s.forcestop:.0f}" logging="userlog"/>
  <errd polltimer="5"><proc name="{application.NAME}" atleast="1" action="restart" class="prim"/></errd>
  {check}
 </service>
</safe>
"""


def protected(look: Look) -> bool:
    """Primary and secondary are green, and the primary alone has the application and the address."""
    return sorted(sample.state for sample in look) == ["PRIM green", "SECOND green"] and all(
        bool(sample.runner) == sample.address == (sample.state == "PRIM green") for sample in look
    )


class Mirror(Subject):
    """See above. `database`: run PostgreSQL too. Everything may be called again and again; `run` is one step."""

    kinds = MIRROR
    directory = DIRECTORY

    def __init__(self, lab: Lab, seed: int, keep: Path, settings: rules.Settings, *, database: bool) -> None:
        super().__init__(lab, seed, keep, settings)
        self.database = database
        self.one, self.two = lab
        self._rows: set[tuple[str, float]] = set()
        self._rows_end = 0
        self._counted = 0  # records found again since the last pruning
        self._quarantines = 0
        self._client: subprocess.Popen[bytes] | None = None
        modes = ('async="none"', 'async="second"', 'async="second" acl="on"')
        self.rfs = modes[int(die(seed, "rfs") * len(modes))]
        self.config = userconfig(settings, lab.vip, self.rfs, witness=lab.client.address() if settings.witness else "")

    # --- life

    def set_up(self) -> None:
        """Install the module, make the database, start both servers and the clients. Raises Finding."""
        words = {"python": PYTHON, "directory": DIRECTORY}
        data = archive(
            self.config,
            {
                "start_prim": START_PRIM.format(**words),
                "stop_prim": STOP_PRIM.format(**words),
                "application.py": Path(application.__file__).read_text(),
            },
        )
        together(*(lambda node=node: self.install(node, data) for node in self.lab))
        if self.database:
            self._make_database()
        self.watch = Watch(self.lab, self.MODULE, (self.keep / f"seed{self.seed}.timeline").open("w"))
        self.safekit(self.one, "prim")
        if not self.watch.wait(lambda look: look[0].state == "ALONE green", 60):
            raise Finding([f"the first start: {self.watch.states()}"])
        self.safekit(self.two, "second")
        if not self.watch.wait(protected, 90):
            raise Finding([f"the first synchronisation: {self.watch.states()}"])
        if self.database:
            self._make_table()
            self._start_client()
        self.logs()

    def _make_database(self) -> None:
        pg, programs = f"{DIRECTORY}/pg", application.programs()
        self.one.run(
            f"install -d -o postgres -g postgres -m 700 {pg} && runuser -u postgres -- {programs}/initdb -D {pg} "
            "-A trust --no-sync --no-locale -E UTF8 --wal-segsize=1 >/dev/null && "
            f"echo 'host all all 10.88.0.0/16 trust' >> {pg}/pg_hba.conf && sync",
            timeout=120,
        )
        self.outside(self.one, f"{pg}/postgresql.conf").open("a").write(POSTGRES)

    def _sql(self, statement: str, timeout: float) -> str:
        """Ask the database as a client does, through the virtual address. Raises Finding."""
        words = ["psql", "-X", "-q", "-A", "-t", "-F", " ", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres"]
        words += ["-h", self.lab.vip, "-c", statement]
        said = ""

        def answer() -> list[str]:
            nonlocal said
            done = self.lab.client.run(words, check=False, env={"PGCONNECT_TIMEOUT": "2"})
            said = done.stderr.strip()
            return [] if done.returncode else [done.stdout]

        return in_time(answer, timeout, lambda: f"the database does not answer: {said[-300:]}")[0]

    def _make_table(self) -> None:
        self._sql("CREATE TABLE rows (worker int, row int, payload text, PRIMARY KEY (worker, row))", 30)

    def _start_client(self) -> None:
        checkout = Path(__file__).resolve().parents[2]
        self._client = self.lab.client.popen(
            [PYTHON, "-m", "lab.chaos.programs.client", self.lab.vip, str(WORKERS), ACKNOWLEDGED],
            env={"PYTHONPATH": str(checkout)},
        )

    def close(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client.wait()
        super().close()

    def about(self) -> str:
        ledgers = "files, SQLite, PostgreSQL with clients" if self.database else "files, SQLite"
        return f"{ledgers}; {self.rfs}; {'a witness' if self.settings.witness else 'no witness'}"

    # --- the ledgers

    def _notes(self) -> list[tuple[str, str]]:
        """(node, whole line) that the application has noted, on both servers."""
        found = []
        for node in self.lab:
            try:
                text = beside(node, application.NOTES).read_text()
            except FileNotFoundError:
                continue
            found += [(node.name, line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return found

    def _read_rows(self) -> None:
        """Take up what the clients have noted since the last time."""
        path = self.outside(self.lab.client, ACKNOWLEDGED)
        if not path.exists():
            return
        with path.open() as file:
            file.seek(self._rows_end)
            text = file.read()
        text = text[: text.rfind("\n") + 1]
        self._rows_end += len(text)
        for line in text.splitlines():
            worker, row, when = line.split()
            self._rows.add((f"{worker} {row}", float(when)))

    def _times(self) -> list[float]:
        """When something was acknowledged."""
        times = [float(line.split()[3]) for _, line in self._notes()]
        return sorted(times + [when for _, when in self._rows])

    # --- a step

    def run(self, step: Step) -> str:
        """Faults, repair, audit. Returns a few words on it. Raises Finding."""
        self.history.append(f"--- step {step.number}: {' + '.join(f.kind.name for f in step.faults)}")
        prim = self._roles(self.watch.last)
        assert prim is not None, self.watch.states()
        second = self.two if prim is self.one else self.one
        before, begin = self.watch.last, time.monotonic()
        self.watch.forget()
        allowed = cost(step.faults, witness=self.settings.witness)
        for number, fault in enumerate(step.faults):
            if number:
                self._between(step.gaps[number - 1])
            self.hit(fault, prim, second)
            self.account.kinds[fault.kind.name] = self.account.kinds.get(fault.kind.name, 0) + 1
            self.account.faults += 1
            if fault.hold != "short" and fault.dice[2] < ASKED and self.watch.at_rest(0.2, 0.5):
                self.audit_words()
        repaired = time.monotonic()
        took = self._recover(step, repaired, begin, allowed, prim.name, before)
        self.account.steps += 1
        self.account.recoveries.append(took)
        times = self._times()
        gap = audits.longest_gap(times, begin, repaired + took)
        if len(step.faults) == 1:
            name = step.faults[0].kind.name
            self.account.gaps[name] = max(gap, self.account.gaps.get(name, 0.0))
            self._judge_gap(name, gap, allowed)
        if self.account.steps % PRUNE_EVERY == 0:
            self._prune()
        return f"recovered in {took:.1f} s, longest pause {gap:.1f} s"

    def _judge_gap(self, name: str, gap: float, allowed: Cost) -> None:
        s = self.settings
        bound = {"poweroff_prim": rules.takeover(s)}.get(name)
        if allowed is Cost.NOTHING:
            bound = s.slack * (max(s.timeout, s.locktimeout, s.sendtimeout) + 2.0)
        if bound is not None and (wrong := audits.in_time(f"the application's pause by {name}", gap, bound)):
            raise Finding(wrong)

    def _roles(self, look: Look) -> Node | None:
        """The primary of a protected pair."""
        if not protected(look):
            return None
        return next(self.lab.node(sample.node) for sample in look if sample.state == "PRIM green")

    def _between(self, gap: str) -> None:
        if gap == "noticed":
            states = self.watch.states()
            self.watch.wait(lambda look: {s.node: s.state for s in look} != states, rules.detection(self.settings))
        elif gap == "recovering":
            self.heal()
            self.order()
            self.watch.wait(lambda look: any(s.state == "SECOND magenta" for s in look), 4.0)

    def _recover(self, step: Step, repaired: float, begin: float, allowed: Cost, former: str, before: Look) -> float:
        """Repair until the pair is protected and the audit has found it so all the time. The seconds until then."""
        bound = rules.recovery(self.settings, len(step.faults))
        asked = repaired
        while True:
            self.heal()
            self.order()
            if self.watch.wait(protected, 0.8):
                took = time.monotonic() - repaired
                if self._audit(begin, allowed, former, before):
                    return took
            if time.monotonic() - repaired > bound:
                raise Finding([f"no protected pair within {bound:.0f} s after the repair: {self.watch.states()}"])
            if time.monotonic() - asked > 8.0:
                asked = time.monotonic()
                self.start_the_silent()

    # --- audits

    def _audit(self, begin: float, allowed: Cost, former: str, before: Look) -> bool:
        """The whole audit of a protected pair. False when the pair was not that all the time: then nothing was shown.
        Raises Finding."""
        look = self.watch.last
        prim = self._roles(look)
        if prim is None or self.watch.wait(lambda now: not protected(now), 0.25):
            return False
        second = self.two if prim is self.one else self.one
        try:
            wrong = self._wrong(prim, second, begin, allowed, former)
        except (OSError, LabError, subprocess.SubprocessError) as error:
            # What has just been killed may not have been noticed yet.
            if self.watch.wait(lambda now: not protected(now), UNNOTICED):
                return False
            raise Finding([f"the pair says that it is protected, and {error}"]) from error
        except Finding as error:
            wrong = error.wrong
        if not self.rested(look):
            self.say(f"the pair changed under the audit: {wrong or 'nothing wrong'}")
            return False
        looks = self.watch.since()
        wrong += audits.one_at_a_time(looks, allowed, rules.overlap(self.settings))
        runner = next(sample.runner for sample in before if sample.node == former)
        wrong += audits.untouched(runner, looks, former, allowed)
        wrong += self.audit_logs()
        if wrong:
            raise Finding(wrong)
        return True

    def _wrong(self, prim: Node, second: Node, begin: float, allowed: Cost, former: str) -> list[str]:
        paused = self._pause(prim)
        try:
            wrong = self._lost(prim, begin, allowed, former)
            wrong += self._unequal()
        finally:
            paused()
        said = self.all_say()
        for node in self.lab:
            wrong += audits.says_what_is(node.name, said[node.name], self.seen(node))
        return wrong + audits.verdict_fits(said, reachable=True)

    def _pause(self, prim: Node) -> Callable[[], None]:
        """The application and the clients stand still between two records; what is returned lets them go on."""
        pause, marker = beside(prim, application.PAUSE), beside(prim, application.PAUSED)
        marker.unlink(missing_ok=True)
        pause.touch()
        clients, still = (self.outside(self.lab.client, name) for name in (client.STANDSTILL, client.STILL))
        still.unlink(missing_ok=True)
        clients.touch()

        def go_on() -> None:
            pause.unlink(missing_ok=True)
            clients.unlink(missing_ok=True)

        try:
            in_time(
                lambda: marker.exists() or not protected(self.watch.last),
                15,
                f"the application of {prim.name} does not come to its next record",
            )
            if not marker.exists():
                raise Finding([f"the pair broke before the application of {prim.name} came to its next record"])
            if self._client is not None:
                in_time(still.exists, 15, "the clients of the database do not come to rest")
        except Finding:
            go_on()
            raise
        return go_on

    def _lost(self, prim: Node, begin: float, allowed: Cost, former: str) -> list[str]:
        """The records that are missing and must not be. What a split has cost is forgotten."""
        notes = self._notes()
        mount, data = (str(self.outside(prim, place)) for place in (DIRECTORY, BACKING))
        answered(f"{DIRECTORY} of {prim.name}", lambda: os.listdir(f"{mount}/r"), 60)
        # What the mount shows is what lies there; to read it there costs far less.
        told = application.check(data, [line for _, line in notes])
        places = {" ".join(line.split()[:3]): node for node, line in notes}
        lost = [Lost(record, places[record], when) for record, when in told.lost]
        if self.database:
            self._read_rows()
            there = set(self._sql("SELECT worker, row FROM rows", 20).splitlines())
            lost += [Lost(f"P {row}", "client", when) for row, when in sorted(self._rows) if row not in there]
        self._count(len(notes) + len(self._rows) - len(lost))
        wrong = audits.nothing_lost(lost, allowed, begin, prim.name, former)
        if told.sqlite != "ok":
            wrong.append(f"SQLite says of its file: {told.sqlite}")
        if lost and not wrong:
            wrong = audits.kept_in_quarantine(len(lost), self._new_quarantines())
            self._forget(lost)
        self.account.given_up += len(lost)
        return wrong

    def _count(self, found: int) -> None:
        """Take into the account what was found again since the audit before; `found`: all since the last pruning."""
        self.account.records += found - self._counted
        self._counted = found

    def _new_quarantines(self) -> int:
        count = 0
        for node in self.lab:
            place = self.outside(node, f"{VAR}/{self.MODULE}/quarantine")
            if place.is_dir():
                count += sum(not entry.name.startswith(".") for entry in place.iterdir())
        return count

    def _forget(self, lost: Sequence[Lost]) -> None:
        """Records that were given up by right are demanded no more."""
        gone = {each.record for each in lost}
        for node in self.lab:
            path = beside(node, application.NOTES)
            if path.exists():
                # The application appends to the same file and stands still.
                text = [line for line in path.read_text().splitlines() if " ".join(line.split()[:3]) not in gone]
                path.write_text("".join(f"{line}\n" for line in text))
        self._rows = {(row, when) for row, when in self._rows if f"P {row}" not in gone}

    def _unequal(self) -> list[str]:
        """Differences that stay. The database writes a little even when nobody asks it, and the two trees are not read
        at the same moment: what differs counts when neither side of it has changed from one reading to the next."""
        deadline = time.monotonic() + 8
        former: dict[str, tuple[object, object]] = {}
        for number in itertools.count():
            found: dict[str, dict[str, object]] = {}

            def take(node: Node, found: dict[str, dict[str, object]] = found) -> None:
                found[node.name] = manifest(self.outside(node, BACKING))

            try:
                together(*(lambda node=node: take(node) for node in self.lab))
            except FileNotFoundError as error:  # a name went away while we read
                if time.monotonic() > deadline + 60:
                    return [f"the trees never rest: {error}"]
                former = {}
                continue
            one, two = found["node1"], found["node2"]
            differ = {path: (one.get(path), two.get(path)) for path in one.keys() | two.keys()}
            differ = {path: pair for path, pair in differ.items() if pair[0] != pair[1]}
            if not differ:
                return []
            stay = {path: pair for path, pair in differ.items() if former.get(path) == pair}
            former = differ
            if stay and number >= 3 and time.monotonic() > deadline:
                (self.keep / f"seed{self.seed}.trees.json").write_text(json.dumps(found, indent=1))
                return audits.equal({p: v[0] for p, v in stay.items()}, {p: v[1] for p, v in stay.items()})
            if time.monotonic() > deadline + 60:
                return [f"the trees never rest: {sorted(differ)[:5]}"]
            time.sleep(0.1)
        raise AssertionError

    def _prune(self) -> None:
        """Begin a new account."""
        prim = self._roles(self.watch.last)
        if prim is None:
            return
        go_on = self._pause(prim)
        try:
            self._read_rows()
            self._counted = 0
            prim.run([PYTHON, "-I", f"/opt/safekit/modules/{self.MODULE}/bin/application.py", "prune", DIRECTORY])
            for node in self.lab:
                path = beside(node, application.NOTES)
                if path.exists():
                    path.write_text("")
            if self.database:
                self._sql("DELETE FROM rows", 20)
                self._rows.clear()
        finally:
            go_on()

    # --- evidence

    def replay(self, number: int) -> str:
        words = f"safelab chaos --seed {self.seed} --faults {self.account.faults}"
        words += "" if self.database else " --no-database"
        words += " --witness" if self.settings.witness else ""
        return f"seed {self.seed}, step {number}; replay: {words}   (only this step: add --from {number})"

    def more_evidence(self, place: Path) -> None:
        trees = self.keep / f"seed{self.seed}.trees.json"
        if trees.exists():
            trees.rename(place / "trees.json")
        for node in self.lab:
            if node.is_on:
                try:
                    found = manifest(self.outside(node, BACKING))
                    (place / f"{node.name}.tree.json").write_text(json.dumps(found, indent=1))
                except OSError as error:
                    (place / f"{node.name}.tree.json").write_text(json.dumps(str(error)))
        rows = self.outside(self.lab.client, ACKNOWLEDGED)
        if rows.exists():
            (place / "client.acknowledged").write_text(rows.read_text())
        keeper = lab_directory(self.lab.name) / "keeper.log"
        if keeper.exists():
            (place / "keeper.log").write_text(keeper.read_text())

    # --- the faults

    def _side(self, fault: Fault, prim: Node, second: Node) -> Node:
        return prim if fault.first else second

    def _do_poweroff_prim(self, fault: Fault, prim: Node, second: Node) -> None:
        self.off(prim)

    def _do_poweroff_second(self, fault: Fault, prim: Node, second: Node) -> None:
        self.off(second)

    def _do_poweroff_both(self, fault: Fault, prim: Node, second: Node) -> None:
        self.off(prim, second)

    def _do_reboot_prim(self, fault: Fault, prim: Node, second: Node) -> None:
        self.shut_down(prim)

    def _do_reboot_second(self, fault: Fault, prim: Node, second: Node) -> None:
        self.shut_down(second)

    def _do_kill_small(self, fault: Fault, prim: Node, second: Node) -> None:
        self.kill(self._side(fault, prim, second), [fault.pick(0, _SMALL)])

    def _do_kill_nfsbox_prim(self, fault: Fault, prim: Node, second: Node) -> None:
        self.kill(prim, ["nfsbox"])

    def _do_kill_second(self, fault: Fault, prim: Node, second: Node) -> None:
        self.kill(second, [fault.pick(0, _ANY)])

    def _do_kill_supervisor(self, fault: Fault, prim: Node, second: Node) -> None:
        self.kill(self._side(fault, prim, second), ["safesupervisord"])

    def _do_kill_several(self, fault: Fault, prim: Node, second: Node) -> None:
        names = {fault.pick(0, _ANY), fault.pick(1, _SMALL), fault.pick(2, (*_ANY, "safesupervisord"))}
        self.kill(self._side(fault, prim, second), names)

    def _do_kill_all(self, fault: Fault, prim: Node, second: Node) -> None:
        names = set(MODULE_PROCESSES)
        if fault.dice[1] < 0.5:
            names |= _APPLICATION
        self.kill(self._side(fault, prim, second), names)

    def _do_kill_application(self, fault: Fault, prim: Node, second: Node) -> None:
        self.kill(prim, _APPLICATION if fault.dice[0] < 0.5 else [application.NAME])

    def _do_freeze_heart(self, fault: Fault, prim: Node, second: Node) -> None:
        self.freeze(self._side(fault, prim, second), "heart")

    def _do_freeze_nfsbox(self, fault: Fault, prim: Node, second: Node) -> None:
        self.freeze(self._side(fault, prim, second), "nfsbox")

    def _do_freeze_server(self, fault: Fault, prim: Node, second: Node) -> None:
        self.freeze(self._side(fault, prim, second), None)

    def _cut(self, node: Node, lan: str | None) -> None:
        self.network(lambda: node.cut(lan), lambda: node.join(lan), f"{node.name} cut {lan or 'all'}")

    def _do_cut_flow(self, fault: Fault, prim: Node, second: Node) -> None:
        self._cut(self._side(fault, prim, second), "repli")

    def _do_cut_default(self, fault: Fault, prim: Node, second: Node) -> None:
        self._cut(self._side(fault, prim, second), "default")

    def _do_cut_all(self, fault: Fault, prim: Node, second: Node) -> None:
        self._cut(self._side(fault, prim, second), None)

    def _block(self, fault: Fault, prim: Node, second: Node, lan: str | None) -> None:
        source, target = (prim, second) if fault.first else (second, prim)
        self.network(
            lambda: self.lab.block(source, target, lan),
            lambda: self.lab.unblock(source, target, lan),
            f"{source.name} to {target.name} is blocked on {lan or 'all networks'}",
        )

    def _do_block_flow(self, fault: Fault, prim: Node, second: Node) -> None:
        self._block(fault, prim, second, "repli")

    def _do_block_default(self, fault: Fault, prim: Node, second: Node) -> None:
        self._block(fault, prim, second, "default")

    def _do_block_all(self, fault: Fault, prim: Node, second: Node) -> None:
        self._block(fault, prim, second, None)

    def _do_loss(self, fault: Fault, prim: Node, second: Node) -> None:
        node, share = self._side(fault, prim, second), 5 + 15 * fault.dice[0]
        self.network(
            lambda: self.lab.loss(node, share), lambda: self.lab.loss(node, 0), f"{node.name} loses {share:.0f} %"
        )

    def _do_delay(self, fault: Fault, prim: Node, second: Node) -> None:
        node, ms = self._side(fault, prim, second), 5 + 45 * fault.dice[0]
        self.network(lambda: self.lab.delay(node, ms), lambda: self.lab.delay(node, 0), f"{node.name} +{ms:.0f} ms")

    def _do_disk_full(self, fault: Fault, prim: Node, second: Node) -> None:
        node = self._side(fault, prim, second)
        if not node.is_on:
            return
        self.say(f"the disk of {node.name} is full")
        node.run(
            f"rm -f {_FILL} {_FILL}.rest; fallocate -l $(($(stat -f -c '%a * %S' /var/tmp) - 8192)) {_FILL}; "
            f"dd if=/dev/zero of={_FILL}.rest bs=4k count=4096 2>/dev/null; true",
            check=False,
        )

        def free() -> None:
            if node.is_on:
                node.run(f"rm -f {_FILL} {_FILL}.rest", check=False)
            else:
                boot(node)
                node.run(f"rm -f {_FILL} {_FILL}.rest", check=False)

        self.undo.append(free)

    def _do_holder(self, fault: Fault, prim: Node, second: Node) -> None:
        if not second.is_on:
            return
        self._stopped(second)
        place = BACKING if fault.dice[0] < 0.5 else f"{BACKING}/j"
        second.run(
            f"cd {place} && {{ setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $! >{_HOLDER}; }}", check=False
        )
        self.say(f"{second.name}: a process holds {place}")

        def leave() -> None:
            if second.is_on:
                second.run(f"kill $(cat {_HOLDER}) 2>/dev/null; rm -f {_HOLDER}", check=False)

        self.undo.append(leave)
        self.safekit(second, "start")

    def _command(self, node: Node, *words: str) -> None:
        if node.is_on:
            self.safekit(node, *words)

    def _do_stop_prim(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(prim, "stop")

    def _do_stop_second(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(second, "stop")

    def _do_stop_both(self, fault: Fault, prim: Node, second: Node) -> None:
        for node in (second, prim) if fault.first else (prim, second):
            self._command(node, "stop")

    def _do_swap(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(self._side(fault, prim, second), "swap")

    def _do_restart(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(prim, "restart")

    def _do_stopstart(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(self._side(fault, prim, second), "stopstart")

    def _do_forcestop(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(self._side(fault, prim, second), "forcestop")

    def _do_config(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(self._side(fault, prim, second), "config")

    def _do_wrong_role(self, fault: Fault, prim: Node, second: Node) -> None:
        self._command(self._side(fault, prim, second), fault.pick(0, ("start", "prim", "second")))

    def _configure(self, node: Node, text: str) -> None:
        if node.is_on:
            node.write(f"/opt/safekit/modules/{self.MODULE}/conf/userconfig.xml", text)
            self.safekit(node, "config")

    def _stopped(self, node: Node) -> None:
        """`stop` returns when the stop has begun."""
        self.safekit(node, "stop")
        self.safekit(node, "waitstop")

    def _misconfigure(self, second: Node, text: str) -> None:
        """The secondary is stopped, gets another configuration and is started; the repair gives it the right one."""
        if not second.is_on:
            return
        self._stopped(second)
        self._configure(second, text)
        self.safekit(second, "start")

        def right() -> None:
            if not second.is_on:
                boot(second)
            self._stopped(second)
            self._configure(second, self.config)

        self.undo.append(right)

    def _other(self, text: Mapping[str, str]) -> str:
        config = self.config
        for old, new in text.items():
            assert old in config, old
            config = config.replace(old, new)
        return config

    def _do_wrong_directory(self, fault: Fault, prim: Node, second: Node) -> None:
        if second.is_on:
            second.run(["mkdir", "-p", "/other"])
        self._misconfigure(second, self._other({f'dir="{DIRECTORY}"': 'dir="/other"'}))

    def _do_wrong_address(self, fault: Fault, prim: Node, second: Node) -> None:
        self._misconfigure(second, self._other({self.lab.vip: OTHER_ADDRESS}))

    def _do_wrong_timeout(self, fault: Fault, prim: Node, second: Node) -> None:
        timeout = f'timeout="{self.settings.timeout * 1000:.0f}"'
        longer = f'timeout="{self.settings.timeout * 1500:.0f}"'
        self._misconfigure(second, self._other({"<heart pulse": "<heart pulse", timeout: longer}))

    def _do_wrong_xml(self, fault: Fault, prim: Node, second: Node) -> None:
        if not second.is_on:
            return
        path = f"/opt/safekit/modules/{self.MODULE}/conf/userconfig.xml"
        bad = fault.pick(0, (self.config[: len(self.config) // 2], self._other({"<heart ": "<hearth "}), ""))
        second.write(path, bad)
        self.safekit(second, "config")

        def right() -> None:
            if not second.is_on:
                boot(second)
            second.write(path, self.config)

        self.undo.append(right)
