"""The configuration: the file that ships is the defaults, and a wrong word is refused by its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lenskeep import config
from lenskeep.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "device.toml"


def test_the_shipped_file_holds_every_key_at_its_default() -> None:
    shipped = config.load(SHIPPED)
    assert shipped == config.Config(
        slot=[config.Slot(name="main")], camera=[config.Camera(name="cam-1", source="synthetic:caps")]
    )
    words = set(re.findall(r"^(\w+) =", SHIPPED.read_text(), re.MULTILINE))
    for section in (config.Device, config.Storage, config.Limits, config.Control, config.Trial, config.Probation,
                    config.MetricsRetention, config.Slot, config.Camera):  # fmt: skip
        assert set(section.__struct_fields__) <= words, section


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[device]\nnmae = 'x'", "nmae"),
        ("[control]\nport = 'a'", "control.port"),
        ("[control]\nport = 70000", "control.port"),
        ("[probation]\nerror_ratio_max = 1.5", "probation.error_ratio_max"),
        ("[[slot]]\nname = 'Main Line'", "slot[0].name: Expected up to 31 lower-case"),
        ("[[slot]]\nname = 'a'\n[[slot]]\nname = 'a'", "slot.name: 'a' is used twice"),
        ("[[slot]]\nname = 'a'\n[[camera]]\nname = 'c'\nslot = 'b'\nsource = 'file:x'", "camera.slot"),
        (
            "[[slot]]\nname = 'main'\n[[camera]]\nname = 'c'\nsource = 'telnet://x'",
            "camera[0].source: Expected v4l2:PATH",
        ),
        ("device = 3", "device"),
        ("[device", "TOML"),
    ],
)
def test_a_wrong_word_is_refused_by_its_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        config.parse(text)


def test_a_file_that_is_not_there_is_a_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read"):
        config.load(tmp_path / "missing.toml")
