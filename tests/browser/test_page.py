"""The device's page in a real browser, served by a real device that inspects."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lenskeep.messages.control import ActivationRequest
from tests import runnerchild
from tests.browser.conftest import Visit, on_port, token_of
from tests.device import Device, bundle_bytes

pytestmark = pytest.mark.browser

MakeVisit = Callable[..., Visit]
MakeDevice = Callable[..., Device]
HOSTILE = '<img src=x onerror="document.title=1"><b>bold</b>'


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_page_shows_what_runs_how_well_and_a_live_picture(visit: MakeVisit, line: Device) -> None:
    tab = visit(line)
    tab.shows("#band-word", "RUNNING")
    assert tab.text("#band-ref") == "cap-inspect@1.1.0"
    assert "signed by plant-release" in tab.text("#band-facts")
    assert tab.text("#budget") == "50 ms"
    tab.shows("#p99", "ms")
    tab.shows("#frame-age", "frame age")
    tab.page.wait_for_selector("#strip li:nth-child(20)")
    tab.page.wait_for_selector("#spark .trend")
    tab.shows("#todo-none", "Nothing")
    tab.shows("#slot-previous", "cap-inspect@1.0.0")
    assert tab.page.locator("#screen[data-old]").count() == 0
    assert (
        tab.page.evaluate("document.getElementById('picture').getContext('2d').getImageData(2, 2, 1, 1).data[3]") == 255
    )


def test_picture_of_a_line_that_stands_still_is_never_shown_as_live(fresh: MakeDevice, visit: MakeVisit) -> None:
    device = fresh("1.0.0")
    tab = visit(device)
    tab.shows("#frame-age", "frame age")
    with standing_still(device.runner_pid()):
        tab.shows("#stamp", "NOT LIVE")
        assert tab.page.locator("#screen[data-old]").count() == 1
    tab.page.wait_for_selector("#stamp", state="hidden")


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_missing_camera_is_said_with_its_code_and_what_to_do(fresh: MakeDevice, visit: MakeVisit) -> None:
    tab = visit(fresh(source="v4l2:/dev/no-such-camera"))
    tab.shows("#todo-list", "LK-2001")
    tab.shows("#todo-list", "What to do:")
    assert tab.page.get_attribute("#todo", "data-worst") == "stop"
    tab.shows("#blank", "LK-2001")


def test_device_without_a_model_says_the_next_step(fresh: MakeDevice, visit: MakeVisit) -> None:
    tab = visit(fresh())
    tab.shows("#band-word", "EMPTY")
    assert "import a bundle" in tab.text("#slot-text")
    assert tab.text("#slot-why") == "There is no version to go back to."
    tab.models().shows("#models-empty", "No model yet")


def test_each_of_several_slots_can_be_looked_at(fresh: MakeDevice, visit: MakeVisit) -> None:
    more = '[[slot]]\nname = "side"\n[[camera]]\nname = "cam-2"\nslot = "side"\nsource = "synthetic:ticks"'
    tab = visit(fresh(more=more))
    names = tab.page.locator("#slot-choice option").evaluate_all("all => all.map(one => one.value)")
    assert sorted(names) == ["main", "side"]
    for name in names:
        tab.page.select_option("#slot-choice", name)
        tab.shows("#slot-title", f"Slot {name}")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 1024


def test_hostile_words_in_a_bundle_stay_words(fresh: MakeDevice, visit: MakeVisit) -> None:
    device = fresh()
    score = runnerchild.version_score("1.0.0")
    labels = [HOSTILE, "bad"]
    device.bring(
        "1.0.0", title=HOSTILE, labels={"names": labels, "sha256": runnerchild.labels_digest(labels)},
        verdict={"ok": ["bad"], "ng": [HOSTILE], "certain_from": 0.5},
        golden={
            "cases": [{"image": "golden/a.png", "scores": {HOSTILE: score, "bad": 1 - score}}], "produced_by": "hand"
        },
    )  # fmt: skip
    device.activate("1.0.0", reason=HOSTILE)
    tab = visit(device, "supervisor")
    tab.shows("#last-label", HOSTILE)
    tab.shows("#last-bad", HOSTILE)
    tab.models().shows(".model", HOSTILE)
    assert tab.page.evaluate("document.querySelectorAll('main img, main b b').length") == 0
    assert tab.page.title() == f"RUNNING · {device.client.status().device} · Lenskeep"


def test_hidden_page_asks_the_device_nothing(visit: MakeVisit, line: Device) -> None:
    tab = visit(line)
    tab.shows("#frame-age", "frame age")
    tab.page.evaluate(
        "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    tab.page.wait_for_timeout(400)  # what was under way ends
    before = len(tab.requests)
    tab.page.wait_for_timeout(2500)  # longer than any of its rhythms
    assert tab.requests[before:] == []
    tab.page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    tab.page.wait_for_event("request")


# --- who may what -----------------------------------------------------------------------------------------------------


def test_reader_is_told_why_buttons_rest_and_a_token_wakes_them(visit: MakeVisit, line: Device) -> None:
    tab = visit(line)
    tab.shows("#slot-why", "Read only: sign in as operator")
    tab.page.focus("#rollback")
    tab.page.keyboard.press("Enter")
    tab.page.fill("#token", "lk_wrong")
    tab.page.keyboard.press("Enter")
    tab.shows("#token-wrong", "LK-1103")
    tab.page.fill("#token", token_of(line, "operator"))
    tab.page.keyboard.press("Enter")
    tab.shows("#person-text", "operator")
    tab.page.wait_for_selector("#rollback:not([aria-disabled])")
    tab.models().shows("#models-why", "needs the role supervisor; yours is operator")
    assert line.slot().active == "cap-inspect@1.1.0"


def test_token_in_the_address_is_taken_out_of_it_and_forgotten_at_sign_out(visit: MakeVisit, line: Device) -> None:
    tab = visit(line, "supervisor")
    assert tab.page.url == tab.address
    tab.shows("#person-text", "supervisor")
    tab.page.reload()
    tab.shows("#person-text", "supervisor")
    assert not any("token=" in url for url in tab.requests)
    tab.page.click("#person")
    tab.page.get_by_role("button", name="Sign out").click()
    tab.shows("#person-text", "Sign in")
    assert tab.page.evaluate("sessionStorage.length") == 0


def test_device_that_shows_strangers_nothing_asks_for_a_sign_in(make_device: MakeDevice, visit: MakeVisit) -> None:
    device = on_port(make_device())
    device.config.write_text(device.config.read_text().replace("[control]", '[control]\nanonymous_role = "none"'))
    device.start()
    tab = visit(device, "viewer")
    tab.page.evaluate("sessionStorage.clear()")
    tab.page.goto("about:blank")
    tab.page.goto(tab.address)
    tab.shows("#band-word", "LOCKED")
    tab.shows("#link-text", "nothing without a sign-in")
    tab.page.click("#person")
    tab.page.fill("#token", token_of(device, "viewer"))
    tab.page.keyboard.press("Enter")
    tab.shows("#band-word", "EMPTY")


# --- what it does -----------------------------------------------------------------------------------------------------


def test_rollback_by_keyboard_goes_back_and_says_so(fresh: MakeDevice, visit: MakeVisit) -> None:
    device = fresh("1.0.0", "1.1.0")
    tab = visit(device, "operator")
    tab.page.wait_for_selector("#rollback:not([aria-disabled])")
    tab.page.focus("#rollback")
    tab.page.keyboard.press("Enter")
    tab.shows("#dialog", "will run cap-inspect@1.0.0 instead of cap-inspect@1.1.0")
    tab.page.keyboard.press("Escape")
    assert device.slot().active == "cap-inspect@1.1.0"
    tab.page.wait_for_selector("#rollback:focus:not([aria-disabled])")  # the focus came back to where it was
    tab.page.keyboard.press("Enter")
    tab.shows("#dialog", "Roll back to cap-inspect@1.0.0?")
    tab.page.keyboard.press("Enter")
    tab.shows("#notice-body", "Done: cap-inspect@1.0.0 runs in slot main.")
    device.runs("cap-inspect@1.0.0", "rolled_back")
    tab.shows("#band-ref", "cap-inspect@1.0.0")
    tab.shows("#slot-why", "There is no version to go back to.")


def test_bundle_is_imported_tried_activated_on_trial_and_confirmed(fresh: MakeDevice, visit: MakeVisit) -> None:
    device = fresh("1.0.0")
    path = device.folder / "cap-inspect-1.1.0.lkb"
    path.write_bytes(bundle_bytes("1.1.0"))
    tab = visit(device, "engineer").models()
    tab.page.set_input_files("#file", path)
    tab.shows("#drop-text", "cap-inspect-1.1.0.lkb")
    tab.page.click("#import-send")
    tab.shows("#import-said", "cap-inspect@1.1.0 is genuine: signed by plant-release")
    tab.shows("#import-trial", "proved itself on this device")
    tab.page.get_by_role("button", name="Activate: cap-inspect@1.1.0").click()
    tab.page.select_option("#trial", "600")
    tab.page.get_by_role("button", name="Activate cap-inspect@1.1.0", exact=True).click()
    tab.shows("#notice-body", "cap-inspect@1.1.0 runs in slot main and is being watched.")
    tab.page.click("#tab-run")
    tab.shows("#slot-text", "Without a confirmation cap-inspect@1.0.0 comes back.")
    tab.page.click("#confirm")
    tab.shows("#notice-body", "Confirmed: cap-inspect@1.1.0 stays.")
    assert device.slot().state == "settled"


def test_damaged_file_and_stranger_are_refused_with_code_and_fix(
    visit: MakeVisit, line: Device, tmp_path: Path
) -> None:
    flipped = bytearray(bundle_bytes("1.2.0"))
    flipped[len(flipped) // 2] ^= 1
    for name, data, code in (("flipped.lkb", bytes(flipped), "LK-40"), ("note.lkb", b"not a bundle" * 500, "LK-4010")):
        (tmp_path / name).write_bytes(data)
        tab = visit(line, "engineer").models()
        tab.page.set_input_files("#file", tmp_path / name)
        tab.page.click("#import-send")
        tab.shows("#import-said", code)
        tab.shows("#import-said", "What to do:")
        tab.shows("#import-said", "Unchanged: cap-inspect@1.1.0 goes on running.")
    assert {one.version for one in line.client.bundles()} == {"1.0.0", "1.1.0"}


def test_check_tries_a_version_and_changes_nothing(visit: MakeVisit, line: Device) -> None:
    tab = visit(line, "engineer").models()
    tab.page.get_by_role("button", name="Check: cap-inspect@1.0.0").click()
    tab.shows("#notice-body", "cap-inspect@1.0.0 passed its trial on this device.")
    assert line.slot().active == "cap-inspect@1.1.0"


def test_page_says_that_the_daemon_is_gone_and_comes_back_with_it(fresh: MakeDevice, visit: MakeVisit) -> None:
    device = fresh("1.0.0")
    tab = visit(device, "operator")
    tab.shows("#band-word", "RUNNING")
    tab.shows("#frame-age", "frame age")
    device.kill()
    tab.shows("#link-text", "does not answer")
    tab.shows("#link-age", "last data")
    tab.shows("#band-word", "was RUNNING")
    tab.shows("#stamp", "NOT LIVE")
    device.start()
    tab.page.wait_for_selector("#link", state="hidden")
    tab.page.wait_for_selector("#stamp", state="hidden")
    tab.page.get_by_text("RUNNING", exact=True).wait_for()
    newest = tab.page.locator("#strip li").last.get_attribute("data-key")
    tab.page.wait_for_selector(f'#strip li:last-child:not([data-key="{newest}"])')
    assert "last-event-id" in tab.event_requests[-1]  # it went on where it had been


# --- for everybody ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1024, 600), (390, 844), (512, 300)], ids=["panel", "phone", "200-percent"])
def test_nothing_is_cut_off_and_fingers_find_every_target(
    visit: MakeVisit, line: Device, size: tuple[int, int]
) -> None:
    tab = visit(line, "supervisor", size=size)
    tab.page.wait_for_selector("#strip li:nth-child(20)")
    for view in ("run", "models"):
        tab.page.click(f"#tab-{view}")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        small = tab.page.evaluate(
            "[...document.querySelectorAll('button, select, summary, .tab, .drop')].filter(n => n.checkVisibility())"
            ".map(n => [n.id || n.textContent, n.getBoundingClientRect()]).filter(([, r]) => r.width < 44 || r.height < 44)"
            ".map(([name]) => name)"
        )
        assert small == []


def test_way_back_is_in_sight_on_a_panel_without_scrolling(visit: MakeVisit, line: Device) -> None:
    tab = visit(line, "operator")
    tab.page.wait_for_selector("#rollback:not([aria-disabled])")
    tab.page.wait_for_selector("#strip li:nth-child(20)")
    box = tab.page.locator("#rollback").bounding_box()
    assert box is not None and box["y"] + box["height"] <= 600


@pytest.mark.parametrize(
    ("language", "word", "tag"),
    [("de", "LÄUFT", "de"), ("es", "EN MARCHA", "es"), ("zh", "运行中", "zh-Hans"), ("en", "RUNNING", "en")],
)
def test_language_is_chosen_and_remembered(visit: MakeVisit, line: Device, language: str, word: str, tag: str) -> None:
    tab = visit(line)
    tab.page.select_option("#language", language)
    tab.shows("#band-word", word)
    tab.page.reload()
    tab.shows("#band-word", word)
    assert tab.page.get_attribute("html", "lang") == tag


# --- approvals --------------------------------------------------------------------------------------------------------


def test_what_waits_is_shown_with_its_bytes_and_signed_by_those_who_may(
    visit: MakeVisit, fresh: Callable[..., Device]
) -> None:
    device = fresh(slot='approvals = 2\napproval_roles = ["supervisor"]')
    device.bring("1.0.0")
    device.bring("1.1.0")
    asker = visit(device, "supervisor").models()
    asker.page.get_by_role("button", name="Activate: cap-inspect@1.0.0").click()
    asker.page.fill("#reason", HOSTILE)
    asker.page.get_by_role("button", name="Activate cap-inspect@1.0.0", exact=True).click()
    asker.shows("#notice-body", "cap-inspect@1.0.0 waits for approval")
    asker.page.click("#tab-run")
    asker.shows("#approval-text", HOSTILE)
    asker.shows("#approval-why", "somebody else approves it")
    waiting = device.slot().waiting
    assert waiting is not None
    visit(device, "operator").shows("#approval-why", "needs the role supervisor; yours is operator")
    visit(device, "engineer").shows("#approval-why", "The slot wants this from: supervisor")
    for number in (1, 2):
        other = visit(device, "supervisor")
        other.shows("#approval-count", f"{number - 1} of 2 approvals")
        other.page.click("#approve")
        other.shows("#dialog", waiting.digest)
        other.page.get_by_role("dialog").get_by_role("button", name="Approve").click()
        assert not device.client.approvals() or len(device.client.approvals()[0].signatures) == number - 1, "no reason"
        other.page.select_option("#meaning", "review")
        other.page.fill("#why", "validated")
        other.page.get_by_role("dialog").get_by_role("button", name="Approve").click()
        other.shows("#notice-body", "Your approval of cap-inspect@1.0.0 is on record")
    device.runs("cap-inspect@1.0.0")
    asker.page.wait_for_selector("#approval", state="hidden")
    asker.shows("#notice-body", "cap-inspect@1.0.0")
    signatures = device.client.approvals(everything=True)[0].signatures
    assert [(one.meaning, one.reason) for one in signatures] == [("review", "validated")] * 2


def test_what_waits_is_refused_with_a_reason(visit: MakeVisit, fresh: Callable[..., Device]) -> None:
    device = fresh(slot="approvals = 1")
    device.bring("1.0.0")
    device.client.activate(ActivationRequest(bundle="cap-inspect@1.0.0"))
    tab = visit(device, "supervisor")
    tab.page.click("#refuse")
    tab.page.fill("#why", "wrong lot")
    tab.page.get_by_role("dialog").get_by_role("button", name="Refuse").click()
    tab.shows("#notice-body", "cap-inspect@1.0.0 is refused")
    tab.page.wait_for_selector("#approval", state="hidden")
    assert device.client.approvals(everything=True)[0].ended_reason == "wrong lot"
