"""The services of one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.local.services import LocalServices


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("h", "http://h:1")],
)
def test_the_address_for_clients_of_this_machine(tmp_path: Path, host: str, url: str) -> None:
    assert LocalServices(tmp_path, http_port=1, http_host=host).url == url
