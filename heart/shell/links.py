"""The heartbeat links of a heart, while their addresses change (guide 9.3, 12.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from heart.shell.wire import LinkSocket, Route


class Links:
    """`make` gives a link that is not open yet, `begun` is called with each one that is new in use, `moved` with one
    whose peer has another address now, `held` with one that keeps its former addresses and why."""

    def __init__(
        self,
        make: Callable[[Route], LinkSocket],
        begun: Callable[[LinkSocket], None],
        moved: Callable[[LinkSocket], None],
        held: Callable[[LinkSocket, str], None],
    ) -> None:
        self._make, self._begun, self._moved, self._held = make, begun, moved, held
        self.now: list[LinkSocket] = []

    async def use(self, routes: Iterable[Route]) -> bool:
        """Go over to these routes, names looked up again. False when a link keeps its former addresses, because the
        new ones cannot be had now: try again later.

        A link that stays as it is loses no heartbeat; one that changes is replaced when its successor is open.
        """
        former = {link.route.ident: link for link in self.now}
        found = await asyncio.gather(*(self._renew(route, former.get(route.ident)) for route in routes))
        old, self.now = self.now, [link for link, _ in found]
        for link in old:
            if link not in self.now:
                link.close()
        for link in self.now:
            if link not in old:
                self._begun(link)
        return all(settled for _, settled in found)

    async def _renew(self, route: Route, old: LinkSocket | None) -> tuple[LinkSocket, bool]:
        fresh = self._make(route)
        if old is None or not old.usable:
            await fresh.open()
            return fresh, True
        assert old.places is not None
        try:
            places = await fresh.look_up()
        except OSError as error:
            self._held(old, f"{route.own}, {route.peer}: {error.strerror or error}")
            return old, False
        if (places.family, places.own) == (old.places.family, old.places.own):
            moved, old.places, old.route = places.peer != old.places.peer, places, route
            if moved:
                self._moved(old)
            return old, True
        await fresh.open()
        if not fresh.usable:
            self._held(old, fresh.problem)
            return old, False
        self._moved(fresh)
        return fresh, True

    def close(self) -> None:
        """Stop using all of them."""
        for link in self.now:
            link.close()
