"""Who is meant: selectors over tags, hardware, names and groups; and how a group is cut into waves.

A selector is one or more terms; all must hold (joined by blanks or `&`), and a comma inside a term means any of them:
`all`, `site=a`, `line=1,2`, `line!=3`, `hardware=rk3588`, `name=cam-1,cam-2`, `cam-1,cam-7`, `group=pilots`, `cam-*`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lenskeep.errors import RequestError
from lenskeep.messages.rollouts import Wave

_TERM = re.compile(r"(?:(?P<key>[a-z][a-z0-9_.-]{0,40})(?P<not>!?)=)?(?P<values>[A-Za-z0-9*?][A-Za-z0-9 _.:/*?,-]*)")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")
GROUPS_DEEP_MAX = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that may be meant."""

    device: str
    tags: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""


def select(selector: str, devices: Sequence[Candidate], groups: Mapping[str, str], deep: int = 0) -> list[Candidate]:
    """Return the devices that a selector means, in their order. Raises: RequestError."""
    if deep > GROUPS_DEEP_MAX:
        raise RequestError(f"The groups behind {selector!r} refer to each other without end.")
    chosen = list(devices)
    for term in re.split(r"\s*&\s*|\s+", selector.strip()):
        chosen = _narrow(term, chosen, groups, deep)
    return chosen


def _narrow(term: str, devices: list[Candidate], groups: Mapping[str, str], deep: int) -> list[Candidate]:
    if term == "all":
        return devices
    found = _TERM.fullmatch(term)
    if found is None:
        raise RequestError(
            f"{term!r} is no selector.", hint="Write all, site=a, line=1,2, line!=3, name=cam-1, group=pilots or cam-*."
        )
    key, values = found["key"] or "name", [value for value in found["values"].split(",") if value]
    if key == "group":
        inside = {one.device for value in values for one in select(_group(value, groups), devices, groups, deep + 1)}
        return [one for one in devices if (one.device in inside) != bool(found["not"])]
    return [one for one in devices if _fits(one, key, values) != bool(found["not"])]


def _group(name: str, groups: Mapping[str, str]) -> str:
    if name not in groups:
        raise RequestError(f"There is no group {name!r}.", hint="List them: lenskeep fleet groups.")
    return groups[name]


def _fits(one: Candidate, key: str, values: list[str]) -> bool:
    shown = one.device if key == "name" else one.hardware if key == "hardware" else one.tags.get(key)
    return shown is not None and any(fnmatch.fnmatchcase(shown, value) for value in values)


def cut(waves: Sequence[Wave], members: Sequence[Candidate], groups: Mapping[str, str], seed: str) -> dict[str, int]:
    """Return the number of its wave (from 0) for every device.

    Whoever is left over after the last wave forms one more. Within a wave hardware classes take turns, so that a
    version which is slow on one of them is found early; the order inside a class is drawn from the seed.
    """
    queue = _mixed(members, seed)
    taken: dict[str, int] = {}
    for number, wave in enumerate(waves):
        left = [one for one in queue if one.device not in taken]
        percent = _PERCENT.fullmatch(wave.take)
        if percent is not None:
            count = -(-round(float(percent[1]) * 1000) * len(queue) // 100_000) - len(taken)
            chosen = left[: max(count, 0)]
        elif wave.take.isdigit():
            chosen = left[: int(wave.take)]
        else:
            chosen = select(wave.take, left, groups)
        taken.update((one.device, number) for one in chosen)
    for one in queue:
        taken.setdefault(one.device, len(waves))
    return taken


def _mixed(members: Sequence[Candidate], seed: str) -> list[Candidate]:
    classes: dict[str, list[Candidate]] = {}
    for one in sorted(members, key=lambda each: hashlib.sha256(f"{seed}/{each.device}".encode()).digest()):
        classes.setdefault(one.hardware, []).append(one)
    rows = [(place, name, one) for name, ones in classes.items() for place, one in enumerate(ones)]
    return [one for _, _, one in sorted(rows, key=lambda row: (row[0], row[1]))]
