"""A director's list that grows over the bound, watched by the standard's own client and by ours after every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lenskeep.errors import ConfigError, MetadataFormatError, NotEntitledError, RepositoryDamagedError, RequestError
from lenskeep.fleet.director import Director, Order
from lenskeep.messages.trust import Look, Verdict
from lenskeep.trust import assignment
from lenskeep.trust.client import look
from lenskeep.trust.keeping import bins, changes, director, documents, forecast, online, settings, settling, state
from lenskeep.trust.keeping.documents import Document
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.keeping.workspace import SETTINGS, Workspace, writing
from lenskeep.trust.names import DIRECTOR, bin_of, device_path
from lenskeep.trust.source import FolderSource
from tests.repositories import Repository, StockClient, sign_anyhow

DAY_S = 86400.0
FEW = 3
OLD, NEW = "models/cap-inspect/1.0.0.lkb", "models/cap-inspect/1.1.0.lkb"


@dataclass
class Devices:
    """A device of ours for each name, and the standard's client, which remember what they have seen."""

    repository: Repository
    folder: Path
    stored: dict[str, dict[str, bytes]] = field(default_factory=dict)
    looks: int = 0

    def runs(self, name: str) -> tuple[str, int] | None:
        """Return what a device should run and the number of that decision; both clients have to agree."""
        self.looks += 1
        request = Look(
            bootstrap=self.repository.root(), stored=self.stored.get(name, {}), now_s=self.repository.now_s, device=name
        )
        answer = look(request, FolderSource(self.repository.folder), self.folder / f"look-{self.looks}")
        assert isinstance(answer, Verdict), answer
        self.stored[name] = answer.stored
        client = StockClient(self.repository, self.folder / f"stock-{name}")
        assert client.target(device_path(name)) == answer.assignment
        if answer.assignment is None:
            return None
        one = assignment.read(answer.assignment, name)
        return one.slots["main"].target, one.generation


def made(folder: Path) -> Repository:
    repository = Repository(folder, terms=Settings(devices_in_one_list_max=FEW))
    repository.publisher("acme", "cap-*")
    repository.release("cap-inspect", "1.0.0")
    repository.release("cap-inspect", "1.1.0")
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return made(tmp_path / "repository")


@pytest.fixture
def devices(repository: Repository, tmp_path: Path) -> Devices:
    return Devices(repository, tmp_path / "devices")


@pytest.fixture
def shared(repository: Repository) -> Repository:
    """Four devices and one that is retired: the list is shared out."""
    assign(repository, *range(FEW + 2))
    repository.change(lambda work: director.retire(work, "cam-4", repository.signers("online"), repository.now_s))
    return repository


def assign(repository: Repository, *numbers: int, version: str = "1.0.0") -> list[str]:
    """Assign a version to some devices in one signing, and return which metadata was written."""
    wanted = {f"cam-{number}": {"main": ("cap-inspect", version)} for number in numbers}
    with writing(repository.folder) as work:
        director.assign(work, wanted, repository.signers("online"), repository.now_s)
        settling.settle(work, repository.signers("online"), repository.now_s)
        written = [name.removeprefix("metadata/") for name in work.changed if name.startswith("metadata/")]
        work.commit()
    return written


def lists(repository: Repository) -> dict[str, Document]:
    work = Workspace(repository.folder)
    current = state.load(work)
    found = {role: bins.load(work, current, role) for role in bins.listers(current.roles.get(DIRECTOR))}
    return {role: document for role, document in found.items() if document is not None}


def problems(repository: Repository) -> list[str]:
    return forecast.problems(Workspace(repository.folder))


