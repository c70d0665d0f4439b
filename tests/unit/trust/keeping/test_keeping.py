"""A repository over years, watched by the standard's own client after every step."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import RepositoryError

from lenskeep.bundle.keys import generate_key
from lenskeep.errors import (
    BundleError,
    DelegationError,
    KeepingError,
    NotEntitledError,
    NotListedError,
    RepositoryBusyError,
    RepositoryFolderError,
    RepublishedError,
    RequestError,
    UnknownNameError,
    UnknownSignerError,
    UploadRefusedError,
)
from lenskeep.trust import assignment
from lenskeep.trust.keeping import (
    changes,
    director,
    documents,
    forecast,
    online,
    proposals,
    releases,
    scopes,
    settling,
    state,
)
from lenskeep.trust.keeping.workspace import Workspace, writing
from lenskeep.trust.names import ISSUED_FIELD
from tests.repositories import Repository, StockClient, sign_anyhow

DAY_S = 86400.0


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.publisher("acme", "cap-*")
    return made


@pytest.fixture
def client(repository: Repository, tmp_path: Path) -> StockClient:
    return StockClient(repository, tmp_path / "client")


def test_the_standards_client_accepts_every_step_of_a_repositorys_life(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    client = StockClient(repository, tmp_path / "client")
    assert client.versions() == {"targets": 1, "director": 1}

    repository.publisher("acme", "cap-*")
    repository.publisher("weld", "weld-seam", keys=("wanda", "will"), threshold=2)
    good = repository.release("cap-inspect", "1.0.0")
    assert client.target("models/cap-inspect/1.0.0.lkb") == good
    seam = repository.release("weld-seam", "2.0.0")
    assert client.target("models/weld-seam/2.0.0.lkb") == seam
    repository.assign("cam-1", main="cap-inspect@1.0.0")
    first = assignment.read(client.target("devices/cam-1.json") or b"", "cam-1")
    assert first.generation == 1

    bad = repository.release("cap-inspect", "1.1.0")
    assert client.target("models/cap-inspect/1.1.0.lkb") == bad
    repository.withdraw("cap-inspect", "1.1.0", "misses cracks")
    assert client.target("models/cap-inspect/1.1.0.lkb") is None
    assert client.target("models/cap-inspect/1.0.0.lkb") == good

    repository.named("acme-2")
    repository.change(
        lambda work: changes.rotate(
            work, "acme", [repository.named("acme-2")], ["acme"], repository.signers(), repository.now_s
        )
    )
    assert client.target("models/cap-inspect/1.0.0.lkb") == good
    second = repository.release("cap-inspect", "1.2.0", key="acme-2")
    assert client.target("models/cap-inspect/1.2.0.lkb") == second

    repository.change(
        lambda work: changes.rotate(
            work, "root", [repository.named("dora")], ["clara"], repository.signers(), repository.now_s
        )
    )
    assert client.versions()["targets"] == 4
    assert {holder.name for holder in documents.holders_of(repository.document("root").root, "root")[1]} == {
        "anna",
        "ben",
        "dora",
    }

    repository.named("online-2")
    stolen = repository.keys.pop("online")
    repository.change(
        lambda work: changes.revoke_key(
            work, "online", [repository.named("online-2")], repository.signers(), repository.now_s
        )
    )
    assert stolen.public.id not in {
        holder.id for holder in documents.holders_of(repository.document("root").root, "timestamp")[1]
    }
    repository.assign("cam-1", main="cap-inspect@1.2.0")
    assert assignment.read(client.target("devices/cam-1.json") or b"", "cam-1").generation == 2

    for _ in range(4):  # a server that renews by its timer, over weeks
        repository.now_s += 2 * DAY_S
        settled = online.resign(repository.folder, repository.signers("online-2"), repository.now_s)
        assert "timestamp" in settled.renewed
        assert client.target("models/cap-inspect/1.2.0.lkb") == second
    fresh = StockClient(repository, tmp_path / "another", root=repository.root(1))
    assert fresh.versions() == client.versions()  # from the first root, through all rotations


def test_a_repository_begins_signed_by_its_holders_and_not_twice(repository: Repository) -> None:
    with pytest.raises(RepositoryFolderError, match="already"), writing(repository.folder) as work:
        _begin(work, repository)


def _begin(work: Workspace, repository: Repository, **changed: Any) -> None:
    named = repository.named
    facts: dict[str, Any] = {
        "root": [named("anna"), named("ben")], "threshold": 2, "targets": [named("tara")], "targets_threshold": 1,
        "online": [named("online")], "signers": repository.signers(), "now_s": repository.now_s,
    }  # fmt: skip
    changes.begin(work, **(facts | changed))


def test_a_root_key_that_is_online_too_is_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(DelegationError, match="online and of root"), writing(tmp_path / "new") as work:
        _begin(work, repository, online=[repository.named("anna")])


@pytest.mark.attack(58)
def test_a_key_that_is_listed_twice_for_a_role_is_refused_when_it_is_made(
    repository: Repository, tmp_path: Path
) -> None:
    twin = changes.NamedKey("anna-again", repository.keys["anna"].public)
    with pytest.raises(DelegationError, match="counts once"), writing(tmp_path / "new") as work:
        _begin(work, repository, root=[repository.named("anna"), twin])


@pytest.mark.attack(58)
def test_one_key_under_two_ids_counts_once_towards_a_threshold(repository: Repository) -> None:
    root = repository.document("root")
    body = documents.body_of(root)
    anna = repository.keys["anna"].public
    body.keys["f" * 64] = documents.SSlibKey("f" * 64, "ecdsa", "ecdsa-sha2-nistp256", {"public": anna.pem})
    body.roles["root"].keyids = [documents.tuf_key(anna).keyid, "f" * 64]
    twice = sign_anyhow("root", body, [repository.keys["anna"]])
    signature = next(iter(twice.metadata.signatures.values()))
    both = documents.write(
        "root", body, {**twice.metadata.signatures, "f" * 64: documents.Signature("f" * 64, signature.signature)}
    )
    assert not documents.tally(both, both.root).met


@pytest.mark.parametrize(
    "name", ["../x", "root", "targets", "snapshot", "timestamp", "director", "online", "a/b", "A", "", "?", "acme"]
)
@pytest.mark.attack(87)
def test_a_publisher_with_a_forbidden_name_is_refused(repository: Repository, name: str) -> None:
    before = sorted(repository.folder.rglob("*"))
    with pytest.raises(DelegationError):
        repository.publisher(name, "weld-*", keys=("x",))
    assert sorted(repository.folder.rglob("*")) == before


@pytest.mark.parametrize("pattern", ["devices/*", "../*", "cap-inspect", "*", "c*t", "a/b", "", "[a-z]*", "cap?"])
@pytest.mark.attack(89, 95)
def test_a_publisher_that_asks_for_foreign_names_is_refused(repository: Repository, pattern: str) -> None:
    with pytest.raises(DelegationError):
        repository.publisher("evil", pattern)


@pytest.mark.parametrize(("one", "other", "shared"), [("cap-*", "cap-a", True), ("cap-*", "*-a", True), ("a*", "b*", False), ("a*c", "ab", False), ("*", "x", True), ("ab", "ab", True), ("a*b*c", "axxbyyc", True)])  # fmt: skip
def test_two_patterns_share_a_name_or_not(one: str, other: str, shared: bool) -> None:
    assert scopes.overlap(one, other) is scopes.overlap(other, one) is shared


def test_a_threshold_out_of_reach_is_refused(repository: Repository) -> None:
    with pytest.raises(DelegationError, match="2 signatures and have 1"):
        repository.publisher("weld", "weld-*", threshold=2)
    with pytest.raises(DelegationError, match="2 signatures"):
        repository.change(
            lambda work: changes.rotate(work, "root", [], ["anna", "ben"], repository.signers(), repository.now_s)
        )


def test_a_publisher_alone_cannot_release_what_two_must_sign(repository: Repository, client: StockClient) -> None:
    repository.publisher("weld", "weld-*", keys=("wanda", "will"), threshold=2)
    file = repository.folder.parent / "w.lkb"
    file.write_bytes(repository.bundle("weld-seam", "1.0.0", "wanda"))
    with writing(repository.folder) as work:
        releases.publish(work, [file], repository.signers("wanda"), repository.now_s)
        settled = settling.settle(work, repository.signers("online"), repository.now_s)
        work.commit()
    assert "weld" not in settled.placed
    assert "weld" not in client.versions()
    with writing(repository.folder) as work:
        proposals.sign(work, "weld", repository.signers("will"))
        assert settling.settle(work, repository.signers("online"), repository.now_s).placed == ("weld",)
        work.commit()
    assert client.target("models/weld-seam/1.0.0.lkb") == file.read_bytes()


@pytest.mark.attack(71, 72)
def test_a_bundle_signed_by_another_publishers_key_is_not_released(repository: Repository) -> None:
    repository.publisher("weld", "weld-*")
    with pytest.raises(UploadRefusedError, match="belongs to acme"):
        repository.release("cap-inspect", "1.0.0", key="weld")
    repository.keys["stranger"] = generate_key()
    with pytest.raises(UnknownSignerError):
        repository.release("cap-inspect", "1.0.0", key="stranger")


def test_a_name_that_nobody_may_sign_is_refused(repository: Repository) -> None:
    file = repository.folder.parent / "x.lkb"
    file.write_bytes(repository.bundle("bolt-check", "1.0.0", "acme"))
    with pytest.raises(DelegationError, match="bolt-check"):
        repository.change(lambda work: releases.publish(work, [file], repository.signers(), repository.now_s))


def test_a_released_version_never_gets_another_content_not_even_after_its_withdrawal(repository: Repository) -> None:
    repository.release("cap-inspect", "1.0.0")
    with pytest.raises(RepublishedError):
        repository.release("cap-inspect", "1.0.0", license="MIT")
    repository.withdraw("cap-inspect", "1.0.0")
    with pytest.raises(RepublishedError):
        repository.release("cap-inspect", "1.0.0", license="MIT")


def test_a_spoiled_bundle_is_not_released(repository: Repository, tmp_path: Path) -> None:
    data = bytearray(repository.bundle("cap-inspect", "1.0.0", "acme"))
    data[len(data) // 2] ^= 1
    file = tmp_path / "flipped.lkb"
    file.write_bytes(data)
    with pytest.raises(BundleError):
        repository.change(lambda work: releases.publish(work, [file], repository.signers(), repository.now_s))


def test_a_withdrawal_names_its_reason_in_what_is_signed(repository: Repository) -> None:
    repository.release("cap-inspect", "1.0.0")
    repository.withdraw("cap-inspect", "1.0.0", "misses cracks")
    signed = json.loads(repository.document("acme").raw)["signed"]
    assert signed[releases.WITHDRAWN_FIELD]["models/cap-inspect/1.0.0.lkb"]["reason"] == "misses cracks"
    with pytest.raises(NotListedError):
        repository.withdraw("cap-inspect", "1.0.0")


@pytest.mark.attack(94)
def test_a_version_that_is_not_listed_cannot_be_assigned(repository: Repository) -> None:
    repository.release("cap-inspect", "1.0.0")
    repository.withdraw("cap-inspect", "1.0.0")
    for version in ("cap-inspect@1.0.0", "cap-inspect@9.9.9"):
        with pytest.raises(UnknownNameError):
            repository.assign("cam-1", main=version)
    with pytest.raises(RequestError):
        repository.assign("../cam-1", main="cap-inspect@1.0.0")


def test_only_the_director_assigns(repository: Repository) -> None:
    repository.release("cap-inspect", "1.0.0")
    with pytest.raises(NotEntitledError), writing(repository.folder) as work:
        director.assign(work, {"cam-1": {"main": ("cap-inspect", "1.0.0")}}, repository.signers("acme", "tara"), 0)


@pytest.mark.attack(95)
def test_what_a_role_may_not_list_is_not_published_even_when_it_is_signed(
    repository: Repository, client: StockClient
) -> None:
    repository.release("cap-inspect", "1.0.0")
    body = documents.body_of(repository.document("acme"))
    body.version += 1
    body.targets["devices/cam-1.json"] = next(iter(body.targets.values()))
    evil = sign_anyhow("acme", body, repository.signers("acme"))
    repository.write(evil.file, evil.raw)
    repository.refresh()
    assert client.versions()["acme"] == 1
    assert client.target("devices/cam-1.json") is None
    with pytest.raises(UploadRefusedError, match="may not list"), writing(repository.folder) as work:
        (repository.folder / "metadata" / evil.file).unlink()
        releases.verify_upload(work, "acme", evil.raw, [], repository.now_s)


@pytest.mark.attack(82)
def test_a_stolen_online_key_that_used_up_the_numbers_is_recovered_from(
    repository: Repository, client: StockClient
) -> None:
    repository.release("cap-inspect", "1.0.0")
    repository.assign("cam-1", main="cap-inspect@1.0.0")
    last = 2**40

    def leap(body: Any) -> None:
        body.version = last

    repository.overwrite("director", leap, "online", file=f"{last}.director.json", chain=False)
    lie = documents.read("director", (repository.folder / "metadata" / f"{last}.director.json").read_bytes())
    snapshot = documents.body_of(repository.document("snapshot"))
    snapshot.version, snapshot.meta["director.json"] = last, documents.meta_of(lie)
    signed = sign_anyhow("snapshot", snapshot, repository.signers("online"))
    repository.write(signed.file, signed.raw)
    timestamp = documents.body_of(repository.document("timestamp"))
    timestamp.version, timestamp.snapshot_meta = last, documents.meta_of(signed)
    repository.write("timestamp.json", sign_anyhow("timestamp", timestamp, repository.signers("online")).raw)
    assert client.versions()["director"] == last  # a device was taken in

    repository.named("server-2")
    del repository.keys["online"]
    repository.change(
        lambda work: changes.revoke_key(
            work, "online", [repository.named("server-2")], repository.signers(), repository.now_s
        )
    )
    assert client.versions()["director"] < 10
    assert repository.document("snapshot").version < 20
    repository.assign("cam-1", main="cap-inspect@1.0.0")
    assert client.target("devices/cam-1.json")


def test_new_online_keys_wait_until_the_server_signs_with_them(repository: Repository, client: StockClient) -> None:
    before = client.versions()
    with writing(repository.folder) as work:
        changes.rotate(
            work,
            "online",
            [repository.named("server-2")],
            ["online"],
            repository.signers("anna", "ben", "tara"),
            repository.now_s,
        )
        settled = settling.settle(work, (), repository.now_s)
        work.commit()
    assert settled.placed == ()
    assert any("new online key" in reason for reason in settled.waiting)
    assert client.versions() == before
    settled = online.resign(repository.folder, repository.signers("server-2"), repository.now_s)
    assert set(settled.placed) == {"root", "targets"}
    assert client.versions()["director"] == before["director"] + 1


def test_a_planned_rotation_waits_for_what_has_to_be_signed_again_and_a_revocation_does_not(
    repository: Repository, client: StockClient
) -> None:
    data = repository.release("cap-inspect", "1.0.0")
    new = repository.named("acme-2")
    with writing(repository.folder) as work:
        changes.rotate(work, "acme", [new], ["acme"], repository.signers("tara"), repository.now_s)
        settled = settling.settle(work, repository.signers("online"), repository.now_s)
        work.commit()
    assert settled.placed == ()
    assert client.target("models/cap-inspect/1.0.0.lkb") == data
    with writing(repository.folder) as work:
        changes.revoke_key(work, "acme", [new], repository.signers("tara"), repository.now_s, reason="stolen")
        settled = settling.settle(work, repository.signers("online"), repository.now_s)
        work.commit()
    assert settled.placed == ("targets",)
    with pytest.raises(RepositoryError):
        client.target("models/cap-inspect/1.0.0.lkb")
    with writing(repository.folder) as work:
        proposals.sign(work, "acme", repository.signers("acme-2"))
        settling.settle(work, repository.signers("online"), repository.now_s)
        work.commit()
    assert client.target("models/cap-inspect/1.0.0.lkb") == data


def test_a_publisher_that_was_taken_out_lists_nothing_and_may_come_back(
    repository: Repository, client: StockClient
) -> None:
    repository.release("cap-inspect", "1.0.0")
    repository.change(lambda work: changes.revoke_publisher(work, "acme", repository.signers(), repository.now_s))
    assert client.target("models/cap-inspect/1.0.0.lkb") is None
    repository.publisher("acme", "cap-*", keys=("acme-3",))
    data = repository.release("cap-other", "1.0.0")
    assert client.target("models/cap-other/1.0.0.lkb") == data


def test_a_bundle_signed_anew_by_the_publishers_new_key_stays_the_same_version_and_devices_follow(
    repository: Repository, client: StockClient
) -> None:
    repository.release("cap-inspect", "1.0.0")
    repository.assign("cam-1", main="cap-inspect@1.0.0")
    new = repository.named("acme-2")
    repository.change(
        lambda work: changes.rotate(work, "acme", [new], ["acme"], repository.signers(), repository.now_s)
    )
    problems = forecast.status(Workspace(repository.folder), repository.now_s).problems
    assert any("signed inside by a key that acme has no more" in problem for problem in problems)
    data = repository.release("cap-inspect", "1.0.0", key="acme-2")
    assert client.target("models/cap-inspect/1.0.0.lkb") == data
    followed = assignment.read(client.target("devices/cam-1.json") or b"", "cam-1")
    assert followed.generation == 2
    assert followed.slots["main"].sha256 == hashlib.sha256(data).hexdigest()
    assert forecast.status(Workspace(repository.folder), repository.now_s).problems == []
    with pytest.raises(RepublishedError):
        repository.release("cap-inspect", "1.0.0", key="acme-2", license="MIT")


def test_targets_keys_are_exchanged_without_a_gap(repository: Repository, client: StockClient) -> None:
    repository.change(
        lambda work: changes.rotate(
            work, "targets", [repository.named("tom")], ["tara"], repository.signers(), repository.now_s
        )
    )
    assert client.versions()["targets"] == 3
    assert not proposals.load_all(Workspace(repository.folder))


def test_the_renewal_signs_only_what_is_due(repository: Repository) -> None:
    online.resign(repository.folder, repository.signers("online"), repository.now_s)
    assert online.resign(repository.folder, repository.signers("online"), repository.now_s).renewed == ()
    assert online.resign(repository.folder, repository.signers("online"), repository.now_s + 1.1 * DAY_S).renewed == (
        "timestamp",
    )
    later = online.resign(repository.folder, repository.signers("online"), repository.now_s + 12 * DAY_S)
    assert later.renewed == ("director", "snapshot", "timestamp")
    assert repository.document("timestamp").timestamp.unrecognized_fields[ISSUED_FIELD] == int(
        repository.now_s + 12 * DAY_S
    )


def test_the_renewal_lists_nothing_whose_file_is_missing(repository: Repository, client: StockClient) -> None:
    repository.release("cap-inspect", "1.0.0")
    before = client.versions()
    with writing(repository.folder) as work:
        body = documents.body_of(repository.document("acme"))
        body.version += 1
        body.targets["models/cap-inspect/2.0.0.lkb"] = documents.target_of("models/cap-inspect/2.0.0.lkb", 10, "0" * 64)
        ghost = sign_anyhow("acme", body, repository.signers("acme"))
        work.put(f"metadata/{ghost.file}", ghost.raw)
        work.commit()
    settled = online.resign(repository.folder, repository.signers("online"), repository.now_s, force=True)
    assert settled.warnings
    assert client.versions() == before


@pytest.mark.attack(77, 83)
def test_uploads_that_are_old_leap_or_lack_signatures_are_refused(repository: Repository, tmp_path: Path) -> None:
    repository.release("cap-inspect", "1.0.0")
    current = repository.document("acme")

    def attempt(change: Any, *keys: str) -> None:
        body = documents.body_of(current)
        change(body)
        raw = sign_anyhow("acme", body, repository.signers(*keys)).raw
        with pytest.raises(UploadRefusedError), writing(repository.folder) as work:
            releases.verify_upload(work, "acme", raw, [], repository.now_s)

    attempt(lambda body: None, "acme")  # the same version again
    attempt(lambda body: setattr(body, "version", 2**41), "acme")
    attempt(lambda body: setattr(body, "version", 2), "tara")
    attempt(
        lambda body: (setattr(body, "version", 2), setattr(body, "expires", documents.moment(repository.now_s - 1))),
        "acme",
    )
    attempt(lambda body: (setattr(body, "version", 2), setattr(body, "expires", documents.moment(4e9))), "acme")
    for role in ("director", "root", "nobody", "../acme"):
        with pytest.raises(UploadRefusedError), writing(repository.folder) as work:
            releases.verify_upload(work, role, current.raw, [], repository.now_s)


def test_an_upload_is_published_with_its_bundle(repository: Repository, client: StockClient, tmp_path: Path) -> None:
    away = Repository.__new__(Repository)
    away.folder, away.keys, away.now_s = repository.saved(tmp_path / "away"), repository.keys, repository.now_s
    data = away.release("cap-inspect", "1.0.0")
    file = tmp_path / "sent.lkb"
    file.write_bytes(data)
    made, settled = online.accept_upload(
        repository.folder, "acme", away.document("acme").raw, [file], repository.signers("online"), repository.now_s
    )
    assert [one.path for one in made] == ["models/cap-inspect/1.0.0.lkb"]
    assert "timestamp" in settled.renewed
    assert client.target("models/cap-inspect/1.0.0.lkb") == data


def test_two_writers_do_not_work_on_one_repository(repository: Repository) -> None:
    with writing(repository.folder), pytest.raises(RepositoryBusyError), writing(repository.folder, wait_s=0.0):
        pass


def test_nothing_is_written_without_a_commit(repository: Repository) -> None:
    before = {path: path.read_bytes() for path in repository.folder.rglob("*") if path.is_file()}
    with writing(repository.folder) as work:
        changes.renew(work, "root", repository.signers(), repository.now_s)
        settling.settle(work, repository.signers(), repository.now_s, force=True)
    assert {path: path.read_bytes() for path in repository.folder.rglob("*") if path.is_file()} == before


def test_an_answered_proposal_that_was_changed_loses_its_signatures(repository: Repository) -> None:
    with writing(repository.folder) as work:
        changes.renew(work, "root", repository.signers("anna"), repository.now_s)
        assert len(proposals.tallies(work, state.load(work), proposals.load(work, "root").document)[0].signed) == 1  # type: ignore[union-attr]
        changes.rotate(work, "root", [repository.named("dora")], [], [], repository.now_s)
        assert not proposals.load(work, "root").document.metadata.signatures  # type: ignore[union-attr]


def test_five_hundred_devices_are_assigned_and_published_in_a_second(repository: Repository) -> None:
    repository.release("cap-inspect", "1.0.0")
    everyone = {f"cam-{number}": {"main": ("cap-inspect", "1.0.0")} for number in range(500)}
    repository.change(lambda work: director.assign(work, everyone, repository.signers("online"), repository.now_s))
    began = time.process_time()
    repository.assign("cam-250", main="cap-inspect@1.0.0")
    took = time.process_time() - began
    assert took < 1.0, took
    assert len(repository.document("director").targets.targets) == 500


def test_a_root_that_is_no_true_successor_stops_all_work(repository: Repository) -> None:
    body = documents.body_of(repository.document("root"))
    body.version = 2
    evil = sign_anyhow("root", body, repository.signers("tara", "online"))
    repository.write(evil.file, evil.raw)
    with pytest.raises(KeepingError, match=r"2\.root\.json"):
        repository.state()
