"""One look at a repository: what is trusted, kept and said when nothing is wrong, or only a little."""

from __future__ import annotations

from pathlib import Path

import pytest

from lenskeep.errors import SourceTooSlowError, StorageError
from lenskeep.messages.trust import Look, Refusal, Verdict
from lenskeep.trust import assignment, names
from lenskeep.trust.client import look
from lenskeep.trust.source import FolderSource
from tests.forger import DAY_S, Forger
from tests.repositories import Repository

MODEL = "models/cap-inspect/1.0.0.lkb"


class Recorder:
    """A source that notes what it was asked for."""

    def __init__(self, forger: Forger) -> None:
        self._source = FolderSource(forger.folder)
        self.asked: list[str] = []

    def read(self, name: str, bytes_max: int) -> bytes | None:
        self.asked.append(name)
        return self._source.read(name, bytes_max)


class Unasked:
    """A source that must not be asked."""

    def read(self, name: str, bytes_max: int) -> bytes | None:
        raise AssertionError(f"asked for {name}")


class Drip:
    """A source that gives up on one file, as the daemon does with a server that is too slow."""

    def __init__(self, forger: Forger, name: str) -> None:
        self._source, self._name = FolderSource(forger.folder), name

    def read(self, name: str, bytes_max: int) -> bytes | None:
        if name == self._name:
            raise SourceTooSlowError(f"{name} came too slowly.")
        return self._source.read(name, bytes_max)


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    forger = Forger(tmp_path / "repository")
    forger.add("cap-team", MODEL, b"the bundle")
    forger.assign("cam-1")
    forger.publish()
    return forger


def seen(request: Look, source: object, folder: Path) -> Verdict:
    answer = look(request, source, folder)  # type: ignore[arg-type]
    assert isinstance(answer, Verdict), answer
    return answer


def versions(answer: Verdict | Refusal) -> dict[str, int]:
    return {role.name: role.version for role in answer.roles}


def test_a_first_look_says_who_signs_what_is_listed_and_what_is_assigned(forger: Forger, tmp_path: Path) -> None:
    request = forger.look(device="cam-1", paths=[MODEL, "models/cap-inspect/2.0.0.lkb"])
    verdict = seen(request, FolderSource(forger.folder), tmp_path / "work")
    assert versions(verdict) == dict.fromkeys(["root", "timestamp", "snapshot", "targets", "director", "cap-team"], 1)
    [listing] = verdict.listings
    assert (listing.path, listing.role, listing.length_bytes) == (MODEL, "cap-team", len(b"the bundle"))
    assert listing.keys == [forger.keys["cap-team"][0].public.pem]
    assert verdict.unlisted == ["models/cap-inspect/2.0.0.lkb"]
    assert assignment.read(verdict.assignment or b"", "cam-1").slots["line-1"].target == MODEL
    assert verdict.issued_s == int(forger.now_s)
    assert [delegation.role for delegation in verdict.delegations] == ["cap-team"]
    root = verdict.roles[0]
    assert (root.threshold, set(root.keys)) == (2, {key.public.id for key in forger.keys["root"]})


def test_a_second_look_with_nothing_new_asks_for_a_root_and_a_timestamp(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(device="cam-1", paths=[MODEL]), FolderSource(forger.folder), tmp_path / "1")
    source = Recorder(forger)
    again = seen(forger.look(first.stored, device="cam-1", paths=[MODEL]), source, tmp_path / "2")
    assert source.asked == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert again == first


def test_the_earliest_expiry_on_the_way_is_a_listings(forger: Forger, tmp_path: Path) -> None:
    forger.signed["cap-team"] |= forger.words("targets", days=2) | {"version": 1}
    forger.publish("cap-team")
    verdict = seen(forger.look(paths=[MODEL]), FolderSource(forger.folder), tmp_path / "work")
    assert verdict.listings[0].expires_s == pytest.approx(forger.now_s + 2 * DAY_S, abs=1)


def test_what_is_stored_is_judged_without_a_source_and_expiry_is_only_said(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(device="cam-1", paths=[MODEL]), FolderSource(forger.folder), tmp_path / "1")
    request = forger.look(first.stored, device="cam-1", paths=[MODEL], offline=True, now_s=forger.now_s + 9_000 * DAY_S)
    again = seen(request, Unasked(), tmp_path / "2")
    assert again == first


def test_without_a_first_look_only_the_root_is_known(forger: Forger, tmp_path: Path) -> None:
    answer = look(forger.look(offline=True), Unasked(), tmp_path)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.role, versions(answer)) == ("LK-4104", "timestamp", {"root": 1})


def test_stored_metadata_that_was_changed_is_not_believed_without_a_source(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(paths=[MODEL]), FolderSource(forger.folder), tmp_path / "1")
    forger.signed["cap-team"]["targets"] = {}
    forged = forger.sign(forger.signed["cap-team"], forger.keys["director"])
    answer = look(
        forger.look(first.stored | {"cap-team.json": forged}, paths=[MODEL], offline=True), Unasked(), tmp_path / "2"
    )
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.role) == ("LK-4101", "cap-team")


