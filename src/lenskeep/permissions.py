"""Who may do what, as one table: a route declares one permission, a person has one role.

Rules. The table is the whole truth: the server asks it, the API's document, `whoami` and `lenskeep help roles` are made
from it. Roles are no ladder: an auditor reads everything and changes nothing. The reach says what a token that is bound
to slots may still do: reading goes everywhere, a change of a slot only in its own slots, a change of the whole device
not at all. Not here: who has which role (the configuration and the tokens), and what a slot demands beside a
permission (policy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["viewer", "operator", "supervisor", "engineer", "admin", "auditor"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "supervisor", "engineer", "admin", "auditor")

Permission = Literal[
    "look",
    "read-record",
    "read-access",
    "rollback",
    "hold",
    "test",
    "confirm",
    "check",
    "activate",
    "activate-locked",
    "approve",
    "sync",
    "bundles",
    "trust",
    "keys",
    "tokens",
]
Reach = Literal["reading", "slot", "device"]


@dataclass(frozen=True)
class Rule:
    """One row: what the permission is for, how far it goes, and who has it."""

    words: str
    reach: Reach
    roles: tuple[Role, ...]


EVERYBODY = ROLES
WORKERS: tuple[Role, ...] = ("operator", "supervisor", "engineer", "admin")
LEADERS: tuple[Role, ...] = ("supervisor", "engineer", "admin")
READERS: tuple[Role, ...] = ("supervisor", "engineer", "admin", "auditor")

TABLE: dict[Permission, Rule] = {
    "look": Rule("see status, versions, cameras, results and history", "reading", EVERYBODY),
    "read-record": Rule("read and export the record of every change", "reading", READERS),
    "read-access": Rule("see which tokens there are", "reading", ("admin", "auditor")),
    "test": Rule("test a camera, verify a file without keeping it", "reading", WORKERS),
    "check": Rule("try a version away from the line", "reading", LEADERS),
    "rollback": Rule("go back to the version before", "slot", WORKERS),
    "hold": Rule("hold swaps and let them go on", "slot", WORKERS),
    "confirm": Rule("keep the version that is on trial", "slot", LEADERS),
    "activate": Rule("make a slot run a version", "slot", LEADERS),
    "activate-locked": Rule("make a locked slot run a version of its list", "slot", ("supervisor", "admin")),
    "approve": Rule("approve or refuse what waits for approval", "slot", LEADERS),
    "sync": Rule("bring the device up to date from the fleet or a stick", "device", WORKERS),
    "bundles": Rule("import, pin and remove versions", "device", ("engineer", "admin")),
    "trust": Rule("choose the repository that the device follows", "device", ("admin",)),
    "keys": Rule("trust and revoke signing keys", "device", ("admin",)),
    "tokens": Rule("make and remove tokens", "device", ("admin",)),
}


def may(role: Role, permission: Permission) -> bool:
    """Say whether a role has a permission."""
    return role in TABLE[permission].roles


def permissions_of(role: Role) -> list[Permission]:
    """Return what a role may do, in the table's order."""
    return [permission for permission, rule in TABLE.items() if role in rule.roles]


def covers(role: Role, other: Role) -> bool:
    """Say whether a role may do all that another one may."""
    return set(permissions_of(other)) <= set(permissions_of(role))


def who_may(permission: Permission) -> str:
    """Say in words who has a permission: `operator`, `engineer or admin`, `supervisor, engineer or admin`."""
    *others, last = TABLE[permission].roles
    return f"{', '.join(others)} or {last}" if others else last


assert set(TABLE) == set(Permission.__args__), "a permission has no row"  # type: ignore[attr-defined]
assert all(covers("admin", role) for role in ROLES), "an administrator could make a token that is above him"
assert all(TABLE[permission].reach == "reading" for permission in permissions_of("auditor")), "an auditor could change"
