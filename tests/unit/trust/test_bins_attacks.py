"""A director's list that is shared out to bins: just those bins are believed, and nothing wider.

Every document here is signed correctly unless the attack is about signatures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.messages.trust import Refusal, Verdict
from lenskeep.trust import names
from lenskeep.trust.assignment import read
from lenskeep.trust.client import look
from lenskeep.trust.source import FolderSource
from lenskeep.trust.strict import Rules
from tests.forger import DAY_S, Forger, Signed, key_dict, when

MODEL = "models/cap-inspect/1.0.0.lkb"
UNSIGNED, EXPIRED, ROLLED_BACK, MISSING, MALFORMED = "LK-4101", "LK-4102", "LK-4103", "LK-4104", "LK-4106"
RULES, MISMATCH = "LK-4113", "LK-4114"
PATH = names.device_path("cam-1")
BIN = names.bin_of(PATH)


class Noting(FolderSource):
    """A folder that remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: dict[str, int] = {}

    def read(self, name: str, bytes_max: int) -> bytes | None:
        data = super().read(name, bytes_max)
        self.asked[name] = len(data or b"")
        return data


class Device:
    """A device that keeps what it is given as the daemon does."""

    def __init__(self, forger: Forger, folder: Path) -> None:
        self.forger, self.folder, self.looks = forger, folder, 0
        self.stored: dict[str, bytes] = {}
        self.source = Noting(forger.folder)

    def sync(self, rules: Rules = Rules.HOUSE, **more: Any) -> Verdict | Refusal:
        self.looks += 1
        self.source.asked.clear()
        request = self.forger.look(self.stored, **({"device": "cam-1", "paths": [MODEL]} | more))
        answer = look(request, self.source, self.folder / str(self.looks), rules)
        if answer.stored:
            self.stored = answer.stored
        return answer

    def accepts(self, **more: Any) -> Verdict:
        answer = self.sync(**more)
        assert isinstance(answer, Verdict), answer
        assert answer.assignment is not None
        assert read(answer.assignment, "cam-1").slots["line-1"].target == MODEL
        return answer

    def refuses(self, code: str, role: str, **more: Any) -> None:
        kept = self.stored
        answer = self.sync(**more)
        assert isinstance(answer, Refusal), answer
        assert (answer.code, answer.role) == (code, role), answer
        assert self.stored[f"{BIN}.json"] == kept[f"{BIN}.json"]  # what was known about this device is not lost
        assert self.stored[PATH] == kept[PATH]
        if role == "director" and code == RULES:
            assert self.stored["director.json"] == kept["director.json"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Forger:
    """A repository whose list is shared out; copied for each test."""
    forger = Forger(tmp_path_factory.mktemp("shared") / "repository")
    forger.add("cap-team", MODEL, b"the bundle")
    for number in range(20):
        forger.assign(f"cam-{number}")
    forger.share_out()
    forger.publish()
    return forger


@pytest.fixture
def forger(shared: Forger, tmp_path: Path) -> Forger:
    forger = Forger(tmp_path / "repository")
    forger.now_s, forger.keys, forger.signed = shared.now_s, dict(shared.keys), shared.copy()
    shutil.rmtree(forger.folder)
    shutil.copytree(shared.folder, forger.folder)
    return forger


@pytest.fixture
def device(forger: Forger, tmp_path: Path) -> Device:
    device = Device(forger, tmp_path / "device")
    device.accepts()
    return device


def test_a_device_fetches_its_own_bin_and_no_other(forger: Forger, tmp_path: Path) -> None:
    device = Device(forger, tmp_path / "device")
    verdict = device.accepts()
    assert {role.name: role.version for role in verdict.roles}[BIN] == 1
    assert [name for name in device.source.asked if "director" in name] == [
        "metadata/1.director.json", f"metadata/1.{BIN}.json"
    ]  # fmt: skip
    assert f"{BIN}.json" in device.stored
    device.accepts()
    assert set(device.source.asked) == {"metadata/2.root.json", "metadata/timestamp.json"}
    device.accepts(offline=True)


def test_a_change_about_another_bin_costs_a_device_the_snapshot_alone(forger: Forger, device: Device) -> None:
    forger.assign("cam-77")
    assert names.bin_of(names.device_path("cam-77")) != BIN
    forger.publish(names.bin_of(names.device_path("cam-77")))
    device.accepts()
    assert set(device.source.asked) == {
        "metadata/2.root.json", "metadata/timestamp.json", "metadata/2.snapshot.json"
    }  # fmt: skip


def test_a_device_that_knows_the_whole_list_follows_when_it_is_shared_out(tmp_path: Path) -> None:
    forger = Forger(tmp_path / "repository")
    forger.add("cap-team", MODEL, b"the bundle")
    forger.assign("cam-1")
    forger.publish()
    device = Device(forger, tmp_path / "device")
    assert "director" in {role.name for role in device.accepts().roles}
    forger.share_out()
    forger.publish()
    assert BIN in {role.name for role in device.accepts().roles}


def test_a_device_that_is_assigned_nothing_is_told_so_by_its_bin(forger: Forger, device: Device) -> None:
    forger.signed[BIN]["targets"].pop(PATH)
    forger.publish(BIN)
    verdict = device.sync()
    assert isinstance(verdict, Verdict)
    assert verdict.assignment is None


FOREIGN = generate_key()


def bits(director: Signed, number: int) -> None:
    director["delegations"]["succinct_roles"]["bit_length"] = number


def foreign(director: Signed, *, alone: bool) -> None:
    said = director["delegations"]
    said["keys"][FOREIGN.public.id] = key_dict(FOREIGN)
    ids = said["succinct_roles"]["keyids"]
    said["succinct_roles"]["keyids"] = [FOREIGN.public.id] if alone else [*ids, FOREIGN.public.id]


def by_name(director: Signed) -> None:
    said = director["delegations"]
    said["roles"] = [
        {"name": BIN, "keyids": said.pop("succinct_roles")["keyids"], "threshold": 1, "terminating": True, "paths": ["devices/*"]}
    ]  # fmt: skip


def by_prefixes(director: Signed) -> None:
    by_name(director)
    role = director["delegations"]["roles"][0]
    del role["paths"]
    role["path_hash_prefixes"] = [""]


def both_ways(director: Signed) -> None:
    director["delegations"]["roles"] = []


def neither(director: Signed) -> None:
    del director["delegations"]["succinct_roles"]


def too_many(director: Signed) -> None:
    director["delegations"]["succinct_roles"]["threshold"] = 2


def itself(director: Signed) -> None:
    director["targets"][PATH] = {"length": 1, "hashes": {"sha256": "0" * 64}}


def elsewhere(director: Signed) -> None:
    director["delegations"]["succinct_roles"]["name_prefix"] = "cap-team"


def no_key(director: Signed) -> None:
    director["delegations"]["keys"] = {}


@pytest.mark.attack(95)
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda one: bits(one, 7), RULES), (lambda one: bits(one, 9), RULES), (lambda one: bits(one, 1), RULES),
        (lambda one: bits(one, 0), MALFORMED), (lambda one: bits(one, 33), MALFORMED), (elsewhere, RULES),
        (lambda one: foreign(one, alone=False), RULES),
        (by_name, RULES), (by_prefixes, RULES), (both_ways, MALFORMED), (neither, MALFORMED), (too_many, RULES),
        (itself, RULES), (no_key, RULES),
    ],
)  # fmt: skip
def test_a_director_hands_its_list_on_in_one_way_only(
    forger: Forger, device: Device, change: Callable[[Signed], object], code: str
) -> None:
    change(forger.signed["director"])
    forger.publish("director")
    device.refuses(code, "director")


