"""This server as a secondary: the connection to its primary, from the first word to what is left of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nfsbox.pair.engine import Engine
from nfsbox.pair.secondary import Applier
from nfsbox.place import BoxError, Fields, Place, text_of
from safekit.bus.asking import Ask, Done
from safekit.bus.requests import nfsadmin
from safekit.bus.requests import nfsbox as asked
from safekit.rfs.wire import Kind, Op, WireError, WireRefused, connect


class Follower:
    """One per box. `handed_over` gets the token by which the former primary will know this server again; of a stream
    that is lost, nfsadmin is told."""

    def __init__(
        self,
        place: Place,
        engine: Engine,
        notify: Callable[[Ask[Done]], None],
        handed_over: Callable[[bytes], None],
    ) -> None:
        self._place = place
        self._engine = engine
        self._notify = notify
        self._handed_over = handed_over
        self._applier: Applier | None = None
        self._started = False
        self.attempt = asked.Secondary("", "", 0)
        """What was asked for last; kept for a nfsadmin that is started again."""
        self.number = 0
        """Of the last session."""

    @property
    def session(self) -> str | None:
        """See `Applier.session`; None when this server follows nobody."""
        return self._applier.session if self._applier is not None else None

    @property
    def applied(self) -> int:
        """Operations of this session."""
        return self._applier.applied if self._applier is not None else 0

    @property
    def token(self) -> bytes | None:
        """Of a hand-over to this server whose stream has not ended yet."""
        return self._applier.token if self._applier is not None else None

    @property
    def strict(self) -> bool:
        """Whether this server is equal to its primary."""
        return self._applier is not None and self._applier.strict

    def connect(self, ask: asked.Secondary, token: bytes | None) -> asked.Connected:
        """With `ask.paired` and the token of a hand-over as its equal; else to be made so. Nothing is taken before
        `go_on` or `begin`. Raises BoxError: connect, refused."""
        self.attempt = ask
        hello: Fields = {"node": self._place.node, "paired": ask.paired, "exchanges": True}
        if ask.paired:
            hello["token"] = token or b""
        address, place = (ask.address, ask.port), self._place
        try:
            channel, answer = connect(address, place.module, Kind.STREAM, place.keys(), hello, source=ask.source)
        except WireRefused as error:
            raise BoxError("refused", text_of(error)) from None
        except WireError as error:
            raise BoxError("connect", text_of(error)) from None
        self.number = int(answer.get("session") or 0)
        self._applier = Applier(
            channel,
            self._engine.roots,
            self._engine.disks,
            strict=ask.paired,
            durable=bool(answer.get("durable")),
            place_holders=self._engine.place_holders,
            on_end=self._ended,
            on_strict=lambda _: None,
        )
        self._started = ask.paired
        return asked.Connected(self.number, self._applier.durable, self._engine.disks.refused)

    def go_on(self) -> None:
        """Take the stream of a primary that handed over."""
        if self._applier is not None:
            self._take(self._applier, paired=True)

    def begin(self) -> None:
        """The mark that this server's data is about to change is durable: take the stream, unless it was. Raises
        BoxError."""
        applier = self._applier
        if applier is None or self._started:
            return
        try:
            applier.channel.send(Op.START, timeout=10.0)
        except WireError as error:
            raise BoxError("connect", text_of(error)) from None
        self._started = True
        self._take(applier, paired=False)

    def _take(self, applier: Applier, *, paired: bool) -> None:
        applier.start()
        self._notify(nfsadmin.SessionOpen(self.attempt.peer, paired, "secondary"))

    def proved(self) -> None:
        """This server was compared with its primary whole, if it was: whatever its disk had refused before, it has.
        Raises OSError."""
        if self._applier is not None and self._applier.compared:
            self._engine.disks.proved(self._applier.refusals)

    def end(self) -> None:
        """Follow no longer; what was acknowledged is applied when it returns. Raises BoxError: busy."""
        applier, self._applier = self._applier, None
        if applier is None:
            return
        if not self._started:
            applier.channel.close()
            return
        if not applier.stop():
            self._applier = applier
            raise BoxError("busy", "the disk does not take what the peer had sent: check the disk of this server")
        if applier.token is not None:
            self._handed_over(applier.token)
        # The peer was told that its changes are in the memory here, and for what its application synced its own disk
        # stood. From now on nothing but this disk may be left; a takeover does not wait for it.
        threading.Thread(target=self._engine.disks.try_sync, name="inherit", daemon=True).start()

    def _ended(self, reason: str, token: bytes | None) -> None:
        applier = self._applier
        if token is not None:
            self._handed_over(token)  # the next role comes from heart
        elif applier is not None:
            self._notify(nfsadmin.SessionLost(reason, self.attempt.peer, "secondary"))
