"""Streams: nothing is missed, a reader can come back, and none outlives the server."""

import asyncio
import time

import aiohttp
import pytest

from lenskeep.daemon.control import streams
from tests.pocketdevice import JPEG, PocketDevice, configuration, served


async def read_events(answer: aiohttp.ClientResponse, count: int) -> list[dict[str, str]]:
    """Read so many SSE events; comments and retry lines are passed over."""
    events: list[dict[str, str]] = []
    current: dict[str, str] = {}
    async with asyncio.timeout(5):
        while len(events) < count:
            line = (await answer.content.readline()).decode().rstrip("\n")
            if not line:
                if "data" in current:
                    events.append(current)
                current = {}
                continue
            name, _, value = line.partition(": ")
            current[name] = value
    return events


async def test_events_come_typed_and_numbered(unix, device):
    async with unix.get("/v1/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        device.publish("slot", {"slot": "main"})
        device.publish("fault", {"code": "LK-2002"})
        events = await read_events(answer, 2)
    assert [(event["id"], event["event"]) for event in events] == [("1", "slot"), ("2", "fault")]
    assert '"code":"LK-2002"' in events[1]["data"]


async def test_reader_that_comes_back_misses_nothing(unix, device):
    async with unix.get("/v1/events?since=0") as answer:
        device.publish("slot", {})
        last = (await read_events(answer, 1))[0]["id"]
    device.publish("bundle", {})
    device.publish("camera", {})
    async with unix.get("/v1/events", headers={"Last-Event-ID": last}) as answer:
        device.publish("fault", {})
        assert [event["id"] for event in await read_events(answer, 3)] == ["2", "3", "4"]
    async with unix.get("/v1/events", headers={"Last-Event-ID": "x"}) as answer:
        assert answer.status == 400


async def test_reader_of_what_is_kept_comes_to_an_end_while_results_pour_in(unix, device):
    async def pour() -> None:
        while True:
            device.publish("result", {})
            await asyncio.sleep(0.001)

    pouring = asyncio.create_task(pour())
    device.publish("fault", {})
    device.publish("slot", {})
    async with asyncio.timeout(5), unix.get("/v1/events?since=0&follow=false&types=fault,slot") as answer:
        text = await answer.text()
    pouring.cancel()
    assert text.count("event: fault") == text.count("event: slot") == 1


async def test_wrong_words_in_the_query_are_refused(unix):
    for query in ("types=", "types=a,,b", "types=a b", "follow=perhaps", "since=-1"):
        async with unix.get(f"/v1/events?{query}") as answer:
            assert answer.status == 400, query


async def test_quiet_stream_shows_that_it_is_alive(unix, monkeypatch):
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.02)
    async with unix.get("/v1/events") as answer, asyncio.timeout(5):
        lines = [await answer.content.readline() for _ in range(6)]
    assert lines.count(b": alive\n") >= 2


async def test_reader_that_goes_is_forgotten(unix, device, monkeypatch):
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.02)
    async with unix.get("/v1/events"):
        assert len(device.listeners) == 1
    async with asyncio.timeout(5):
        while device.listeners:
            await asyncio.sleep(0.01)


async def test_too_many_readers_are_refused(unix, monkeypatch):
    monkeypatch.setattr(streams, "STREAMS_MAX", 1)
    async with unix.get("/v1/events"), unix.get("/v1/events") as answer:
        assert answer.status == 409


async def test_preview_sends_pictures_with_their_age(unix):
    async with unix.get("/v1/cameras/cam-1/preview.mjpg?fps=5") as answer, asyncio.timeout(5):
        assert answer.headers["Content-Type"].startswith("multipart/x-mixed-replace")
        data = b""
        while data.count(JPEG) < 3:
            data += await answer.content.readany()
    assert b"X-Frame-Age-Ms: 33\r\n" in data


async def test_preview_of_an_unknown_camera_is_a_problem(unix):
    async with unix.get("/v1/cameras/cam-9/preview.mjpg") as answer:
        assert (answer.status, answer.content_type) == (404, "application/problem+json")
    async with unix.get("/v1/cameras/cam-1/preview.mjpg?fps=30") as answer:
        assert answer.status == 400


async def test_streams_end_with_the_server(tmp_path):
    device = PocketDevice()
    async with aiohttp.ClientSession(
        "http://x", connector=aiohttp.UnixConnector(str(tmp_path / "lenskeep.sock"))
    ) as session:
        async with served(device, configuration(port=0), tmp_path):
            answer = await session.get("/v1/events")
            assert answer.status == 200
            started = time.monotonic()
        assert time.monotonic() - started < 1.5
        with pytest.raises(aiohttp.ClientError):
            while await answer.content.readany():
                pass
            raise aiohttp.ClientPayloadError
        answer.close()
    assert device.listeners == []
