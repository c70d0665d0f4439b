"""The one typed client of the fleet's operators' door: a method is a route and returns its struct."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import click
import msgspec

from lenskeep.cli.run import run_of
from lenskeep.cli.wire import CHUNK_BYTES, Address, Wire, parse_address
from lenskeep.errors import DaemonUnreachableError
from lenskeep.messages.fleet import (
    AlarmView,
    AuthorityView,
    CarriedAnswer,
    DeedView,
    DeviceDetail,
    DeviceRow,
    Enrolled,
    GrantAsk,
    InvitationAsk,
    InvitationMade,
    OperatorToken,
    OperatorTokenAsk,
    RecordState,
    RecordWitness,
    ReportAnswer,
    RevocationAsk,
)
from lenskeep.messages.fleetviews import (
    DevicePage,
    DevicesPage,
    DriftLine,
    HistoryLine,
    MyselfView,
    OverviewView,
    VersionLine,
)
from lenskeep.messages.rollouts import (
    DeploymentView,
    GroupAsk,
    GroupView,
    RolloutAsk,
    RolloutDeed,
    RolloutDetail,
    RolloutRow,
    TagAsk,
)
from lenskeep.messages.sync import Command
from lenskeep.messages.telemetry import CommandView

SYSTEM_SOCKET = Path("/run/lenskeep-fleet/fleet.sock")


def find_fleet(wanted: str | None, environment: Mapping[str, str]) -> Address:
    """Choose where to ask: what was named, else the system's fleet server, else the user's own.

    Raises: RequestError for an address that is none, DaemonUnreachableError when there is no socket anywhere.
    """
    named = wanted or environment.get("LENSKEEP_FLEET")
    if named:
        return parse_address(named)
    base = environment.get("XDG_RUNTIME_DIR") or f"/tmp/lenskeep-{os.getuid()}"  # noqa: S108 - only looked at
    places = [SYSTEM_SOCKET, Path(base) / "lenskeep-fleet" / "fleet.sock"]
    for place in places:
        if place.exists():
            return Address(path=place)
    raise DaemonUnreachableError(
        f"No fleet server is running here: there is no socket at {' and '.join(str(place) for place in places)}.",
        hint="Start it: lenskeep fleet serve; or name it: lenskeep fleet --fleet ADDRESS.",
    )


def client_of(context: click.Context) -> FleetClient:
    """Return the client of the fleet that `fleet --fleet ADDRESS` names, or of the one that is found here."""
    environment = run_of(context).environment
    address = find_fleet(context.meta.get("lenskeep.fleet"), environment)
    return FleetClient(address, environment.get("LENSKEEP_FLEET_TOKEN"))


class FleetClient:
    """A fleet, asked over its socket or its port."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        self._wire = Wire(address, token)

    def authority(self) -> AuthorityView:
        return self._wire.get("/v1/authority", AuthorityView)

    def devices(self) -> list[DeviceRow]:
        return self._wire.get("/v1/devices", list[DeviceRow])

    def device(self, name: str) -> DeviceDetail:
        return self._wire.get(f"/v1/devices/{quote(name)}", DeviceDetail)

    def invite(self, ask: InvitationAsk) -> InvitationMade:
        return self._wire.send("POST", "/v1/invitations", ask, InvitationMade)

    def grant(self, ask: GrantAsk) -> Enrolled:
        return self._wire.send("POST", "/v1/certificates", ask, Enrolled)

    def revoke(self, name: str, reason: str) -> DeviceDetail:
        return self._wire.send(
            "POST", f"/v1/devices/{quote(name)}/revocation", RevocationAsk(reason=reason), DeviceDetail
        )

    def take_report(self, device: str, data: bytes) -> ReportAnswer:
        """Hand in a signed report, byte for byte as the device wrote it."""
        return self._wire.decode(
            self._wire.ask("POST", f"/v1/devices/{quote(device)}/reports", body=data), ReportAnswer
        )

    def take_records(self, device: str, data: bytes) -> CarriedAnswer:
        """Hand in records of a device's outbox, byte for byte as the device signed them."""
        return self._wire.decode(
            self._wire.ask("POST", f"/v1/devices/{quote(device)}/outbox", body=data), CarriedAnswer
        )

    def record(self, device: str) -> RecordState:
        return self._wire.get(f"/v1/devices/{quote(device)}/record", RecordState)

    def take_record_piece(self, device: str, copy: int, after: int, lines: bytes) -> RecordState:
        """Hand in lines of a device's record that stand behind an entry."""
        query = {"copy": copy, "after": after}
        data = self._wire.ask("POST", f"/v1/devices/{quote(device)}/record", query=query, body=lines)
        return self._wire.decode(data, RecordState)

    def record_witness(self, device: str, copy: int | None = None) -> RecordWitness:
        return self._wire.get(f"/v1/devices/{quote(device)}/record/witness", RecordWitness, copy=copy)

    def export_record(self, device: str, target: BinaryIO, copy: int | None = None) -> None:
        """Write a copy's lines to `target`."""
        query = {"copy": copy}
        answer = self._wire.open("GET", f"/v1/devices/{quote(device)}/record/file", query=query, timeout_s=120.0)
        for chunk in self._wire.pieces(answer, lambda: answer.read(CHUNK_BYTES)):
            target.write(chunk)

    def alarms(self) -> list[AlarmView]:
        return self._wire.get("/v1/alarms", list[AlarmView])

    def accept_alarm(self, number: int, reason: str) -> None:
        body = msgspec.json.encode(RevocationAsk(reason=reason))
        self._wire.ask("POST", f"/v1/alarms/{number}/acceptance", body=body)

    def deeds(self) -> list[DeedView]:
        return self._wire.get("/v1/deeds", list[DeedView])

    def operators(self) -> list[OperatorToken]:
        return self._wire.get("/v1/tokens", list[OperatorToken])

    def add_operator(self, ask: OperatorTokenAsk) -> OperatorToken:
        return self._wire.send("POST", "/v1/tokens", ask, OperatorToken)

    def remove_operator(self, name: str) -> None:
        self._wire.ask("DELETE", f"/v1/tokens/{quote(name)}")

    # --- the fleet as a whole -------------------------------------------------------------------------------------

    def me(self) -> MyselfView:
        return self._wire.get("/v1/me", MyselfView)

    def overview(self) -> OverviewView:
        return self._wire.get("/v1/fleet/overview", OverviewView)

    def list_devices(self, **query: str | int | None) -> DevicesPage:
        """Ask with `health`, `target`, `runs`, `text`, `limit`, `after`."""
        return self._wire.get("/v1/fleet/devices", DevicesPage, **query)

    def look_at(self, name: str) -> DevicePage:
        return self._wire.get(f"/v1/fleet/devices/{quote(name)}", DevicePage)

    def versions(self, bundle: str | None = None, hours: float | None = None) -> list[VersionLine]:
        return self._wire.get("/v1/fleet/versions", list[VersionLine], bundle=bundle, hours=hours)

    def drift(self) -> list[DriftLine]:
        return self._wire.get("/v1/fleet/drift", list[DriftLine])

    def history(self, *, device: str | None = None, bundle: str | None = None) -> list[HistoryLine]:
        return self._wire.get("/v1/fleet/history", list[HistoryLine], device=device, bundle=bundle)

    def ask_device(self, name: str, kind: str, text: str) -> Command:
        """Ask something of a device; it hears it with its next call."""
        body = msgspec.json.encode({"kind": kind, "text": text})
        return self._wire.decode(self._wire.ask("POST", f"/v1/devices/{quote(name)}/commands", body=body), Command)

    def asked_of(self, name: str) -> list[CommandView]:
        """Return what a device was asked, newest first."""
        return self._wire.get(f"/v1/devices/{quote(name)}/commands", list[CommandView])

    # --- rollouts, groups and tags --------------------------------------------------------------------------------

    def rollouts(self) -> list[RolloutRow]:
        return self._wire.get("/v1/fleet/rollouts", list[RolloutRow])

    def rollout(self, number: int) -> RolloutDetail:
        return self._wire.get(f"/v1/fleet/rollouts/{number}", RolloutDetail)

    def start_rollout(self, ask: RolloutAsk) -> RolloutDetail:
        return self._wire.send("POST", "/v1/fleet/rollouts", ask, RolloutDetail)

    def approve_rollout(self, number: int) -> RolloutDetail:
        return self._wire.send("POST", f"/v1/fleet/rollouts/{number}/approval", RolloutDeed(), RolloutDetail)

    def pause_rollout(self, number: int, reason: str) -> RolloutDetail:
        ask = RolloutDeed(reason=reason)
        return self._wire.send("POST", f"/v1/fleet/rollouts/{number}/pause", ask, RolloutDetail)

    def resume_rollout(self, number: int, reason: str) -> RolloutDetail:
        ask = RolloutDeed(reason=reason)
        return self._wire.send("POST", f"/v1/fleet/rollouts/{number}/resumption", ask, RolloutDetail)

    def abort_rollout(self, number: int, reason: str, *, revert: bool) -> RolloutDetail:
        ask = RolloutDeed(reason=reason, revert=revert)
        return self._wire.send("POST", f"/v1/fleet/rollouts/{number}/abort", ask, RolloutDetail)

    def deployments(self, *, device: str | None = None, bundle: str | None = None) -> list[DeploymentView]:
        return self._wire.get("/v1/fleet/deployments", list[DeploymentView], device=device, bundle=bundle)

    def groups(self) -> list[GroupView]:
        return self._wire.get("/v1/fleet/groups", list[GroupView])

    def set_group(self, ask: GroupAsk) -> GroupView:
        return self._wire.send("POST", "/v1/fleet/groups", ask, GroupView)

    def remove_group(self, name: str) -> None:
        self._wire.ask("DELETE", f"/v1/fleet/groups/{quote(name)}")

    def tag(self, ask: TagAsk) -> None:
        self._wire.ask("POST", "/v1/fleet/tags", body=msgspec.json.encode(ask))

    def tags(self) -> dict[str, dict[str, str]]:
        return self._wire.get("/v1/fleet/tags", dict[str, dict[str, str]])
