"""What the `trust` commands do: open keys and folder, propose, put in place, write at once, and say it plainly."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from lenskeep.bundle import disk
from lenskeep.bundle.keys import Signer
from lenskeep.cli.commands import trust_words
from lenskeep.cli.output import emit, screen_of
from lenskeep.cli.run import run_of
from lenskeep.cli.words import clean
from lenskeep.errors import KeepingError, RepositoryFolderError, RequestError, UnknownNameError
from lenskeep.trust.keeping import (
    ceremony,
    changes,
    describing,
    director,
    forecast,
    keyring,
    proposals,
    releases,
    settings,
    settling,
    state,
)
from lenskeep.trust.keeping.changes import NamedKey
from lenskeep.trust.keeping.forecast import Waiting
from lenskeep.trust.keeping.workspace import SETTINGS, Workspace, writing

Act = Callable[[Workspace, list[Signer], float], list[str]]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a command did."""

    dry_run: bool
    did: list[str]
    in_place: list[str]  # roles whose proposal is in force now
    renewed: list[str]
    waiting: list[Waiting]
    held_back: list[str]  # sentences: why complete proposals are not in place yet
    refresh_needed: bool
    files: list[str]


def init(
    context: click.Context, folder: Path, *, root: Sequence[str], threshold: int, targets: Sequence[str],
    targets_threshold: int, online: Sequence[str], director: Sequence[str], usb: bool, **options: Any,
) -> None:  # fmt: skip
    """Begin a repository."""
    names = {"root": _named(root), "targets": _named(targets), "online": _named(online), "director": _named(director)}

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        changes.begin(
            work, threshold=threshold, targets_threshold=targets_threshold, signers=signers, now_s=now_s,
            terms=settings.Settings(usb_sites=usb), **names,
        )  # fmt: skip
        return [f"Proposed the first root of {folder}: {threshold} of {len(root)} holders must sign."]

    _change(context, folder, act, create=True, **options)


def status(context: click.Context, folder: Path) -> None:
    """Show a repository."""
    seen = forecast.status(Workspace(_existing(folder)), _now_s())
    emit(context, "trust-status/1", seen, lambda screen: trust_words.show_status(screen, seen, time.time()))


def add_publisher(
    context: click.Context, role: str, *, public: Sequence[str], threshold: int, patterns: Sequence[str],
    repository: Path, **options: Any,
) -> None:  # fmt: skip
    """Propose a publisher."""
    named = _named(public)

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        changes.add_publisher(work, role, named, threshold, patterns, signers, now_s)
        return [f"Proposed that {role} may sign {', '.join(patterns)} ({threshold} of {len(named)} keys)."]

    _change(context, repository, act, **options)


def rotate(
    context: click.Context, role: str, *, add: Sequence[str], remove: Sequence[str], threshold: int | None,
    repository: Path, **options: Any,
) -> None:  # fmt: skip
    """Propose other keys for a role."""
    if not add and not remove and threshold is None:
        raise RequestError("Say which key comes or goes: --add PUB, --remove NAME.")
    named = _named(add)

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        changes.rotate(work, role, named, remove, signers, now_s, threshold=threshold)
        come = f" {', '.join(key.name for key in named)} in." if named else ""
        go = f" {', '.join(remove)} out." if remove else ""
        return [f"Proposed new keys for {role}:{come}{go}"]

    _change(context, repository, act, **options)


def revoke(
    context: click.Context, what: str, *, add: Sequence[str], reason: str, repository: Path, **options: Any
) -> None:
    """Propose to take out a publisher or a key."""
    named = _named(add)

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        publishers = set(state.require(work).delegations) - {"director"}
        if what in publishers:
            changes.revoke_publisher(work, what, signers, now_s, reason=reason)
            return [f"Proposed to take out the publisher {what}: {reason}"]
        roles = changes.revoke_key(work, what, named, signers, now_s, reason=reason)
        return [f"Proposed to take the key {what} out of {', '.join(roles)}: {reason}"]

    _change(context, repository, act, **options)


def renew(context: click.Context, role: str, *, repository: Path, **options: Any) -> None:
    """Propose a role's content for another term."""

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        changes.renew(work, role, signers, now_s)
        return [f"Proposed {role} for another term."]

    _change(context, repository, act, **options)


def cancel(context: click.Context, role: str, *, repository: Path, **options: Any) -> None:
    """Give up a proposal."""

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        del signers, now_s
        if proposals.load(work, role) is None:
            raise UnknownNameError(f"Nothing waits for a signature of {role}.")
        proposals.drop(work, role)
        return [f"Gave up what waited for {role}."]

    _change(context, repository, act, **options)


def publish(context: click.Context, files: Sequence[Path], *, repository: Path, **options: Any) -> None:
    """Release bundles."""
    moved = run_of(context).transfer("Reading")

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        made = releases.publish(work, files, signers, now_s, moved)
        return [f"{one.bundle.manifest.name}@{one.bundle.manifest.version} by {one.role}, verified." for one in made]

    _change(context, repository, act, **options)


