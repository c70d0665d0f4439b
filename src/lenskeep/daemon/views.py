"""What is so on this device, in the words of the API: made fresh from the registry, the metrics and the processes."""

from __future__ import annotations

import asyncio
import itertools
import platform
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from lenskeep.bundle import manifest as manifests
from lenskeep.clock import Clock, rfc3339
from lenskeep.config import Config
from lenskeep.daemon.health import Health
from lenskeep.daemon.metrics import Metrics, latency_views
from lenskeep.daemon.policy import waiting_in
from lenskeep.daemon.slotbook import SlotBook
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.database import Database, Transaction
from lenskeep.errors import LenskeepError, fault_book
from lenskeep.lifecycle import SlotState
from lenskeep.messages.control import (
    AuditEntry,
    Bundle,
    BundleDetail,
    Check,
    Deployment,
    SlotView,
    Status,
    Window,
)
from lenskeep.messages.identity import FleetView
from lenskeep.messages.runner import Beat, CameraState, Result
from lenskeep.policy import listed
from lenskeep.registry import audit, bundles, slots, windows
from lenskeep.registry.blobs import MEBIBYTE, Blobs
from lenskeep.registry.bundles import StoredBundle
from lenskeep.registry.slots import StoredSlot
from lenskeep.registry.windows import Span


