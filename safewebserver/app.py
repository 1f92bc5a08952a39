"""The application: routes, and what happens to every request before and after its handler."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
import sys
import time
import traceback
from urllib.parse import urlsplit

from aiohttp import web

from safekit.bus.endpoint import Endpoint
from safekit.disk.paths import node_name
from safekit.model.cluster import ClusterError, load_cluster
from safewebserver import metrics, pages, revocations
from safewebserver.api import PREFIX, Api, ApiError, Handler, reply
from safewebserver.assets import PAGES, Console
from safewebserver.deploy import Deploy
from safewebserver.events import EventApi, Hub
from safewebserver.files import Files
from safewebserver.guesses import Busy, Wait
from safewebserver.identity import Gate, Strangers, Unauthorized
from safewebserver.look import Look
from safewebserver.modules import NoModule
from safewebserver.readings import Readings
from safewebserver.relay import Relay, RelayApi
from safewebserver.sessions import SessionApi, Sessions, from_console, who_asks

PUBLIC = frozenset(
    {
        *PAGES,
        revocations.PATH,
        *(f"{PREFIX}/{name}" for name in ("openapi.json", "session", "proof", "who")),
        *(f"/safekit/{name}" for name in ("mosaic.html", "localhost.html", "pages.css")),
    }
)
HEALTH = "/var/modules/"
PUBLIC_BELOW = (HEALTH, "/console/")
_NEXT_STEPS = {
    "clock": "set the clocks of the servers (NTP): date; timedatectl",
    "key": "distribute the cluster configuration from the server that has the right one: safekit -H '*' -G",
    "target": "use the address of that server in cluster.xml",
    "credentials": "give the name and password of a user of that server (safekit -H asks for them)",
    "session": "log in again",
    "certificate": "give a client certificate; on the server: SAFE/web/bin/checkcert -t all",
    "port": "see the Define lines of SAFE/web/conf/httpd.conf there",
}


def _name_in(host: str) -> str:
    """The name or address of a Host header, '' where it has none: it is a stranger's text."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
    return name if name.isascii() else ""


def known_host(host: str) -> bool:
    """Whether a Host header is an address, or a name of this cluster: a page that reached us under a name of its own
    (DNS rebinding) is not the administrator."""
    name = _name_in(host)
    try:
        ipaddress.ip_address(name.partition("%")[0])
        return True
    except ValueError:
        known = {"localhost", socket.gethostname().lower(), node_name().lower()}
    with contextlib.suppress(ClusterError):
        known |= {text.lower() for lan in load_cluster().lans for node in lan.nodes for text in (node.name, node.addr)}
    return name in known


def is_public(path: str) -> bool:
    """What load balancers, module checkers and strangers may see."""
    return path in PUBLIC or path.startswith(PUBLIC_BELOW)


def foreign(request: web.Request) -> bool:
    """Whether a page of another site makes this request in the name of its visitor."""
    origin = request.headers.get("Origin")
    if origin is None or request.method in ("GET", "HEAD"):
        return False
    return origin.partition("://")[2] != request.host


def refuse(request: web.Request, status: int, code: str, text: str, next_step: str) -> web.Response:
    """An error as every route answers it."""
    return reply(request, {"error": code, "text": text, "next_step": next_step}, status)


def _challenge(request: web.Request, error: Unauthorized) -> web.Response:
    body = {
        "error": error.kind,
        "text": error.text,
        "next_step": _NEXT_STEPS.get(error.kind, "see the log of the web service"),
    }
    if error.kind == "clock":
        body["skew"] = str(round(error.skew, 3))
    response = reply(request, body, 401)
    if error.kind == "credentials" and not from_console(request):
        response.headers["WWW-Authenticate"] = 'Basic realm="SafeKit", charset="UTF-8"'
    return response


def _to_https(request: web.Request, port: int) -> web.Response:
    """On a server that speaks HTTPS: over HTTP there is nothing but which server is ready, for load balancers."""
    host = _name_in(request.host) or "localhost"
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    if request.path in PAGES and request.method in ("GET", "HEAD"):
        return web.Response(status=302, headers={"Location": f"{url}{request.path}"})
    return refuse(request, 403, "https", f"this server speaks HTTPS: {url}", "ask there")


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer has: no version of ours for strangers, no frame of another site around a page."""
    response.headers["Server"] = "SafeKit"
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "DENY")
    response.headers.setdefault("Referrer-Policy", "no-referrer")


def make_app(gate: Gate, api: Api, bus: Endpoint | None = None) -> web.Application:
    """The application. Every route asks who is there, but the public ones."""
    sessions, relay, look = Sessions(), Relay(), Look(api.modules, bus)
    hub = Hub(look, relay)
    strangers = Strangers(lambda text: print(f"safewebserver: {text}", file=sys.stderr, flush=True))

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if gate.settings.secure and not request.secure and not request.path.startswith(HEALTH):
                return _to_https(request, gate.settings.https)
            if foreign(request):
                raise ApiError(403, "origin", "requests from pages of other sites are refused")
            if request.path in PAGES and pages.loopback(request.host):
                raise web.HTTPFound("/safekit/localhost.html")
            named = request.path == metrics.PATH and metrics.allowed.covers(request.remote)
            if not is_public(request.path) and not named:
                who = request["caller"] = await who_asks(gate, sessions, request)
                request["ask_again"] = lambda: who_asks(gate, sessions, request)
                if who.anonymous and request.method not in ("GET", "HEAD") and not known_host(request.host):
                    text = "without passwords, changes are accepted under an address or a name of cluster.xml only"
                    raise ApiError(403, "host", text)
            response = await handler(request)
        except ApiError as error:
            response = reply(request, error.body, error.status)
        except Unauthorized as error:
            if error.tried:
                strangers.refused(request.remote or "?", error.text, time.monotonic())
            response = _challenge(request, error)
        except NoModule as error:
            response = refuse(request, 404, "no_module", str(error), "safekit module list")
        except Wait as error:
            strangers.refused(request.remote or "?", str(error), time.monotonic())
            response = refuse(request, 429, "wait", str(error), "give the right password once that time is over")
            response.headers["Retry-After"] = str(math.ceil(error.seconds))
        except Busy:
            response = reply(
                request, {"error": "busy", "text": "too many logins at once", "next_step": "try again"}, 503
            )
        except web.HTTPException as error:
            if error.status < 400:
                raise
            response = reply(
                request, {"error": "http", "text": error.reason, "next_step": "see openapi.json"}, error.status
            )
            response.headers.update({k: v for k, v in error.headers.items() if k == "Allow"})
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception as error:  # a defect of one handler must not take the service away from the others
            traceback.print_exc(file=sys.stderr)
            text = f"defect in the web service: {type(error).__name__}"
            response = reply(
                request, {"error": "defect", "text": text, "next_step": "journalctl -u safewebserver"}, 500
            )
        return response

    async def close(_: web.Application) -> None:
        await hub.close()
        await look.close()
        await relay.close()

    app = web.Application(middlewares=[guard])
    app.on_response_prepare.append(_headers)
    app.on_shutdown.append(close)
    for part in (
        api,
        EventApi(look, hub),
        SessionApi(gate, sessions),
        Readings(bus),
        Files(),
        Deploy(api.commands),
        RelayApi(relay),
        Console(),
    ):
        app.add_routes(part.routes())
    app.add_routes([*pages.routes(), web.get(metrics.PATH, metrics.metrics)])
    app.add_routes([web.get(revocations.PATH, revocations.serve)])
    app.cleanup_ctx.append(revocations.following)
    return app
