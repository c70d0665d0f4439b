"""Who this device is, and how it becomes a member of a fleet. The key itself is never asked for."""

from __future__ import annotations

from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.messages.identity import (
    CertificateRequestView,
    EnrolRequest,
    IdentityView,
    InstallRequest,
    OutboxRequest,
    ReceiptRequest,
    ReceiptTaken,
    SignedRecords,
    SignedReport,
)


async def show(ask: Ask) -> IdentityView:
    return ask.rooms.identity.view()


async def request(ask: Ask) -> CertificateRequestView:
    return await ask.rooms.identity.request()


async def install(ask: Ask) -> IdentityView:
    return await ask.rooms.identity.install(ask.body, ask.who.by)


async def enrol(ask: Ask) -> Reply:
    return Reply(await ask.rooms.identity.enrol(ask.body, ask.who.by))


async def report(ask: Ask) -> SignedReport:
    return await ask.rooms.reporter.signed()


async def pack(ask: Ask) -> SignedRecords:
    return await ask.rooms.post.pack(ask.body.above)


async def receive(ask: Ask) -> ReceiptTaken:
    return await ask.rooms.post.receive(ask.body.envelope)


ROUTES = [
    Route(
        method="GET", path="/v1/identity", permission="look", handler=show, answer=IdentityView,
        summary="Show this device's name and key, and the fleet it belongs to",
    ),
    Route(
        method="GET", path="/v1/identity/request", permission="look", handler=request, answer=CertificateRequestView,
        summary="Write a request for a certificate, for a stick",
    ),
    Route(
        method="PUT", path="/v1/identity/certificate", permission="trust", handler=install, answer=IdentityView,
        body=InstallRequest,
        summary="Install a certificate that came on a stick",
    ),
    Route(
        method="POST", path="/v1/enrolment", permission="trust", handler=enrol, answer=IdentityView, body=EnrolRequest,
        status=201, repeatable=False,
        summary="Enrol this device at a fleet with a token",
    ),
    Route(
        method="POST", path="/v1/reports", permission="sync", handler=report, answer=SignedReport, status=201,
        summary="Sign a report about this device, for a stick",
    ),
    Route(
        method="POST", path="/v1/outbox", permission="sync", handler=pack, answer=SignedRecords, body=OutboxRequest,
        status=201,
        summary="Sign what the fleet has not acknowledged yet, for a stick; it stays here until it is",
    ),
    Route(
        method="POST", path="/v1/outbox/receipts", permission="sync", handler=receive, answer=ReceiptTaken,
        body=ReceiptRequest,
        summary="Take the fleet's receipt that came on a stick",
    ),
]  # fmt: skip
