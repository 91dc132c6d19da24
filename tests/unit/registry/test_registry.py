"""The registry's errors: what is wrong with a server, in one line and without its password."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.exceptions import MlflowException, RestException
from requests import ConnectTimeout

from errata.registry import Registry, RegistryUnavailable
from tests.fakes.mlflow_client import FakeMlflow

URI = "http://ann:secret@mlflow:5000"


def rest(code: str, text: str) -> RestException:
    return RestException({"error_code": code, "message": text})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            ConnectTimeout("HTTPConnectionPool(host='mlflow'): Max retries exceeded: connect timed out"),
            "cannot be reached: HTTPConnectionPool.*connect timed out",
        ),
        (MlflowException("too many 503 error responses"), ": too many 503 error responses"),
        (rest("PERMISSION_DENIED", "no"), "refuses the credentials: set MLFLOW_TRACKING_USERNAME"),
        (rest("UNAUTHENTICATED", "no"), "refuses the credentials: set MLFLOW_TRACKING_USERNAME"),
        (rest("ENDPOINT_NOT_FOUND", "logged-models"), "takes an MLflow server of version 3 or later"),
        (MlflowException("of http://ann:secret@mlflow:5000 " + "x" * 1000), "of http://mlflow:5000 x+…$"),
    ],
)
def test_what_is_wrong_with_the_server_is_one_line_without_the_password(fault: Exception, says: str) -> None:
    class Failing(FakeMlflow):
        def get_experiment_by_name(self, name: str) -> Any:
            raise fault

        search_runs = get_experiment_by_name

    with pytest.raises(RegistryUnavailable, match=says) as unavailable:
        Registry(URI, "facts", client=Failing()).runs()
    text = str(unavailable.value)
    assert text.startswith("MLflow at http://mlflow:5000") and "secret" not in text and "\n" not in text and len(text) < 700