def test_a_small_fleet_keeps_one_list_and_one_device_more_shares_it_out(
    repository: Repository, devices: Devices
) -> None:
    assert assign(repository, *range(FEW)) == ["2.director.json", "5.snapshot.json", "timestamp.json"]
    assert list(lists(repository)) == [DIRECTOR]
    assert devices.runs("cam-0") == (OLD, 1)
    assert devices.runs("cam-9") is None
    written = assign(repository, FEW, version="1.1.0")
    assert len(written) == 256 + 3
    assert written[:256] == sorted(f"1.{role}.json" for role in bins.BINS)  # before the document that hands on to them
    assert written[256:] == ["3.director.json", "6.snapshot.json", "timestamp.json"]
    assert repository.document(DIRECTOR).targets.targets == {}
    assert {path for one in lists(repository).values() for path in one.targets.targets} == {
        device_path(f"cam-{number}") for number in range(FEW + 1)
    }
    assert [devices.runs(f"cam-{number}") for number in range(FEW + 1)] == [(OLD, 1)] * FEW + [(NEW, 1)]
    assert devices.runs("cam-9") is None
    assert problems(repository) == []


def test_only_the_bins_are_signed_that_change(shared: Repository, devices: Devices) -> None:
    assert devices.runs("cam-1") == (OLD, 1)
    mine = bin_of(device_path("cam-1"))
    assert assign(shared, 1, version="1.1.0") == [f"2.{mine}.json", "7.snapshot.json", "timestamp.json"]
    assert devices.runs("cam-1") == (NEW, 2)
    assert devices.runs("cam-0") == (OLD, 1)
    assert online.resign(shared.folder, shared.signers("online"), shared.now_s).renewed == ()
    with writing(shared.folder) as work:
        assert not settling.settle(work, (), shared.now_s).refresh_needed
        assert work.changed == []


def test_a_retired_device_is_listed_no_more_and_the_list_stays_shared(shared: Repository, devices: Devices) -> None:
    assert devices.runs("cam-4") is None
    for number in range(3):
        shared.change(lambda work, one=number: director.retire(work, f"cam-{one}", shared.signers(), shared.now_s))  # type: ignore[misc]
    assert devices.runs("cam-1") is None
    assert devices.runs("cam-3") == (OLD, 1)
    assert bins.shared(shared.document(DIRECTOR))
    with pytest.raises(RequestError, match="Nothing is assigned"), writing(shared.folder) as work:
        director.retire(work, "cam-1", shared.signers(), shared.now_s)


def test_a_withdrawn_version_cannot_be_assigned_in_a_bin_either(shared: Repository) -> None:
    shared.withdraw("cap-inspect", "1.1.0")
    with pytest.raises(Exception, match="not listed"):
        assign(shared, 1, version="1.1.0")


def test_bins_are_renewed_before_they_run_out_each_in_its_time(shared: Repository, devices: Devices) -> None:
    devices.runs("cam-1")
    shared.now_s += 9 * DAY_S
    assign(shared, 1, version="1.1.0")  # its bin is good for longer than the others now
    mine = bin_of(device_path("cam-1"))
    shared.now_s += 2 * DAY_S
    renewed = online.resign(shared.folder, shared.signers("online"), shared.now_s).renewed
    assert renewed == ("director", "snapshot", "timestamp")
    versions = {role: one.version for role, one in lists(shared).items()}
    assert versions.pop(mine) == 2
    assert versions.pop(bin_of(device_path("cam-4"))) == 3  # it was in there and was retired
    assert set(versions.values()) == {2}
    assert devices.runs("cam-1") == (NEW, 2)
    assert devices.runs("cam-0") == (OLD, 1)
    shared.now_s += 9 * DAY_S
    assert online.resign(shared.folder, shared.signers("online"), shared.now_s).renewed == (
        "director", "snapshot", "timestamp"
    )  # fmt: skip
    assert lists(shared)[mine].version == 3
    assert devices.runs("cam-1") == (NEW, 2)


