"""Start of the application on this machine: `python -m serving.start HOST PORT name=value …`, after or beside `ray start`.

It does what `serve start` and `serve run serving.app:build` do one after the other, in one process, and imports the application
while Ray starts. `errata serve`, the demo and the benchmarks run it; it ends with an error in its log, or never.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

from errata.local.preflight import address_problems
from serving.app import build

RAY_S = 120.0
PERIOD_S = 0.05


def main(arguments: Sequence[str]) -> None:
    """Build the application, connect to the Ray of RAY_ADDRESS, and serve; wrong arguments end the process with one line."""
    try:
        host, port, application = prepared(arguments)
    except (ValueError, OSError) as wrong:
        sys.exit(f"serving.start: {wrong}")
    address = os.environ["RAY_ADDRESS"]
    wait_for(address, RAY_S)
    ray.init(address=address, namespace="serve")
    serve.start(proxy_location="EveryNode", http_options=HTTPOptions(host=host, port=port))
    serve.run(application, name="errata", route_prefix="/", blocking=True)


def prepared(arguments: Sequence[str]) -> tuple[str, int, Application]:
    """Return the host, the port and the application of HOST PORT name=value …. Raises `ValueError` for what is wrong."""
    if len(arguments) < 2:
        raise ValueError("give the address first: HOST PORT name=value …")
    host, port, *pairs = arguments
    given = dict(_pair(text) for text in pairs)
    _check_address(host, port, given.get("keys"), os.environ.get("RAY_ADDRESS", ""))
    return host, int(port), build(given)


def _check_address(host: str, port: str, keys: str | None, ray_address: str) -> None:
    """Raise `ValueError` for an address on which the service cannot or must not listen, and without an address of Ray."""
    if not ray_address.rpartition(":")[2].isdecimal():
        raise ValueError(f"RAY_ADDRESS is {ray_address!r}: set it to the HOST:PORT of `ray start`, such as 127.0.0.1:6379")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"port: {port!r} is no port: give a number from 1 to 65535, such as 8000")
    found = address_problems(host, int(port), bool(keys))
    if _listens(ray_address):  # An earlier application on this Ray may hold the port by right.
        found = found.of("keys", "host")
    if found:
        raise ValueError("; ".join(map(str, found)))


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"arguments have the form name=value, unlike {text!r}")
    return name, value


def wait_for(address: str, timeout_s: float) -> None:
    """Wait until something listens at `host:port`. Raises `OSError` after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not _listens(address):
        if time.monotonic() > deadline:
            raise OSError(f"Ray does not answer at {address} after {timeout_s:.0f} s: is `ray start` running there?")
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main(sys.argv[1:])