def withdraw(context: click.Context, version: str, *, reason: str, repository: Path, **options: Any) -> None:
    """List a version no more."""
    name, number = _version(version)

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        role = releases.withdraw(work, name, number, reason, signers, now_s)
        return [f"{version} is withdrawn by {role}: {reason}"]

    _change(context, repository, act, **options)


def assign(
    context: click.Context, device: str, slots: Sequence[str], *, only: bool, repository: Path, **options: Any
) -> None:
    """Assign versions to a device's slots."""
    if not slots and not only:
        raise RequestError("Say what the device should run: SLOT=NAME@VERSION.")
    wanted: dict[str, tuple[str, str] | None] = {}
    for word in slots:
        slot, sign, version = word.partition("=")
        if not sign:
            raise RequestError(f"{word!r} is no assignment; write SLOT=NAME@VERSION, or SLOT=none.")
        wanted[slot] = None if version == "none" else _version(version)

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        made = director.assign(work, {device: wanted}, signers, now_s, only=only)[0]
        said = [f"{slot} = {describing.version_of(one.target)}" for slot, one in sorted(made.slots.items())]
        return [f"{device}, decision {made.generation}: {', '.join(said) or 'nothing'}."]

    _change(context, repository, act, **options)


def refresh(context: click.Context, *, usb: bool | None, if_due: bool, repository: Path, **options: Any) -> None:
    """Renew the online roles."""

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        del now_s
        terms = settings.load(work)
        state.require(work)
        if usb is not None and usb != terms.usb_sites:
            work.put(SETTINGS, settings.text(dataclasses.replace(terms, usb_sites=usb)))
        if not signers:
            raise RequestError("Say the online key: --key KEY.")
        return []

    _change(context, repository, act, force=not if_due, must_renew=not if_due, **options)


def sign(
    context: click.Context, files: Sequence[Path], *, import_: bool, out: Path | None, known: Path | None, yes: bool,
    repository: Path,
    **options: Any,
) -> None:  # fmt: skip
    """Sign a request, collect answers, or sign what waits."""
    folders = [path for path in files if path.is_dir()]
    papers = [path for path in files if not path.is_dir()]
    if len(folders) > 1:
        raise RequestError("Name one repository.")
    folder = folders[0] if folders else repository
    if import_:
        _import(context, papers, folder, options)
    elif papers:
        if len(papers) > 1:
            raise RequestError("Sign one request at a time.", hint="Answers are collected with --import.")
        _answer(context, papers[0], out, known, yes, options)
    else:
        _sign_here(context, folder, yes, options)


def _import(context: click.Context, papers: Sequence[Path], folder: Path, options: Mapping[str, Any]) -> None:
    if not papers:
        raise RequestError("Name the holders' answers: sign --import ANSWER… DIR.")
    refused: list[str] = []

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        del now_s
        did = []
        for paper in papers:
            try:
                holder = ceremony.take(work, ceremony.read_answer(_small(paper)))
                did.append(f"{paper.name}: signed by {holder}.")
            except KeepingError as error:
                refused.append(f"{paper.name}: {error}")
        ceremony.sign_all(work, signers)
        return did

    _change(context, folder, act, refused=refused, **options)


def _answer(
    context: click.Context, paper: Path, out: Path | None, known: Path | None, yes: bool, options: Mapping[str, Any]
) -> None:
    screen = screen_of(context)
    request = ceremony.read_request(_small(paper))
    document = request.document
    spoken = ceremony.spoken(document.digest)
    if not screen.json:
        trust_words.show_request(screen.note, request)
    if known is not None:
        ceremony.check_known(request, _small(known))
    signers = _signers(context, options)
    if len(signers) != 1:
        raise RequestError("Sign with one key: --key KEY.")
    given = ceremony.answer(request, signers[0])
    holder = next(one for one in request.entitled if one.id == signers[0].public.id)
    place = out or paper.with_name(f"{paper.name.removesuffix('.request')}-{holder}.answer")
    data = {"role": document.role, "version": document.version, "spoken": spoken, "answer": str(place)}
    if options["dry_run"]:
        emit(context, "trust-answer/1", data, lambda screen: screen.line("Nothing was signed (dry run)."))
        return
    _ask(yes, f"Sign {document.role} {document.version} as {holder}?")
    with disk.appearing(place) as scratch:
        scratch.write_bytes(ceremony.write_answer(given))

    def human(screen: Any) -> None:
        screen.line(f"{screen.mark('good')} Signed as {holder}: {clean(place)}")
        screen.next(f"send this file back; there: lenskeep trust sign --import {clean(place.name)} DIR")

    emit(context, "trust-answer/1", data, human)


