"""The fleet's pages in a real browser, in front of a real fleet server that devices report to."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page

from lenskeep.bundle.keys import generate_key
from lenskeep.messages.fleet import FleetRole, LastRefusal, OperatorTokenAsk, SlotReport
from lenskeep.messages.rollouts import Plan, RolloutAsk, Wave
from lenskeep.messages.sync import MEDIA_MSGPACK, Call, Happening, Trial, Vitals, Window
from lenskeep.sketch import Sketch
from lenskeep.trust.keeping import releases
from tests import records, tinybundle
from tests.device import bundle_bytes
from tests.fleetrig import FleetServer, Member
from tests.repositories import Repository

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="document.title=1"><b>bold</b>'
OLD, NEW = "cap-inspect@1.0.0", "cap-inspect@1.1.0"
WAIT_MS = 15000.0


@dataclass
class Scene:
    fleet: FleetServer
    tokens: dict[FleetRole, str]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A fleet of four: one runs what it should, one is behind, one refused, one was only invited."""
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    fleet = FleetServer(folder)
    try:
        keep(fleet)
        fleet.start()
        with ThreadPoolExecutor(1) as aside:  # the browser's driver has a loop of its own in this thread
            aside.submit(lambda: asyncio.run(_report(fleet))).result()
        fleet.token("cam-4")
        asks = [OperatorTokenAsk(name=role, role=role) for role in ("viewer", "auditor", "operator")]
        yield Scene(fleet, {ask.role: fleet.client.add_operator(ask).secret for ask in asks})
    finally:
        fleet.close()
        shutil.rmtree(folder, ignore_errors=True)


def keep(fleet: FleetServer) -> None:
    """A repository that lists both versions, and its online key for the fleet."""
    repository = Repository(fleet.repository)
    repository.keys["acme"] = tinybundle.key()
    repository.publisher("acme", "cap-*")
    files = [fleet.folder / f"cap-inspect-{version}.lkb" for version in ("1.0.0", "1.1.0")]
    for file, version in zip(files, ("1.0.0", "1.1.0"), strict=True):
        file.write_bytes(bundle_bytes(version))
    repository.change(lambda work: releases.publish(work, files, repository.signers(), repository.now_s))
    (fleet.folder / "online.key").write_bytes(repository.keys["online"].pem())
    fleet.config.write_text(fleet.config.read_text() + f'[online]\nkeys = ["{fleet.folder}/online.key"]\n')


async def _report(fleet: FleetServer) -> None:
    now_ms = int(time.time() * 1000)
    for name, runs, refusal in (
        ("cam-1", NEW, None),
        ("cam-2", OLD, None),
        ("cam-3", OLD, LastRefusal(code="LK-8002", text=HOSTILE, at_ms=now_ms)),
    ):
        device = await Member(fleet, name, fleet.folder).join()
        slot = SlotReport(slot="main", running=runs, digest="a" * 64, assigned=NEW, state="settled", since_ms=now_ms)
        await device.send(device.report(slots=[slot], refusal=refusal))
        sketch = Sketch()
        for number in range(200):
            sketch.add(8000 + 20 * number)
        call = Call(
            outbox="one",
            records=[
                Vitals(n=1, at_ms=now_ms, disk_free_mb=9000, hardware=f"class {HOSTILE}", version="0.1.0"),
                Window(
                    n=2, slot="main", bundle=runs, digest="a" * 64, provider="cpu", start_s=now_ms // 1000, seconds=60,
                    frames=200, outcomes={"OK": 190, "NG": 10}, sketches={"total": sketch.to_bytes()},
                ),
                Trial(
                    n=4, at_ms=now_ms, bundle=runs, digest="a" * 64, hardware=f"class {HOSTILE}",
                    code="LK-8001" if refusal else "", golden_passed=8, golden_total=8, golden_score=0.9875,
                    p50_ms=4.0, p99_ms=6.25, memory_mb=48,
                ),
                Happening(n=3, kind="fault", at_ms=now_ms, slot="main", bundle=runs, code="LK-2001", text=HOSTILE),
            ],
        )  # fmt: skip
        status, _ = await device.ask(
            "POST", f"/v1/devices/{name}/sync", msgspec.msgpack.encode(call), headers={"Content-Type": MEDIA_MSGPACK}
        )
        assert status == 200
    until = time.monotonic() + 20  # the records are merged within seconds
    while not all(one.behaviour for one in fleet.client.versions()):
        assert time.monotonic() < until, fleet.log()
        await asyncio.sleep(0.1)


