"""Attacks on a repository's metadata, each refused by one look with a code, and nothing that was trusted is lost.

The numbers are those of the attack list. Every document here is signed correctly unless the attack is about signatures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lenskeep.bundle.keys import generate_key
from lenskeep.errors import AssignmentError, FleetAnswerError, SourceError, SourceTooSlowError
from lenskeep.messages.trust import Look, Refusal, Verdict
from lenskeep.trust import assignment
from lenskeep.trust.client import look
from lenskeep.trust.source import FolderSource, Source
from lenskeep.trust.strict import Rules
from tests.forger import DAY_S, Forger, facts, key_dict

MODEL = "models/cap-inspect/1.0.0.lkb"
EXPIRED, ROLLED_BACK, MISSING, LARGE, MALFORMED = "LK-4102", "LK-4103", "LK-4104", "LK-4105", "LK-4106"
UNSIGNED, RULES, MISMATCH = "LK-4101", "LK-4113", "LK-4114"


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    forger = Forger(tmp_path / "repository", publishers=("cap-team", "lid-team"))
    forger.add("cap-team", MODEL, b"the bundle")
    forger.assign("cam-1")
    forger.publish()
    return forger


class Device:
    """A device that has seen the repository once, and keeps what it is given as the daemon does."""

    def __init__(self, forger: Forger, folder: Path) -> None:
        self.forger, self.folder, self.looks = forger, folder, 0
        self.stored: dict[str, bytes] = {}

    def sync(self, source: Source | None = None, rules: Rules = Rules.HOUSE, **more: Any) -> Verdict | Refusal:
        self.looks += 1
        request = self.forger.look(self.stored, **({"device": "cam-1", "paths": [MODEL]} | more))
        answer = look(request, source or FolderSource(self.forger.folder), self.folder / str(self.looks), rules)
        if answer.stored:
            self.stored = answer.stored
        return answer

    def refuses(self, *codes: str, source: Source | None = None, role: str = "", **more: Any) -> Refusal:
        """Sync, expect a refusal, and that what was trusted before is trusted as before."""
        before = self.sync(offline=True)
        answer = self.sync(source, **more)
        assert isinstance(answer, Refusal), answer
        assert answer.code in codes, answer
        assert not role or answer.role == role, answer
        assert answer.message
        after = self.sync(offline=True)
        if isinstance(before, Verdict) and not answer.stored:
            assert after == before
        return answer


@pytest.fixture
def device(forger: Forger, tmp_path: Path) -> Device:
    device = Device(forger, tmp_path / "device")
    assert isinstance(device.sync(), Verdict)
    return device


# --- 76, 77: rollback -------------------------------------------------------------------------------------------------


@pytest.mark.attack(76)
def test_a_repository_put_back_to_an_older_state_is_refused(forger: Forger, device: Device, tmp_path: Path) -> None:
    shutil.copytree(forger.folder, tmp_path / "old")
    forger.publish("targets")
    assert isinstance(device.sync(), Verdict)
    device.refuses(ROLLED_BACK, source=FolderSource(tmp_path / "old"), role="timestamp")


@pytest.mark.attack(77)
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "cap-team"])
def test_one_role_put_back_is_refused(forger: Forger, device: Device, role: str) -> None:
    forger.publish("targets", "cap-team")
    assert isinstance(device.sync(), Verdict)
    forger.signed[role]["version"] = 0
    if role == "timestamp":
        forger.publish("targets")
    else:
        forger.publish(*([] if role == "snapshot" else [role]), "lid-team")
    device.refuses(ROLLED_BACK)


@pytest.mark.attack(77, 92)
@pytest.mark.parametrize("lost", ["timestamp", "timestamp snapshot"])
def test_an_older_role_is_refused_although_the_timestamp_was_lost(forger: Forger, device: Device, lost: str) -> None:
    forger.publish("targets", "cap-team")
    assert isinstance(device.sync(), Verdict)
    for role in lost.split():
        del device.stored[f"{role}.json"]
    for words in forger.signed.values():
        words["version"] = 0 if words["_type"] != "root" else words["version"]
    forger.publish("targets", "cap-team", "lid-team", "director")
    device.refuses(ROLLED_BACK)


# --- 78, 91: time -----------------------------------------------------------------------------------------------------


@pytest.mark.attack(78)
@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "director", "cap-team"])
def test_an_expired_role_is_refused(forger: Forger, device: Device, role: str) -> None:
    version = forger.signed[role]["version"]
    kept = {name: forger.signed[role][name] for name in forger.signed[role]}
    forger.signed[role] = kept | {"expires": forger.words("", days=-1)["expires"], "version": version}
    forger.publish(*([role] if role not in ("timestamp", "snapshot") else []), "targets")
    answer = device.refuses(EXPIRED, role=role)
    assert "was good until" in answer.message
    assert f"{role}.json" not in answer.stored or role == "root" or device.stored[f"{role}.json"]


@pytest.mark.attack(78, 91)
@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "director", "cap-team"])
def test_a_role_that_expired_by_the_floor_is_refused_although_the_clock_went_back(
    forger: Forger, device: Device, role: str
) -> None:
    forger.signed[role]["expires"] = forger.words("", days=2)["expires"]
    forger.publish(*([role] if role not in ("timestamp", "snapshot") else []), "targets")
    later = device.refuses(EXPIRED, role=role, now_s=forger.now_s + 3 * DAY_S)
    if role not in ("root", "timestamp"):
        assert later.stored["timestamp.json"] == forger.file("timestamp").read_bytes()
        assert later.stored.get(f"{role}.json") != forger.file(role).read_bytes()
    assert isinstance(device.sync(), Verdict)


@pytest.mark.attack(78)
def test_a_root_that_expired_by_the_floor_is_refused_and_still_kept_so_that_the_next_one_follows_it(
    forger: Forger, device: Device
) -> None:
    forger.signed["root"]["expires"] = forger.words("", days=2)["expires"]
    forger.publish("root")
    device.refuses(EXPIRED, role="root", now_s=forger.now_s + 3 * DAY_S)
    assert device.stored["root.json"] == forger.root(2)


@pytest.mark.attack(91)
def test_a_clock_at_2099_blocks_and_loses_nothing(forger: Forger, device: Device) -> None:
    device.refuses(EXPIRED, now_s=4_070_908_800.0)
    assert isinstance(device.sync(), Verdict)


@pytest.mark.attack(91)
def test_a_signed_time_after_the_end_of_a_role_is_refused_so_that_no_key_can_lock_the_clock(
    forger: Forger, device: Device
) -> None:
    forger.signed["timestamp"]["x-lenskeep-issued"] = int(forger.now_s + 400 * DAY_S)
    forger.publish("targets")
    device.refuses(EXPIRED)


# --- 79: mix and match ------------------------------------------------------------------------------------------------


@pytest.mark.attack(79)
@pytest.mark.parametrize("role", ["snapshot", "targets", "cap-team"])
def test_files_of_two_times_do_not_belong_together(forger: Forger, device: Device, role: str) -> None:
    old = forger.file(role).read_bytes()
    forger.publish()
    forger.file(role).write_bytes(old)
    device.refuses(MISMATCH, role=role)


@pytest.mark.attack(79)
def test_a_file_of_the_right_version_and_another_digest_is_refused(forger: Forger, device: Device) -> None:
    forger.publish()
    right = forger.file("cap-team").read_bytes()
    forger.signed["snapshot"]["meta"]["cap-team.json"] |= facts(right + b" ")
    forger.signed["snapshot"]["version"] += 1
    forger.put("snapshot")
    forger.signed["timestamp"]["version"] += 1
    forger.signed["timestamp"]["meta"]["snapshot.json"]["version"] += 1
    forger.put("timestamp")
    device.refuses(MISMATCH, LARGE, role="cap-team")


# --- 80, 81, 96, 97, 98: what stands in the repository's place -----------------------------------------------------------


class Instead:
    """A source that answers one name in its own way."""

    def __init__(self, forger: Forger, name: str, answer: bytes | Exception | None) -> None:
        self._source, self._name, self._answer = FolderSource(forger.folder), name, answer
        self.asked: list[str] = []

    def read(self, name: str, bytes_max: int) -> bytes | None:
        self.asked.append(name)
        if name != self._name:
            return self._source.read(name, bytes_max)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


NEXT = {
    "root": "metadata/2.root.json",
    "timestamp": "metadata/timestamp.json",
    "snapshot": "metadata/2.snapshot.json",
    "targets": "metadata/2.targets.json",
    "cap-team": "metadata/2.cap-team.json",
}


@pytest.mark.attack(80)
@pytest.mark.parametrize("role", NEXT)
def test_endless_data_is_cut_off(forger: Forger, device: Device, role: str) -> None:
    forger.publish("targets", "cap-team", "director", "lid-team")
    (forger.folder / NEXT[role]).write_bytes(b" " * 6_000_000)
    device.refuses(LARGE, role=role)
    device.refuses(LARGE, role=role, source=Instead(forger, NEXT[role], b" " * 6_000_000))


@pytest.mark.attack(81)
@pytest.mark.parametrize("role", NEXT)
def test_a_slow_drip_ends_the_look_with_the_sources_own_fault(forger: Forger, device: Device, role: str) -> None:
    forger.publish("targets", "cap-team")
    drip = Instead(forger, NEXT[role], SourceTooSlowError("One byte a second."))
    device.refuses(SourceTooSlowError.code, source=drip, role=role)


@pytest.mark.attack(96)
@pytest.mark.parametrize("role", NEXT)
def test_a_sign_in_page_in_place_of_a_file_is_named_as_such(forger: Forger, device: Device, role: str) -> None:
    forger.publish("targets", "cap-team")
    page = b"<!doctype html><html><title>Welcome to the guest network</title></html>"
    device.refuses(MALFORMED, source=Instead(forger, NEXT[role], page), role=role)


@pytest.mark.attack(97)
@pytest.mark.parametrize("role", [role for role in NEXT if role != "root"])
def test_a_file_that_is_named_and_not_there_is_refused(forger: Forger, device: Device, role: str) -> None:
    forger.publish("targets", "cap-team")
    device.refuses(MISSING, source=Instead(forger, NEXT[role], None), role=role)


@pytest.mark.attack(98)
def test_a_redirect_that_the_source_refuses_is_a_refusal_and_no_name_leaves_the_repository(
    forger: Forger, device: Device
) -> None:
    forger.publish("targets", "cap-team")
    source = Instead(forger, NEXT["snapshot"], FleetAnswerError("It points to file:///etc/shadow."))
    device.refuses(FleetAnswerError.code, source=source)
    device.sync(source := Instead(forger, "", None))
    assert source.asked
    for name in source.asked:
        assert name.startswith(("metadata/", "targets/"))
        assert ".." not in name
        assert ":" not in name


# --- 82: fast-forward -------------------------------------------------------------------------------------------------


@pytest.mark.attack(82)
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_fast_forward_holds_until_the_keys_are_exchanged_and_no_longer(
    forger: Forger, device: Device, role: str
) -> None:
    forger.signed[role]["version"] = 9_000_000
    forger.publish("targets")
    assert isinstance(device.sync(), Verdict)
    forger.signed[role]["version"] = 1
    forger.publish("targets")
    device.refuses(ROLLED_BACK)
    forger.rotate("snapshot")
    forger.rotate("timestamp")
    forger.signed[role]["version"] = 2
    forger.publish("root", "targets")
    verdict = device.sync()
    assert isinstance(verdict, Verdict), verdict
    assert next(view.version for view in verdict.roles if view.name == role) < 9


@pytest.mark.attack(82)
def test_the_recovery_survives_a_source_that_breaks_off_after_the_root(forger: Forger, device: Device) -> None:
    forger.signed["timestamp"]["version"] = 9_000_000
    forger.publish("targets")
    assert isinstance(device.sync(), Verdict)
    forger.rotate("timestamp")
    forger.signed["timestamp"]["version"] = 2
    forger.publish("root", "targets")
    answer = device.sync(Instead(forger, "metadata/timestamp.json", SourceError("pulled out")))
    assert isinstance(answer, Refusal)
    assert "timestamp.json" not in answer.stored  # what the old key said no longer binds
    verdict = device.sync()
    assert isinstance(verdict, Verdict), verdict


# --- 83, 84, 58: roots and thresholds ------------------------------------------------------------------------------------


@pytest.mark.attack(83)
def test_a_root_that_skips_a_version_is_refused(forger: Forger, device: Device) -> None:
    forger.signed["root"]["version"] = 3
    (forger.folder / "metadata/2.root.json").write_bytes(forger.sign(forger.signed["root"], forger.keys["root"]))
    device.refuses(MISMATCH, role="root")


@pytest.mark.attack(84)
@pytest.mark.parametrize("signers", [1, 0])
def test_a_root_with_too_few_signatures_is_refused(forger: Forger, device: Device, signers: int) -> None:
    forger.publish("root")
    forger.put("root", keys=forger.keys["root"][:signers])
    device.refuses(UNSIGNED, role="root")


@pytest.mark.attack(84, 54)
def test_a_root_signed_by_one_holder_and_a_stranger_is_refused(forger: Forger, device: Device) -> None:
    stranger = generate_key()
    forger.publish("root")
    forger.put("root", keys=[forger.keys["root"][0], stranger])
    device.refuses(UNSIGNED, role="root")


@pytest.mark.attack(84, 57)
def test_one_holder_signing_twice_is_one_signature(forger: Forger, device: Device) -> None:
    forger.publish("root")
    forger.put("root", keys=[forger.keys["root"][0]] * 2)
    device.refuses(RULES, role="root")


@pytest.mark.attack(58)
@pytest.mark.parametrize("role", ["root", "timestamp", "targets"])
def test_one_key_under_two_ids_in_a_root_is_refused(forger: Forger, device: Device, role: str) -> None:
    key = forger.keys[role][0]
    root = forger.signed["root"]
    root["keys"]["another-id"] = key_dict(key)
    root["roles"][role] = {"keyids": [key.public.id, "another-id"], "threshold": 2}
    forger.publish("root")
    device.refuses(RULES, role="root")


@pytest.mark.attack(58)
def test_one_key_under_two_ids_in_a_delegation_is_refused_however_it_is_spelled(forger: Forger, device: Device) -> None:
    said = forger.signed["targets"]["delegations"]
    key = forger.keys["cap-team"][0]
    other = key_dict(key)
    other["keyval"]["public"] = other["keyval"]["public"].replace("\n-----END", "\n\n-----END").strip()
    said["keys"]["another-id"] = other
    said["roles"][0] |= {"keyids": [key.public.id, "another-id"], "threshold": 2}
    forger.publish("targets")
    device.refuses(RULES, role="targets")


# --- 85 to 90, 95: roles and delegations ----------------------------------------------------------------------------------


@pytest.mark.attack(85)
@pytest.mark.parametrize("role", ["cap-team", "targets"])
def test_a_role_gone_from_the_snapshot_is_refused(forger: Forger, device: Device, role: str) -> None:
    forger.publish("lid-team")
    snapshot = forger.signed["snapshot"]
    del snapshot["meta"][f"{role}.json"]
    forger.put("snapshot")
    device.refuses(MISMATCH, role="snapshot")


@pytest.mark.attack(85)
def test_a_role_that_the_snapshot_never_named_is_refused(forger: Forger, tmp_path: Path) -> None:
    del forger.signed["snapshot"]["meta"]["cap-team.json"]
    forger.put("snapshot")
    Device(forger, tmp_path / "new").refuses(MISMATCH, role="snapshot")


@pytest.mark.attack(86, 90)
def test_a_role_that_speaks_for_further_roles_is_refused(forger: Forger, device: Device) -> None:
    forger.delegate("cap-sub-team", ["models/cap-*/*"], by="cap-team")
    forger.signed["cap-sub-team"]["version"] = 1
    forger.put("cap-sub-team")
    forger.publish("cap-team")
    device.refuses(RULES, role="cap-team")


def nested(tmp_path: Path, chain: list[tuple[str, str]]) -> Device:
    """A repository as the standard allows it, with deeper delegations than ours may have."""
    forger = Forger(tmp_path / "nested", publishers=())
    for by, role in chain:
        forger.delegate(role, ["models/*/*"], by=by, terminating=False)
    forger.publish()
    return Device(forger, tmp_path / "nested-device")


@pytest.mark.attack(86)
def test_delegations_in_a_circle_end(tmp_path: Path) -> None:
    device = nested(tmp_path, [("targets", "a"), ("a", "b"), ("b", "c"), ("c", "a")])
    verdict = device.sync(rules=Rules.STANDARD)
    assert isinstance(verdict, Verdict)
    assert verdict.unlisted == [MODEL]
    device.stored = {}
    assert isinstance(device.sync(), Refusal)  # the rules of the house refuse it flatly


@pytest.mark.attack(86)
def test_delegations_33_deep_are_refused_and_not_taken_for_not_listed(tmp_path: Path) -> None:
    names = ["targets", *(f"role-{at}" for at in range(34))]
    device = nested(tmp_path, list(pairwise(names)))
    answer = device.sync(rules=Rules.STANDARD, device="")
    assert isinstance(answer, Refusal)
    assert answer.code == RULES


@pytest.mark.attack(90)
def test_a_role_proved_for_one_delegator_is_not_taken_for_another(tmp_path: Path) -> None:
    device = nested(tmp_path, [("targets", "a"), ("targets", "b"), ("a", "c")])
    forger = device.forger
    right = forger.keys["c"]
    forger.signed["a"]["delegations"]["roles"][0]["paths"] = ["models/a/*"]
    forger.keys["c"] = [generate_key()]
    forger.delegate("c", ["models/b/*"], by="b")
    forger.keys["c"] = right
    forger.add("c", "models/a/1.0.0.lkb", b"a")
    forger.add("c", "models/b/1.0.0.lkb", b"b")
    forger.publish()
    good = device.sync(rules=Rules.STANDARD, device="", paths=["models/a/1.0.0.lkb"])
    assert isinstance(good, Verdict)
    assert [listing.role for listing in good.listings] == ["c"]
    bad = device.sync(rules=Rules.STANDARD, device="", paths=["models/a/1.0.0.lkb", "models/b/1.0.0.lkb"])
    assert isinstance(bad, Refusal)
    assert bad.code == UNSIGNED
    for paths in (["models/b/1.0.0.lkb"], ["models/a/1.0.0.lkb", "models/b/1.0.0.lkb"]):
        device.stored["b.json"] = forger.file("b").read_bytes()
        stored = device.sync(rules=Rules.STANDARD, device="", paths=paths, offline=True)
        assert isinstance(stored, Refusal)
        assert stored.code == UNSIGNED


@pytest.mark.attack(87)
@pytest.mark.parametrize(
    "name", ["../x", "?", "#", "/etc/x", "a/b", "", "Targets", "root", "targets", "timestamp", "a\n", "ä", "x" * 64]
)
def test_a_hostile_role_name_is_refused_and_nothing_is_asked_by_it(forger: Forger, device: Device, name: str) -> None:
    said = forger.signed["targets"]["delegations"]
    said["roles"].insert(0, said["roles"][0] | {"name": name})
    forger.publish("targets")
    source = Instead(forger, "", None)
    device.refuses(RULES, MALFORMED, source=source, role="targets")
    assert all(asked.rpartition("/")[2][0].isalnum() for asked in source.asked)


@pytest.mark.attack(88)
def test_after_a_terminating_role_nobody_else_is_asked(forger: Forger, device: Device) -> None:
    forger.delegate("other-team", ["models/cap-*/*"])
    forger.add("other-team", "models/cap-inspect/6.6.6.lkb", b"evil")
    forger.publish("targets", "other-team", "cap-team")
    source = Instead(forger, "", None)
    verdict = device.sync(source, paths=["models/cap-inspect/6.6.6.lkb"])
    assert isinstance(verdict, Verdict)
    assert verdict.unlisted == ["models/cap-inspect/6.6.6.lkb"]
    assert not [asked for asked in source.asked if "other-team" in asked]


@pytest.mark.attack(89)
@pytest.mark.parametrize("path", ["models/cap-inspect/deep/1.0.0.lkb", "models/1.0.0.lkb"])
def test_a_wildcard_does_not_cross_a_slash(forger: Forger, device: Device, path: str) -> None:
    forger.add("cap-team", path, b"evil")
    forger.publish("cap-team")
    verdict = device.sync(paths=[path])
    assert isinstance(verdict, Verdict)
    assert verdict.unlisted == [path]


@pytest.mark.attack(95)
@pytest.mark.parametrize(
    ("role", "paths"),
    [
        ("director", ["devices/*", "models/*/*"]),
        ("director", ["*/*"]),
        ("cap-team", ["devices/*"]),
        ("cap-team", ["models/cap-*/*", "devices/cam-1.json"]),
        ("cap-team", ["*/*/*"]),
        ("cap-team", ["models/*"]),
        ("cap-team", ["models/../*"]),
        ("cap-team", ["[md]*/*/*"]),
        ("cap-team", []),
    ],
)
def test_a_role_may_not_be_given_anothers_paths(forger: Forger, device: Device, role: str, paths: list[str]) -> None:
    forger.delegate(role, paths)
    forger.publish("targets")
    device.refuses(RULES, role="targets")


@pytest.mark.attack(95)
def test_a_director_that_lists_a_model_and_a_publisher_that_lists_a_device_are_not_heard(
    forger: Forger, device: Device
) -> None:
    forger.add("director", "models/cap-inspect/6.6.6.lkb", b"evil")
    forger.signed["director"]["targets"].pop("devices/cam-1.json")
    forger.add("cap-team", "devices/cam-1.json", b"evil")
    forger.publish("director", "cap-team")
    verdict = device.sync(paths=["models/cap-inspect/6.6.6.lkb"])
    assert isinstance(verdict, Verdict)
    assert (verdict.unlisted, verdict.assignment) == (["models/cap-inspect/6.6.6.lkb"], None)


@pytest.mark.attack(95)
@pytest.mark.parametrize("path", ["models/cap-inspect/6.6.6.lkb", "devices/cam-1.json"])
def test_targets_itself_lists_no_model_and_no_device(forger: Forger, device: Device, path: str) -> None:
    forger.add("targets", path, b"evil")
    forger.publish("targets")
    device.refuses(RULES, role="targets")


@pytest.mark.attack(71)
def test_a_publisher_that_lists_anothers_model_is_not_heard(forger: Forger, device: Device) -> None:
    forger.add("lid-team", "models/cap-inspect/6.6.6.lkb", b"evil")
    forger.publish("lid-team")
    verdict = device.sync(paths=["models/cap-inspect/6.6.6.lkb"])
    assert isinstance(verdict, Verdict)
    assert verdict.unlisted == ["models/cap-inspect/6.6.6.lkb"]


@pytest.mark.attack(53)
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "cap-team", "director"])
def test_a_role_signed_by_another_roles_key_is_refused(forger: Forger, device: Device, role: str) -> None:
    forger.publish()
    forger.put(role, keys=forger.keys["lid-team"])
    device.refuses(UNSIGNED, role=role)


@pytest.mark.attack(59)
def test_the_id_of_one_key_over_the_signature_of_another_is_refused(forger: Forger, device: Device) -> None:
    forger.publish()
    document = json.loads(forger.sign(forger.signed["cap-team"], forger.keys["lid-team"]))
    document["signatures"][0]["keyid"] = forger.keys["cap-team"][0].public.id
    forger.put("cap-team", json.dumps(document).encode())
    device.refuses(UNSIGNED, role="cap-team")


# --- kinds of keys, kinds of repositories -----------------------------------------------------------------------------------


def other_key(kind: str) -> dict[str, Any]:
    if kind == "P-384 as P-256":
        pem = ec.generate_private_key(ec.SECP384R1()).public_key()
        return key_dict(generate_key()) | {
            "keyval": {"public": pem.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()}
        }
    scheme = {"ed25519": "ed25519", "rsa": "rsassa-pss-sha256", "ecdsa": "ecdsa-sha2-nistp384", "none": "none"}[kind]
    return key_dict(generate_key()) | {"keytype": kind, "scheme": scheme}


@pytest.mark.attack(62, 63)
@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa", "none", "P-384 as P-256"])
def test_a_key_of_another_kind_is_refused(forger: Forger, device: Device, kind: str) -> None:
    forger.signed["root"]["keys"]["other"] = other_key(kind)
    forger.signed["root"]["roles"]["root"]["keyids"].append("other")
    forger.publish("root")
    device.refuses(RULES, role="root")


@pytest.mark.parametrize("promise", [False, None])
def test_a_root_without_consistent_snapshots_is_refused(forger: Forger, device: Device, promise: bool | None) -> None:
    forger.signed["root"]["consistent_snapshot"] = promise
    forger.publish("root")
    device.refuses(RULES, MALFORMED, role="root")


def test_a_threshold_that_nobody_can_reach_does_not_lock_the_device_out(forger: Forger, device: Device) -> None:
    forger.signed["root"]["roles"]["timestamp"]["threshold"] = 2
    forger.publish("root")
    device.refuses(RULES, role="root")
    assert device.stored["root.json"] == forger.root(1)


# --- 92: the state of the device -------------------------------------------------------------------------------------------


@pytest.mark.attack(92)
def test_lost_state_begins_again_at_the_provisioned_root(forger: Forger, device: Device) -> None:
    forger.publish("root")
    device.stored = {}
    verdict = device.sync()
    assert isinstance(verdict, Verdict)
    assert verdict.roles[0].version == 2


@pytest.mark.attack(92)
@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "director", "cap-team"])
@pytest.mark.parametrize(
    "harm", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: raw.replace(b"1", b"2")]
)
def test_stored_metadata_that_was_harmed_is_fetched_again(
    forger: Forger, device: Device, role: str, harm: Callable[[bytes], bytes]
) -> None:
    good = dict(device.stored)
    device.stored[f"{role}.json"] = harm(good[f"{role}.json"])
    verdict = device.sync()
    assert isinstance(verdict, Verdict), verdict
    assert verdict.stored == good


@pytest.mark.attack(92)
def test_stored_metadata_that_was_forged_with_a_huge_version_does_not_lock_the_device_out(
    forger: Forger, device: Device
) -> None:
    for role in ("timestamp", "snapshot", "targets", "cap-team"):
        forged = forger.signed[role] | {"version": 10**12}
        device.stored[f"{role}.json"] = forger.sign(forged, [generate_key()])
    verdict = device.sync()
    assert isinstance(verdict, Verdict), verdict


@pytest.mark.attack(92)
def test_a_stored_root_that_was_forged_is_left_for_the_provisioned_one(forger: Forger, device: Device) -> None:
    strangers = [generate_key(), generate_key()]
    device.stored["root.json"] = forger.sign(forger.signed["root"] | {"version": 9}, strangers)
    verdict = device.sync()
    assert isinstance(verdict, Verdict), verdict
    assert verdict.stored["root.json"] == forger.root(1)


@pytest.mark.attack(79, 92)
@pytest.mark.parametrize("role", ["snapshot", "targets", "cap-team"])
def test_stored_roles_of_two_times_are_not_believed_together(forger: Forger, device: Device, role: str) -> None:
    old = device.stored[f"{role}.json"]
    forger.publish()
    assert isinstance(device.sync(), Verdict)
    device.stored[f"{role}.json"] = old
    answer = device.sync(offline=True)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.role) == (MISMATCH, role)


@pytest.mark.attack(92)
def test_an_old_copy_of_the_state_catches_up(forger: Forger, device: Device) -> None:
    old = dict(device.stored)
    for _ in range(2):
        forger.publish()
        assert isinstance(device.sync(), Verdict)
    newest, device.stored = device.stored, old
    assert isinstance(device.sync(), Verdict)
    assert device.stored == newest


# --- 93, 94: assignments -----------------------------------------------------------------------------------------------------


@pytest.mark.attack(93)
def test_the_assignment_of_another_device_under_this_ones_name_is_refused(forger: Forger, device: Device) -> None:
    forger.assign("cam-1", names_device="cam-2")
    forger.publish("director")
    verdict = device.sync()
    assert isinstance(verdict, Verdict)
    with pytest.raises(AssignmentError, match="cam-2"):
        assignment.read(verdict.assignment or b"", "cam-1")


@pytest.mark.attack(93, 69)
def test_an_assignment_whose_bytes_are_not_the_listed_ones_is_refused(forger: Forger, device: Device) -> None:
    data = forger.assign("cam-1", "models/cap-inspect/1.1.0.lkb")
    forger.publish("director")
    place = next((forger.folder / "targets/devices").glob(f"{hashlib.sha256(data).hexdigest()}.*"))
    place.write_bytes(data.replace(b"1.1.0", b"6.6.6"))
    device.refuses(MISMATCH, role="director")
    place.unlink()
    device.refuses(MISSING, role="director")


@pytest.mark.attack(94)
def test_a_version_that_was_withdrawn_is_named_as_not_listed(forger: Forger, device: Device) -> None:
    forger.signed["cap-team"]["targets"].pop(MODEL)
    forger.publish("cap-team")
    verdict = device.sync()
    assert isinstance(verdict, Verdict)
    assert (verdict.listings, verdict.unlisted) == ([], [MODEL])


# --- 99: the stick -----------------------------------------------------------------------------------------------------------


@pytest.mark.attack(99)
def test_a_stick_older_than_its_expiry_is_refused(forger: Forger, device: Device) -> None:
    forger.signed["timestamp"]["expires"] = forger.words("", days=14)["expires"]
    forger.publish("targets")
    device.refuses(EXPIRED, role="timestamp", now_s=forger.now_s + 15 * DAY_S)


@pytest.mark.attack(99)
@pytest.mark.parametrize("name", ["metadata/timestamp.json", "metadata/2.snapshot.json", "metadata"])
def test_a_stick_with_links_is_refused(forger: Forger, device: Device, tmp_path: Path, name: str) -> None:
    forger.publish("targets")
    (forger.folder / name).rename(tmp_path / "elsewhere")
    (forger.folder / name).symlink_to(tmp_path / "elsewhere")
    device.refuses(SourceError.code, MISSING)


@pytest.mark.attack(99)
@pytest.mark.parametrize("after", range(8))
def test_a_stick_pulled_out_at_any_file_harms_nothing(forger: Forger, device: Device, after: int) -> None:
    forger.publish()
    forger.assign("cam-1", "models/cap-inspect/1.1.0.lkb")
    forger.publish("director")

    class Pulled:
        left = after

        def read(self, name: str, bytes_max: int) -> bytes | None:
            self.left -= 1
            if self.left < 0:
                raise SourceError(f"{name} cannot be read: Input/output error.")
            return FolderSource(forger.folder).read(name, bytes_max)

    device.refuses(SourceError.code, source=Pulled())
    verdict = device.sync()
    assert isinstance(verdict, Verdict), verdict
    assert {role.name: role.version for role in verdict.roles}["director"] == 3


# --- 37 to 46: the JSON itself -------------------------------------------------------------------------------------------------


@pytest.mark.attack(37, 38, 39, 40, 41, 42, 43, 46)
@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b'"version": 2', b'"version": 9, "version": 2'),
        (b'"version": 2', b'"version": NaN'),
        (b'"version": 2', b'"version": Infinity'),
        (b'"version": 2', b'"version": 2.0'),
        (b'"version": 2', b'"version": 2e0'),
        (b'"version": 2', b'"version": ' + b"2" * 30),
        (b'"version": 2', b'"version": true'),
        (b'"version": 2', b'"version": "2"'),
        (b'"version": 2', b'"version": -2'),
        (b'"version": 2', b'"version": 2, "x": ' + b"[" * 100_000 + b"]" * 100_000),
        (b'"version": 2', b'"version": 2, "x": "\\ud800"'),
        (b'"version": 2', b'"version": 2, "x": "\\u0000"'),
        (b'{"signatures"', b'\xef\xbb\xbf{"signatures"'),
        (b'{"signatures"', b'[{"signatures"'),
        (b'"signed"', b'"signed": 1, "signed"'),
    ],
    ids=range(15),
)
@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "cap-team"])
def test_json_that_two_readers_may_understand_differently_is_refused(
    forger: Forger, device: Device, role: str, was: bytes, becomes: bytes
) -> None:
    forger.publish()
    data = forger.file(role).read_bytes()
    assert was in data
    forger.file(role).write_bytes(data.replace(was, becomes, 1))
    device.refuses(MALFORMED, LARGE, role=role)


def test_a_bootstrap_root_that_is_no_root_is_refused_before_anything_is_asked(forger: Forger, tmp_path: Path) -> None:
    for bad in (b"", b"<html>", forger.file("targets").read_bytes(), forger.sign(forger.signed["root"], [])):
        source = Instead(forger, "", None)
        answer = look(Look(bootstrap=bad, stored={}, now_s=forger.now_s), source, tmp_path)
        assert isinstance(answer, Refusal)
        assert (answer.code in (MALFORMED, UNSIGNED), answer.roles, source.asked) == (True, [], [])