class Views:
    """Answers questions; changes nothing."""

    def __init__(
        self, config: Config, database: Database, blobs: Blobs, supervisor: Supervisor,
        book: SlotBook,
        metrics: Metrics, health: Health, clock: Clock,
    ) -> None:  # fmt: skip
        self._config = config
        self._device = config.device.name or platform.node()
        self._database = database
        self._blobs = blobs
        self._supervisor = supervisor
        self._book = book
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self.fleet: Callable[[], Awaitable[FleetView | None]] = _nobody
        self._started = rfc3339(clock.now_s())

    # --- now ------------------------------------------------------------------------------------------------------

    async def status(self) -> Status:
        """Return one screen about this device."""
        found = await self.slots()
        faults = [check for check in await self._health.checks() if not check.passed]
        box = self._health.box()
        return Status(
            device=self._device, verdict=_verdict(found), version=version("lenskeep"), since=self._started,
            clock_trusted=self._clock.trusted(), slots=found, faults=faults,
            disk_free_mb=max(0, self._blobs.free_bytes() // MEBIBYTE), memory_free_mb=box.memory_free_mb, load=box.load,
            temperature_c=box.temperature_c, daemon_rss_mb=box.daemon_rss_mb, fleet=await self.fleet(),
        )  # fmt: skip

    async def slots(self) -> list[SlotView]:
        """Return every configured slot."""
        return [await self.slot(slot.name) for slot in self._config.slot]

    async def slot(self, name: str) -> SlotView:
        """Return one slot: what it should run, what it runs, and how it does."""
        async with self._database.read() as tx:
            slot = await slots.get(tx, name)
            known = {key: await bundles.get(tx, key) for key in {slot.wanted, slot.active, slot.previous} - {""}}
            waiting = await waiting_in(tx, name)
        process = self._supervisor.process(name)
        beat = process.beat
        active, previous = known.get(slot.active), known.get(slot.previous)
        span = self._metrics.live(name)
        locked = next(one.locked for one in self._config.slot if one.name == name)
        return SlotView(
            slot=name, state=slot.state.value, wanted=_ref(known.get(slot.wanted)),
            active=beat.active if beat else "", active_digest=beat.digest if beat else "", previous=_ref(previous),
            previous_warm=bool(beat and previous and beat.previous == previous.ref),
            pinned=_ref(active) if active and active.pinned else "", since=rfc3339(slot.since_ms / 1000),
            reason=slot.reason,
            signer=active.signer if active else "", trial_ends_s=self._trial_ends(slot), held=slot.held,
            budget_ms=manifests.parse(active.manifest).budget.latency_p99_ms if active else 0.0,
            provider=beat.provider if beat else "", latency=latency_views(span), outcomes=span.outcomes,
            misses=span.misses, cameras=beat.cameras if beat else [], runner=process.state,
            runner_rss_mb=beat.rss_mb if beat else 0.0, faults=_faults(slot, active, beat, locked),
            etag=f"{name}-{slot.generation}",
            confirm_needed=slot.state == SlotState.PROBATION and slot.trial_s is not None,
            waiting=waiting, locked=locked,
        )  # fmt: skip

    def _trial_ends(self, slot: StoredSlot) -> float | None:
        return self._book.probation_left_s(slot.name) if slot.state == SlotState.PROBATION else None

    async def cameras(self) -> list[CameraState]:
        """Return how every camera does."""
        beats = [process.beat for process in self._supervisor.processes.values()]
        return [camera for beat in beats if beat for camera in beat.cameras]

    async def health(self) -> list[Check]:
        """Return what `doctor` looked at."""
        checks = await self._health.checks()
        for slot in await self.slots():
            checks += slot.faults
        return checks

    async def results(self, slot: str | None, camera: str | None, limit: int, since: int | None) -> list[Result]:
        """Return the newest results, oldest first."""
        names = [slot] if slot else [entry.name for entry in self._config.slot]
        meant = (
            result
            for name in reversed(names)
            for result in self._metrics.recent(self._supervisor.process(name).slot)
            if camera in (None, result.camera) and (since is None or result.sequence > since)
        )
        return list(itertools.islice(meant, limit))[::-1]

    def live(self) -> bool:
        """Say whether the daemon's own loop turns; asked through it, so the answer is yes."""
        return True

    def ready(self) -> list[str]:
        """Return the codes of what keeps this device from inspecting; empty when it does."""
        codes = []
        for process in self._supervisor.processes.values():
            if process.beat is None:
                codes.append("LK-3001")
            else:
                codes += [camera.code for camera in process.beat.cameras if camera.code]
                codes += ["LK-8102"] if not process.beat.active else []
        return codes

    # --- stored ---------------------------------------------------------------------------------------------------

    async def bundles(self, include_retired: bool) -> list[Bundle]:
        """Return stored versions, newest import first."""
        async with self._database.read() as tx:
            used = await slots.in_use(tx)
            return [await self._bundle(tx, one, used) for one in await bundles.everything(tx, retired=include_retired)]

    async def bundle(self, ref: str) -> BundleDetail:
        """Return one version with its manifest, card, files and trials."""
        name, _, version = ref.partition("@")
        async with self._database.read() as tx:
            found = [one for one in await bundles.of_name(tx, name) if version in ("", one.version)]
            if not found:
                raise bundles.unknown(ref)
            stored = max(found, key=lambda one: manifests.version_key(one.version))
            files = await bundles.files(tx, stored.id)
            trials = await bundles.trials(tx, stored.id)
            view = await self._bundle(tx, stored, await slots.in_use(tx))
        facts = manifests.parse(stored.manifest)
        card = next((file for file in files if file.name == facts.card), None)
        text = await asyncio.to_thread(_read_card, self._blobs.path(card.sha256)) if card else ""
        return BundleDetail(
            bundle=view, manifest=msgspec.to_builtins(facts), card=text,
            files=[msgspec.to_builtins(file) for file in files],
            trials=[
                {
                    "at": rfc3339(t.at_ms / 1000), "by": t.asked_by, "provider": t.provider,
                    "report": msgspec.to_builtins(t.report),
                }
                for t in trials
            ],
        )  # fmt: skip

    async def _bundle(self, tx: Transaction, stored: StoredBundle, used: dict[str, list[str]]) -> Bundle:
        facts = manifests.parse(stored.manifest)
        trial = await bundles.newest_trial(tx, stored.id)
        return Bundle(
            id=stored.id, name=stored.name, version=stored.version, title=facts.title, task=facts.task,
            digest=stored.digest,
            model_sha256=stored.model_sha256, size_bytes=stored.size_bytes, state=stored.state.value,
            signer=stored.signer,
            signer_key=stored.key_id, imported=rfc3339(stored.imported_ms / 1000), imported_by=stored.imported_by,
            created=facts.created, license=facts.license,
            roles=used.get(stored.id, []) + ["pinned"] * stored.pinned, pinned=stored.pinned,
            metrics=await bundles.metrics(tx, stored.id), labels=facts.labels.names[:100],
            trial=trial.report if trial else None, trial_at=rfc3339(trial.at_ms / 1000) if trial else "",
        )  # fmt: skip

    async def deployments(self, slot: str | None, limit: int, after: int | None) -> list[Deployment]:
        """Return what ran when, newest first."""
        async with self._database.read() as tx:
            rows = await slots.deployments(tx, slot, limit=limit, before=after)
            known = {row.bundle_id: await bundles.get(tx, row.bundle_id) for row in rows}
        return [
            Deployment(
                sequence=row.sequence, slot=row.slot, bundle=known[row.bundle_id].ref,
                digest=known[row.bundle_id].digest,
                started=rfc3339(row.started_ms / 1000), ended=rfc3339(row.ended_ms / 1000) if row.ended_ms else "",
                by=row.asked_by, reason=row.reason, outcome=row.outcome,
            )
            for row in rows
        ]  # fmt: skip

    async def audit(self, limit: int, after: int | None) -> list[AuditEntry]:
        """Return the record, newest first."""
        async with self._database.read() as tx:
            rows = await audit.page(tx, limit=limit, before=after)
        return [
            AuditEntry(
                sequence=row["sequence"], at=rfc3339(row["at_ms"] / 1000), clock_trusted=bool(row["clock_trusted"]),
                by=row["actor"], action=row["action"], subject=row["subject"], reason=row["reason"],
                before=row["before"],
                after=row["after"], monotonic_ms=row["monotonic_ms"], boot=row["boot"], hash=row["hash"],
            )
            for row in rows
        ]  # fmt: skip

    async def windows(self, slot: str | None, since_s: int, seconds: int) -> list[Window]:
        """Return counts and quantiles in windows of `seconds`, which stored spans are merged into; oldest first."""
        async with self._metrics.database.read() as tx:
            found = await windows.since(tx, slot, int(self._clock.now_s()) - since_s)
        merged: dict[tuple[int, str, str], Span] = {}
        for key, span in found:
            width = max(seconds, key.seconds)
            merged.setdefault((key.start_s - key.start_s % width, key.slot, key.bundle), Span()).merge(span)
        return [
            Window(
                slot=name, bundle=bundle, start=rfc3339(start_s), seconds=seconds, frames=span.frames,
                outcomes=span.outcomes,
                misses=span.misses, latency=latency_views(span),
            )
            for (start_s, name, bundle), span in sorted(merged.items(), key=lambda item: item[0])
        ]  # fmt: skip


async def _nobody() -> FleetView | None:
    return None


def _read_card(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""  # damaged and set aside; `doctor` says so


def _ref(bundle: StoredBundle | None) -> str:
    return bundle.ref if bundle else ""


def _faults(slot: StoredSlot, active: StoredBundle | None, beat: Beat | None, locked: list[str]) -> list[Check]:
    """What stands in the slot's way right now, root cause first."""
    if beat is None:
        return [_fault(slot.name, "LK-3001", "The process of this slot is not running; it is being started.", "stop")]
    found = [
        _fault(f"camera {camera.name}", camera.code, camera.message, "stop") for camera in beat.cameras if camera.code
    ]
    if active and beat.active and beat.active != active.ref:
        found.append(_fault(slot.name, "LK-8100", f"{beat.active} runs, the registry says {active.ref}.", "fault"))
    if active and not listed(locked, active.name, active.version, active.digest):
        found.append(_fault(slot.name, "LK-1107", f"{active.ref} runs, which is not on the slot's list.", "fault"))
    if slot.state == SlotState.ROLLED_BACK and slot.reason.startswith("LK-"):
        code, _, text = slot.reason.partition(" ")
        found.append(_fault(slot.name, code, text, "warn"))
    return found


def _fault(name: str, code: str, text: str, severity: Any) -> Check:
    return Check(
        name=name,
        passed=False,
        text=text,
        code=code,
        hint=fault_book().get(code, LenskeepError).hint,
        severity=severity,
    )


def _verdict(found: list[SlotView]) -> Any:
    if found and all(not slot.active for slot in found):
        return "EMPTY" if all(slot.state == "empty" for slot in found) else "STOPPED"
    if any(fault.severity == "stop" for slot in found for fault in slot.faults):
        return "STOPPED"
    return "DEGRADED" if any(slot.faults for slot in found) else "RUNNING"
