"""One sentence per module about what matters: is the service protected, and what should be done next.

Pure: everything that the verdict depends on is in `Situation`. Words:

- protected: the application runs, and another server can take it over with the same data;
- degraded: the application runs, but no other server could take it over now;
- data at risk: an ordinary next step (or the loss of this server) could destroy the newest data;
- stopped: the application does not run under the control of this server, and its data are in no danger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from safekit.spelling import from_word


class Kind(Enum):
    """The four verdicts."""

    PROTECTED = "protected"
    DEGRADED = "degraded"
    AT_RISK = "data at risk"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Situation:
    """What one server knows about a module. Times are Unix seconds; `resources` maps names to values."""

    module: str
    mode: str
    state: str
    color: str
    remote_state: str
    remote_color: str
    since: float
    remote_since: float
    resources: Mapping[str, str] = field(default_factory=dict)
    heart: bool = True
    fresh: bool = False
    """Configured, and never synchronised with the other server."""
    peer_up: bool = False
    """safeadmin of the other server answers: a silent module is stopped there, not lost."""
    given_up: str = ""
    """The quarantine of what this server gave up after a split brain, "" when there is none."""
    boot: bool = True
    """The module is started when the server boots, or that is not known."""
    times: Mapping[str, float] = field(default_factory=dict)
    """Since when each resource has its value."""
    next_synchronisation: str = ""
    """With scheduled synchronisation: when the secondary is synchronised next, for people."""

    def is_(self, name: str, value: str) -> bool:
        """True when the resource has that value."""
        return self.resources.get(name) == value

    @property
    def replicates(self) -> bool:
        """True when the module has replicated directories."""
        return "rfs.uptodate" in self.resources

    def trouble(self, name: str) -> str:
        """What heart remembers as the last failure (heart.core.trouble), "" nothing."""
        return from_word(self.resources.get(name, ""))

    @property
    def elsewhere(self) -> tuple[str, float]:
        """State of the module on the other server, and since when, as safeadmin there tells it by whatever network."""
        state, _, since = self.resources.get("state.elsewhere", "").partition("@")
        return state, float(since) if since.isdigit() else 0.0


@dataclass(frozen=True)
class Verdict:
    """Kind, since when (Unix seconds), why in a few words, and what to do ('' when there is nothing to do)."""

    kind: Kind
    since: float
    reason: str
    next_step: str

    def text(self, since: str) -> str:
        """One line for people; `since` is the time already formatted."""
        line = f"{self.kind.value}: {self.reason}"
        if since:
            line += f", since {since}"
        return f"{line}. Next step: {self.next_step}" if self.next_step else f"{line}."


def judge(s: Situation) -> Verdict:
    """The verdict on a situation. Never raises: a state that is not known is reported as it is."""
    return _with_boot(s, _with_scripts(s, _of_state(s)))


def _with_boot(s: Situation, verdict: Verdict) -> Verdict:
    """Protected until the next reboot only, and says so."""
    if s.boot or verdict.kind is not Kind.PROTECTED:
        return verdict
    step = f"safekit boot -m {s.module} on: after a reboot of this server the module does not start by itself"
    return replace(verdict, next_step=f"{verdict.next_step}; {step}" if verdict.next_step else step)


START_SCRIPTS = {
    "start_prim": ("ALONE", "PRIM"),
    "start_second": ("SECOND",),
    "start_sec": ("PRIM", "SECOND"),
    "start_both": ("ALONE", "PRIM", "SECOND", "UP"),
}
"""The states in which the product has run a start script."""
_WARNING = "exit status 0"


def _with_scripts(s: Situation, verdict: Verdict) -> Verdict:
    """Whether the application runs is known by its start script: a state is green whatever it said (guide 15.1)."""
    servers = [
        ("trouble.script", s.state, "here"),
        ("remote.trouble.script", s.remote_state, "on the other server"),
    ]
    # a warning of one server must not hide a failure on the other one
    for name, state, where in sorted(servers, key=lambda server: f": {_WARNING}" in s.trouble(server[0])):
        script, _, problem = s.trouble(name).partition(": ")
        if state not in START_SCRIPTS.get(script, ()):
            continue
        there = "" if where == "here" else f" {where}"
        step = f"safekit log --scripts -m {s.module}{there} shows what {script} wrote; remove the cause, then "
        step += f"safekit restart -m {s.module} there" if where != "here" else f"safekit restart -m {s.module}"
        steps = f"{step}; {verdict.next_step}" if verdict.next_step else step
        if problem.startswith(_WARNING):
            return replace(verdict, reason=f"{verdict.reason}; warning: {script}: {problem}", next_step=steps)
        told = f"the application may not run {where} ({script}: {problem})"
        if verdict.kind is Kind.PROTECTED:
            return Verdict(Kind.DEGRADED, s.times.get(name, verdict.since), told, step)
        rest = verdict.reason.removeprefix("the application runs here; ")
        return replace(verdict, reason=f"{told}; {rest}", next_step=steps)
    return verdict


def _of_state(s: Situation) -> Verdict:
    if s.state == "STOP":
        return _stopped(s)
    if s.state == "WAIT":
        return _waiting(s)
    if s.mode != "mirror":
        return _farm(s)
    if s.state == "ALONE":
        return _alone(s)
    if s.state in ("PRIM", "SECOND"):
        return _pair(s)
    return Verdict(
        Kind.STOPPED, s.since, f"the state of the module is {s.state}", f"safekit log -m {s.module} tells what happened"
    )


def _misfit(s: Situation) -> str:
    """What of this server's configuration does not fit that of another one, "" when nothing forbids anything."""
    return _differing(s) if s.is_("config.fits", "down") else ""


