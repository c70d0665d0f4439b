"""The configuration is changed word by word; everything else in the file stays as it was."""

import difflib
from pathlib import Path

import pytest

from lenskeep import config as configs
from lenskeep.cli import tomltext
from lenskeep.errors import UnknownNameError

SHIPPED = Path(__file__).parents[3] / "config" / "device.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(SHIPPED.read_text())
    path.chmod(0o640)
    return path


def changed_lines(path: Path) -> list[str]:
    """Which lines differ from the shipped file."""
    found = difflib.unified_diff(SHIPPED.read_text().splitlines(), path.read_text().splitlines(), lineterm="", n=0)
    return [line for line in found if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_shipped_file_is_valid(lenskeep):
    said = lenskeep("config", "validate", str(SHIPPED))
    assert (said.code, "is valid" in said.out) == (0, True)


@pytest.mark.parametrize(
    ("key", "value", "before", "after"),
    [
        ("control.port", "8500", "port = 8417", "port = 8500"),
        ("control.anonymous_role", "none", 'anonymous_role = "viewer"', 'anonymous_role = "none"'),
        ("control.hosts", '["press:1"]', "hosts = []", 'hosts = ["press:1"]'),
        ("slot.main.threads", "2", "threads = 1", "threads = 2"),
        ("camera.cam-1.source", "rtsp://10.0.0.7/a#b", 'source = "synthetic:caps"', 'source = "rtsp://10.0.0.7/a#b"'),
        ("camera.cam-1.loop", "false", "loop = true", "loop = false"),
        ("probation.error_ratio_max", "0.5", "error_ratio_max = 0.02", "error_ratio_max = 0.5"),
        ("device.name", "Press 7", 'name = ""', 'name = "Press 7"'),
        ("device.name", "42", 'name = ""', 'name = "42"'),
    ],
)
def test_one_line_changes_and_nothing_else(lenskeep, file, key, value, before, after):
    said = lenskeep("config", "set", key, value, "--config", str(file))
    assert said.code == 0, said.err
    assert changed_lines(file) == [f"-{before}", f"+{after}"]
    assert file.stat().st_mode & 0o777 == 0o640
    assert "systemctl restart lenskeep" in said.out
    assert lenskeep("config", "get", key, "--config", str(file)).out.strip() == value
    configs.load(file)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("control.port", "70000", "control.port"),
        ("control.port", "soon", "control.port"),
        ("camera.cam-1.slot", "nowhere", "camera.slot"),
        ("camera.cam-1.source", "floppy:", "source"),
    ],
)
def test_wrong_value_is_refused_by_name_and_the_file_stays(lenskeep, file, key, value, named):
    said = lenskeep("config", "set", key, value, "--config", str(file))
    assert said.code == 1
    assert "LK-1010" in said.err and named in said.err
    assert changed_lines(file) == []


def test_unknown_key_is_answered_with_the_near_one(lenskeep, file):
    said = lenskeep("config", "set", "control.prot", "1", "--config", str(file))
    assert said.code == 5 and "Did you mean control.port?" in said.err
    assert lenskeep("config", "get", "control.prot", "--config", str(file)).code == 5


def test_unknown_word_in_the_file_is_named(lenskeep, file):
    file.write_text(file.read_text().replace("port = 8417", "prot = 8417"))
    said = lenskeep("config", "validate", str(file))
    assert said.code == 1
    assert "prot" in said.err and "Fix:" in said.err


def test_same_value_again_leaves_the_file_alone(lenskeep, file):
    before = file.stat().st_mtime_ns
    said = lenskeep("config", "set", "control.port", "8417", "--config", str(file))
    assert (said.code, file.stat().st_mtime_ns) == (0, before)
    assert "nothing was changed" in said.out


def test_missing_key_is_added_to_its_table():
    text = "[control]\n# a comment\n\n[slot]\n"
    assert tomltext.replaced(text, "control.port", "1") == "[control]\n# a comment\nport = 1\n\n[slot]\n"


def test_comment_behind_the_value_stays():
    text = 'a = 1\n[t]\nk = "x # y"   # why\nl = [ # one\n  1, # two\n  2,\n] # three\n'
    assert 'k = "z"   # why\n' in tomltext.replaced(text, "t.k", '"z"')
    assert "l = [3] # three\n" in tomltext.replaced(text, "t.l", "[3]")


def test_right_table_of_several_is_changed():
    text = '[[slot]]\nname = "a"\nthreads = 1\n[[slot]]\nthreads = 1\nname = "b"\n'
    changed = tomltext.replaced(text, "slot.b.threads", "4")
    assert changed == '[[slot]]\nname = "a"\nthreads = 1\n[[slot]]\nthreads = 4\nname = "b"\n'
    with pytest.raises(UnknownNameError):
        tomltext.replaced(text, "slot.c.threads", "4")


@pytest.mark.parametrize(
    ("typed", "value"), [("5", "5"), ("true", "true"), ("[1]", "[1]"), ("a b", '"a b"'), ('a"b', '"a\\"b"'), ("", '""')]
)
def test_what_is_typed_becomes_a_value(typed, value):
    assert tomltext.literal(typed) == value


def test_injected_line_stays_inside_the_value(lenskeep, file):
    said = lenskeep("config", "set", "device.name", 'x"\n[control]\nport = 1\n#', "--config", str(file))
    assert said.code == 0
    assert configs.load(file).control.port == 8417
    assert lenskeep("config", "set", "control.port", "1\nanonymous_role = 'none'", "--config", str(file)).code == 1
    assert configs.load(file).control.anonymous_role == "viewer"