@pytest.mark.attack(95)
def test_a_bin_that_a_foreign_key_signed_is_refused(forger: Forger, device: Device) -> None:
    forger.keys[BIN] = [FOREIGN]
    forger.publish(BIN)
    device.refuses(UNSIGNED, BIN)


@pytest.mark.attack(95)
def test_bins_of_a_foreign_key_that_the_director_names_are_refused_also_from_what_is_stored(
    forger: Forger, device: Device
) -> None:
    foreign(forger.signed["director"], alone=True)
    forger.keys[BIN] = [FOREIGN]
    forger.publish("director", BIN)
    device.refuses(RULES, "director")
    for role in ("timestamp", "snapshot", "director", BIN):
        device.stored[f"{role}.json"] = forger.file(role).read_bytes()
    answer = device.sync(offline=True)
    assert isinstance(answer, Refusal)
    assert answer.code == RULES


@pytest.mark.attack(95)
@pytest.mark.parametrize("role", ["cap-team", "targets", BIN])
def test_nobody_but_the_director_hands_paths_on_to_bins(forger: Forger, device: Device, role: str) -> None:
    said = forger.signed["director"]["delegations"]
    forger.signed[role]["delegations"] = {"keys": said["keys"], "succinct_roles": said["succinct_roles"]}
    forger.publish(role)
    device.refuses(RULES, role)


