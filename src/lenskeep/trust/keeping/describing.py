"""What a document says, and how it differs from the one in force, in sentences that a holder can judge.

Everything is worked out from the documents themselves. Names and reasons may come from strangers: whoever prints them
cleans them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuf.api.metadata import Root, Targets

from lenskeep.clock import rfc3339
from lenskeep.trust.keeping import documents, releases, scopes, state
from lenskeep.trust.keeping.documents import Delegator, Document, Holder, Tally
from lenskeep.trust.names import DIRECTOR, TOP_ROLES, model_of

_KNOWN_FIELDS = {releases.WITHDRAWN_FIELD}


def describe(document: Document, present: Document | None) -> list[str]:
    """Say what a document is and what it changes."""
    before = "the first one" if present is None else f"after version {present.version}"
    lines = [f"{document.role} version {document.version}, {before}, good until {day(document.expires_s)}."]
    body: Any = document.metadata.signed
    old: Any = None if present is None else present.metadata.signed
    changes = list(_root(body, old) if isinstance(body, Root) else _targets(body, old))
    lines += changes or ["Nothing in it changes; it is renewed."]
    lines += [f"! DO NOT SIGN: {text}" for text in scopes.objections(document.role, body)]
    strange = sorted(set(body.unrecognized_fields) - _KNOWN_FIELDS)
    return [
        *lines,
        *_standing(body, old),
        *(f"! It has a field that this tool does not know: {name}." for name in strange),
    ]


def progress(tallies: list[Tally], role: str) -> str:
    """Say who has signed: `2 of 3 root holders must sign; anna has signed; ben, clara may.`"""
    sentences = []
    for number, tally in enumerate(tallies):
        whose = "holders" if number == 0 else "holders of the root before it"
        total = len(tally.signed) + len(tally.missing)
        signed = ", ".join(str(holder) for holder in tally.signed) or "nobody"
        verb = "has" if len(tally.signed) < 2 else "have"
        text = f"{tally.threshold} of {total} {role} {whose} must sign; {signed} {verb} signed"
        if not tally.met:
            text += f"; still to sign: {tally.threshold - len(tally.signed)} of {', '.join(map(str, tally.missing))}"
        sentences.append(text + ".")
    return " ".join(dict.fromkeys(sentences))


def day(seconds: float) -> str:
    """Return a day as `2027-01-31`."""
    return rfc3339(seconds)[:10]


def _root(new: Root, old: Root | None) -> Iterator[str]:
    for role in TOP_ROLES:
        yield from _keys(role, new, old)


def _targets(new: Targets, old: Targets | None) -> Iterator[str]:
    roles, before = state.delegations_of(new), state.delegations_of(old)
    for name, delegation in roles.items():
        kind = "the director" if name == DIRECTOR else f"the publisher {name}"
        paths = ", ".join(delegation.paths or ["?"])
        known = before.get(name)
        if known is None:
            yield f"+ {kind} may sign {paths}"
        elif known.paths != delegation.paths:
            yield f"! {kind} may sign {paths} in place of {', '.join(known.paths or ['?'])}"
        yield from _keys(name, new, old)
    for name in before:
        if name not in roles:
            yield f"- the publisher {name} is taken out; nothing of it can be installed"
    yield from _listed(new, old)


def _keys(role: str, new: Delegator, old: Delegator | None) -> Iterator[str]:
    threshold, holders = documents.holders_of(new, role)
    before_threshold, before = (0, []) if old is None else documents.holders_of(old, role)
    if not before:
        who = ", ".join(_named(holder) for holder in holders) or "nobody"
        yield f"+ {role}: {threshold} of {len(holders)} must sign: {who}"
        return
    known, now = {holder.id for holder in before}, {holder.id for holder in holders}
    yield from (f"+ {role}: the key of {_named(holder)} is added" for holder in holders if holder.id not in known)
    yield from (f"- {role}: the key of {_named(holder)} is taken out" for holder in before if holder.id not in now)
    if threshold != before_threshold:
        yield f"! {role}: {threshold} of {len(holders)} must sign; it was {before_threshold} of {len(before)}"


def _standing(new: Any, old: Any) -> Iterator[str]:
    """Say who may sign afterwards, in full: what is shown as present came with the request and may lie."""
    if old is None or not isinstance(new, Root | Targets):
        return
    for role in TOP_ROLES if isinstance(new, Root) else state.delegations_of(new):
        threshold, holders = documents.holders_of(new, role)
        yield f"= {role} afterwards: {threshold} of {', '.join(_named(holder) for holder in holders)}"


def _listed(new: Targets, old: Targets | None) -> Iterator[str]:
    before = {} if old is None else old.targets
    gone = new.unrecognized_fields.get(releases.WITHDRAWN_FIELD, {})
    for path, target in new.targets.items():
        if path not in before or before[path].hashes != target.hashes:
            sign = "+" if path not in before else "!"
            sha256 = target.hashes.get("sha256", "?")
            yield f"{sign} lists {version_of(path)}: {target.length} bytes, sha256 {sha256[:16]}…"
    for path in before:
        if path not in new.targets:
            facts = gone.get(path, {}) if isinstance(gone, dict) else {}
            reason = f": {facts['reason']}" if isinstance(facts, dict) and facts.get("reason") else ""
            yield f"- lists {version_of(path)} no more{reason}"


def version_of(path: str) -> str:
    """Return `NAME@VERSION` for a model's path, anything else as it is."""
    found = model_of(path)
    return path if found is None else f"{found[0]}@{found[1]}"


def _named(holder: Holder) -> str:
    return f"{holder.name or 'nobody named'} ({holder.id[:12]})"
