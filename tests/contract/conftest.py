from tests.unit.conftest import model_dir, tiny_model, world  # noqa: F401