def test_the_forecast_tells_when_the_first_bin_ends(shared: Repository) -> None:
    shared.now_s += 5 * DAY_S
    with writing(shared.folder) as work:  # the director's own document alone is signed anew
        current = state.load(work)
        body = documents.body_of(current.roles[DIRECTOR])
        assert current.targets is not None
        bins.sign(work, DIRECTOR, body, current.targets.targets, 9, shared.signers("online"), shared.now_s + 30 * DAY_S)
        settling.settle(work, shared.signers("online"), shared.now_s)
        work.commit()
    seen = forecast.status(Workspace(shared.folder), shared.now_s)
    role = next(one for one in seen.roles if one.role == DIRECTOR)
    assert round((role.expires_s - shared.now_s) / DAY_S) == 25
    assert (seen.devices, seen.bins, seen.problems) == (4, 256, [])


def test_new_online_keys_sign_all_bins_and_nothing_is_lost(shared: Repository, devices: Devices) -> None:
    before = {role: one.version for role, one in lists(shared).items()}
    assert devices.runs("cam-1") == (OLD, 1)
    new = shared.named("server-2")
    with writing(shared.folder) as work:
        changes.rotate(work, "online", [new], ["online"], shared.signers("anna", "ben", "tara"), shared.now_s)
        settled = settling.settle(work, (), shared.now_s)
        work.commit()
    assert settled.placed == ()  # it waits for the new key
    assert devices.runs("cam-1") == (OLD, 1)
    online.resign(shared.folder, shared.signers("server-2"), shared.now_s)
    after = lists(shared)
    assert all(after[role].version > version for role, version in before.items())
    assert devices.runs("cam-1") == (OLD, 1)
    del shared.keys["online"]
    shared.change(
        lambda work: director.assign(
            work, {"cam-1": {"main": ("cap-inspect", "1.1.0")}}, shared.signers(), shared.now_s
        )
    )
    assert devices.runs("cam-1") == (NEW, 2)
    assert problems(shared) == []


def test_a_key_more_and_a_key_less_of_the_director_are_passed_on_to_its_bins(
    shared: Repository, devices: Devices
) -> None:
    more = shared.named("second")
    assert devices.runs("cam-1") == (OLD, 1)
    before = {role: one.version for role, one in lists(shared).items()}
    shared.change(lambda work: changes.rotate(work, DIRECTOR, [more], [], shared.signers("tara"), shared.now_s))
    assert devices.runs("cam-1") == (OLD, 1)
    assert before == {role: one.version for role, one in lists(shared).items()}  # their signatures are good still
    shared.change(lambda work: changes.rotate(work, DIRECTOR, [], ["online"], shared.signers("tara"), shared.now_s))
    assert devices.runs("cam-1") == (OLD, 1)
    assert problems(shared) == []
    shared.change(
        lambda work: changes.rotate(
            work, DIRECTOR, [shared.named("third")], [], shared.signers("tara"), shared.now_s, threshold=2
        )
    )
    assert devices.runs("cam-1") == (OLD, 1)
    with pytest.raises(NotEntitledError), writing(shared.folder) as work:
        director.assign(work, {"cam-1": {"main": ("cap-inspect", "1.1.0")}}, shared.signers("second"), shared.now_s)


def test_a_revoked_key_of_two_waits_for_the_other_and_loses_no_assignment(shared: Repository, devices: Devices) -> None:
    shared.change(
        lambda work: changes.rotate(work, DIRECTOR, [shared.named("second")], [], shared.signers("tara"), shared.now_s)
    )
    assert devices.runs("cam-1") == (OLD, 1)
    with writing(shared.folder) as work:  # in place at once, and the director's keys are not at hand
        changes.revoke_key(work, "second", [], shared.signers("tara"), shared.now_s)
        assert settling.settle(work, (), shared.now_s).placed == ("targets",)
        work.commit()
    assert devices.runs("cam-1") == (OLD, 1)
    with pytest.raises(NotEntitledError, match="signed anew"), writing(shared.folder) as work:
        director.assign(work, {"cam-1": {"main": ("cap-inspect", "1.1.0")}}, shared.signers("online"), shared.now_s)
    online.resign(shared.folder, shared.signers("online"), shared.now_s)
    assert devices.runs("cam-1") == (OLD, 1)
    assign(shared, 1, version="1.1.0")
    assert devices.runs("cam-1") == (NEW, 2)


