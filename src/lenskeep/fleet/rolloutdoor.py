"""What operators ask of rollouts, groups and tags.

Rules. Whoever starts, stops or approves must be operator; an approval counts from somebody else than the one who asked,
and once from each. Every deed is written down. A dry run goes the whole way and writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from lenskeep.clock import Clock
from lenskeep.errors import ConflictError, NotPermittedError, RequestError
from lenskeep.fleet import answers
from lenskeep.fleet.conductor import Conductor
from lenskeep.fleet.director import Director
from lenskeep.fleet.operators import Operator, Route
from lenskeep.fleet.rollouts import judge, showing
from lenskeep.fleet.rollouts.facts import Member, Rollout
from lenskeep.fleet.rollouts.lifecycle import OVER, RolloutState
from lenskeep.fleet.rollouts.selecting import select
from lenskeep.fleet.rollouts.starting import Ground, compose
from lenskeep.fleet.store.rollouts import RolloutStore
from lenskeep.messages.rollouts import GroupAsk, GroupView, Plan, RolloutAsk, RolloutDeed, TagAsk

_NUMBER = "{number:[0-9]{1,15}}"
Look = tuple[Rollout, list[Member]]


class RolloutDoor:
    """The operators' routes about rollouts."""

    def __init__(
        self, store: RolloutStore, conductor: Conductor, director: Director, clock: Clock, *, request_s_max: float
    ) -> None:
        self._store = store
        self._conductor = conductor
        self._director = director
        self._clock = clock
        self._request_s_max = request_s_max

    def routes(self) -> list[Route]:
        """Return the routes and who may ask them."""
        one = f"/v1/fleet/rollouts/{_NUMBER}"
        return [
            ("GET", "/v1/fleet/rollouts", "viewer", self._list),
            ("POST", "/v1/fleet/rollouts", "operator", self._start),
            ("GET", one, "viewer", self._show),
            ("POST", f"{one}/approval", "operator", self._approve),
            ("POST", f"{one}/pause", "operator", self._pause),
            ("POST", f"{one}/resumption", "operator", self._resume),
            ("POST", f"{one}/abort", "operator", self._abort),
            ("GET", "/v1/fleet/deployments", "viewer", self._deployments),
            ("GET", "/v1/fleet/groups", "viewer", self._groups),
            ("POST", "/v1/fleet/groups", "operator", self._set_group),
            ("DELETE", "/v1/fleet/groups/{name}", "operator", self._remove_group),
            ("POST", "/v1/fleet/tags", "operator", self._tag),
            ("GET", "/v1/fleet/tags", "viewer", self._tags),
        ]

    # --- rollouts ---------------------------------------------------------------------------------------------------

    async def _list(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said([showing.row(rollout, states) for rollout, states in await self._store.all()])

    async def _show(self, request: web.Request, _who: Operator) -> web.Response:
        return answers.said(showing.detail(*await self._store.get(_number(request))))

    async def _start(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, RolloutAsk, self._request_s_max)
        await asyncio.to_thread(self._director.check_in_thread)
        ground = await self._ground(ask.plan)
        now_ms = self._clock.now_ms()
        if ask.dry_run:
            return answers.said(showing.detail(*compose(ask.plan, ground, 0, who.by, now_ms)))
        number = await self._store.add(
            lambda free: compose(ask.plan, ground, free, who.by, now_ms), by=who.by, now_ms=now_ms
        )
        self._conductor.wake()
        return answers.said(showing.detail(*await self._store.get(number)), 201)

    async def _ground(self, plan: Plan) -> Ground:
        enrolled = await self._store.enrolled()
        return Ground(
            devices=[one.candidate for one in enrolled],
            running={one.candidate.device: one.running for one in enrolled}, groups=await self._store.groups(),
            failed_there=await self._store.failed_there(plan.bundle, plan.slot),
            listed=await asyncio.to_thread(self._director.listed_in_thread, [plan.bundle]),
        )  # fmt: skip

    async def _approve(self, request: web.Request, who: Operator) -> web.Response:
        moment = await self._conductor.moment()

        def decide(rollout: Rollout, members: list[Member]) -> Look:
            _check_approval(rollout, who.by)
            return judge.approve(rollout, who.by, moment), members

        return await self._change(request, who, "approve", decide)

    async def _pause(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, RolloutDeed, self._request_s_max)
        moment = await self._conductor.moment()
        reason = f"paused by {who.by}{f': {ask.reason}' if ask.reason else ''}"
        return await self._change(
            request, who, "pause", lambda now, ones: judge.pause(now, ones, reason, moment), ask.reason
        )

    async def _resume(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, RolloutDeed, self._request_s_max)
        moment = await self._conductor.moment((await self._store.get(_number(request)))[0])
        reason = f"resumed by {who.by}{f': {ask.reason}' if ask.reason else ''}"
        return await self._change(
            request, who, "resume", lambda now, ones: judge.resume(now, ones, reason, moment), ask.reason
        )

    async def _abort(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, RolloutDeed, self._request_s_max)
        moment = await self._conductor.moment()
        elsewhere = await self._store.superseded(_number(request))
        reason = f"aborted by {who.by}{f': {ask.reason}' if ask.reason else ''}"

        def decide(rollout: Rollout, members: list[Member]) -> Look:
            """A device that a later rollout has taken over is not touched."""
            mine = [one for one in members if one.device not in elsewhere]
            after, changed = judge.abort(rollout, mine, reason, moment, revert=ask.revert)
            return after, [*changed, *(one for one in members if one.device in elsewhere)]

        return await self._change(request, who, "abort and revert" if ask.revert else "abort", decide, ask.reason)

    async def _change(
        self, request: web.Request, who: Operator, action: str, decide: Callable[[Rollout, list[Member]], Look],
        reason: str = "",
    ) -> web.Response:  # fmt: skip
        number = _number(request)
        after, members = await self._store.revise(number, decide)
        subject = f"{number} {after.plan.bundle}"
        await self._store.note_deed(who.by, f"{action} rollout", subject, reason, now_ms=self._clock.now_ms())
        self._conductor.wake()
        return answers.said(showing.detail(after, members))

    async def _deployments(self, request: web.Request, _who: Operator) -> web.Response:
        query = request.query
        return answers.said(await self._store.history(device=query.get("device", ""), bundle=query.get("bundle", "")))

    # --- groups and tags ----------------------------------------------------------------------------------------------

    async def _groups(self, _request: web.Request, _who: Operator) -> web.Response:
        groups = await self._store.groups()
        devices = [one.candidate for one in await self._store.enrolled()]
        return answers.said(
            [
                GroupView(
                    name=name, selector=selector, devices=[one.device for one in select(selector, devices, groups)]
                )
                for name, selector in groups.items()
            ]
        )

    async def _set_group(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, GroupAsk, self._request_s_max)
        groups = {**await self._store.groups(), ask.name: ask.selector}
        devices = [one.candidate for one in await self._store.enrolled()]
        inside = [one.device for one in select(f"group={ask.name}", devices, groups)]
        await self._store.set_group(ask.name, ask.selector)
        await self._store.note_deed(who.by, "set group", ask.name, ask.selector, now_ms=self._clock.now_ms())
        return answers.said(GroupView(name=ask.name, selector=ask.selector, devices=inside), 201)

    async def _remove_group(self, request: web.Request, who: Operator) -> web.Response:
        name = request.match_info["name"]
        await self._store.remove_group(name)
        await self._store.note_deed(who.by, "remove group", name, "", now_ms=self._clock.now_ms())
        return answers.said(None)

    async def _tags(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said({one.candidate.device: one.candidate.tags for one in await self._store.enrolled()})

    async def _tag(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, TagAsk, self._request_s_max)
        await self._store.tag(ask.devices, ask.tags)
        words = ", ".join(f"{key}={value}" if value is not None else f"no {key}" for key, value in ask.tags.items())
        subject = ", ".join(ask.devices[:20])
        await self._store.note_deed(who.by, "tag", subject, words, now_ms=self._clock.now_ms())
        return answers.said(None)


def _number(request: web.Request) -> int:
    return int(request.match_info["number"])


def _check_approval(rollout: Rollout, by: str) -> None:
    if rollout.state in OVER or rollout.state == RolloutState.REVERTING or not rollout.plan.approvals:
        raise ConflictError(f"Rollout {rollout.id} waits for no approval. Nothing was changed.")
    if by == rollout.by:
        raise NotPermittedError(f"{by} asked for this rollout; somebody else has to approve it. Nothing was changed.")
    if rollout.plan.approvers and by not in rollout.plan.approvers:
        names = ", ".join(rollout.plan.approvers)
        raise NotPermittedError(f"{by} is not among those who may approve it: {names}. Nothing was changed.")
    if by in rollout.approvals:
        raise RequestError(f"{by} has approved it already. Nothing was changed.")
