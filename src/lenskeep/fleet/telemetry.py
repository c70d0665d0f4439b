"""Telemetry in the fleet: merges what came in, thins what is old, and answers operators' questions about it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import get_args

import msgspec
from aiohttp import web

from lenskeep.clock import Clock
from lenskeep.errors import LenskeepError, RequestError, UnknownNameError
from lenskeep.fleet import answers
from lenskeep.fleet.operators import Operator, Route
from lenskeep.fleet.presence import Presence
from lenskeep.fleet.store.intake import IntakeStore
from lenskeep.fleet.store.store import Store
from lenskeep.fleet.store.telemetry import By, Merged, TakenElsewhereError, TelemetryStore, Waiting, merge
from lenskeep.messages.sync import Command
from lenskeep.messages.telemetry import PresenceView

log = logging.getLogger("lenskeep.fleet")

EVERY_S = 1.0
TOGETHER = 400  # calls merged in one transaction
AT_A_TIME = 8
THIN_EVERY_S = 3600.0
HAPPENINGS_MAX = 1000
KINDS = ("sync", "report", "record", "pause", "resume")


class Telemetry:
    """Merges records as they come."""

    def __init__(self, store: TelemetryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._hardware: dict[str, str] | None = None
        self.merged = 0  # calls, since the server began

    async def run(self) -> None:
        """Merge again and again, until cancelled."""
        thin_s = 0.0
        while True:
            try:
                while await self.look():
                    pass
                if self._clock.monotonic_s() >= thin_s:
                    thin_s = self._clock.monotonic_s() + THIN_EVERY_S
                    while await self._store.thin(int(self._clock.now_s())):
                        pass
            except LenskeepError as error:  # a full disk, a database that is away: the records wait
                log.warning("%s Telemetry could not be merged: %s", error.code, error)
                await asyncio.sleep(5 * EVERY_S)
            except Exception:  # what nobody foresaw in a record must not end the server: the records wait
                log.exception("Telemetry could not be merged")
                await asyncio.sleep(30 * EVERY_S)
            await asyncio.sleep(EVERY_S)

    async def look(self) -> bool:
        """Merge some of what waits; say whether more is there. Raises: StorageError, PeerError."""
        if self._hardware is None:
            self._hardware = await self._store.hardware()
        waiting = await self._store.waiting(TOGETHER)
        if not waiting:
            return False
        merged = Merged()
        for start in range(0, len(waiting), AT_A_TIME):  # in turns: a thread would hold up the loop for longer
            _merge_some(waiting[start : start + AT_A_TIME], self._hardware, merged)
            await asyncio.sleep(0)
        try:
            await self._store.add(merged)
        except TakenElsewhereError:
            return True
        self.merged += len(waiting)
        return len(waiting) == TOGETHER


def _merge_some(waiting: Sequence[Waiting], hardware: dict[str, str], merged: Merged) -> None:
    """Add calls up; one that cannot be read, because another version wrote it, is passed over and said."""
    for each in waiting:
        try:
            merge([each], hardware, merged)
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("The records of %s in call %d are passed over: %s", each.device, each.id, error)


class TelemetryRoom:
    """What operators may ask of telemetry, presence and commands."""

    def __init__(
        self, telemetry: TelemetryStore, intake: IntakeStore, store: Store, presence: Presence, clock: Clock,
        request_s_max: float,
    ) -> None:  # fmt: skip
        self._telemetry = telemetry
        self._intake = intake
        self._store = store
        self._presence = presence
        self._clock = clock
        self._request_s_max = request_s_max

    def routes(self) -> list[Route]:
        """Return the doors, for the operators' door."""
        return [
            ("GET", "/v1/fleet/telemetry", "viewer", self._latency),
            ("GET", "/v1/fleet/behaviour", "viewer", self._behaviour),
            ("GET", "/v1/fleet/running", "viewer", self._running),
            ("GET", "/v1/fleet/happenings", "viewer", self._happenings),
            ("GET", "/v1/fleet/vitals", "viewer", self._vitals),
            ("GET", "/v1/fleet/presence", "viewer", self._heard),
            ("GET", "/v1/fleet/slots", "viewer", self._slots),
            ("GET", "/v1/devices/{device}/windows", "viewer", self._recent),
            ("GET", "/v1/devices/{device}/commands", "viewer", self._commands),
            ("POST", "/v1/devices/{device}/commands", "operator", self._ask),
        ]

    async def _latency(self, request: web.Request, _who: Operator) -> web.Response:
        words = request.query
        found = await self._telemetry.latency(
            words.get("bundle", ""), words.get("stage", ""), _by(words.get("by", "hardware")),
            since_s=_number(request, "since"), until_s=_number(request, "until"),
        )  # fmt: skip
        return answers.said(found)

    async def _behaviour(self, request: web.Request, _who: Operator) -> web.Response:
        words = request.query
        found = await self._telemetry.behaviour(
            words.get("bundle", ""), _by(words.get("by", "hardware")), since_s=_number(request, "since"),
            until_s=_number(request, "until"),
        )  # fmt: skip
        return answers.said(found)

    async def _running(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._telemetry.running())

    async def _happenings(self, request: web.Request, _who: Operator) -> web.Response:
        words = request.query
        found = await self._telemetry.happenings(
            device=words.get("device", ""), bundle=words.get("bundle", ""), kind=words.get("kind", ""),
            since_ms=_number(request, "since") * 1000, limit=min(_number(request, "limit") or 200, HAPPENINGS_MAX),
        )  # fmt: skip
        return answers.said(found)

    async def _vitals(self, request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._telemetry.vitals(request.query.get("device", "")))

    async def _heard(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said([self._newest(each) for each in await self._intake.presence()])

    def _newest(self, told: PresenceView) -> PresenceView:
        heard_ms = max(told.heard_ms, self._presence.heard_ms(told.device))
        return msgspec.structs.replace(told, heard_ms=heard_ms, connected=self._presence.there(told.device))

    async def _slots(self, request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._intake.slots(request.query.get("device", "")))

    async def _recent(self, request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._telemetry.recent(request.match_info["device"]))

    async def _commands(self, request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._intake.commands(request.match_info["device"]))

    async def _ask(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, CommandAsk, self._request_s_max)
        if ask.kind not in KINDS:
            raise RequestError(f"{ask.kind!r} is nothing that a device can be asked: {', '.join(KINDS)}.")
        device = request.match_info["device"]
        if (await self._store.device(device)).device.state != "enrolled":
            raise UnknownNameError(f"{device!r} is not let in.", hint="List them: lenskeep fleet devices.")
        made = await self._intake.ask(device, ask.kind, ask.text, by=who.by, now_ms=self._clock.now_ms())
        return answers.said(Command(id=made, kind=ask.kind, text=ask.text), 201)  # type: ignore[arg-type]


class CommandAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask something of a device."""

    kind: str
    text: str = ""


def _by(words: str) -> tuple[By, ...]:
    found = tuple(word for word in get_args(By) if word in words.split(","))
    if unknown := set(filter(None, words.split(","))) - set(found):
        raise RequestError(f"by={','.join(sorted(unknown))} is unknown; there are {', '.join(get_args(By))}.")
    return found


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise RequestError(f"{name}={text} is not a whole number of seconds.")
    return int(text)