@pytest.mark.attack(95)
def test_no_publisher_is_called_as_a_bin(forger: Forger, device: Device) -> None:
    forger.keys["director-00"] = [FOREIGN]
    forger.delegate("director-00", ["models/other-*/*"])
    forger.publish("targets")
    device.refuses(RULES, "targets")


@pytest.mark.attack(95)
@pytest.mark.parametrize("path", ["devices/cam-2.json", "models/cap-inspect/6.6.6.lkb", "devices/../x.json", "x"])
def test_a_bin_that_lists_what_is_not_among_its_devices_is_refused(forger: Forger, device: Device, path: str) -> None:
    assert names.bin_of("devices/cam-2.json") != BIN
    forger.signed[BIN]["targets"][path] = {"length": 1, "hashes": {"sha256": "0" * 64}}
    forger.publish(BIN)
    device.refuses(RULES, BIN)


@pytest.mark.attack(85)
def test_a_bin_that_the_snapshot_leaves_out_is_refused(forger: Forger, device: Device) -> None:
    forger.publish(BIN)
    kept = forger.signed["snapshot"]["meta"].pop(f"{BIN}.json")
    forger.signed["snapshot"]["version"] += 1
    forger.put("snapshot")
    forger.signed["timestamp"]["version"] += 1
    forger.signed["timestamp"]["meta"] = {"snapshot.json": {"version": forger.signed["snapshot"]["version"]}}
    forger.put("timestamp")
    assert kept
    device.refuses(MISMATCH, "snapshot")


@pytest.mark.attack(77)
def test_a_bin_does_not_go_back(forger: Forger, device: Device) -> None:
    forger.publish(BIN)
    device.accepts()
    forger.signed[BIN]["version"] = 0
    forger.publish(BIN)
    answer = device.sync()
    assert isinstance(answer, Refusal)
    assert answer.code in (ROLLED_BACK, MISMATCH)


@pytest.mark.attack(78)
def test_a_bin_that_has_expired_is_refused(forger: Forger, device: Device) -> None:
    forger.signed[BIN]["expires"] = when(forger.now_s - DAY_S)
    forger.publish(BIN)
    device.refuses(EXPIRED, BIN)


@pytest.mark.attack(97)
def test_a_bin_whose_file_is_missing_is_refused(forger: Forger, device: Device) -> None:
    forger.publish(BIN)
    forger.file(BIN).unlink()
    device.refuses(MISSING, BIN)


def test_a_new_key_of_the_director_signs_director_and_bins_or_nothing_of_it_is_believed(
    forger: Forger, device: Device
) -> None:
    forger.keys["director"] = [FOREIGN]
    forger.delegate("director", names.DIRECTOR_PATHS)
    forger.publish("targets", "director")
    device.refuses(RULES, "director")  # signed by the new key, handed on to the old one, whose bins are still signed
    said = forger.signed["director"]["delegations"]
    said["keys"] = {FOREIGN.public.id: key_dict(FOREIGN)}
    said["succinct_roles"]["keyids"] = [FOREIGN.public.id]
    forger.publish("director")
    device.refuses(UNSIGNED, BIN)
    forger.keys[BIN] = [FOREIGN]
    forger.publish(BIN)
    device.accepts()


def test_a_thief_of_the_directors_key_still_chooses_among_released_versions_only(
    forger: Forger, device: Device
) -> None:
    forger.assign("cam-1", "models/cap-inspect/6.6.6.lkb")
    forger.publish(BIN)
    verdict = device.sync(paths=["models/cap-inspect/6.6.6.lkb"])
    assert isinstance(verdict, Verdict)
    assert verdict.unlisted == ["models/cap-inspect/6.6.6.lkb"]


def test_bins_of_the_standard_are_followed_where_all_that_it_allows_is_allowed(forger: Forger, device: Device) -> None:
    """In the way that the conformance tests use the client: other sizes, other names, other keys, other roles."""
    said = forger.signed["director"]["delegations"]
    said["succinct_roles"] |= {"bit_length": 3, "name_prefix": "any"}
    role = names.bin_of(PATH, 3, "any")
    assert role == f"any-{int(BIN[-2:], 16) >> 5:x}"
    foreign(forger.signed["director"], alone=True)
    forger.keys[role] = [FOREIGN]
    forger.signed[role] = forger.signed.pop(BIN)
    forger.publish("director", role)
    device.stored = {}
    assert isinstance(device.sync(rules=Rules.STANDARD), Verdict)
    device.stored = {}
    answer = device.sync()
    assert isinstance(answer, Refusal)
    assert answer.code == RULES