def test_three_roots_later_a_device_follows_and_keeps_the_newest(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(), FolderSource(forger.folder), tmp_path / "1")
    for _ in range(3):
        forger.publish("root")
    source = Recorder(forger)
    verdict = seen(forger.look(first.stored), source, tmp_path / "2")
    assert versions(verdict)["root"] == 4
    assert verdict.stored["root.json"] == forger.root(4)
    assert source.asked[:4] == [f"metadata/{version}.root.json" for version in (2, 3, 4, 5)]
    assert seen(forger.look(verdict.stored), Recorder(forger), tmp_path / "3").stored == verdict.stored


def test_a_newer_provisioned_root_goes_before_the_stored_one(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(), FolderSource(forger.folder), tmp_path / "1")
    forger.publish("root")
    request = Look(bootstrap=forger.root(2), stored=first.stored, now_s=forger.now_s, offline=True)
    assert versions(seen(request, Unasked(), tmp_path / "2"))["root"] == 2


def test_a_new_root_is_kept_when_the_rest_is_refused(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(), FolderSource(forger.folder), tmp_path / "1")
    forger.publish("root")
    forger.put("timestamp", keys=forger.keys["snapshot"])
    answer = look(forger.look(first.stored), FolderSource(forger.folder), tmp_path / "2")
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.role) == ("LK-4101", "timestamp")
    assert answer.stored == first.stored | {"root.json": forger.root(2), "roots/2.root.json": forger.root(2)}
    assert versions(answer) == {"root": 2, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_a_role_that_is_no_longer_spoken_for_is_no_longer_kept(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(paths=[MODEL]), FolderSource(forger.folder), tmp_path / "1")
    forger.signed["targets"]["delegations"]["roles"].pop(0)
    forger.publish("targets")
    verdict = seen(forger.look(first.stored, paths=[MODEL]), FolderSource(forger.folder), tmp_path / "2")
    assert verdict.unlisted == [MODEL]
    assert "cap-team.json" not in verdict.stored


def test_a_role_that_was_not_asked_about_is_kept(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(paths=[MODEL]), FolderSource(forger.folder), tmp_path / "1")
    verdict = seen(forger.look(first.stored), FolderSource(forger.folder), tmp_path / "2")
    assert verdict.stored == first.stored
    assert "cap-team" not in versions(verdict)


def test_a_fault_of_the_source_ends_the_look_with_its_code(forger: Forger, tmp_path: Path) -> None:
    answer = look(forger.look(), Drip(forger, "metadata/1.snapshot.json"), tmp_path)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.role) == (SourceTooSlowError.code, "snapshot")
    assert set(answer.stored) == {"root.json", "timestamp.json"}


def test_an_assignment_is_fetched_again_only_when_it_changed(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(device="cam-1"), FolderSource(forger.folder), tmp_path / "1")
    data = forger.assign("cam-1", "models/cap-inspect/1.1.0.lkb")
    forger.publish("director")
    source = Recorder(forger)
    verdict = seen(forger.look(first.stored, device="cam-1"), source, tmp_path / "2")
    assert verdict.assignment == data
    assert source.asked[-1].startswith(f"{names.TARGETS}/devices/")


SPOILT = {
    "LK-4101": lambda forger: forger.put("lid-team", keys=forger.keys["cap-team"]),
    "LK-4102": lambda forger: forger.put("lid-team", forger.sign(
        forger.signed["lid-team"] | {"expires": forger.words("", days=-1)["expires"]}, forger.keys["lid-team"])),
    "LK-4104": lambda forger: forger.file("lid-team").unlink(),
    "LK-4105": lambda forger: forger.put("lid-team", b" " * 6_000_000),
    "LK-4106": lambda forger: forger.put("lid-team", b"<html>"),
}  # fmt: skip


@pytest.fixture
def two(forger: Forger) -> Forger:
    """A repository with a second publisher."""
    forger.delegate("lid-team", ["models/lid-*/*"])
    forger.add("lid-team", "models/lid-inspect/1.0.0.lkb", b"another bundle")
    forger.publish("targets", "lid-team")
    return forger


@pytest.mark.parametrize("code", SPOILT)
def test_in_a_look_that_may_end_partly_a_publisher_that_is_refused_costs_its_own_models_only(
    two: Forger, tmp_path: Path, code: str
) -> None:
    paths = ["models/lid-inspect/1.0.0.lkb", MODEL, "models/lid-inspect/2.0.0.lkb"]
    SPOILT[code](two)
    source = FolderSource(two.folder)
    whole = look(two.look(device="cam-1", paths=paths), source, tmp_path / "1")
    assert isinstance(whole, Refusal)
    assert (whole.code, whole.role) == (code, "lid-team")
    verdict = seen(two.look(device="cam-1", paths=paths, partly=True), source, tmp_path / "2")
    assert [listing.path for listing in verdict.listings] == [MODEL]
    assert (verdict.unlisted, verdict.assignment is not None) == ([], True)
    assert [(one.path, one.role, one.code) for one in verdict.unproven] == [
        (path, "lid-team", code) for path in paths if path != MODEL
    ]
    assert "lid-team.json" not in verdict.stored
    assert "lid-team" not in versions(verdict)
    offline = seen(two.look(verdict.stored, paths=paths, partly=True, offline=True), Unasked(), tmp_path / "3")
    assert {one.code for one in offline.unproven} == {"LK-4104"}