@pytest.fixture
def visit(chromium: Browser, scene: Scene) -> Iterator[Callable[..., Page]]:
    """Open the pages; no error may be left behind, no policy broken, and nobody else asked."""
    contexts, complaints, asked = [], [], []
    own = f"http://127.0.0.1:{scene.fleet.operator_port}/"

    def make(role: FleetRole | None = "viewer", view: str = "", width: int = 1180) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": 800}, locale="en")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "Content" in said.text else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{own}#token={scene.tokens[role]}" if role else own)
        page.wait_for_selector("#tiles" if role else "#signed-out")
        if view:
            page.goto(f"{own}#{view}")
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(own)] == []


def test_overview_says_who_is_well_behind_and_refused_and_why(visit: Callable[..., Page]) -> None:
    page = visit()
    assert page.inner_text("#band-word") == "ALARM"
    for name, count in (("healthy", "1"), ("behind", "1"), ("refused", "1"), ("silent", "0")):
        assert page.inner_text(f"#tile-{name} b") == count
    assert page.locator("#apart tbody tr").count() == 2
    assert "LK-8002" in page.inner_text("#apart")


def test_hostile_words_of_a_device_stay_words_on_every_page(visit: Callable[..., Page], scene: Scene) -> None:
    page = visit()
    for view in ("overview", "devices", "devices/cam-3", "versions"):
        page.goto(f"http://127.0.0.1:{scene.fleet.operator_port}/#{view}")
        page.locator("#view", has_text="<img").wait_for()
        assert page.evaluate("document.querySelectorAll('main img, main b b').length") == 0
        assert page.title().endswith("Lenskeep")


def test_devices_are_narrowed_by_state_and_name_and_their_page_tells_all(visit: Callable[..., Page]) -> None:
    page = visit(view="devices")
    page.locator("#devices-count", has_text="4 devices").wait_for()
    page.select_option("#filter-health", "behind")
    page.locator("#devices-count", has_text="1 devices").wait_for()
    page.select_option("#filter-health", "")
    page.fill("#filter-text", "cam-3")
    page.locator("#devices-count", has_text="1 devices").wait_for()
    page.click("text=cam-3")
    page.wait_for_selector("#device-slots")
    text = page.inner_text("#view")
    assert NEW in text
    assert OLD in text
    assert "9.0 GB of disk free" in text
    assert "fault" in text


def test_versions_show_their_times_by_hardware(visit: Callable[..., Page]) -> None:
    page = visit(view="versions")
    page.wait_for_selector(".version .chart .p99")
    assert page.locator(".version").count() == 2
    assert "5.0 %" in page.inner_text(".version >> nth=0")
    assert "0.9875" in page.inner_text(".version .trials >> nth=0")


def test_a_device_page_shows_its_trials(visit: Callable[..., Page]) -> None:
    page = visit(view="devices/cam-3")
    row = page.locator("tbody tr", has_text="0.9875")
    row.wait_for()
    assert {OLD, "8 / 8", "48 MB", "LK-8001"} <= set(re.split(r"\t", row.inner_text()))


def test_without_a_token_nothing_is_shown_and_a_wrong_one_is_refused_in_words(
    visit: Callable[..., Page], scene: Scene
) -> None:
    page = visit(None)
    assert "cam-" not in page.inner_text("body")
    page.click("#sign-in")
    page.fill("#token", "lkf_wrong")
    page.click("#dialog-yes")
    page.locator("#token-wrong", has_text="LK-").wait_for()
    page.fill("#token", scene.tokens["viewer"])
    page.click("#dialog-yes")
    page.wait_for_selector("#tiles")


def test_a_viewer_finds_out_why_not_and_an_operator_asks_a_device_after_confirming(
    visit: Callable[..., Page], scene: Scene
) -> None:
    page = visit("viewer", "devices/cam-2")
    page.wait_for_selector("#ask-sync[aria-disabled=true]")
    page = visit("operator", "devices/cam-2")
    page.click("#ask-sync")
    page.click("#dialog-yes")
    page.locator("#notice-body", has_text="Done").wait_for()
    assert [one.kind for one in scene.fleet.client.asked_of("cam-2")] == ["sync"]


def test_an_alarm_is_closed_by_an_operator_with_a_reason_and_by_nobody_below(
    visit: Callable[..., Page], scene: Scene, tmp_path: Path
) -> None:
    async def copied_token() -> None:
        token = scene.fleet.token("cam-8")
        await Member(scene.fleet, "cam-8", tmp_path).enrol(token)
        await Member(scene.fleet, "cam-8", tmp_path).enrol(token)

    with ThreadPoolExecutor(1) as aside:
        aside.submit(lambda: asyncio.run(copied_token())).result()
    (alarm,) = scene.fleet.client.alarms()
    page = visit("auditor", "alarms")
    page.wait_for_selector(f"#close-{alarm.id}[aria-disabled=true]")
    page = visit("operator", "alarms")
    page.click(f"#close-{alarm.id}")
    page.fill("#reason", "the installer tried twice")
    page.click("#dialog-yes")
    page.locator("#notice-body", has_text="Done").wait_for()
    assert scene.fleet.client.alarms() == []


