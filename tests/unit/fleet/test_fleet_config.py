"""The fleet's configuration: the file in `config/` is the default, and a wrong word in it is named."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from lenskeep.errors import ConfigError
from lenskeep.fleet.config import FleetConfig, FleetPlaces, Storage, load, parse
from lenskeep.messages.rollouts import Deadlines, Gates, Plan, Wave

FILE = Path(__file__).resolve().parents[3] / "config" / "fleet.toml"
PLAN = FILE.with_name("rollout-plan.toml")


def test_the_file_holds_every_key_at_its_default() -> None:
    assert load(FILE) == FleetConfig()
    said = tomllib.loads(FILE.read_text())
    assert said == msgspec.to_builtins(FleetConfig())


def test_the_plan_of_a_rollout_holds_every_key_at_its_default() -> None:
    text = PLAN.read_text()
    said = msgspec.convert(tomllib.loads(text), Plan)
    assert said == Plan(bundle=said.bundle, slot=said.slot)
    for names in (Plan, Gates, Wave, Deadlines):
        for name in names.__struct_fields__:
            assert re.search(rf"^(# )?(\[+)?{name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[devices]\nport = 70000", "devices.port"), ("[devices]\nprt = 1", "devices"), ("x = 1", "x"),
        ("[limits]\nrequest_s_max = 0", "limits.request_s_max"), ("[online]\nkeys = 'a'", "online.keys"),
        ("[operators]\ngroup_role = 'root'", "operators.group_role"), ("[", "TOML"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(text)


def test_folders_come_from_the_file_then_from_systemd_then_from_the_user(tmp_path: Path) -> None:
    environment = {
        "STATE_DIRECTORY": "/var/lib/f",
        "RUNTIME_DIRECTORY": "/run/f",
        "HOME": "/h",
        "XDG_RUNTIME_DIR": "/x",
    }
    named = FleetPlaces.find(Storage(state_dir="/a", runtime_dir="/b", repository="/c"), environment)
    assert (named.state_dir, named.runtime_dir, named.repository) == (Path("/a"), Path("/b"), Path("/c"))
    service = FleetPlaces.find(Storage(), environment)
    assert (service.state_dir, service.runtime_dir) == (Path("/var/lib/f"), Path("/run/f"))
    own = FleetPlaces.find(Storage(), {"HOME": "/h", "XDG_RUNTIME_DIR": "/x"})
    assert (own.state_dir, own.runtime_dir) == (Path("/h/.local/state/lenskeep-fleet"), Path("/x/lenskeep-fleet"))
    assert own.repository == own.state_dir / "repository"


def test_a_daemon_that_handles_no_certificate_does_not_load_their_library() -> None:
    words = "import sys, lenskeep.daemon.app; sys.exit('cryptography.x509' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