def _differing(s: Situation) -> str:
    from safekit.model.agreement import words  # seldom needed, and `state` has to be quick

    return words(s.resources.get("config.differs", ""))


def _same_everywhere(s: Situation) -> str:
    return f"give every server the right configuration: safekit -H SERVERS -E {s.module} on the server that has it"


def _look_at_quarantine(s: Situation) -> str:
    if not s.given_up:
        return ""
    return (
        f"look at what this server gave up after a split brain: safekit quarantine show -m {s.module} {s.given_up}, "
        f"then safekit quarantine clean -m {s.module} {s.given_up}"
    )


def _start_here(s: Situation) -> str:
    return f"safekit start -m {s.module}"


def _start_there(s: Situation) -> str:
    return f"safekit start -m {s.module} on the other server"


def _stopped(s: Situation) -> Verdict:
    if s.is_("rfs.inconsistent", "up"):
        return Verdict(
            Kind.AT_RISK,
            s.since,
            "the module is stopped here, and a reintegration of its data was interrupted",
            f"start the server that has the up-to-date data, then {_start_here(s)}",
        )
    if s.fresh:
        return Verdict(
            Kind.STOPPED,
            s.since,
            "the module has never been started",
            f"safekit prim -m {s.module} on the server that has the data, "
            f"then safekit second -m {s.module} on the other",
        )
    if s.is_("state.stopcause", "maxloop") or s.trouble("trouble.stop"):
        loop = s.is_("state.stopcause", "maxloop")
        what = "the module was stopped here after too many automatic restarts (maxloop)"
        reason = what if loop else "the module stopped by itself"
        cause, _, step = s.trouble("trouble.stop").partition("; ")
        reason += f": {cause}" if cause else ""
        reason += f"; its last start: {script}" if (script := s.trouble("trouble.script")) else ""
        where = f"safekit why -m {s.module} and safekit log --scripts -m {s.module}"
        find = f"find the cause with {where}, remove it, then {_start_here(s)}"
        return Verdict(Kind.STOPPED, s.since, reason, f"{step}: {_start_here(s)}" if step else find)
    if s.is_("rfs.uptodate", "down"):
        return Verdict(
            Kind.STOPPED,
            s.since,
            "the module is stopped here, and the data of this server are not up to date",
            f"{_start_here(s)}; the server that has the up-to-date data must be started too",
        )
    return Verdict(Kind.STOPPED, s.since, "the module is stopped on this server", _start_here(s))