def test_a_publisher_that_expired_by_the_floor_costs_its_own_models_only_and_keeps_its_version(
    two: Forger, tmp_path: Path
) -> None:
    two.signed["lid-team"]["expires"] = two.words("", days=2)["expires"]
    two.publish("lid-team")
    source, paths = FolderSource(two.folder), ["models/lid-inspect/1.0.0.lkb", MODEL]
    first = seen(two.look(paths=paths), source, tmp_path / "1")
    two.publish("lid-team")
    later = two.look(first.stored, paths=paths, partly=True, now_s=two.now_s + 3 * DAY_S)
    verdict = seen(later, source, tmp_path / "2")
    assert [(one.role, one.code) for one in verdict.unproven] == [("lid-team", "LK-4102")]
    assert [listing.path for listing in verdict.listings] == [MODEL]
    assert verdict.stored["lid-team.json"] == first.stored["lid-team.json"]


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "director"])
def test_every_other_role_that_is_refused_ends_a_look_that_may_end_partly(
    two: Forger, tmp_path: Path, role: str
) -> None:
    two.publish()
    two.put(role, keys=two.keys["cap-team"])
    answer = look(two.look(device="cam-1", paths=[MODEL], partly=True), FolderSource(two.folder), tmp_path / "work")
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.role) == ("LK-4101", role)


def test_a_folder_that_cannot_be_written_is_this_boxs_fault_and_loses_nothing(forger: Forger, tmp_path: Path) -> None:
    first = seen(forger.look(), FolderSource(forger.folder), tmp_path / "1")
    (tmp_path / "file").write_bytes(b"")
    answer = look(forger.look(first.stored), FolderSource(forger.folder), tmp_path / "file")
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.stored) == (StorageError.code, {})
    assert versions(answer) == versions(first)


def test_what_the_repository_tool_writes_is_what_a_device_accepts(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.publisher("acme", "cap-*")
    data = repository.release("cap-inspect", "1.0.0")
    repository.release("cap-inspect", "1.1.0")
    repository.assign("cam-1", main="cap-inspect@1.0.0")
    source, paths = FolderSource(repository.folder), [MODEL, "models/cap-inspect/1.1.0.lkb"]
    request = Look(bootstrap=repository.root(), stored={}, now_s=repository.now_s, device="cam-1", paths=paths)
    verdict = seen(request, source, tmp_path / "1")
    assert [(one.path, one.role) for one in verdict.listings] == [(path, "acme") for path in paths]
    assert verdict.listings[0].length_bytes == len(data)
    assert assignment.read(verdict.assignment or b"", "cam-1").slots["main"].sha256 == verdict.listings[0].sha256
    assert 0 < verdict.issued_s <= repository.now_s
    repository.withdraw("cap-inspect", "1.1.0")
    later = Look(bootstrap=repository.root(), stored=verdict.stored, now_s=repository.now_s, paths=paths)
    assert seen(later, source, tmp_path / "2").unlisted == paths[1:]


def test_root_that_was_written_into_the_registry_counts_only_through_the_chain(forger: Forger, tmp_path: Path) -> None:
    """Somebody who can write the registry puts a root of their own there, signed by itself."""
    first = seen(forger.look(), FolderSource(forger.folder), tmp_path / "1")
    stranger = Forger(tmp_path / "stranger")
    stranger.publish()
    stranger.publish("root")
    planted = first.stored | {"root.json": stranger.root(2), "roots/2.root.json": stranger.root(2)}
    verdict = seen(forger.look(planted), FolderSource(forger.folder), tmp_path / "2")
    assert next(role for role in verdict.roles if role.name == "root").version == 1
    assert isinstance(look(forger.look(planted), FolderSource(stranger.folder), tmp_path / "3"), Refusal)


def test_chain_of_roots_is_remembered_and_followed_without_asking_for_it_again(forger: Forger, tmp_path: Path) -> None:
    forger.publish("root")
    forger.publish("root")
    first = seen(forger.look(), FolderSource(forger.folder), tmp_path / "1")
    assert {"roots/2.root.json", "roots/3.root.json"} <= set(first.stored)
    (forger.folder / "metadata" / "2.root.json").unlink()
    again = seen(forger.look(first.stored), FolderSource(forger.folder), tmp_path / "2")
    assert next(role for role in again.roles if role.name == "root").version == 3
