"""The invariants of the simulated pair (DESIGN 4), looked at while it happens and after the faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heart.core import lineage
from heart.core.actions import Log
from heart.core.decide import Decision
from heart.core.state import State
from heart.core.values import Color, Role
from tests.t1_simulation.mirror_parts import PULSE, SPEECHLESS, Server, Violation

if TYPE_CHECKING:
    from tests.t1_simulation.mirror_world import World


class Judge:
    """Part of a World.  `acked`: the writes that a client was told are safe.  `split` and `forced`: a split without a
    witness, or an administrator's word, may cost some of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acked: set[int] = set()
        self.split = False
        self.forced = False
        self.touched = False
        """Disks were put back or copied."""
        self.blurred = 0
        """Up to this write nobody can tell that a server was put back: what was written just after the snapshot."""
        self.excused_until = 0.0
        """A witness keeps nobody apart who stands still, nor two servers that both see it."""

    def settled_data(self) -> None:
        """Both servers have the same data again."""
        self.split = self.forced = False
        for server in self.world.servers.values():
            server.yielded = server.broken = server.old = False

    def set_back(self, server: Server, data: list[int], until: int) -> None:
        """Whoever puts old disks into a server gives up what was on them alone."""
        other = self.world.servers[server.peer]
        self.acked -= set(server.data) - set(data) - set(other.data)
        self.touched = True
        # a copy can always be told
        if server.kept is not None and not self._can_be_told(server.kept.disk, other):
            until = max(self.acked, default=0)
        self.blurred = max(self.blurred, until)
        self._forget_blurred(set(data))

    def _can_be_told(self, kept: dict[str, str], other: Server) -> bool:
        """Whether the disks that are put back lack something that the other server has noted of the pair: an entry, or
        two marks of it. Who was set back to before a time without a whole pair looks as after a power failure."""
        old, now = (lineage.parse(disk.get(lineage.NAME, lineage.NONE)) for disk in (kept, other.disk))
        marks = {entry.name: entry.mark for entry in old}
        return not now or now[0].name not in marks or now[0].mark - marks[now[0].name] >= 2

    def _forget_blurred(self, data: set[int]) -> None:
        self.acked -= {number for number in self.acked - data if number <= self.blurred}

    def authority(self, server: Server) -> None:
        """`server` acknowledges writes that its peer lacks from now on: nothing acknowledged may be missing."""
        other = self.world.servers[server.peer]
        heart = server.heart
        if self._claims(other) and not self.forced:
            # a partition without a witness: both may go on
            silent = heart is None or heart.peer is None or self.world.now >= heart.break_deadline
            apart = self.world.now <= self.world.parted_until  # it may have come back into hearing while this was done
            if not silent and not apart and other.heart is not None and other.heart.role is Role.SECOND:
                raise Violation(f"{server.name} goes on alone and hears {other.name}, which it did not tell (M3)")
            if self.world.now <= self.world.parted_until:
                self.split = True
        missing = self.acked - set(server.data)
        if missing and server.old and (heart is None or heart.peer is None):
            # it cannot know better, and must replace nothing
            return
        if missing:
            # after a split, whoever was told that it is out of date has given up what it acknowledged by itself
            given_up = self.split and other.disk.get("rfs.uptodate") != "up"
            if server.yielded and not (self.forced or given_up) and (heart is None or heart.peer is None):
                raise Violation(f"{server.name}, which had left the application, lacks acknowledged writes (doubt)")
            if self.forced or (self.split and self.world.options.partitions):
                self.acked -= missing
            else:
                raise Violation(f"{server.name} goes on without acknowledged writes {sorted(missing)[:5]}")

    def _claims(self, server: Server) -> bool:
        """The server calls its data up to date, or will when it is started."""
        if server.disk.get("rfs.uptodate") != "up" or (server.heart is not None and server.heart.doubted):
            return False
        running = server.heart is not None or server.orphaned
        return running or server.disk.get("rfs.paired") != "up" or not server.mark

    def replaced(self, server: Server, snapshot: list[int]) -> None:
        """A secondary's data is replaced: what only it had is lost for good."""
        lost = (self.acked & set(server.data)) - set(snapshot)
        if lost:
            if not (self.forced or self.split):
                raise Violation(f"{server.name} gives up acknowledged writes {sorted(lost)[:5]}")
            self.acked -= lost

    def check_told(self, name: str, before: State, decision: Decision) -> None:
        """Every change of a state is in the log, the last one as it is now."""
        after = decision.state
        self._check_wait(name, after)
        said = after.resources.get(lineage.FOUND, lineage.NONE) != lineage.NONE
        if said and not self.touched:
            raise Violation(f"{name} says that a server was set back or copied, and none was")
        for code, was, now in (
            ("local_state", (before.role, before.color), (after.role, after.color)),
            ("remote_state", before.remote, after.remote),
        ):
            if was == now or after.role is Role.STOP:
                continue
            told = [action for action in decision.actions if isinstance(action, Log) and action.code == code]
            lines = [tuple(value for _, value in line.fields) for line in told]
            if not lines or lines[-1] != now:
                raise Violation(f"{name}: {code} {now} is not told, but {lines}")

    def _check_wait(self, name: str, state: State) -> None:
        """Every wait ends, or names what ends it: a red one at once, one that seems to go on after a while."""
        server = self.world.servers[name]
        # with a witness the stop scripts of the other one take longer
        waits = state.role is Role.WAIT and state.listening and not state.plan and not state.busy
        waits = waits and not state.setup.witness
        if not waits or state.blocked:
            server.red_since = -1.0
        elif state.color is Color.RED:
            raise Violation(f"{name} waits in red and does not say what for")
        elif server.red_since < 0:
            server.red_since = self.world.now
        elif self.world.now - server.red_since > SPEECHLESS:
            raise Violation(f"{name} has waited for {SPEECHLESS:.0f} s and does not say what for")

    def left_and_came_back(self, server: Server) -> None:
        """It was alone, left the application, and took it again in one decision: not without a break."""
        server.broken_at = server.broken_at if server.broken else self.world.now
        server.broken = True

    def check_role(self, name: str, before: Role, state: State) -> None:
        """A server becomes primary, or is not any more."""
        server = self.world.servers[name]
        if state.role in (Role.SECOND, Role.PRIM) and before not in (Role.SECOND, Role.PRIM):
            self._check_fits(name, state)
        if state.role in (Role.PRIM, Role.SECOND) and not self.world.options.rfs:
            # without data to compare, whoever follows the other one has settled with it
            self.settled_data()
        if before.primary and not state.role.running and not state.paired:
            if not server.broken:
                server.broken_at = self.world.now
            server.broken = True
            server.yielded = server.yielded or bool(state.blocked and not state.stopping)
        if state.role is Role.ALONE and before in (Role.WAIT, Role.SECOND) and state.peer is None:
            self._check_listened(server, state)
        if not state.role.primary or before.primary:
            return
        other = self.world.servers[self.world.servers[name].peer]
        if other.heart is None or not other.heart.role.primary:
            return
        if self._hear_each_other(state, other.heart):
            raise Violation(f"{name} becomes {state.role} while it hears {other.name} {other.heart.role} (M1)")

    def _check_fits(self, name: str, state: State) -> None:
        """M8: no pair of servers that do not fit, unless an administrator says second."""
        peer = state.peer
        accepted = "up" in (state.resource("config.accepted"), peer is not None and self._accepts(peer.node))
        if peer is not None and peer.agrees != state.setup.agrees and not accepted:
            raise Violation(f"{name} {state.role} is in a pair with {peer.node}, which it does not fit (M8)")

    def _accepts(self, name: str) -> str:
        heart = self.world.servers[name].heart
        return heart.resource("config.accepted") if heart is not None else ""

    def _check_listened(self, server: Server, state: State) -> None:
        """M0: silence counts only after a whole time-out of listening."""
        listened = self.world.now - server.distracted
        if listened < state.setup.timeout - 1e-3:
            raise Violation(f"{server.name} decides to be alone after {listened:.2f} s of listening (M0)")

    def check_exit(self, server: Server) -> None:
        """A server leaves after a split brain: not the one that served last, without a break (M7)."""
        other = self.world.servers[server.peer]
        apart = server.heart is not None and other.heart is not None and not server.heart.paired
        known = self.world.now > other.broken_at + 2.5 * PULSE
        if apart and known and other.broken and not server.broken and not self.forced:
            raise Violation(f"{server.name}, which served without a break, leaves for {other.name} (M7)")

    def check_application(self, server: Server) -> None:
        """A start script begins: none has begun on the other server whose stop script has not ended, as long as one
        heartbeat is heard there, or a witness tells the servers apart."""
        other = self.world.servers[server.peer]
        if not other.app or server.heart is None:
            return
        if self.world.options.witness and self.world.now > self.excused_until:
            raise Violation(f"{server.name} starts the application, which has not ended on {other.name} (M1, witness)")
        if other.heart is None:
            return
        if self._hear_each_other(server.heart, other.heart):
            raise Violation(f"{server.name} starts the application while it runs on {other.name} (M1)")

    def _hear_each_other(self, a: State, b: State) -> bool:
        recent = self.world.now - 2.5 * PULSE
        return (
            all(
                s.peer is not None and any(v == "up" and s.heard_at[i] > recent for i, v in s.links.items())
                for s in (a, b)
            )
            and self.world.now > self.world.impaired_until
        )

    def check_settled(self) -> None:
        """After the faults: one primary, one secondary, every acknowledged write on both."""
        states = {n: s.heart for n, s in self.world.servers.items()}
        if self.world.options.syncat and self._waits_for_its_time(*states.values()):
            return
        shown = {n: (f"{s.role} {s.color}" if s is not None else "no heart") for n, s in states.items()}
        roles = sorted(s.role.value if s is not None else "none" for s in states.values())
        green = all(s is not None and s.color is Color.GREEN for s in states.values())
        if roles != ["PRIM", "SECOND"] or not green:
            raise Violation(f"not PRIM and SECOND green after the faults: {shown}")
        for server in self.world.servers.values():
            assert server.heart is not None
            if server.heart.role is Role.PRIM and not server.app:
                raise Violation(f"{server.name} is PRIM without its application")
            if server.heart.role is Role.PRIM and self.world.options.rfs and server.rfs != "primary":
                raise Violation(f"{server.name} is PRIM without its file system")
            if server.heart.role is Role.SECOND and server.app:
                raise Violation(f"{server.name} is SECOND and runs the application (M1)")
            missing = self.acked - set(server.data)
            if self.world.options.rfs and missing:
                raise Violation(f"{server.name} lacks acknowledged writes {sorted(missing)[:5]}")
            if not server.heart.uptodate:
                raise Violation(f"{server.name} {server.heart.role} is not up to date")

    def _waits_for_its_time(self, *states: State | None) -> bool:
        """With scheduled synchronisation: one runs alone and has every acknowledged write, the other one waits."""
        alone = [s for s in states if s is not None and (s.role, s.color) == (Role.ALONE, Color.GREEN)]
        waits = [s for s in states if s is not None and s.blocked == "syncat_wait" and s.color is Color.RED]
        if not alone or not waits:
            return False
        missing = self.acked - set(self.world.servers[alone[0].setup.node].data)
        if missing:
            raise Violation(f"{alone[0].setup.node} lacks acknowledged writes {sorted(missing)[:5]}")
        return True