def _sign_here(context: click.Context, folder: Path, yes: bool, options: Mapping[str, Any]) -> None:
    screen = screen_of(context)
    looked = Workspace(_existing(folder))
    state.require(looked)
    opened = _signers(context, options)
    ids = {signer.public.id for signer in opened}
    requests = [ceremony.request_of(looked, role) for role in looked.pending()]
    mine = [one for one in requests if one is not None and ids & {holder.id for holder in one.entitled}]
    for request in mine if not screen.json else ():
        trust_words.show_request(screen.note, request)
    if mine and not options["dry_run"]:
        _ask(yes, "Sign this?")
    shown = {request.document.digest for request in mine}

    def act(work: Workspace, signers: list[Signer], now_s: float) -> list[str]:
        del now_s
        if not signers:
            raise RequestError("Say which key signs: --key KEY.")
        waiting = {role: one.document for role, one in proposals.load_all(work).items()}
        roles = ceremony.sign_all(work, signers)
        if {waiting[role].digest for role in roles} - shown:
            raise KeepingError("What waits here has changed since it was shown. Nothing was signed.")
        return [f"Signed {role}." for role in roles] or ["Nothing waits for these keys."]

    _change(context, folder, act, opened=opened, **options)


def _change(
    context: click.Context, folder: Path, act: Act, *, dry_run: bool, keys: Sequence[str],
    passphrase_file: Path | None, create: bool = False, force: bool = False, must_renew: bool = False,
    refused: Sequence[str] = (), opened: list[Signer] | None = None,
) -> None:  # fmt: skip
    """Do one thing to a repository: all of it, or nothing."""
    signers = opened or _signers(context, {"keys": keys, "passphrase_file": passphrase_file})
    now_s = _now_s()
    with _opened(context, folder, dry_run=dry_run, create=create) as work:
        did = act(work, signers, now_s)
        settled = settling.settle(work, signers, now_s, force=force)
        ceremony.write_requests(work, _summaries(work))
        done = Done(
            dry_run=dry_run, did=did, in_place=list(settled.placed), renewed=list(settled.renewed),
            waiting=forecast.waiting(work), held_back=list(settled.waiting),
            refresh_needed=settled.refresh_needed, files=work.changed,
        )  # fmt: skip
        warnings = settled.warnings or (forecast.problems(work) if "targets" in settled.placed else [])
        if must_renew and not settled.renewed:
            raise trust_words.not_renewed(settled)
        if not dry_run:
            work.commit()
    emit(context, "trust-change/1", done, lambda screen: trust_words.show_done(screen, done, folder), warnings)
    if refused:
        raise trust_words.answers_refused(refused)


@contextlib.contextmanager
def _opened(context: click.Context, folder: Path, *, dry_run: bool, create: bool) -> Iterator[Workspace]:
    """Lend the folder to write in, or only to look at for a dry run."""
    if not create:
        _existing(folder)
    if dry_run:
        yield Workspace(folder)
        return
    with writing(folder, progress=run_of(context).transfer("Copying")) as work:
        yield work


def _existing(folder: Path) -> Path:
    if not (folder / "metadata").is_dir() and not (folder / "pending").is_dir():
        raise RepositoryFolderError(f"{folder} is no repository.")
    return folder


def _summaries(work: Workspace) -> dict[str, list[str]]:
    current = state.load(work)
    found = proposals.load_all(work)
    return {role: describing.describe(one.document, current.document(role)) for role, one in found.items()}


def _named(words: Sequence[str]) -> list[NamedKey]:
    """Read public keys: FILE, or NAME=FILE."""
    return [changes.named(*_named_file(word)) for word in words]


def _named_file(word: str) -> tuple[str, bytes]:
    name, sign, path = word.partition("=")
    file = Path(path if sign else word)
    return name if sign else file.stem, _small(file)


def _small(path: Path) -> bytes:
    with disk.open_regular(path) as file:
        return file.readall() or b""


def _version(text: str) -> tuple[str, str]:
    name, sign, version = text.partition("@")
    if not sign or not name or not version:
        raise RequestError(f"{text!r} is no version; write NAME@VERSION, as in cap-inspect@1.1.0.")
    return name, version


def _signers(context: click.Context, options: Mapping[str, Any]) -> list[Signer]:
    environment = run_of(context).environment
    file: Path | None = options.get("passphrase_file")
    given = _small(file).decode().partition("\n")[0] if file else environment.get("LENSKEEP_PASSPHRASE")

    def ask(what: str) -> str | None:
        if not given and (screen_of(context).json or not sys.stdin.isatty()):
            raise RequestError(f"The key {what} is encrypted.", hint="Give its passphrase with --passphrase-file FILE.")
        return given or click.prompt(f"Passphrase of {clean(what)}", hide_input=True, err=True)

    return [keyring.open_signer(word, environment, ask) for word in options["keys"]]


def _ask(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RequestError(
            "Nobody is there to be asked. Nothing was signed.", hint="Compare the words, then say --yes."
        )
    if not click.confirm(question, err=True):
        raise click.Abort


def _now_s() -> float:
    return time.time()
