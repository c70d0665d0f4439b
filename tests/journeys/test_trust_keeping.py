"""Holders of keys, each with a home of their own, at the real command line; only files travel between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lenskeep.bundle.keys import load_private_key
from tests import tinybundle
from tests.repositories import StockClient

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        assert self.code == 0, self.out + self.err
        return json.loads(self.out)["data"]


class Person:
    """Somebody with a machine of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        self("keys", "gen", home.name)

    def __call__(self, *words: str | Path, **environment: str) -> Said:
        there = {name: value for name, value in os.environ.items() if not name.startswith("LENSKEEP")}
        done = subprocess.run(
            [sys.executable, "-m", "lenskeep.cli.main", *map(str, words)], cwd=self.home, capture_output=True, text=True,
            env=there | {"HOME": str(self.home)} | environment, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def trust(self, *words: str | Path, **environment: str) -> Said:
        return self("trust", *words, **environment)

    def sends(self, name: str, other: Person) -> Path:
        return Path(shutil.copy(self.home / name, other.home))


@pytest.fixture
def person(tmp_path: Path) -> Callable[[str], Person]:
    return lambda name: Person(tmp_path / name)


def answered(server: Person, holder: Person, request: str) -> str:
    """A request travels to a holder, who signs it, and back."""
    server.sends(f"plant/requests/{request}.request", holder)
    said = holder.trust("sign", f"{request}.request", "--key", f"{holder.home.name}.pem", "--yes")
    assert said.code == 0, said.err
    holder.sends(f"{request}-{holder.home.name}.answer", server)
    return f"{request}-{holder.home.name}.answer"


def begun(server: Person, *holders: Person) -> None:
    """A plant whose first root waits for two of three holders, who hold targets as well."""
    for holder in holders:
        holder.sends(f"{holder.home.name}.pub", server)
    roots = [word for holder in holders for word in ("--root-key", f"{holder.home.name}.pub")]
    said = server.trust(
        "init", "plant", *roots, "--threshold", "2", "--targets-key", "anna.pub", "--online-key", "server.pub"
    )
    assert said.code == 0, said.err


def test_three_holders_sign_the_first_root_on_three_machines_by_files_alone(
    person: Callable[[str], Person], tmp_path: Path
) -> None:
    server, anna, ben, clara = (person(name) for name in ("server", "anna", "ben", "clara"))
    begun(server, anna, ben, clara)
    waiting = server.trust("status", "plant", "--json").data["waiting"]
    assert [(one["role"], one["missing"]) for one in waiting] == [
        ("root", ["anna", "ben", "clara"]),
        ("targets", ["anna"]),
    ]

    server.sends("plant/requests/root-1.request", anna)
    refused = anna.trust("sign", "root-1.request", "--key", "anna.pem")
    assert refused.code == 2  # nobody is there to be asked
    assert waiting[0]["spoken"] in refused.err  # and still the holder was shown what it is
    assert "2 of 3 must sign: anna" in refused.err

    answers = [answered(server, anna, "root-1"), answered(server, anna, "targets-1")]
    said = server.trust("sign", "--import", *answers, answers[0], "plant")
    assert "2 of 3 root holders must sign; anna has signed" in said.out
    assert not (server.home / "plant" / "metadata").exists()
    last = answered(server, clara, "root-1")
    assert "In force: root, targets." in server.trust("sign", "--import", last, "plant").out
    assert "lenskeep trust refresh" in server.trust("status", "plant").out
    assert server.trust("refresh", "--repository", "plant", "--key", "server.pem").code == 0
    assert StockClient(server.home / "plant", tmp_path / "client").versions() == {"targets": 1, "director": 1}
    forecast = server.trust("status", "plant", "--json").data["forecast"]
    assert [due["role"] for due in forecast] == ["timestamp", "snapshot", "director", "targets", "root"]
    assert not any(due["overdue"] for due in forecast)


def test_a_foreign_or_altered_answer_is_refused_and_the_good_ones_beside_it_count(
    person: Callable[[str], Person],
) -> None:
    server, anna, ben, clara, mallory = (person(name) for name in ("server", "anna", "ben", "clara", "mallory"))
    begun(server, anna, ben, clara)
    good = answered(server, anna, "root-1")
    server.sends("plant/requests/root-1.request", mallory)
    foreign = mallory.trust("sign", "root-1.request", "--key", "mallory.pem", "--yes")
    assert foreign.code == 4
    assert "LK-4204" in foreign.err
    altered = json.loads((server.home / good).read_text()) | {
        "key": load_private_key((ben.home / "ben.pem").read_bytes()).public.id
    }
    (server.home / "altered.answer").write_text(json.dumps(altered))
    (server.home / "page.answer").write_text("<html>")
    said = server.trust("sign", "--import", "altered.answer", good, "page.answer", "plant")
    assert said.code == 4
    assert "LK-4205" in said.err
    assert "altered.answer" in said.err and "page.answer" in said.err
    assert "anna has signed" in said.out
    assert server.trust("status", "plant", "--json").data["waiting"][0]["signed"] == ["anna"]


def tiny(person_: Person, version: str, key: str, name: str = "cap-inspect") -> str:
    """A small signed bundle in somebody's home."""
    private = load_private_key((person_.home / key).read_bytes())
    files = tinybundle.parts({"name": name, "version": version})
    file = person_.home / f"{name}-{version}.lkb"
    file.write_bytes(tinybundle.pack(files, sig=tinybundle.signature(files, private)))
    return file.name


def plant(server: Person, anna: Person, *more: Person) -> list[str]:
    """A repository in force that the publisher `acme` may publish to; everything signed where the keys are."""
    for one in (anna, *more):
        one.sends(f"{one.home.name}.pub", server)
        one.sends(f"{one.home.name}.pem", server)
    where = ["--repository", "plant"]
    keys = ["--key", "anna.pem", "--key", "server.pem"]
    assert server.trust(
        "init", "plant", "--root-key", "anna.pub", "--threshold", "1", "--targets-key", "anna.pub", "--online-key",
        "server.pub", *keys,
    ).code == 0  # fmt: skip
    assert server.trust("add-publisher", "acme", "--public", "acme.pub", "--for", "cap-*", *where, *keys).code == 0
    return where


def test_a_release_an_assignment_and_a_withdrawal_at_the_command_line(
    person: Callable[[str], Person], tmp_path: Path
) -> None:
    server, anna, acme = (person(name) for name in ("server", "anna", "acme"))
    where = plant(server, anna, acme)
    client = StockClient(server.home / "plant", tmp_path / "client")
    file = tiny(server, "1.0.0", "acme.pem")
    keys = ["--key", "acme.pem", "--key", "server.pem"]

    before = {path: path.read_bytes() for path in (server.home / "plant").rglob("*") if path.is_file()}
    dry = server.trust("publish", file, *where, *keys, "--dry-run")
    assert dry.code == 0 and "nothing was written" in dry.out
    assert {path: path.read_bytes() for path in (server.home / "plant").rglob("*") if path.is_file()} == before

    done = server.trust("publish", file, *where, *keys, "--json").data
    assert done["in_place"] == ["acme"] and done["renewed"] == ["snapshot", "timestamp"]
    assert client.target("models/cap-inspect/1.0.0.lkb") == (server.home / file).read_bytes()
    assert server.trust("assign", "cam-1", "main=cap-inspect@1.0.0", *where, "--key", "server.pem").code == 0
    assert client.target("devices/cam-1.json")
    assert server.trust("assign", "cam-1", "main=cap-inspect@2.0.0", *where, "--key", "server.pem").code == 5

    assert server.trust("withdraw", "cap-inspect@1.0.0", "--reason", "misses\x1b[2J cracks", *where, *keys).code == 0
    assert client.target("models/cap-inspect/1.0.0.lkb") is None
    shown = server.trust("status", "plant")
    assert "withdrawn: cap-inspect@1.0.0" in shown.out and "\x1b" not in shown.out


@pytest.mark.parametrize(
    ("words", "code", "fault"),
    [
        (["publish", "cap-inspect-1.0.0.lkb", "--key", "anna.pem"], 4, "LK-4204"),
        (["assign", "cam-1", "main=cap-inspect@1.0.0", "--key", "server.pem"], 5, "LK-1101"),
        (["assign", "cam-1", "main", "--key", "server.pem"], 2, "LK-1100"),
        (["refresh", "--key", "anna.pem"], 4, "LK-4210"),
        (["refresh"], 2, "LK-1100"),
        (["add-publisher", "../x", "--public", "acme.pub", "--for", "x-*", "--key", "anna.pem"], 4, "LK-4206"),
        (["add-publisher", "root", "--public", "acme.pub", "--for", "x-*", "--key", "anna.pem"], 4, "LK-4206"),
        (["add-publisher", "x", "--public", "acme.pub", "--for", "devices/*", "--key", "anna.pem"], 4, "LK-4206"),
        (["add-publisher", "x", "--public", "acme.pem", "--for", "x-*", "--key", "anna.pem"], 2, "LK-1100"),
        (["rotate", "nobody", "--add", "acme.pub"], 5, "LK-1101"),
        (["revoke", "nobody", "--reason", "gone"], 5, "LK-1101"),
        (["renew", "timestamp"], 2, "LK-1100"),
        (["cancel", "root"], 5, "LK-1101"),
        (["withdraw", "cap-inspect@9.0.0", "--reason", "x", "--key", "acme.pem"], 4, "LK-4107"),
    ],
)
def test_what_cannot_be_is_refused_with_a_code_and_changes_nothing(
    person: Callable[[str], Person], words: list[str], code: int, fault: str
) -> None:
    server, anna, acme = (person(name) for name in ("server", "anna", "acme"))
    where = plant(server, anna, acme)
    tiny(server, "1.0.0", "acme.pem")
    before = {path: path.read_bytes() for path in (server.home / "plant").rglob("*") if path.is_file()}
    said = server.trust(*words, *where)
    assert (said.code, fault in said.err) == (code, True), said.out + said.err
    assert {path: path.read_bytes() for path in (server.home / "plant").rglob("*") if path.is_file()} == before


def test_keys_with_a_passphrase_and_from_a_credential_sign_without_a_terminal(person: Callable[[str], Person]) -> None:
    server, anna, acme = (person(name) for name in ("server", "anna", "acme"))
    where = plant(server, anna, acme)
    locked = load_private_key((server.home / "server.pem").read_bytes()).pem("open sesame")
    (server.home / "locked.pem").write_bytes(locked)
    (server.home / "online").write_bytes((server.home / "server.pem").read_bytes())
    (server.home / "words").write_text("open sesame\n")
    assert server.trust("refresh", *where, "--key", "locked.pem").code == 2
    assert server.trust("refresh", *where, "--key", "locked.pem", "--passphrase-file", "words").code == 0
    assert server.trust("refresh", *where, "--key", "locked.pem", LENSKEEP_PASSPHRASE="open sesame").code == 0
    assert (
        server.trust("refresh", *where, "--key", "credential:online", CREDENTIALS_DIRECTORY=str(server.home)).code == 0
    )


def test_the_walk_through_of_the_readme_works_as_written() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo-trust"], capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL,
        env=os.environ | {"LENSKEEP": str(Path(sys.executable).parent / "lenskeep")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "All went as it should." in done.stdout
