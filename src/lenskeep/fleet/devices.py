"""The devices' door: the repository, enrolment, renewal and reports, over TLS 1.3.

Rules. Enrolment and the authority's certificate are open to whoever dials, because a device has no certificate before;
everything else asks for a certificate whose key is listed, at every request, so that a revoked device is out at once
even on a connection that it holds. A device speaks for itself alone.
"""

from __future__ import annotations

import logging

from aiohttp import web

from lenskeep.errors import ForeignIdentityError, LenskeepError
from lenskeep.fleet import answers
from lenskeep.fleet.admission import Admission
from lenskeep.fleet.authority import FleetAuthority
from lenskeep.fleet.callline import Asked, Said
from lenskeep.fleet.records import RecordRoom
from lenskeep.fleet.reports import Reports
from lenskeep.fleet.repository import PREFIX, Repository
from lenskeep.fleet.store.store import Listed
from lenskeep.fleet.sync import CALL_BYTES_MAX, Sync
from lenskeep.messages.fleet import CertificateAsk, EnrolmentRequest
from lenskeep.messages.sync import MEDIA_MSGPACK
from lenskeep.trust.stick import REPORT_BYTES_MAX

log = logging.getLogger("lenskeep.fleet")

LISTED = web.RequestKey("listed", Listed)
OPEN_PATHS = ("/v1/authority", "/v1/enrolment", "/livez")


class DeviceDoor:
    """What devices may ask."""

    def __init__(
        self, admission: Admission, reports: Reports, repository: Repository, authority: FleetAuthority,
        sync: Sync, records: RecordRoom, *, request_s_max: float,
    ) -> None:  # fmt: skip
        self._admission = admission
        self._reports = reports
        self._repository = repository
        self._authority = authority
        self._sync = sync
        self._records = records
        self._request_s_max = request_s_max

    def app(self) -> web.Application:
        """Return the door's application."""
        app = web.Application(middlewares=[answers.guard, self._identify], client_max_size=REPORT_BYTES_MAX)
        app.add_routes(
            [
                web.get("/livez", self.livez),
                web.get("/v1/authority", self.authority),
                web.post("/v1/enrolment", self.enrol),
                web.post("/v1/devices/{device}/certificate", self.renew),
                web.post("/v1/devices/{device}/reports", self.report),
                web.post("/v1/devices/{device}/sync", self.sync),
                web.get("/v1/devices/{device}/record", self.record),
                web.post("/v1/devices/{device}/record", self.take_record),
                *self._repository.routes(),
            ]
        )
        return app

    @web.middleware
    async def _identify(self, request: web.Request, handler: answers.Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            listed = await self._admission.identify(request.get_extra_info("ssl_object"))
            if not request.path.startswith(f"{PREFIX}/") and request.match_info.get("device", "") != listed.device:
                raise ForeignIdentityError(f"{listed.device!r} speaks for itself alone.")
            request[LISTED] = listed
        return await handler(request)

    async def livez(self, _request: web.Request) -> web.Response:
        """Say that the service turns."""
        return answers.said({"ok": True})

    async def authority(self, _request: web.Request) -> web.Response:
        """Show the authority; a device believes it by the fingerprint in its token alone."""
        return answers.said(self._authority.view())

    async def enrol(self, request: web.Request) -> web.Response:
        """Let a device in by its token."""
        ask = await answers.read_struct(request, EnrolmentRequest, self._request_s_max)
        return answers.said(await self._admission.enrol(ask, request.remote or ""), 201)

    async def renew(self, request: web.Request) -> web.Response:
        """Certify a device again."""
        ask = await answers.read_struct(request, CertificateAsk, self._request_s_max)
        return answers.said(await self._admission.renew(request[LISTED], ask.csr), 201)

    async def report(self, request: web.Request) -> web.Response:
        """Take a signed report."""
        data = await answers.read_bytes(request, REPORT_BYTES_MAX, self._request_s_max)
        return answers.said(await self._reports.take(data, request[LISTED].device))

    async def record(self, request: web.Request) -> web.Response:
        """Say how far the device's record is here."""
        return await self._records.told(request[LISTED].device)

    async def take_record(self, request: web.Request) -> web.Response:
        """Take a piece of the device's record."""
        return await self._records.brought(request, request[LISTED].device, itself=True)

    async def sync(self, request: web.Request) -> web.Response:
        """Answer a device's call that came by way of aiohttp."""
        data = await answers.read_bytes(request, CALL_BYTES_MAX, self._request_s_max)
        media = _media(request.headers.get("Content-Type", ""))
        body = await self._call(request[LISTED], request.remote or "", data, media, id(request.transport))
        return web.Response(body=body, headers={"Content-Type": media})

    async def answer(self, asked: Asked) -> Said:
        """Answer a device's call on a connection that calls alone come on: the one door that is asked all day."""
        try:
            listed = await self._admission.identify(asked.connection)
            if asked.device != listed.device:
                raise ForeignIdentityError(f"{listed.device!r} speaks for itself alone.")
            media = _media(asked.media)
            return Said(200, media, await self._call(listed, asked.address, asked.body, media, id(asked.connection)))
        except LenskeepError as error:
            refused = answers.refusal(error)
        except Exception:  # the root of a request: every fault leaves as a problem, none silently
            log.exception("A call of %s failed", asked.device)
            refused = answers.refusal(answers.unforeseen())
        later = f"Retry-After: {refused.retry_after_s}\r\n" if refused.retry_after_s else ""
        return Said(refused.status, answers.PROBLEM_MEDIA, refused.body, later)

    async def _call(self, listed: Listed, address: str, data: bytes, media: str, connection: int) -> bytes:
        answer = await self._sync.answer(listed.device, address, self._sync.read(data, media), connection)
        return self._sync.write(answer, media)


def _media(said: str) -> str:
    return MEDIA_MSGPACK if said == MEDIA_MSGPACK else "application/json"