_SET_BACK = {
    "here": "the data of this server was set back to an older state (a restored snapshot?)",
    "there": "the data of the other server was set back to an older state (a restored snapshot?)",
    "both": "one server was set back, or is a copy of the other (snapshot, clone?): nobody can tell whose data count",
}


def _set_back(s: Situation) -> str:
    """Whose data was set back or copied, "" when nobody's was, or that cannot be seen now."""
    return _SET_BACK.get(s.resources.get("state.setback", ""), "") if s.remote_state != "UNKNOWN" else ""


def _decide_data(s: Situation) -> str:
    return (
        f"safekit stop -m {s.module}, then safekit prim -m {s.module}, on the server whose data count; "
        f"safekit second -m {s.module} on the other one"
    )


def _not_synchronised(s: Situation) -> Verdict | None:
    """The secondary cannot be made equal, in whichever of its attempts it is just now."""
    name = "trouble.sync" if s.state in ("WAIT", "SECOND") else "remote.trouble.sync"
    what, _, told = s.trouble(name).partition("; ")
    step = f"{told or 'remove the cause'}; it is tried again by itself, and safekit log -m {s.module}"
    if s.state in ("WAIT", "SECOND") and s.color != "green" and what:
        only = "; the newest data are only on the other server" if s.replicates else ""
        reason = f"the last synchronisation of this server failed: {what}{only}"
        return Verdict(Kind.DEGRADED, s.times.get("trouble.sync", s.since), reason, f"{step} tells more")
    if s.state in ("ALONE", "PRIM") and s.remote_color != "green" and what:
        only = "; the newest data are only here" if s.replicates else ""
        reason = f"the last synchronisation of the other server failed: {what}{only}"
        since = s.times.get("remote.trouble.sync", s.since)
        return Verdict(Kind.DEGRADED, since, reason, f"{step} there tells more")
    return None


def _waiting(s: Situation) -> Verdict:
    serving = s.remote_state in ("ALONE", "PRIM")
    if s.color == "magenta" and serving:
        begins = "the application runs on the other server; this one is starting or stopping"
        return _not_synchronised(s) or Verdict(Kind.DEGRADED, s.since, begins, "")
    if s.color == "magenta":
        return Verdict(Kind.STOPPED, s.since, "the module is starting or stopping", "")
    if what := _set_back(s):
        return Verdict(Kind.AT_RISK, s.since, f"{what}; this server waits, nothing is overwritten", _decide_data(s))
    if s.remote_state in ("ALONE", "PRIM", "UNKNOWN") and (what := _misfit(s)):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"this server is refused: {what} differ from those of a server that runs the application",
            _same_everywhere(s),
        )
    if s.is_("rfs.inconsistent", "up") and s.remote_state not in ("ALONE", "PRIM"):
        return Verdict(
            Kind.AT_RISK,
            s.since,
            "this server waits, and a reintegration of its data was interrupted",
            _start_there(s),
        )
    if s.is_("rfs.uptodate", "down") and s.remote_state not in ("ALONE", "PRIM"):
        return Verdict(
            Kind.AT_RISK,
            s.since,
            "this server waits for the server that has the up-to-date data",
            f"{_start_there(s)}; only if its data are lost: safekit stop -m {s.module}, "
            f"then safekit prim -m {s.module} here",
        )
    if s.resources.get("state.waitsfor") == "rfs.syncat=down" and s.remote_state in ("ALONE", "PRIM"):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"this server has the data of its last synchronisation, and waits for the next one{_at(s)}",
            f"wait for it, or now: safekit set -m {s.module} -r rfs.syncat -v up",
        )
    what = _waits_for(s)
    if s.remote_state in ("ALONE", "PRIM"):
        if s.is_("rfs.remote_degraded", "up") or s.is_("remote.rfs.degraded", "up"):
            return Verdict(
                Kind.AT_RISK,
                s.since,
                "the replication of the other server has failed; this server waits",
                f"safekit stop -m {s.module}, then safekit start -m {s.module} on the other server",
            )
        return Verdict(
            Kind.DEGRADED, s.since, f"the application runs on the other server; this one waits {what}", _why(s)
        )
    return Verdict(Kind.STOPPED, s.since, f"the module waits {what}", _why(s))


