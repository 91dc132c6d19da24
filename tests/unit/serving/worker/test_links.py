"""Addresses of other pages in the status."""

from __future__ import annotations

import socket

import pytest

from serving.worker.links import listens, mlflow_links


def test_the_page_of_the_served_version_is_named_once_it_is_mirrored() -> None:
    assert mlflow_links("http://127.0.0.1:5000/", "errata", {}) == {"mlflow": "http://127.0.0.1:5000/#/models/errata"}
    found = mlflow_links("https://mlflow.example/tracking", "my model/x", {"mlflow_version": 12})
    assert found["mlflow_version"] == "https://mlflow.example/tracking/#/models/my%20model%2Fx/versions/12"


def test_an_address_has_no_password() -> None:
    found = mlflow_links("http://ann:secret@mlflow.example:5000", "errata", {"mlflow_version": 1})
    assert "secret" not in str(found) and found["mlflow"] == "http://mlflow.example:5000/#/models/errata"


@pytest.mark.parametrize("uri", [None, "", "sqlite:///mlflow.db", "file:///tmp/x", "databricks", "http://"])
def test_a_store_without_a_web_server_has_no_page(uri: str | None) -> None:
    assert mlflow_links(uri, "errata", {"mlflow_version": 1}) == {}


def test_an_address_at_which_nothing_listens_is_no_link() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert listens(address)
    assert not any(map(listens, (address, "127.0.0.1:-1", "127.0.0.1", "")))
