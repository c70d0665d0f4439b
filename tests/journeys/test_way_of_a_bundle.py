"""A bundle's whole way on a real device: in, proven, active, watched, settled, and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lenskeep.errors import (
    ConflictError,
    InUseError,
    KeyRevokedError,
    NothingToRollBackToError,
    UnknownNameError,
    UnknownSignerError,
    VersionConflictError,
    WrongOutputError,
)
from lenskeep.messages.control import ActivationRequest, CheckRequest
from tests import runnerchild
from tests.device import Device


def test_a_version_is_proven_swapped_in_watched_settled_and_taken_back(device: Device) -> None:
    device.settle("1.0.0")
    assert device.bring("1.1.0").state == "succeeded"
    swapped = device.activate("1.1.0", reason="better on scratches")
    assert swapped.state == "succeeded" and swapped.result["interval_ms"] > 0
    slot = device.runs("cap-inspect@1.1.0", "settled")
    assert (slot.previous, slot.previous_warm) == ("cap-inspect@1.0.0", True)

    back = device.finished(device.client.rollback(None, "scratches are missed"))
    assert back.state == "succeeded" and back.result["bundle"] == "cap-inspect@1.0.0"
    slot = device.runs("cap-inspect@1.0.0", "rolled_back")
    with pytest.raises(NothingToRollBackToError):  # a double tap must not bring the bad version again
        device.client.rollback(None)

    history = device.client.deployments(limit=10)
    assert [(row.bundle, row.outcome) for row in history] == [
        ("cap-inspect@1.0.0", "settled"), ("cap-inspect@1.1.0", "rolled_back"), ("cap-inspect@1.0.0", "replaced"),
    ]  # fmt: skip
    actions = [entry.action for entry in device.client.audit(limit=50)]
    assert actions.count("import") == 2 and actions.count("swapped") == 2 and actions.count("rollback") == 1


def test_every_result_carries_the_digest_of_the_bytes_that_judged_it_and_none_is_missing(device: Device) -> None:
    device.settle("1.0.0")
    device.bring("1.1.0")
    device.activate("1.1.0")
    device.runs("cap-inspect@1.1.0")
    digests = {bundle.ref_: bundle.model_sha256 for bundle in map(Named, device.client.bundles())}
    results = device.results()
    assert {result.bundle for result in results} == {"cap-inspect@1.0.0", "cap-inspect@1.1.0"}
    for result in results:
        assert result.digest == digests[result.bundle]
        assert result.score == pytest.approx(runnerchild.version_score(result.bundle.partition("@")[2]), abs=1e-5)
    sequences = [result.sequence for result in results]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))


class Named:
    """A bundle with the name that results use."""

    def __init__(self, bundle: object) -> None:
        self.ref_ = f"{bundle.name}@{bundle.version}"  # type: ignore[attr-defined]
        self.model_sha256 = bundle.model_sha256  # type: ignore[attr-defined]


def test_a_version_on_trial_goes_back_by_itself_unless_it_is_confirmed(device: Device) -> None:
    device.settle("1.0.0")
    device.bring("1.1.0")
    device.activate("1.1.0", trial_s=1.5)
    slot = device.runs("cap-inspect@1.0.0", "rolled_back")
    assert slot.reason.startswith("LK-8107")
    device.activate("1.1.0", trial_s=60)
    device.runs("cap-inspect@1.1.0", "probation")
    device.client.confirm(None)
    assert device.slot().state == "settled"


def test_a_wrong_golden_output_is_refused_and_the_line_goes_on(device: Device) -> None:
    device.settle("1.0.0")
    wrong = {"cases": [{"image": "golden/a.png", "scores": {"good": 0.1, "bad": 0.9}}], "produced_by": "hand"}
    refused = device.bring("1.2.0", golden=wrong)
    assert refused.state == "failed" and refused.error is not None and refused.error.code == "LK-8001"
    with pytest.raises(WrongOutputError):
        device.client.activate(ActivationRequest(bundle="cap-inspect@1.2.0"))
    assert device.slot().active == "cap-inspect@1.0.0"


def test_a_dry_run_changes_neither_what_runs_nor_what_is_wanted(device: Device) -> None:
    device.settle("1.0.0")
    device.bring("1.1.0")
    before = device.slot()
    checked = device.finished(device.client.check(CheckRequest(bundle="cap-inspect@1.1.0")))
    assert checked.state == "succeeded" and checked.result["passed"]
    after = device.slot()
    assert (after.etag, after.active, after.wanted) == (before.etag, before.active, before.wanted)


def test_a_stranger_s_bundle_a_revoked_key_s_and_a_changed_version_are_refused(
    make_device: Callable[..., Device],
) -> None:
    device = make_device()
    device.start()
    with pytest.raises(UnknownSignerError):
        device.bring("1.0.0")
    device.trust()
    device.bring("1.0.0")
    with pytest.raises(VersionConflictError):
        device.bring("1.0.0", title="the same version with other words")
    device.client.revoke_key("plant-release", "stolen laptop")
    with pytest.raises(KeyRevokedError):
        device.bring("1.1.0")
    with pytest.raises(KeyRevokedError):
        device.client.activate(ActivationRequest(bundle="cap-inspect@1.0.0"))
    assert [bundle.version for bundle in device.client.bundles()] == ["1.0.0"]


def test_what_is_active_previous_or_pinned_is_never_removed(make_device: Callable[..., Device]) -> None:
    device = make_device(more="")
    device.config.write_text(device.config.read_text().replace("free_mb_min = 0", "free_mb_min = 0\nkeep_versions = 1"))
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.settle("1.1.0")
    device.bring("1.2.0")
    device.client.pin("cap-inspect@1.2.0", True)
    for version in ("1.3.0", "1.4.0", "1.5.0"):
        device.bring(version)
    assert {bundle.version for bundle in device.client.bundles()} == {"1.0.0", "1.1.0", "1.2.0", "1.4.0", "1.5.0"}
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        with pytest.raises(InUseError):
            device.client.remove(f"cap-inspect@{version}")
    device.client.remove("cap-inspect@1.5.0")
    with pytest.raises(UnknownNameError):
        device.client.bundle("cap-inspect@1.5.0")


def test_a_held_swap_waits_until_the_line_lets_it_go_and_can_be_taken_back(device: Device) -> None:
    device.settle("1.0.0")
    device.bring("1.1.0")
    device.client.hold("main", True)
    operation = device.client.activate(ActivationRequest(bundle="cap-inspect@1.1.0"))
    device.until(lambda: device.slot().state == "swapping", "the swap is being prepared")
    assert device.client.operation(operation.id).state == "running"
    device.client.hold("main", False)
    assert device.finished(operation).state == "succeeded"
    device.runs("cap-inspect@1.1.0", "settled")

    device.bring("1.2.0")
    device.client.hold("main", True)
    operation = device.client.activate(ActivationRequest(bundle="cap-inspect@1.2.0"))
    device.until(lambda: device.slot().state == "swapping", "the swap is being prepared")
    device.client.rollback(None, "not now")
    assert device.finished(operation).state == "failed"
    device.client.hold("main", False)
    slot = device.runs("cap-inspect@1.1.0")
    assert (slot.wanted, slot.state) == ("cap-inspect@1.1.0", "rolled_back")


def test_activating_what_is_active_is_a_conflict_that_changes_nothing(device: Device) -> None:
    device.settle("1.0.0")
    etag = device.slot().etag
    with pytest.raises(ConflictError):
        device.client.activate(ActivationRequest(bundle="cap-inspect@1.0.0"))
    assert device.slot().etag == etag


def test_an_exported_bundle_is_byte_for_byte_what_came_in(device: Device) -> None:
    device.bring("1.0.0")
    out = device.folder / "out.lkb"
    with out.open("wb") as target:
        device.client.export("cap-inspect@1.0.0", target, lambda _done, _total: None)
    assert out.read_bytes() == (device.folder / "cap-inspect-1.0.0.lkb").read_bytes()
