"""What a package shows is what its ``__all__`` lists: no more by accident, no less by forgetting."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from types import ModuleType

import pytest

import cloister

PACKAGES = sorted(
    ["cloister"]
    + [
        module.name
        for module in pkgutil.walk_packages(cloister.__path__, "cloister.")
        if module.ispkg and ".migrations" not in module.name
    ]
)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(cloister.__path__, "cloister.")
    if not module.ispkg and ".migrations" not in module.name and not module.name.endswith(".__main__")
)


def visible(package: ModuleType) -> set[str]:
    """Public names of a package that aren't its own modules."""
    inside = {info.name for info in pkgutil.iter_modules(package.__path__)}
    return {name for name in vars(package) if not name.startswith("_") and name not in inside | {"annotations"}}


def test_the_packages_are_found() -> None:
    assert {"cloister.crypto", "cloister.contracts", "cloister.workload"} <= set(PACKAGES)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_shows_exactly_what_it_lists(name: str) -> None:
    package = importlib.import_module(name)
    listed = list(getattr(package, "__all__", []))
    assert len(listed) == len(set(listed))
    assert [n for n in listed if not hasattr(package, n)] == [], "listed in __all__, but not there"
    # A listed name may be a module's, too; a name that shows without being listed may not.
    assert visible(package) <= set(listed), "shown, but not listed in __all__"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lists_only_what_it_has(name: str) -> None:
    module = importlib.import_module(name)
    assert [n for n in getattr(module, "__all__", []) if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_a_tour(name: str) -> None:
    doc = importlib.import_module(name).__doc__ or ""
    assert len(doc.strip()) >= 20, f"{name} has no docstring that leads through it"


@pytest.mark.parametrize("name", PACKAGES)
def test_nothing_is_wired_at_import(name: str) -> None:
    """A package's ``__init__`` imports, defines and lists: it calls nothing."""
    spec = importlib.import_module(name).__spec__
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    calls = [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert calls == []
