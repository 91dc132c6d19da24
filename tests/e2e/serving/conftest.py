"""The running application and its client, over the session's service."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.scalable import ScalableService
from tests.e2e.serving.application import App


@pytest.fixture(scope="package")
def app(service: ScalableService) -> Iterator[App]:
    with httpx.Client(base_url=service.http.base_url, timeout=120) as client:
        yield App(client, service.ledger())
