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
from ray.serve.config import HTTPOptions

from serving.app import build

RAY_S = 120.0
PERIOD_S = 0.05


def main(arguments: Sequence[str]) -> None:
    """Build the application, connect to the Ray of RAY_ADDRESS, and serve. Raises `ValueError` for wrong arguments."""
    host, port, *pairs = arguments
    application = build(dict(_pair(text) for text in pairs))
    address = os.environ["RAY_ADDRESS"]
    wait_for(address, RAY_S)
    ray.init(address=address, namespace="serve")
    serve.start(proxy_location="EveryNode", http_options=HTTPOptions(host=host, port=int(port)))
    serve.run(application, name="errata", route_prefix="/", blocking=True)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"arguments have the form name=value, unlike {text!r}")
    return name, value


def wait_for(address: str, timeout_s: float) -> None:
    """Wait until something listens at `host:port`. Raises `OSError` after `timeout_s` seconds."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError as refused:
            if time.monotonic() > deadline:
                raise OSError(f"Ray does not answer at {address} after {timeout_s:.0f} s: {refused}") from None
            time.sleep(PERIOD_S)
        else:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