def _at(s: Situation, words: str = ",") -> str:
    return f"{words} at {s.next_synchronisation}" if s.next_synchronisation else ""


def _waits_for(s: Situation) -> str:
    """What heart waits for, in its own words; without them (the heart of a former release, no rule) only a single
    resource that is down can be the cause: of several, nobody but the rule knows which."""
    told = [part.partition("=") for part in s.resources.get("state.waitsfor", "none").split(",")]
    causes = [f"{name} is {value}" for name, _, value in told if value]
    if causes:
        return f"because {' and '.join(causes)}"
    down = [name for name, value in s.resources.items() if value == "down" and not name.startswith(_INTERNAL)]
    if len(down) == 1:
        return f"because {down[0]} is down"
    return "for what a failover rule asks for" if down else "for a resource"


_INTERNAL = ("rfs.", "usersetting.", "state.", "heartbeat.", "remote.", "config.", "member.", "trouble.")


def _why(s: Situation) -> str:
    return f"safekit why -m {s.module} names the rule and its inputs"


def _split_brain(s: Situation) -> Verdict | None:
    """Both servers run the application: they hear it from each other, or their safeadmin by another network do."""
    state, since = s.elsewhere
    heard = s.remote_state in ("ALONE", "PRIM")
    if not heard and (s.remote_state, state) != ("UNKNOWN", "ALONE"):
        # one that is heard no more and is still told to be PRIM may just have died
        return None
    here = s.is_("state.former", "SECOND")
    loser = "this server" if here else "the other server"
    gives_up = f"{loser} took over on silence, and gives up its changes when the two hear each other"
    if heard:
        reason = "both servers run the application (split brain)"
        return Verdict(Kind.AT_RISK, max(s.since, s.remote_since), reason, f"wait for the recovery; {gives_up}")
    beats = sorted(name for name, value in s.resources.items() if name.startswith("heartbeat.") and value == "down")
    cut = ", ".join(name.partition(".")[2] for name in beats if name != "heartbeat.flow") or "of the heartbeats"
    keeper = "on the other server" if here else "here"
    return Verdict(
        Kind.AT_RISK,
        max(s.since, since),
        f"both servers run the application (split brain): network {cut} is cut, and each writes data of its own",
        f"repair network {cut}; {gives_up}. To keep the changes of {loser} instead: "
        f"safekit stop -m {s.module} {keeper} before the repair, and safekit start -m {s.module} there after it",
    )


def _alone(s: Situation) -> Verdict:
    if split := _split_brain(s):
        return split
    if (what := _set_back(s)) and s.remote_state == "WAIT":
        return Verdict(Kind.AT_RISK, s.since, f"{what}; the other server waits", _decide_data(s))
    if s.is_("rfs.degraded", "up"):
        return Verdict(
            Kind.AT_RISK,
            s.since,
            "the replication has failed on this server; the newest data are only here",
            f"safekit stop -m {s.module}, then {_start_here(s)}",
        )
    if s.color != "green":
        return Verdict(Kind.DEGRADED, s.since, "the application is starting or stopping here, without a secondary", "")
    only = "; the newest data are only here" if s.replicates else ""
    if what := _misfit(s):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"the application runs here; the other server is refused, because {what} differ there{only}",
            _same_everywhere(s),
        )
    if failed := _not_synchronised(s):
        return failed
    if s.remote_state == "SECOND":
        return Verdict(Kind.DEGRADED, s.since, f"the other server is reintegrating{only}", "wait for its end")
    if s.remote_state == "WAIT":
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"the application runs here; the other server waits{_at(s, '; it is synchronised next')}{only}",
            f"safekit why -m {s.module} on the other server",
        )
    if s.remote_state == "UNKNOWN" and (s.peer_up or s.elsewhere[0] == "STOP"):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"the application runs here; the module does not run on the other server{only}",
            _start_there(s),
        )
    if s.remote_state == "UNKNOWN":
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"the application runs here; the other server does not answer{only}",
            f"repair the other server or its networks, then {_start_there(s)}",
        )
    return Verdict(Kind.DEGRADED, s.since, f"the application runs here without a secondary{only}", _start_there(s))


