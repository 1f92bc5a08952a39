"""The description of the web service (OpenAPI) against the service: made up requests, and answers as described.

Requests follow the description, or break it on purpose; every answer has a described status, a described content type
and a body of the described form, and is no defect. Made the same each time.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from web_https import Pki, secure_server
from web_server import PASSWORDS

from safewebserver.api import openapi

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
SCHEMA = schemathesis.openapi.from_dict(openapi()).exclude(path_regex="/events$")  # a stream does not end
BASIC = "Basic " + base64.b64encode(f"admin:{PASSWORDS['admin']}".encode()).decode()
ADMIN: dict[str, Any] = {"headers": {"Authorization": BASIC}}
EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@schemathesis.serializer("application/zip")
def any_bytes(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """What stands for a module's archive: whatever was made up."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service that speaks HTTPS."""
    server, port = secure_server(tmp_path_factory.mktemp("web"), Pki(), "Define usefile\n")
    server.start()
    ADMIN["verify"] = str(server.safe / "web/conf/cacert.crt")
    yield f"https://127.0.0.1:{port}"
    said = server.stop()
    assert "Traceback" not in said and "defect" not in said, said


@SCHEMA.parametrize()
@EXAMPLES
def test_answers_are_as_described(web: str, case: Any) -> None:
    response = case.call(base_url=web, timeout=30, **ADMIN)
    case.validate_response(response, checks=CHECKS)
