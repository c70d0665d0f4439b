"""What a publisher's role may be called and which models it may sign.

Rules. Names of roles become names of files, so they are plain words, and the fixed roles keep theirs. A publisher signs
`models/PATTERN/*` and nothing else. Two publishers never share a model's name: a device would ask only the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tuf.api.metadata import DelegatedRole, Root, Targets

from lenskeep.errors import DelegationError
from lenskeep.trust.keeping import documents
from lenskeep.trust.keeping.documents import Body
from lenskeep.trust.names import BIN_NAME, DIRECTOR, DIRECTOR_PATHS, ROLE_NAME, TOP_ROLES, TOP_TARGETS, may_be_delegated

ONLINE = "online"  # stands for director, snapshot and timestamp together
_PATTERN = re.compile(r"[a-z0-9*][a-z0-9*-]{0,62}")
_PATH = re.compile(rf"models/{_PATTERN.pattern}/\*")


def objections(role: str, body: Body) -> list[str]:
    """Say what no holder should sign and no keeper put in place, however many signatures it has."""
    if isinstance(body, Root):
        found = [text for name in TOP_ROLES for text in _keys(body, name)]
        return found if body.consistent_snapshot else [*found, "It gives up consistent snapshots."]
    if not isinstance(body, Targets):
        return []
    if role != TOP_TARGETS:
        own = body.delegations is None or (role == DIRECTOR and body.delegations.roles is None)
        return [] if own else [f"{role} hands its rights on to others."]
    found = [f"targets lists files itself, such as {path}." for path in list(body.targets)[:1]]
    if body.delegations is None or body.delegations.roles is None or body.delegations.succinct_roles is not None:
        return [*found, "targets delegates in a way that is not used here."]
    for name, delegation in body.delegations.roles.items():
        found += [*_delegation(name, delegation), *_keys(body, name)]
    return found


def _delegation(name: str, delegation: DelegatedRole) -> list[str]:
    if name == DIRECTOR:
        true = delegation.paths == DIRECTOR_PATHS
    else:
        paths = delegation.paths or [""]
        true = may_be_delegated(name) and all(map(_PATH.fullmatch, paths))
    return [] if true and delegation.terminating else [f"The role {name} may sign what no such role may."]


def _keys(delegator: Root | Targets, role: str) -> list[str]:
    """A key of another kind, or one key under two ids, could count elsewhere in ways that nobody sees here."""
    threshold, holders = documents.holders_of(delegator, role)
    listed = delegator.get_delegated_role(role).keyids
    found = [] if len(listed) == len(holders) else [f"{role} lists a key twice, or one that does not count."]
    return found if threshold <= len(holders) else [*found, f"{role} needs more signatures than it has keys."]


def in_scope(targets: Targets, delegation: DelegatedRole) -> bool:
    """Say whether a role lists nothing but what it may list, and delegates nothing on; the director may, to bins."""
    delegates = targets.delegations is not None and delegation.name != DIRECTOR
    return not delegates and all(delegation.is_delegated_path(path) for path in targets.targets)


def check_role_name(role: str, known: dict[str, DelegatedRole]) -> None:
    if not ROLE_NAME.fullmatch(role):
        raise DelegationError(f"{role!r} cannot be a role's name; use a-z, 0-9 and dash.")
    if role in (*TOP_ROLES, DIRECTOR, ONLINE, "publisher") or BIN_NAME.fullmatch(role):
        raise DelegationError(f"{role} is a fixed role; a publisher needs another name.")
    if role in known:
        raise DelegationError(f"There is a publisher {role} already.")


def check_pattern(pattern: str, known: dict[str, DelegatedRole]) -> None:
    if not _PATTERN.fullmatch(pattern):
        raise DelegationError(f"{pattern!r} is no pattern of model names; use a-z, 0-9, dash and `*`.")
    for name, delegation in known.items():
        for path in delegation.paths or []:
            room, _, rest = path.partition("/")
            if room == "models" and overlap(pattern, rest.rpartition("/")[0]):
                raise DelegationError(f"The publisher {name} signs models that {pattern!r} covers too ({path}).")


def overlap(one: str, other: str) -> bool:
    """Say whether two patterns have a name in common; only `*` is special."""
    reachable = {(0, 0)}
    frontier = [(0, 0)]
    while frontier:
        at, there = frontier.pop()
        if (at, there) == (len(one), len(other)):
            return True
        for step in _steps(one, other, at, there):
            if step not in reachable:
                reachable.add(step)
                frontier.append(step)
    return False


def _steps(one: str, other: str, at: int, there: int) -> Iterable[tuple[int, int]]:
    left, right = one[at : at + 1], other[there : there + 1]
    if left == "*":
        yield at + 1, there
    if right == "*":
        yield at, there + 1
    if left and right and (left == right or "*" in (left, right)):
        yield at + (left != "*"), there + (right != "*")