@pytest.fixture(scope="module")
def recorded(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device whose record was brought; the export that it must equal."""
    folder, key = tmp_path_factory.mktemp("record"), generate_key()

    async def bring() -> bytes:
        device = await Member(scene.fleet, "cam-9", folder, key).join()
        async with records.kept(folder, key, "cam-9") as kept:
            await kept.begin()
            await kept.note(30)
            lines = await kept.lines()
        status, said = await device.ask("POST", "/v1/devices/cam-9/record?copy=1&after=-1", b"".join(lines[1:]))
        assert status == 200, said
        return b"".join(lines)

    with ThreadPoolExecutor(1) as aside:
        (folder / "export").write_bytes(aside.submit(lambda: asyncio.run(bring())).result())
    return folder / "export"


def test_an_auditor_saves_a_devices_record_and_it_is_the_devices_own_export(
    visit: Callable[..., Page], recorded: Path, tmp_path: Path
) -> None:
    page = visit("auditor", "devices/cam-9")
    page.locator("#record-copy", has_text="lenskeep audit verify").wait_for()
    with page.expect_download() as saving:
        page.click("#save-record")
    assert saving.value.suggested_filename == "cam-9.record.jsonl"
    saving.value.save_as(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == recorded.read_bytes()


def test_who_may_not_read_records_is_told_and_one_that_is_not_here_is_asked_for(
    visit: Callable[..., Page], scene: Scene, recorded: Path
) -> None:
    page = visit("viewer", "devices/cam-9")
    page.wait_for_selector("#save-record[aria-disabled=true]")
    assert page.locator("#record-copy").count() == 0
    page = visit("operator", "devices/cam-1")
    page.wait_for_selector("#save-record[aria-disabled=true]")
    page.click("#ask-record")
    page.click("#dialog-yes")
    page.locator("#notice-body", has_text="Done").wait_for()
    assert [one.kind for one in scene.fleet.client.asked_of("cam-1")] == ["record"]


@pytest.mark.parametrize("language", ["de", "es", "zh"])
def test_pages_speak_the_readers_language(visit: Callable[..., Page], language: str) -> None:
    page = visit()
    page.select_option("#language", language)
    word = {"de": "Übersicht", "es": "Resumen", "zh": "概览"}[language]
    page.locator("#tab-overview", has_text=word).wait_for()


def test_pages_fit_a_telephone(visit: Callable[..., Page]) -> None:
    page = visit(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# --- rollouts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolling(scene: Scene) -> int:
    """A rollout that has asked cam-2, which does not answer; the repository is real."""
    fleet = scene.fleet
    plan = Plan(bundle=NEW, slot="main", target="cam-2,cam-3", waves=[Wave(take="cam-2"), Wave(take="100%")])
    number = fleet.client.start_rollout(RolloutAsk(plan=plan)).rollout.id
    until = time.monotonic() + 20
    while not fleet.client.rollout(number).rollout.states.get("assigned"):
        assert time.monotonic() < until, fleet.log()
        time.sleep(0.1)
    return number


def test_a_rollout_is_seen_paused_resumed_and_taken_back_each_after_a_reason(
    visit: Callable[..., Page], scene: Scene, rolling: int
) -> None:
    page = visit("operator", f"rollouts/{rolling}")
    page.locator("#rollout", has_text="running").wait_for()
    assert "1 on their way" in page.inner_text("#rollout")
    assert page.get_attribute("#do-resume", "aria-disabled") == "true"
    for button, word in (("#do-pause", "paused"), ("#do-resume", "running"), ("#do-revert", "going back|aborted")):
        page.click(button)
        page.fill("#reason", f"because {word}")
        page.click("#dialog-yes")
        page.locator("#rollout .head b", has_text=re.compile(word)).wait_for()
    deeds = [deed.reason for deed in scene.fleet.client.deeds()]
    assert {"because paused", "because running", "because going back|aborted"} <= set(deeds)


def test_a_dialog_that_is_left_alone_changes_nothing(visit: Callable[..., Page], scene: Scene, rolling: int) -> None:
    before = scene.fleet.client.deeds()
    page = visit("operator", f"rollouts/{rolling}")
    page.click("#do-revert")
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    assert scene.fleet.client.deeds() == before


def test_a_viewer_cannot_touch_a_rollout_and_is_told_why(visit: Callable[..., Page], rolling: int) -> None:
    page = visit("viewer", f"rollouts/{rolling}")
    page.wait_for_selector("#do-abort[aria-disabled=true]")
    assert "operator" in str(page.get_attribute("#do-abort", "title"))
