"""Messages about an MLflow server that cannot be used, with the exceptions of the installed MLflow."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from errata.ledger import Ledger
from errata.local.services import free_port
from errata.registry import Registry, RegistryUnavailable


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers each request with one status and body, or ends the connection if the status is 0."""

    status, body = 200, b""

    def do_GET(self) -> None:
        if self.status:
            self.send_response(self.status)
            self.end_headers()
            self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[str]:
    """Serve on a free port and give the address."""
    handler = type("Handler", (Answering,), {"status": status, "body": body})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def said_of(uri: str, ledger: Ledger) -> str:
    with pytest.raises(RegistryUnavailable) as unavailable:
        Registry(uri, "facts").mirror(ledger)
    return str(unavailable.value)


def test_a_closed_port_is_named_with_the_systems_reason(ledger: Ledger) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    assert said_of(uri, ledger) == f"MLflow at {uri} cannot be reached: [Errno 111] Connection refused"


def test_a_broken_connection_cannot_be_reached(ledger: Ledger) -> None:
    with answering(0) as uri:
        said = said_of(uri, ledger)
    assert said.startswith(f"MLflow at {uri} cannot be reached: ") and "closed connection" in said


def test_a_server_that_fails_answers_with_an_error(ledger: Ledger) -> None:
    with answering(503) as uri:
        assert said_of(uri, ledger) == f"MLflow at {uri} answers with an error of the server: too many 503 error responses"


def test_a_text_of_the_server_is_not_read_for_the_kind_of_failure(ledger: Ledger) -> None:
    body = json.dumps({"error_code": "BAD_REQUEST", "message": "the database timed out: Max retries exceeded"})
    with answering(400, body.encode()) as uri:
        said = said_of(uri, ledger)
    assert said == f"MLflow at {uri}: BAD_REQUEST: the database timed out: Max retries exceeded"
