"""A version that needs the approval of several people, and slots that run only what is on their list."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lenskeep.cli.client import Client
from lenskeep.errors import (
    ApprovalMismatchError,
    ApprovalOverError,
    ConflictError,
    LenskeepError,
    NotPermittedError,
    NotSignedInError,
    NotYourApprovalError,
    RequestError,
    SlotLockedError,
    TokenReachError,
    UnknownNameError,
)
from lenskeep.messages.control import ActivationRequest, Approval, Operation, TokenRequest
from tests import tinybundle
from tests.device import Device
from tests.journeys.test_sync import ID, Server, following, release
from tests.people import approve, open_port, person, refuse, rewrite
from tests.repositories import Repository

TWO = 'approvals = 2\napproval_roles = ["supervisor", "admin"]'
ONE = "approvals = 1"
MakeDevice = Callable[..., Device]


@pytest.fixture
def two(make_device: MakeDevice) -> Device:
    """A device whose slot wants two supervisors, with 1.0.0 imported."""
    return started(make_device, TWO)


def started(make_device: MakeDevice, slot: str) -> Device:
    device = make_device(slot=slot)
    open_port(device)
    device.start()
    device.trust()
    device.bring("1.0.0")
    return device


def ask(device: Device, version: str = "1.0.0", client: Client | None = None, reason: str = "new lot") -> Operation:
    request = ActivationRequest(bundle=f"cap-inspect@{version}", reason=reason)
    return (client or device.client).activate(request)


def waiting(device: Device) -> Approval:
    found = device.slot().waiting
    assert found is not None
    return found


def agree(device: Device, *clients: Client) -> None:
    for client in clients:
        approve(client, waiting(device))


def settle(device: Device, version: str, *clients: Client) -> None:
    """Bring a version and let people approve it until it has settled."""
    device.bring(version)
    operation = ask(device, version)
    agree(device, *clients)
    assert device.finished(device.client.operation(operation.id)).state == "succeeded"
    device.runs(f"cap-inspect@{version}", "settled")


def activations(device: Device) -> int:
    return sum(entry.action == "activate" for entry in device.client.audit(limit=200))


def again(device: Device, old: str, new: str) -> None:
    """Restart with another configuration."""
    device.kill(signal.SIGTERM)
    text = device.config.read_text()
    assert old in text
    device.config.write_text(text.replace(old, new))
    device.start()


def test_version_runs_only_after_two_people_have_signed_for_its_bytes(two: Device) -> None:
    operation = ask(two)
    assert (operation.state, operation.by) == ("awaiting_approval", "unix:root")
    found = waiting(two)
    assert (found.bundle, found.needed, found.reason, found.roles) == (
        "cap-inspect@1.0.0", 2, "new lot", ["supervisor", "admin"],
    )  # fmt: skip
    assert found.digest == two.client.bundle("cap-inspect@1.0.0").bundle.digest
    mara, jon = person(two, "mara", "supervisor"), person(two, "jon", "supervisor")
    assert approve(mara, found, meaning="review", reason="compared with report 17").state == "waiting"
    assert two.client.operation(operation.id).state == "awaiting_approval"
    assert two.slot().active == ""
    assert approve(jon, found).state == "granted"
    assert two.finished(two.client.operation(operation.id)).state == "succeeded"
    two.runs("cap-inspect@1.0.0", "settled")
    done = two.client.approvals(everything=True)[0]
    said = {(one.person, one.by, one.role, one.meaning, one.reason) for one in done.signatures}
    assert (done.state, said) == (
        "done",
        {
            ("mara", "token:mara", "supervisor", "review", "compared with report 17"),
            ("jon", "token:jon", "supervisor", "approval", "validated"),
        },
    )
    record = [entry for entry in two.client.audit(limit=50) if entry.action == "approve"]
    assert len(record) == 2 and all(found.digest in entry.after for entry in record)
    wish = next(entry for entry in two.client.audit(limit=50) if entry.action == "activate")
    assert wish.reason == f"new lot (request {found.id}, approved by mara (review), jon (approval))"
    assert two.client.approvals() == [] and two.slot().waiting is None


def test_one_person_counts_once_whatever_tokens_and_accounts_are_used(two: Device) -> None:
    lead = person(two, "lead", "supervisor")
    ask(two, client=lead)
    found = waiting(two)
    with pytest.raises(NotYourApprovalError, match="somebody else"):
        approve(lead, found)
    with pytest.raises(NotYourApprovalError, match="somebody else"):
        approve(person(two, "lead-phone", "supervisor", person="lead"), found)
    approve(person(two, "mara-desk", "supervisor", person="mara"), found)
    with pytest.raises(NotYourApprovalError, match="already"):
        approve(person(two, "mara-phone", "admin", person="mara"), found)
    two.client.remove_token("mara-desk")
    with pytest.raises(NotYourApprovalError, match="already"):
        approve(person(two, "mara-desk", "supervisor", person="mara"), found)
    assert len(waiting(two).signatures) == 1


def test_account_and_token_of_one_person_are_one_person(two: Device) -> None:
    ask(two, client=person(two, "lead", "supervisor"))
    approve(two.client, waiting(two))  # unix:root
    with pytest.raises(NotYourApprovalError, match="root has approved it already"):
        approve(person(two, "root", "admin"), waiting(two))


def test_approval_for_other_bytes_by_other_roles_or_without_words_does_not_count(two: Device) -> None:
    ask(two)
    found = waiting(two)
    mara = person(two, "mara", "supervisor")
    with pytest.raises(ApprovalMismatchError):
        approve(mara, found, digest="0" * 64)
    with pytest.raises(RequestError, match="meaning"):
        approve(mara, found, meaning="responsibility")
    with pytest.raises(RequestError, match="reason"):
        approve(mara, found, reason="")
    with pytest.raises(UnknownNameError):
        approve(mara, found, id="ffffffff")
    with pytest.raises(NotYourApprovalError, match="role supervisor or admin"):
        approve(person(two, "eng", "engineer"), found)
    with pytest.raises(NotPermittedError):
        approve(person(two, "op", "operator"), found)
    with pytest.raises(NotPermittedError):
        approve(person(two, "audit", "auditor"), found)
    with pytest.raises(TokenReachError):
        approve(_bound(two), found)
    with pytest.raises(NotSignedInError):
        approve(Client(mara.address), found)
    assert waiting(two).signatures == []


def _bound(device: Device) -> Client:
    """A token bound to a slot that was configured when it was made, and is not the one asked for."""
    client = person(device, "bound", "supervisor", slots=["main"])
    rewrite(device, "UPDATE token SET slots = 'left' WHERE name = 'bound'")
    return client


def test_token_that_expires_between_door_and_signature_does_not_count(two: Device) -> None:
    ask(two)
    mara = person(two, "mara", "supervisor", hours=1)
    rewrite(two, "UPDATE token SET expires_ms = created_ms + 1 WHERE name = 'mara'")
    with pytest.raises(NotSignedInError):
        approve(mara, waiting(two))
    assert waiting(two).signatures == []


def test_two_who_approve_at_once_activate_once(make_device: MakeDevice) -> None:
    device = started(make_device, ONE)
    people = [person(device, f"p{number}", "supervisor") for number in range(6)]
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        device.bring(version)
        operation, before = ask(device, version), activations(device)
        found = waiting(device)

        def sign(client: Client, found: Approval = found) -> str:
            try:
                return approve(client, found).state
            except LenskeepError as error:
                return error.code

        with ThreadPoolExecutor(len(people)) as pool:
            said = sorted(pool.map(sign, people))
        assert said.count(ApprovalOverError.code) == len(people) - 1, said
        assert device.finished(device.client.operation(operation.id)).state == "succeeded"
        device.runs(f"cap-inspect@{version}", "settled")
        assert activations(device) == before + 1
    ran = [one.bundle for one in device.client.deployments(limit=50)]
    assert ran == ["cap-inspect@1.2.0", "cap-inspect@1.1.0", "cap-inspect@1.0.0"]


def test_asking_again_is_the_same_request_and_another_version_waits_its_turn(two: Device) -> None:
    lead, mara = person(two, "lead", "supervisor"), person(two, "mara", "supervisor")
    first = ask(two, client=lead)
    assert ask(two, client=mara).id == first.id
    approve(mara, waiting(two))
    two.bring("1.1.0")
    with pytest.raises(ConflictError, match="another version waits"):
        ask(two, "1.1.0", mara)
    second = ask(two, "1.1.0", lead)  # who asked may change the wish; what was signed for the other is void
    old = two.client.operation(first.id)
    assert old.state == "failed" and old.error is not None and old.error.code == "LK-1114"
    assert (waiting(two).operation, waiting(two).signatures) == (second.id, [])


def test_pending_request_survives_kill_and_is_carried_out_once(two: Device) -> None:
    mara, jon = person(two, "mara", "supervisor"), person(two, "jon", "supervisor")
    operation = ask(two)
    approve(mara, waiting(two))
    two.kill()
    two.start()
    assert two.client.operation(operation.id).state == "awaiting_approval"
    assert [one.person for one in waiting(two).signatures] == ["mara"]
    approve(jon, waiting(two))
    two.kill()  # between the last signature and whatever came of it
    two.start()
    two.runs("cap-inspect@1.0.0")
    assert two.finished(two.client.operation(operation.id)).state == "succeeded"
    assert activations(two) == 1


def test_kill_between_the_grant_and_the_wish_loses_neither(two: Device) -> None:
    operation = ask(two)
    approve(person(two, "mara", "supervisor"), waiting(two))
    found = waiting(two)
    two.kill()
    # what the last signature's transaction had written when the power went
    rewrite(
        two, "INSERT INTO approval_signature VALUES (?, 'jon', 'token:jon', 'supervisor', 'approval', 'ok', ?, 1)",
        found.id, found.digest,
    )  # fmt: skip
    rewrite(two, "UPDATE approval SET state = 'granted' WHERE id = ?", found.id)
    two.start()
    two.runs("cap-inspect@1.0.0")
    assert two.finished(two.client.operation(operation.id)).state == "succeeded"
    assert activations(two) == 1


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.01, 0.05])
def test_kill_at_any_moment_after_the_last_signature_activates_exactly_once(
    make_device: MakeDevice, pause_s: float
) -> None:
    device = started(make_device, ONE)
    mara = person(device, "mara", "supervisor")
    operation = ask(device)
    approve(mara, waiting(device))
    time.sleep(pause_s)  # the moment itself is what is tested
    device.kill()
    device.start()
    device.runs("cap-inspect@1.0.0")
    assert device.finished(device.client.operation(operation.id)).state == "succeeded"
    assert activations(device) == 1


def test_kill_between_the_swap_and_its_report_does_not_call_it_failed(make_device: MakeDevice) -> None:
    device = started(make_device, "approvals = 0")
    operation = device.activate("1.0.0")
    device.kill()
    # what the registry held before the operation's end was written
    body = "UPDATE operation SET state = 'running', body = json_set(body, '$.state', 'running') WHERE id = ?"
    rewrite(device, body, operation.id)
    device.start()
    assert device.client.operation(operation.id).state == "succeeded"


def test_refusal_ends_the_request_with_its_reason_and_what_runs_goes_on(two: Device) -> None:
    mara, jon = person(two, "mara", "supervisor"), person(two, "jon", "supervisor")
    settle(two, "1.0.0", mara, jon)
    two.bring("1.1.0")
    operation = ask(two, "1.1.0")
    found = waiting(two)
    with pytest.raises(NotPermittedError):
        refuse(person(two, "eng", "engineer"), found, "no")
    approve(mara, found)
    assert refuse(jon, found, "wrong golden pictures").state == "refused"
    ended = two.client.operation(operation.id)
    assert ended.state == "failed" and ended.error is not None
    assert (ended.error.code, "token:jon refused it: wrong golden pictures" in ended.error.detail) == ("LK-1112", True)
    with pytest.raises(ApprovalOverError):
        approve(mara, found)
    with pytest.raises(ApprovalOverError):
        refuse(jon, found, "again")
    two.runs("cap-inspect@1.0.0", "settled")


def test_whoever_asked_may_take_it_back(two: Device) -> None:
    engineer = person(two, "eng", "engineer")
    ask(two, client=engineer)
    assert refuse(engineer, waiting(two), "not this one").state == "refused"


def test_request_ends_by_itself_when_its_time_is_over(make_device: MakeDevice) -> None:
    device = started(make_device, f"{TWO}\napproval_hours = 0.0004")
    operation = ask(device)
    found = waiting(device)
    mara = person(device, "mara", "supervisor")
    approve(mara, found)
    ended = device.until(lambda: _failed(device, operation), "the request expires")
    assert ended == "LK-1113"
    with pytest.raises(ApprovalOverError):
        approve(person(device, "jon", "supervisor"), found)
    assert device.slot().active == ""


def _failed(device: Device, operation: Operation) -> str:
    now = device.client.operation(operation.id)
    return now.error.code if now.error is not None else ""


def test_request_is_void_when_the_slots_policy_changes(two: Device) -> None:
    operation = ask(two)
    approve(person(two, "mara", "supervisor"), waiting(two))
    again(two, "approvals = 2", "approvals = 1")
    two.until(lambda: _failed(two, operation) == "LK-1114", "the request becomes void")
    assert two.slot().waiting is None and two.slot().active == "" and activations(two) == 0


@pytest.mark.parametrize("how", ["removed", "key revoked"])
def test_request_is_void_when_its_bundle_may_not_run_any_more(two: Device, how: str) -> None:
    operation = ask(two)
    approve(person(two, "mara", "supervisor"), waiting(two))
    if how == "removed":
        two.client.remove("cap-inspect@1.0.0")
        with pytest.raises(ApprovalOverError):
            approve(person(two, "jon", "supervisor"), two.client.approvals(everything=True)[0])
    else:
        two.client.revoke_key("plant-release", "stolen laptop")
    two.until(lambda: _failed(two, operation) == "LK-1114", "the request becomes void")
    assert activations(two) == 0


def test_way_back_needs_no_new_approval(two: Device) -> None:
    mara, jon = person(two, "mara", "supervisor"), person(two, "jon", "supervisor")
    settle(two, "1.0.0", mara, jon)
    settle(two, "1.1.0", mara, jon)
    done = two.finished(person(two, "op", "operator").rollback(None, "too many rejects"))
    assert done.state == "succeeded"
    two.runs("cap-inspect@1.0.0", "rolled_back")
    assert ask(two, "1.1.0").state == "awaiting_approval"  # forward again is a new wish


def test_who_is_alone_may_approve_only_where_the_slot_allows_it(make_device: MakeDevice) -> None:
    device = started(make_device, f"{ONE}\napprove_own = true\napproval_hours = 1")
    ask(device)
    agree(device, device.client)
    device.runs("cap-inspect@1.0.0", "settled")


# --- locked slots -----------------------------------------------------------------------------------------------------


def test_locked_slot_takes_its_list_alone_by_any_door(make_device: MakeDevice) -> None:
    device = started(make_device, 'locked = ["cap-inspect@1.0.0", "other@sha256:' + "0" * 64 + '"]')
    device.bring("1.1.0")
    with pytest.raises(SlotLockedError):
        ask(device, "1.1.0")
    told = lenskeep(device, "activate", "cap-inspect@1.1.0")
    assert (told.returncode, "LK-1107" in told.stderr) == (7, True)
    with pytest.raises(NotPermittedError, match="role supervisor or admin"):
        ask(device, "1.0.0", person(device, "eng", "engineer"))
    assert device.finished(ask(device, "1.0.0", person(device, "lead", "supervisor"))).state == "succeeded"
    device.runs("cap-inspect@1.0.0", "settled")
    assert device.slot().locked[0] == "cap-inspect@1.0.0"


def test_slot_locked_to_a_digest_takes_these_bytes(make_device: MakeDevice) -> None:
    device = started(make_device, 'locked = ["cap-inspect@9.9.9"]')
    digest = device.client.bundle("cap-inspect@1.0.0").bundle.digest
    with pytest.raises(SlotLockedError):
        ask(device)
    again(device, "cap-inspect@9.9.9", f"cap-inspect@sha256:{digest}")
    assert device.finished(ask(device)).state == "succeeded"


def test_locked_slot_does_not_go_back_to_what_is_not_on_its_list(make_device: MakeDevice) -> None:
    device = started(make_device, "locked = []")
    device.settle("1.0.0")
    device.settle("1.1.0")
    again(device, "locked = []", 'locked = ["cap-inspect@1.1.0"]')
    device.runs("cap-inspect@1.1.0")
    with pytest.raises(SlotLockedError, match="not gone back to"):
        device.client.rollback(None, "habit")
    assert device.slot().active == "cap-inspect@1.1.0" and not device.slot().faults


def test_slot_that_was_locked_while_another_version_ran_says_so(make_device: MakeDevice) -> None:
    device = started(make_device, "locked = []")
    device.settle("1.0.0")
    again(device, "locked = []", 'locked = ["cap-inspect@1.1.0"]')
    device.runs("cap-inspect@1.0.0")  # the line is not stopped by a line of configuration
    assert [fault.code for fault in device.slot().faults] == ["LK-1107"]
    assert device.client.status().verdict == "DEGRADED"


# --- the fleet ----------------------------------------------------------------------------------------------------


@pytest.fixture
def assigned(tmp_path: Path, make_device: MakeDevice) -> Iterator[Callable[[str], Device]]:
    """Make devices that follow a repository which assigns them 1.0.0."""
    repository = Repository(tmp_path / "repository")
    repository.keys["acme"] = tinybundle.key()
    repository.publisher("acme", "cap-*")
    release(repository, "1.0.0")
    repository.assign(ID, main="cap-inspect@1.0.0")
    server = Server(repository.folder)

    def make(slot: str) -> Device:
        device = make_device(slot=slot, more=f'[device]\nid = "{ID}"\n{following(server.address, poll_s=1)}')
        (device.folder / "root.json").write_bytes(repository.root())
        open_port(device)
        device.start()
        return device

    yield make
    server.close()


def test_what_the_fleet_assigns_waits_for_the_same_people(assigned: Callable[[str], Device]) -> None:
    device = assigned(TWO)
    found = device.until(lambda: device.slot().waiting, "the assignment waits")
    assert (found.by, found.bundle) == ("fleet", "cap-inspect@1.0.0")
    lenskeep(device, "sync")  # asked again by the next look: it is the same request
    assert device.slot().waiting == found
    approve(person(device, "mara", "supervisor"), found)
    assert device.slot().active == ""
    approve(person(device, "jon", "supervisor"), found)
    device.runs("cap-inspect@1.0.0", "settled")
    assert [entry.by for entry in device.client.audit(limit=100) if entry.action == "activate"] == ["fleet"]


def test_fleet_does_not_put_into_a_locked_slot_what_is_not_on_its_list(assigned: Callable[[str], Device]) -> None:
    device = assigned('locked = ["cap-inspect@9.9.9"]')
    refused = device.until(
        lambda: [one for one in device.client.repository().assignments if one.state == "refused"],
        "the assignment is refused",
    )
    assert refused[0].code == "LK-1107"
    assert device.slot().active == "" and activations(device) == 0


def test_refusal_of_what_the_fleet_assigned_is_told_to_the_fleet(assigned: Callable[[str], Device]) -> None:
    device = assigned(ONE)
    found = device.until(lambda: device.slot().waiting, "the assignment waits")
    refuse(person(device, "mara", "supervisor"), found, "not validated here")
    lenskeep(device, "sync")
    refused = device.until(
        lambda: [one for one in device.client.repository().assignments if one.state == "refused"],
        "the assignment is refused",
    )
    assert (refused[0].code, "not validated here" in refused[0].reason) == ("LK-1112", True)
    assert device.slot().waiting is None and device.slot().active == ""


# --- in the terminal --------------------------------------------------------------------------------------------------


def lenskeep(device: Device, *words: str, token: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LENSKEEP_DEVICE": str(device.socket), "NO_COLOR": "1", "LENSKEEP_TOKEN": token}
    return subprocess.run(
        [sys.executable, "-m", "lenskeep.cli.main", *words], capture_output=True, text=True, env=environment,
        check=False, timeout=60,
    )  # fmt: skip


def test_request_is_asked_for_approved_and_refused_in_the_terminal(two: Device) -> None:
    asked = lenskeep(two, "activate", "cap-inspect@1.0.0", "--reason", "new lot")
    found = waiting(two)
    assert asked.returncode == 11 and f"lenskeep approve {found.id}" in asked.stdout
    shown = lenskeep(two, "status")
    assert "cap-inspect@1.0.0 waits for 2 more approvals (supervisor or admin), asked by unix:root" in shown.stdout
    own = lenskeep(two, "approve", found.id, "--meaning", "approval", "--reason", "mine")
    assert (own.returncode, "LK-1109" in own.stderr) == (7, True)
    wrong = lenskeep(two, "approve", found.id, "--meaning", "approval", "--reason", "x", "--digest", "0" * 64)
    assert (wrong.returncode, "LK-1110" in wrong.stderr) == (6, True)
    approve(person(two, "mara", "supervisor"), found)
    listed = lenskeep(two, "approvals")
    assert found.digest in listed.stdout and "mara (supervisor), approval" in listed.stdout
    refused = lenskeep(two, "refuse", found.id, "--reason", "not today")
    assert refused.returncode == 0 and "what runs goes on" in refused.stdout
    assert "not today" in lenskeep(two, "approvals", "--all").stdout
    assert lenskeep(two, "refuse", "ffffffff", "--reason", "x").returncode == 5


def test_token_made_in_the_terminal_is_bound_as_said(two: Device) -> None:
    made = lenskeep(
        two, "token", "add", "panel", "--role", "supervisor", "--slot", "main", "--hours", "8", "--person", "mara"
    )
    assert made.returncode == 0 and made.stdout.startswith("lk_")
    assert "mara" in lenskeep(two, "token", "list").stdout
    assert lenskeep(two, "token", "add", "x", "--role", "viewer", "--slot", "nowhere").returncode == 5
    with pytest.raises(RequestError):
        two.client.add_token(TokenRequest(name="y", role="viewer", hours=-1))