def _pair(s: Situation) -> Verdict:
    partner = "SECOND" if s.state == "PRIM" else "PRIM"
    if not s.heart:
        return Verdict(
            Kind.DEGRADED, s.since, "process heart of this server does not answer", f"safekit log -m {s.module}"
        )
    if failed := _not_synchronised(s):
        return failed
    if s.state == "SECOND" and s.color == "magenta":
        only = "; the newest data are only on the other server" if s.replicates else ""
        return Verdict(Kind.DEGRADED, s.since, f"this server is reintegrating{only}", "wait for its end")
    if s.remote_state != partner:
        known = "does not answer" if s.remote_state == "UNKNOWN" else f"is {s.remote_state}"
        return Verdict(Kind.DEGRADED, s.since, f"the other server {known}", _why(s))
    if s.color == "green" and s.remote_color == "green" and s.is_("usersetting.failover", "off"):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            "the automatic failover is switched off: the secondary does not take over when the primary is lost",
            f"safekit failover on -m {s.module}, on both servers",
        )
    if s.color == "green" and s.remote_color == "green" and s.replicates and s.is_("heartbeat.flow", "down"):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            "the network of the replication is down: the next change of the data waits for it, then the pair breaks",
            "repair the network of the replication flow",
        )
    if s.color == "green" and s.remote_color == "green" and (what := _misfit(s)):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"{what} differ between the servers, as an administrator accepted: a failover changes them",
            _same_everywhere(s),
        )
    if s.color == "green" and s.remote_color == "green" and s.is_("config.same", "down"):
        return Verdict(
            Kind.DEGRADED,
            s.times.get("config.same", s.since),
            f"a secondary is ready, but {_differing(s)} differ between the servers: a failover may change what runs",
            f"safekit diff -m {s.module} shows how; then {_same_everywhere(s)}",
        )
    if s.color == "green" and s.remote_color == "green":
        where = "here" if s.state == "PRIM" else "on the other server"
        return Verdict(
            Kind.PROTECTED,
            max(s.since, s.remote_since),
            f"the application runs {where}, its secondary is ready",
            _look_at_quarantine(s),
        )
    if s.state == "PRIM" and s.remote_color == "magenta" and s.color == "green":
        only = "; the newest data are only here" if s.replicates else ""
        return Verdict(Kind.DEGRADED, s.since, f"the other server is reintegrating{only}", "wait for its end")
    return Verdict(Kind.DEGRADED, max(s.since, s.remote_since), "the application is starting or stopping", "")


def _farm(s: Situation) -> Verdict:
    if s.state == "UP" and (what := _misfit(s)):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            f"the application runs here; another server is refused, because {what} differ there",
            _same_everywhere(s),
        )
    missing = sorted(n for n, value in s.resources.items() if n.startswith("member.") and value == "down")
    if s.state == "UP" and s.color == "green" and missing:
        names = ", ".join(name.partition(".")[2] for name in missing)
        takes = "takes" if len(missing) == 1 else "take"
        return Verdict(
            Kind.DEGRADED,
            min((s.times[name] for name in missing if name in s.times), default=s.since),
            f"the application runs here, but {names} {takes} no part in the farm: the others carry the load",
            f"{_start_here(s)} there; when that server does not answer, repair it or its networks",
        )
    shares = [value for name, value in s.resources.items() if name.startswith("farm.")]
    if s.state == "UP" and s.color == "green" and shares and all(value == "100%" for value in shares):
        return Verdict(
            Kind.DEGRADED,
            s.since,
            "the application runs here with all the load, no other server takes part",
            f"safekit farm -m {s.module} shows which ones are missing; there: {_start_here(s)}",
        )
    if s.state == "UP" and s.color == "green":
        return Verdict(Kind.PROTECTED, s.since, "the application runs here", "")
    if s.state == "UP":
        return Verdict(Kind.DEGRADED, s.since, "the application is starting or stopping here", "")
    return Verdict(Kind.STOPPED, s.since, f"the state of the module is {s.state}", _why(s))
