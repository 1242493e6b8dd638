"""Public names imported when first used, so that nothing waits for them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose names live elsewhere.

    Args:
        package: Its ``__name__``.
        homes: Module below ``rightbatch`` to the names it gives; a name that ends in
            ``.`` is the module itself, under that name.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        key = name if name in home else f"{name}."
        if key not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"rightbatch.{home[key]}")
        value = module if key.endswith(".") else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(name.rstrip(".") for name in home)

    return get, names
