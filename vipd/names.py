"""Virtual addresses that are given as names (13.5.5).

A name is resolved when vipd starts and the answer is kept: a name server that is down, or that has changed
its mind, must neither delay a failover nor make a release miss the address that was set. `safekit -G` asks again (9.3).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

from safekit.net.packets import IP
from vipd.plan import Request, Wanted, literal

RESOLVE_SECONDS = 1.0


class Resolver:
    """Names of the configuration and their addresses."""

    def __init__(self) -> None:
        self._known: dict[str, IP] = {}

    async def known(self, requests: Iterable[Request]) -> list[Wanted]:
        """The addresses that are known or can be resolved within RESOLVE_SECONDS."""
        return (await self.resolve(requests))[0]

    async def resolve(self, requests: Iterable[Request]) -> tuple[list[Wanted], list[tuple[str, str]]]:
        """Known addresses, and (name, reason) for those that cannot be resolved now."""
        requests = tuple(requests)
        missing = {r.text for r in requests if literal(r.text) is None and r.text not in self._known}
        reasons: dict[str, str] = {}
        if missing:
            names = sorted(missing)
            for name, answer in zip(names, await asyncio.gather(*map(self._ask, names)), strict=True):
                if isinstance(answer, str):
                    reasons[name] = answer
                else:
                    self._known[name] = answer
        found: list[Wanted] = []
        unknown: list[tuple[str, str]] = []
        for request in requests:
            ip = literal(request.text) or self._known.get(request.text)
            if ip is None:
                unknown.append((request.text, reasons[request.text]))
            else:
                found.append(Wanted(request, ip))
        return found, unknown

    async def renew(self, requests: Iterable[Request]) -> bool:
        """Ask for all names again; whether one has another address now. What has none now keeps the one it had, and so
        does a name of several addresses that still has it."""
        names = sorted({request.text for request in requests if literal(request.text) is None})
        before = dict(self._known)
        for name, answers in zip(names, await asyncio.gather(*map(self._answers, names)), strict=True):
            if not isinstance(answers, str) and self._known.get(name) not in answers:
                self._known[name] = answers[0]
        return self._known != before

    async def _ask(self, name: str) -> IP | str:
        """The first address of a name, or why there is none."""
        answers = await self._answers(name)
        return answers if isinstance(answers, str) else answers[0]

    async def _answers(self, name: str) -> list[IP] | str:
        loop = asyncio.get_running_loop()
        question = loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        try:
            answers = await asyncio.wait_for(question, RESOLVE_SECONDS)
        except TimeoutError:
            return f"the name is not resolved within {RESOLVE_SECONDS:g} s; give an address or put it into /etc/hosts"
        except OSError as error:
            return f"the name cannot be resolved ({error.strerror}); give an address or put it into /etc/hosts"
        return [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
