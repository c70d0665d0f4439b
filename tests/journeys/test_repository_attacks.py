"""Attacks by somebody who holds one of the repository's keys, or the network: at the running device's door."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.trust import assignment
from lenskeep.trust.assignment import Assignment, SlotAssignment
from lenskeep.trust.keeping import documents
from tests import tinybundle
from tests.device import Device, bundle_bytes
from tests.journeys.test_sync import ID, Server, cli, make, release
from tests.repositories import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    release(made, "1.0.0")
    made.assign(ID, main="cap-inspect@1.0.0")
    return made


@pytest.fixture
def server(repository: Repository) -> Iterator[Server]:
    running = Server(repository.folder)
    yield running
    running.close()


@pytest.fixture
def device(repository: Repository, server: Server) -> Iterator[Device]:
    made = make(repository, server.address)
    assert cli(made, "sync").returncode == 0
    made.runs("cap-inspect@1.0.0", "settled")
    yield made
    made.close()


def put_target(repository: Repository, role: str, path: str, data: bytes, *, stored: bytes | None = None) -> None:
    """Let a role list a target, with or without being allowed to; `stored` is what really lies there."""
    from tuf.api.metadata import TargetFile

    target = TargetFile.from_data(path, data, ["sha256"])
    folder, _, name = path.rpartition("/")
    place = repository.folder / "targets" / folder / f"{target.hashes['sha256']}.{name}"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data if stored is None else stored)

    def change(body: object) -> None:
        body.targets[path] = target  # type: ignore[attr-defined]
        body.version += 1  # type: ignore[attr-defined]

    keys = {"director": "online", "targets": "tara"}
    document = repository.document(role)
    body = documents.body_of(document)
    repository.overwrite(role, change, keys.get(role, role), file=f"{body.version + 1}.{role}.json")


def assigned(repository: Repository, device: str, generation: int, target: str, sha256: str) -> bytes:
    return assignment.write(
        Assignment(device=device, generation=generation, slots={"main": SlotAssignment(target=target, sha256=sha256)})
    )


def refused(device: Device, code: str) -> None:
    """The sync or the assignment was refused with this code, and what ran goes on."""
    done = cli(device, "sync")
    states = [one.code for one in device.client.repository().assignments]
    assert code in done.stderr or code in states, (done.stderr, states, device.log()[-1500:])
    device.runs("cap-inspect@1.0.0", "settled")
    assert [bundle.version for bundle in device.client.bundles()] == ["1.0.0"]


@pytest.mark.attack(93)
def test_assignment_of_another_device_is_refused(device: Device, repository: Repository) -> None:
    data = assigned(repository, "cam-8", 9, "models/cap-inspect/1.0.0.lkb", "0" * 64)
    put_target(repository, "director", f"devices/{ID}.json", data)
    refused(device, "LK-4109")


@pytest.mark.attack(94)
def test_stolen_director_key_that_assigns_an_unlisted_version_is_refused(
    device: Device, repository: Repository
) -> None:
    put_target(
        repository,
        "director",
        f"devices/{ID}.json",
        assigned(repository, ID, 9, "models/cap-inspect/6.6.6.lkb", "6" * 64),
    )
    refused(device, "LK-4109")


@pytest.mark.attack(94)
def test_stolen_director_key_that_assigns_a_withdrawn_version_is_refused(
    device: Device, repository: Repository
) -> None:
    data = release(repository, "1.1.0")
    digest = hashlib.sha256(data).hexdigest()
    repository.withdraw("cap-inspect", "1.1.0")
    put_target(
        repository, "director", f"devices/{ID}.json",
        assigned(repository, ID, 9, "models/cap-inspect/1.1.0.lkb", digest),
    )  # fmt: skip
    refused(device, "LK-4109")


@pytest.mark.attack(95)
def test_director_that_lists_a_model_itself_is_not_asked(device: Device, repository: Repository) -> None:
    data = bundle_bytes("7.0.0")
    put_target(repository, "director", "models/cap-inspect/7.0.0.lkb", data)
    file = repository.folder.parent / "cap-inspect-7.0.0.lkb"
    file.write_bytes(data)
    cli(device, "sync")
    assert "LK-41" in cli(device, "import", str(file)).stderr
    device.runs("cap-inspect@1.0.0", "settled")
    assert [bundle.version for bundle in device.client.bundles()] == ["1.0.0"]


@pytest.mark.attack(72)
def test_bundle_that_is_signed_by_another_publishers_key_than_the_one_that_lists_it_is_refused(
    device: Device, repository: Repository
) -> None:
    repository.keys["acme"] = tinybundle.key()
    repository.keys["weld"] = generate_key()
    repository.publisher("weld", "weld-*", keys=["weld"])
    repository.release("weld-seam", "0.9.0")
    data = bundle_bytes("1.0.0", name="weld-seam")  # signed with the key of acme
    put_target(repository, "weld", "models/weld-seam/1.0.0.lkb", data)
    file = repository.folder.parent / "weld-seam-1.0.0.lkb"
    file.write_bytes(data)
    cli(device, "sync")
    done = cli(device, "import", str(file))
    assert "LK-4003" in done.stderr or "LK-4005" in done.stderr, done.stderr
    assert [bundle.name for bundle in device.client.bundles()] == ["cap-inspect"]


@pytest.mark.attack(73)
def test_genuine_bundle_that_is_not_the_listed_file_is_refused(device: Device, repository: Repository) -> None:
    listed, other = bundle_bytes("1.2.0"), bundle_bytes("1.2.0", extra={"note.txt": b"another content"}, model=None)
    put_target(repository, "acme", "models/cap-inspect/1.2.0.lkb", listed)
    file = repository.folder.parent / "cap-inspect-1.2.0.lkb"
    file.write_bytes(other)
    cli(device, "sync")
    done = cli(device, "import", str(file))
    assert "LK-4108" in done.stderr, done.stderr
    assert [bundle.version for bundle in device.client.bundles()] == ["1.0.0"]


@pytest.mark.attack(50)
def test_bundle_whose_inner_name_differs_from_its_target_path_is_refused(
    device: Device, repository: Repository
) -> None:
    data = bundle_bytes("1.0.1")
    put_target(repository, "acme", "models/cap-inspect/2.0.0.lkb", data)
    put_target(
        repository, "director", f"devices/{ID}.json",
        assigned(repository, ID, 9, "models/cap-inspect/2.0.0.lkb", hashlib.sha256(data).hexdigest()),
    )  # fmt: skip
    refused(device, "LK-4107")


def altered(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


@pytest.mark.attack(69)
@pytest.mark.parametrize("spoil", [altered, lambda data: data + b"\0"], ids=["one bit", "one byte more"])
def test_download_that_is_not_the_listed_file_is_refused_while_it_is_written(
    device: Device, repository: Repository, spoil: Callable[[bytes], bytes]
) -> None:
    data = bundle_bytes("1.3.0")
    put_target(repository, "acme", "models/cap-inspect/1.3.0.lkb", data, stored=spoil(data))
    put_target(
        repository, "director", f"devices/{ID}.json",
        assigned(repository, ID, 9, "models/cap-inspect/1.3.0.lkb", hashlib.sha256(data).hexdigest()),
    )  # fmt: skip
    refused(device, "LK-4108")
    assert not list((device.folder / "state" / "incoming").iterdir())


@pytest.mark.attack(82)
def test_stolen_online_key_cannot_move_the_device_into_the_far_future(device: Device, repository: Repository) -> None:
    def far(body: object) -> None:
        body.unrecognized_fields["x-lenskeep-issued"] = 4_000_000_000  # type: ignore[attr-defined]
        body.version += 1  # type: ignore[attr-defined]

    repository.overwrite("timestamp", far, "online")
    cli(device, "sync")
    repository.refresh()
    done = cli(device, "sync")
    assert "LK-4102" not in done.stderr, done.stderr
    device.runs("cap-inspect@1.0.0", "settled")


def test_publisher_whose_metadata_is_spoiled_costs_its_own_models_only(device: Device, repository: Repository) -> None:
    repository.publisher("weld", "weld-*")
    repository.release("weld-seam", "0.9.0")
    assert cli(device, "sync").returncode == 0
    release(repository, "1.1.0")
    repository.assign(ID, main="cap-inspect@1.1.0")
    spoiled = repository.folder / "metadata" / repository.document("weld").file
    spoiled.write_bytes(b"{}")
    assert cli(device, "sync").returncode == 0
    device.runs("cap-inspect@1.1.0", "settled")
