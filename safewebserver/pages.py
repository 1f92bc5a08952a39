"""What is not the API: health checks, the load balancing test page, why not localhost (guide 3.1.2, 4.3.5, 13.5.3)."""

from __future__ import annotations

import html
from importlib import resources

from aiohttp import web

from safekit.disk.modulestate import state_of
from safekit.disk.paths import node_name
from safekit.disk.resources import load
from safewebserver.modules import NoModule, incarnation, local_state, paths_of, ready

NO_STORE = {"Cache-Control": "no-store"}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


def page(name: str, **values: str) -> web.Response:
    """One of our pages; `{{name}}` in it is replaced by the value, escaped."""
    text = (resources.files("safewebserver") / "pages" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", html.escape(value))
    policy = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return web.Response(
        text=text, content_type="text/html", charset="utf-8", headers={**NO_STORE, "Content-Security-Policy": policy}
    )


async def ready_txt(request: web.Request) -> web.Response:
    """OK (200) where the module's service is, NOT FOUND (404) elsewhere. For load balancers: no password (G4)."""
    try:
        here = ready(paths_of(request.match_info["module"]))
    except NoModule:
        here = False
    return web.Response(text="OK" if here else "NOT FOUND", status=200 if here else 404, headers=NO_STORE)


async def state_json(request: web.Request) -> web.Response:
    """State, colour and number of starts of a module, for module checkers of this and of other clusters."""
    try:
        paths = paths_of(request.match_info["module"])
    except NoModule as error:
        answer = {"error": "no_module", "text": str(error), "next_step": "safekit module list there shows its modules"}
        return web.json_response(answer, status=404, headers=NO_STORE)
    state, color = local_state(paths)
    resources = load(paths.resources)
    resource = resources.get("state.local")
    return web.json_response(
        {
            "node": node_name(),
            "module": paths.module,
            "state": state,
            "color": color,
            "ready": ready(paths),
            "incarnation": incarnation(paths),
            "since": resource.since if resource is not None else 0.0,
            "run": state_of(paths.module, node_name(), resources).run,
        },
        headers=NO_STORE,
    )


async def mosaic(request: web.Request) -> web.Response:
    """Shows which server answers; loaded again and again through a virtual address, the names alternate."""
    peer = request.remote or ""
    answer = page("mosaic.html", node=node_name(), client=peer, host=request.host)
    # A farm balances connections: only a new one can come to another server.
    answer.force_close()
    return answer


def loopback(host: str) -> bool:
    """Whether a Host header names the visitor's own machine: of no use for links between servers (3.1.2)."""
    return host in _LOOPBACK or host.rpartition(":")[0] in _LOOPBACK


async def localhost(request: web.Request) -> web.Response:
    """Why the console is not shown under a loopback address."""
    return page("localhost.html", node=node_name())


async def style(request: web.Request) -> web.Response:
    """How these pages look."""
    text = (resources.files("safewebserver") / "pages" / "pages.css").read_text(encoding="utf-8")
    return web.Response(text=text, content_type="text/css", charset="utf-8", headers=NO_STORE)


def routes() -> list[web.RouteDef]:
    """Every route that is not the API."""
    return [
        web.get("/safekit/pages.css", style),
        web.get("/safekit/mosaic.html", mosaic),
        web.get("/safekit/localhost.html", localhost),
        web.get("/var/modules/{module}/ready.txt", ready_txt),
        web.get("/var/modules/{module}/state.json", state_json),
    ]