@pytest.mark.attack(82)
def test_a_stolen_key_that_used_up_the_numbers_of_a_bin_is_recovered_from(shared: Repository, devices: Devices) -> None:
    mine, last = bin_of(device_path("cam-1")), 2**40
    lie = documents.body_of(lists(shared)[mine])
    lie.version = last
    evil = sign_anyhow(mine, lie, shared.signers("online"))
    shared.write(evil.file, evil.raw)
    shared.chain(evil)
    assert devices.runs("cam-1") == (OLD, 1)  # a device was taken in
    new = shared.named("server-2")
    del shared.keys["online"]
    shared.change(lambda work: changes.revoke_key(work, "online", [new], shared.signers(), shared.now_s))
    assert max(one.version for one in lists(shared).values()) < 10
    assert devices.runs("cam-1") == (OLD, 1)
    assert problems(shared) == []


@pytest.mark.attack(95)
def test_a_thief_who_hands_the_list_on_to_a_key_of_his_own_is_refused_and_put_right_by_the_next_signing(
    shared: Repository, devices: Devices, tmp_path: Path
) -> None:
    saved = devices.runs("cam-1")
    thief = documents.tuf_key(shared.named("thief").public)

    def hand_on(body: Any) -> None:
        body.version += 1
        body.delegations.keys[thief.keyid] = thief
        body.delegations.succinct_roles.keyids.append(thief.keyid)

    shared.overwrite(DIRECTOR, hand_on, "online", file=f"{shared.document(DIRECTOR).version + 1}.director.json")
    mine = bin_of(device_path("cam-1"))
    lie = documents.body_of(lists(shared)[mine])
    lie.version += 1
    lie.targets.clear()
    evil = sign_anyhow(mine, lie, shared.signers("thief"))
    shared.write(evil.file, evil.raw)
    assert any("other keys" in problem for problem in problems(shared))
    del shared.keys["thief"]
    online.resign(shared.folder, shared.signers("online"), shared.now_s)
    assert devices.runs("cam-1") == saved
    assert problems(shared) == []


def test_a_bundle_signed_anew_is_followed_in_the_bins_of_its_devices(shared: Repository, devices: Devices) -> None:
    assign(shared, 1, version="1.1.0")
    new = shared.named("acme-2")
    shared.change(lambda work: changes.rotate(work, "acme", [new], ["acme"], shared.signers(), shared.now_s))
    before = {role: one.version for role, one in lists(shared).items()}
    shared.release("cap-inspect", "1.1.0", key="acme-2")
    after = {role: one.version for role, one in lists(shared).items()}
    assert [role for role in before if after[role] != before[role]] == [bin_of(device_path("cam-1"))]
    assert devices.runs("cam-1") == (NEW, 3)
    assert devices.runs("cam-0") == (OLD, 1)


def test_a_version_that_was_withdrawn_and_comes_back_signed_anew_is_followed(
    shared: Repository, devices: Devices
) -> None:
    new = shared.named("acme-2")
    shared.change(lambda work: changes.rotate(work, "acme", [new], ["acme"], shared.signers(), shared.now_s))
    shared.withdraw("cap-inspect", "1.0.0")
    shared.release("cap-inspect", "1.0.0", key="acme-2")
    assert devices.runs("cam-1") == (OLD, 2)


