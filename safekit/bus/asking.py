"""Typed requests: what one process may ask of another, and how a process serves what it is asked.

Every process has a module in `safekit.bus.requests` that declares its requests: frozen dataclasses with the fields,
their units, and the type of the answer. Both sides import it, so that a field has one name and one type. On the wire a
request is its word (`op`) and its fields; what does not fit the declaration is refused before a handler sees it.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from safekit.bus.message import ADMIN, BusError, Fields, Request, by_word_sync
from safekit.model.codec import CodecError, from_data, to_data

Answer = TypeVar("Answer")
Document = dict[str, Any]
"""An answer that is shown to people and tests as it is, not read field by field."""


@dataclass(frozen=True, slots=True)
class Done:
    """The answer of a request that tells nothing but that it is done."""


class Ask(Generic[Answer]):
    """Base of all requests: a frozen dataclass, which says whom it asks, by which word, and what is answered."""

    __slots__ = ()
    process: ClassVar[str]
    """Name of the process that serves it."""
    op: ClassVar[str]
    """Its word on the wire."""
    repeatable: ClassVar[bool] = True
    """False: a process that is started again while it was asked must not do it a second time."""


Asked = TypeVar("Asked", bound=Ask[Any])


def answer_type(kind: type[Ask[Any]]) -> Any:
    """The type of the answer of a request."""
    for base in kind.__orig_bases__:  # type: ignore[attr-defined]
        if typing.get_origin(base) is Ask:
            return typing.get_args(base)[0]
    raise TypeError(f"{kind.__name__} does not say what is answered: class {kind.__name__}(Ask[ANSWER])")


def name_of(module: str, ask: Ask[Any], instance: str = "") -> str:
    """Name on the bus of the process that serves a request: of a module, "" for one of the server; `instance` where it
    runs several times in a module."""
    if ask.process == ADMIN or not module:
        return ask.process
    return f"{module}/{ask.process}" + (f".{instance}" if instance else "")


def request_fields(ask: Ask[Any]) -> Fields:
    """The fields of a request as they go over the wire."""
    names = [field.name for field in dataclasses.fields(ask)]  # type: ignore[arg-type]
    return {name: to_data(getattr(ask, name)) for name in names}


def answer_fields(answer: Any) -> Fields:
    """An answer as it goes over the wire, whole."""
    if answer is None:
        return {}
    if isinstance(answer, dict):
        return answer
    return {field.name: to_data(getattr(answer, field.name)) for field in dataclasses.fields(answer)}


def from_fields(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """The request or answer that the fields describe; what a newer release added is passed over. Raises CodecError."""
    names = {field.name for field in dataclasses.fields(kind)}
    return from_data(kind, {name: value for name, value in given.items() if name in names})


def answered(ask: Ask[Answer], reply: Fields) -> Answer:
    """The typed answer. Raises BusError('bad_answer')."""
    kind = answer_type(type(ask))
    if kind == Document:
        return typing.cast(Answer, {name: value for name, value in reply.items() if name not in ("re", "ok")})
    try:
        return typing.cast(Answer, from_fields(kind, reply))
    except CodecError as error:
        raise BusError("bad_answer", f"{ask.process} answered {ask.op!r} with what cannot be read: {error}") from None


def ask_sync(module: str, ask: Ask[Answer], timeout: float = 2.0, instance: str = "") -> Answer:
    """Ask without an event loop, for commands. Raises BusError."""
    fields = request_fields(ask)
    reply = by_word_sync(name_of(module, ask, instance), ask.op, timeout, repeatable=ask.repeatable, **fields)
    return answered(ask, reply)


Serve = Callable[[Any], Awaitable[Any]]
"""Takes a request, returns its answer (None for Done); raises BusError for a refusal."""


@dataclass(frozen=True, slots=True)
class Alive:
    """pid of the process; late: seconds that its loop was late at worst, within the last minute."""

    pid: int
    late: float = 0.0


@dataclass(frozen=True, slots=True)
class Ping(Ask[Alive]):
    """Served by every process, before it is ready for anything else: whether its loop turns. Whoever may be asked so
    has one of its own in its module."""

    process = ""
    op = "ping"


def pong(request: Request, late: float = 0.0) -> Fields | None:
    """The answer to `Ping`; None for another request."""
    return answer_fields(Alive(os.getpid(), round(late, 3))) if request.op == Ping.op else None


class Service:
    """What a process serves: the one place where a word becomes a request, and an unknown word is refused."""

    def __init__(
        self,
        process: str,
        handlers: Iterable[tuple[type[Ask[Any]], Serve]],
        ready: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        """ready: what a request waits for before it is served.

        Raises TypeError for a request of another process, and for a word that is served twice.
        """
        self.process = process
        self._ready = ready
        self._kinds: dict[str, tuple[type[Ask[Any]], Serve]] = {}
        for kind, serve in handlers:
            if kind.process != process or kind.op in self._kinds:
                raise TypeError(f"{process} cannot serve {kind.process} {kind.op!r}")
            answer_type(kind)
            self._kinds[kind.op] = (kind, serve)

    async def handle(self, request: Request) -> Fields:
        """Serve one request of the bus. Raises BusError: unknown_op, bad_request, or the handler's own refusal."""
        if (alive := pong(request)) is not None:
            return alive
        if request.op not in self._kinds:
            raise BusError("unknown_op", f"{self.process} does not serve {request.op!r}")
        kind, serve = self._kinds[request.op]
        try:
            ask = from_fields(kind, request.fields)
        except CodecError as error:
            raise BusError("bad_request", f"{request.op}: {error}") from None
        if self._ready is not None:
            await self._ready()
        return answer_fields(await serve(ask))
