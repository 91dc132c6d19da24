"""The names that `import errata` offers, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import errata

HEAVY = {"torch", "transformers", "httpx", "mlflow", "ray"}


def modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and return the top-level modules it has loaded."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert not modules_after("import errata\nerrata.__version__") & HEAVY
    assert not modules_after("from errata import Edit, EditBatch, EditRejected") & HEAVY


def test_the_client_loads_no_model_library() -> None:
    loaded = modules_after("from errata import Client, ErrataError")
    assert "httpx" in loaded and not loaded & (HEAVY - {"httpx"})


@pytest.mark.parametrize("name", errata.__all__)
def test_each_exported_name_resolves(name: str) -> None:
    assert getattr(errata, name) is not None
    assert name in vars(errata) or errata._MODULES[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Editors'"):
        errata.Editors  # noqa: B018
