"""The house's walls: imports run one way, and the pure layers touch nothing outside. Read from the source, so an import inside a function counts too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "calnet"

_UP = "imports run one way: model, errors ← crypto ← wire ← tunnel, paths, policy ← host, store ← sim ← roles"
_PURE = "pure layers take time and randomness as arguments and touch no I/O"
_APART = "the two do not know each other"
_STANDARD = "runs on the standard library alone"
_LIBRARY = "crypto/ alone imports nacl and cryptography"

_OUTER = {"calnet.host": _UP, "calnet.store": _UP, "calnet.sim": _UP, "calnet.roles": _UP}
_MACHINES = {"calnet.tunnel": _UP, "calnet.paths": _UP, "calnet.policy": _UP}
_OUTSIDE = {
    name: _PURE
    for names in (
        "os io pathlib shutil tempfile mmap fcntl socket select selectors ssl http urllib.request sqlite3 subprocess signal",
        "asyncio threading multiprocessing time datetime random secrets uuid logging",
        "uvloop anyio websockets starlette uvicorn httptools pyroute2 peewee lmdb",
    )
    for name in names.split()
}
_FILES = {"calnet.files": _PURE}
_NO_CRYPTO = {"nacl": _LIBRARY, "cryptography": _LIBRARY}

FORBIDDEN: dict[str, dict[str, str]] = {
    "calnet.errors": {"calnet": "errors stand below everything"} | _OUTSIDE | _NO_CRYPTO,
    "calnet.files": {f"calnet.{layer}": _UP for layer in ("model", "crypto", "wire")} | _MACHINES | _OUTER | _NO_CRYPTO,
    "calnet.limits": {f"calnet.{layer}": _UP for layer in ("model", "crypto", "wire")} | _MACHINES | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.lanes": {f"calnet.{layer}": _UP for layer in ("model", "crypto", "wire")} | _MACHINES | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.metrics": {f"calnet.{layer}": _UP for layer in ("model", "crypto", "wire")} | _MACHINES | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.model": {f"calnet.{layer}": _UP for layer in ("crypto", "wire")} | _MACHINES | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.crypto": {"calnet.wire": _UP} | _MACHINES | _OUTER | _FILES | _OUTSIDE,
    "calnet.wire": _MACHINES | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.tunnel": {"calnet.paths": _APART, "calnet.policy": _APART} | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.paths": {"calnet.tunnel": _APART, "calnet.policy": _APART} | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.policy": {"calnet.tunnel": _APART, "calnet.paths": _APART} | _OUTER | _FILES | _OUTSIDE | _NO_CRYPTO,
    "calnet.host": {"calnet.store": _APART, "calnet.sim": _UP, "calnet.roles": _UP} | _NO_CRYPTO,
    "calnet.store": {"calnet.host": _APART, "calnet.sim": _UP, "calnet.roles": _UP} | _NO_CRYPTO,
    "calnet.sim": {"calnet.roles": _UP} | _NO_CRYPTO,
    "calnet.roles": dict(_NO_CRYPTO),
}

STANDARD_ALONE = ("calnet.errors", "calnet.files", "calnet.wire.local", "calnet.roles.cli")
"""These, with all they import of Calnet, need nothing but Python."""


def _module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """All modules a file imports, as full names: `from a import b` gives `a` and `a.b`."""
    found: set[str] = set()
    package = _module_of(path) if path.name == "__init__.py" else _module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def _within(module: str, wall: str) -> bool:
    return module == wall or module.startswith(wall + ".")


MODULES = {_module_of(path): _imports(path) for path in sorted(PACKAGE.rglob("*.py"))}


def _layer(name: str) -> dict[str, set[str]]:
    return {module: imports for module, imports in MODULES.items() if _within(module, name)}


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layer_imports_nothing_forbidden(layer: str) -> None:
    broken = [
        f"{module} imports {name}: {why}"
        for module, imports in _layer(layer).items()
        for name in sorted(imports)
        for wall, why in FORBIDDEN[layer].items()
        if _within(name, wall) and not (layer == "calnet.errors" and name == module)
    ]
    assert not broken, "\n".join(broken)


def test_role_imports_no_other_role() -> None:
    broken: list[str] = []
    for module, imports in _layer("calnet.roles").items():
        own = ".".join(module.split(".")[:3])
        broken += [
            f"{module} imports {name}" for name in sorted(imports) if _within(name, "calnet.roles") and name != "calnet.roles" and not _within(name, own)
        ]
    assert not broken, "\n".join(broken)


def _closure(part: str) -> set[str]:
    """All modules of Calnet that importing this part can load, the packages around them included."""
    found: set[str] = set()
    waiting = [module for module in MODULES if _within(module, part)]
    while waiting:
        module = waiting.pop()
        if module in found or module not in MODULES:
            continue
        found.add(module)
        waiting += [module.rpartition(".")[0], *MODULES[module]]
    return found


@pytest.mark.parametrize("part", STANDARD_ALONE)
def test_part_on_the_standard_library_alone_imports_nothing_else(part: str) -> None:
    broken = [
        f"{module} imports {name}: {part} {_STANDARD}"
        for module in sorted(_closure(part))
        for name in sorted(MODULES[module])
        if name.split(".")[0] not in sys.stdlib_module_names and not _within(name, "calnet")
    ]
    assert not broken, "\n".join(broken)


def test_crypto_libraries_are_imported_by_crypto_alone() -> None:
    for root in ("calnet.py", "build_zipapp.py"):
        path = ROOT / root
        if path.exists():
            assert not {name.split(".")[0] for name in _imports(path)} & {"nacl", "cryptography"}
    users = {module for module, imports in MODULES.items() if any(_within(name, wall) for name in imports for wall in ("nacl", "cryptography"))}
    assert users
    assert all(_within(module, "calnet.crypto") for module in users)


def test_every_module_stands_in_a_layer() -> None:
    layers = set(FORBIDDEN)
    homeless = [module for module in MODULES if module not in ("calnet", "calnet.__main__") and not any(_within(module, layer) for layer in layers)]
    assert not homeless, homeless