def test_no_assignment_is_read_when_a_publisher_releases_something_new(
    shared: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(director, "followed", lambda *_: pytest.fail("all devices were read"))
    with writing(shared.folder) as work:
        director.assign(work, {"cam-1": {"main": ("cap-inspect", "1.1.0")}}, shared.signers("online"), shared.now_s)
        settling.settle(work, shared.signers("online"), shared.now_s)
        work.commit()
    shared.release("cap-inspect", "1.2.0")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_a_bin_that_is_missing_or_changed_is_told_and_nothing_is_signed(
    shared: Repository, spoil: Callable[[Path], object]
) -> None:
    mine = bin_of(device_path("cam-1"))
    spoil(shared.folder / "metadata" / f"1.{mine}.json")
    assert any(f"1.{mine}.json is missing or was changed" in problem for problem in problems(shared))
    before = shared.document("timestamp").version
    with pytest.raises(RepositoryDamagedError, match=mine):
        assign(shared, 1)
    with pytest.raises(RepositoryDamagedError, match=mine):
        shared.refresh()
    assert shared.document("timestamp").version == before


def test_a_fleet_grows_over_the_bound_while_it_assigns(tmp_path: Path) -> None:
    repository = made(tmp_path / "repository")
    devices = Devices(repository, tmp_path / "devices")
    (tmp_path / "online.pem").write_bytes(repository.keys["online"].pem())
    fleet = Director(repository.folder, [str(tmp_path / "online.pem")], {})
    numbers: dict[str, int] = {}

    def told(generations: Mapping[str, int]) -> None:
        numbers.update(generations)

    for step, bundle in enumerate(("cap-inspect@1.0.0", "cap-inspect@1.1.0"), 1):
        orders = [Order(f"cam-{number}", "main", bundle) for number in range(2 * FEW * step)]
        signed = fleet.sign_in_thread(lambda now=tuple(orders): now, repository.now_s, told)
        assert signed.anew == len(orders)
        again = fleet.sign_in_thread(lambda now=tuple(orders): now, repository.now_s, told)
        assert again.anew == 0
        assert again.generations == signed.generations
    assert numbers == {f"cam-{number}": 2 if number < 2 * FEW else 1 for number in range(4 * FEW)}
    assert devices.runs("cam-1") == (NEW, 2)
    assert set(fleet.assigned_in_thread()) == set(numbers)


def test_the_list_is_not_shared_out_to_a_bin_whose_files_are_missing(repository: Repository, devices: Devices) -> None:
    assign(repository, *range(FEW))
    lost = bin_of(device_path("cam-0"))
    with writing(repository.folder) as work:
        director.assign(work, {"cam-3": {"main": ("cap-inspect", "1.0.0")}}, repository.signers(), repository.now_s)
        for path in (repository.folder / "targets/devices").glob("*.cam-0.json"):
            path.rename(repository.folder / path.name)
        settled = settling.settle(work, repository.signers(), repository.now_s)
        work.commit()
    assert any(lost in warning for warning in settled.warnings)
    for path in repository.folder.glob("*.cam-0.json"):
        path.rename(repository.folder / "targets/devices" / path.name)
    assert devices.runs("cam-1") == (OLD, 1)
    assert devices.runs("cam-3") is None  # everybody sees the whole list as it was
    repository.refresh()
    assert devices.runs("cam-3") == (OLD, 1)


@pytest.mark.parametrize("value", ["-1", "true", "1.5", "'x'", "30000"])
def test_a_bound_that_makes_no_sense_is_refused(repository: Repository, value: str) -> None:
    (repository.folder / SETTINGS).write_text(f"devices_in_one_list_max = {value}\n")
    with pytest.raises(ConfigError, match="devices_in_one_list_max"):
        settings.load(Workspace(repository.folder))


def test_settings_of_an_older_repository_mean_the_default(repository: Repository) -> None:
    (repository.folder / SETTINGS).write_text("usb_sites = false\n")
    assert settings.load(Workspace(repository.folder)).devices_in_one_list_max == 1000
    terms = Settings(usb_sites=True, devices_in_one_list_max=7)
    (repository.folder / SETTINGS).write_bytes(settings.text(terms))
    assert settings.load(Workspace(repository.folder)) == terms


def test_the_quick_reading_of_an_end_reads_what_the_full_one_reads(shared: Repository) -> None:
    for one in lists(shared).values():
        assert documents.ends_s(one.raw) == one.expires_s
    for raw in (b"", b"{}", b'{"signed":{"expires":"2026"}}', b"\xff"):
        with pytest.raises(MetadataFormatError):
            documents.ends_s(raw)
