"""The rules of the house, as tests: who may import whom, which room holds which foreign package, and how large things are."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lenskeep import errors

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "lenskeep"
MODULES = sorted(SOURCE.rglob("*.py"))

GROUND = {
    "errors",
    "clock",
    "config",
    "lifecycle",
    "database",
    "sketch",
    "permissions",
    "policy",
    "systemd",
    "credentials",
}
# Room -> our rooms that it may import. Down only.
MAY_IMPORT = {
    "errors": set(),
    "clock": set(),
    "sketch": set(),
    "systemd": set(),
    "credentials": {"errors"},
    "permissions": set(),
    "policy": {"errors", "permissions"},
    "config": {"errors", "permissions", "policy"},
    "lifecycle": {"errors"},
    "database": {"errors"},
    "bundle": {"errors", "clock"},
    "messages": {"errors", "clock", "bundle", "lifecycle", "permissions"},
    "confine": {"messages"},
    "trust": {"errors", "clock", "bundle", "messages", "confine"},
    "registry": {*GROUND, "bundle", "messages", "trust"},
    "runner": {"errors", "clock", "bundle", "messages", "confine"},
    "daemon": {*GROUND, "bundle", "messages", "trust", "registry"},
    "fleet": {*GROUND, "bundle", "messages", "trust"},
    "cli": {"errors", "clock", "config", "permissions", "bundle", "messages", "trust"},
}
# Foreign package -> rooms where it may appear.
HOME_OF = {
    "cv2": {"runner"},
    "numpy": {"runner"},
    "onnxruntime": {"runner"},
    "cryptography": {"bundle", "trust"},
    "tuf": {"trust"},
    "securesystemslib": {"trust"},
    "aiosqlite": {"database"},
    "sqlite3": {"database", "daemon"},  # daemon: its version string for `doctor`
    "aiohttp": {"daemon", "fleet"},
    "uvloop": {"fleet"},
    "asyncpg": {"fleet"},
    "obstore": {"fleet"},
    "psutil": {"daemon"},
    "prometheus_client": {"daemon", "fleet"},
    "click": {"cli"},
    "onnx": set(),
    "torch": set(),
}
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_below_it_and_only_its_own_foreign_packages(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        if package == "lenskeep":
            target = rest.split(".")[0]
            if target and target in MAY_IMPORT:
                assert target == room or target in MAY_IMPORT[room], f"{path} imports {name}"
        elif package in HOME_OF:
            assert room in HOME_OF[package], f"{path} imports {package}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_and_no_function_is_too_long(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES_MAX or path.name == "errors.py", path
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_it_is_and_packages_hold_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    if path.name == "__init__.py":
        assert len(tree.body) == 1, f"{path} holds more than its docstring"


def test_the_runner_has_no_coroutine_and_the_daemon_starts_no_thread() -> None:
    for path in MODULES:
        if room_of(path) == "runner":
            assert not any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(ast.parse(path.read_text()))), (
                path
            )
        if room_of(path) == "daemon":
            assert "threading" not in {name.split(".")[0] for name in imports_of(path)}, path


def test_the_runtime_is_imported_in_one_place_and_leaves_nothing_in_a_home(tmp_path: Path) -> None:
    for path in MODULES:
        if path.name != "runtime.py":
            assert not {name for name in imports_of(path) if name.split(".")[0] == "onnxruntime"}, path
    words = "from lenskeep.runner.runtime import ort; ort.get_available_providers(); import time; time.sleep(0.5)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", words], env=environment | {"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*"))


def test_sql_stands_in_the_registry_and_the_fleets_store_alone() -> None:
    sql = re.compile(r"\b(SELECT|INSERT INTO|UPDATE \w+ SET|DELETE FROM)\b")
    for path in MODULES:
        if room_of(path) not in {"registry", "database"} and path.parent.name != "store":
            assert not sql.search(path.read_text()), path


def test_every_fault_has_its_own_code_a_title_an_explanation_and_a_next_step() -> None:
    book = errors.fault_book()
    for code, fault in book.items():
        assert re.fullmatch(r"LK-\d{4}", code)
        assert (
            fault.title() and fault.explanation() and fault.hint.endswith((".", ")"))
        ) or "lenskeep" in fault.hint, fault
        assert fault.__name__.endswith("Error")
    assert len(book) == len(set(book.values()))


def test_the_source_names_no_machine_and_leaves_nothing_open() -> None:
    banned = re.compile(r"/root/|/home/\w|TODO|FIXME|XXX|raise NotImplementedError|pypi\.org|githubusercontent")
    for path in [*MODULES, *(ROOT / "scripts").rglob("*.py"), *(ROOT / "config").rglob("*"), ROOT / "README.md"]:
        if path.is_file():
            found = banned.search(path.read_text(errors="replace"))
            assert not found, f"{path}: {found and found.group()}"
