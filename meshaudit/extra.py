"""Modules whose libraries come with an optional feature."""

import importlib
from typing import Any

from meshaudit.errors import MeshauditError


def load(module: str, extra: str = "archive") -> Any:
    """Import one of our modules; without the feature's libraries, say how to get them."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.split(".")[0] == "meshaudit":
            raise
        raise MeshauditError(
            f"this needs the package {exc.name}", f'pip install "meshaudit[{extra}]"'
        ) from exc
