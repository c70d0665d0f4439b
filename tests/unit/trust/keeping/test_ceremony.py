"""Requests and answers: what true holders send is taken in any order, everything else is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lenskeep.bundle.keys import PrivateKey, generate_key
from lenskeep.errors import AnswerRefusedError, KeepingError, LenskeepError, NotEntitledError
from lenskeep.trust.keeping import ceremony, changes, describing, documents, proposals, settling
from lenskeep.trust.keeping.ceremony import Answer, Request
from lenskeep.trust.keeping.workspace import Workspace, writing
from tests.repositories import Repository, StockClient

SEED = 20261120


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository in which a new root waits for signatures: dora in place of clara."""
    made = Repository(tmp_path / "repository")
    made.publisher("acme", "cap-*")
    with writing(made.folder) as work:
        changes.rotate(work, "root", [made.named("dora")], ["clara"], [], made.now_s)
        ceremony.write_requests(work)
        work.commit()
    return made


def request(repository: Repository, role: str = "root") -> Request:
    found = ceremony.request_of(Workspace(repository.folder), role)
    assert found is not None
    return found


def take(repository: Repository, given: Answer) -> str:
    with writing(repository.folder) as work:
        holder = ceremony.take(work, given)
        settling.settle(work, repository.signers("online"), repository.now_s)
        work.commit()
    return holder.name


def test_answers_in_any_order_and_twice_put_the_root_in_place_when_they_are_enough(
    repository: Repository, tmp_path: Path
) -> None:
    answers = [ceremony.answer(request(repository), repository.keys[name]) for name in ("dora", "anna", "dora")]
    for given in answers[:1]:
        take(repository, given)
    assert repository.document("root").version == 1
    for given in answers[1:]:
        take(repository, given)
    # dora is new, anna old: the root before it lacks a second of its own
    assert repository.document("root").version == 1
    assert "holders of the root before it" in describing.progress(request(repository).tallies, "root")
    assert take(repository, ceremony.answer(request(repository), repository.keys["ben"])) == "ben"
    assert repository.document("root").version == 2
    assert take(repository, answers[0]) == "dora"  # late, and harmless
    assert StockClient(repository, tmp_path / "client").versions()


def test_a_request_file_is_what_a_holder_reads_and_is_gone_afterwards(repository: Repository) -> None:
    file = repository.folder / ceremony.request_file("root", 2)
    seen = ceremony.read_request(file.read_bytes())
    assert seen.document.digest == request(repository).document.digest
    assert ceremony.spoken(seen.document.digest) in file.read_text()
    lines = "\n".join(describing.describe(seen.document, seen.present))
    assert "dora" in lines and "the key of clara" in lines and "taken out" in lines
    for name in ("anna", "ben"):
        with writing(repository.folder) as work:
            ceremony.take(work, ceremony.answer(seen, repository.keys[name]))
            settling.settle(work, (), repository.now_s)
            ceremony.write_requests(work)
            work.commit()
    assert not file.exists()


def test_the_spoken_words_stay_the_same_while_signatures_come_in_and_differ_for_anything_else(
    repository: Repository,
) -> None:
    before = ceremony.spoken(request(repository).document.digest)
    take(repository, ceremony.answer(request(repository), repository.keys["anna"]))
    assert ceremony.spoken(request(repository).document.digest) == before
    with writing(repository.folder) as work:
        changes.rotate(work, "root", [repository.named("emil")], [], [], repository.now_s)
        work.commit()
    assert ceremony.spoken(request(repository).document.digest) != before


def _stranger(answer: Answer, key: PrivateKey, data: bytes) -> Answer:
    return msgspec.structs.replace(answer, key=key.public.id, signature=key.sign(data).hex())


LIES: dict[str, Callable[[Answer, Request, Repository], Answer]] = {
    "altered signature": lambda a, r, p: msgspec.structs.replace(
        a, signature=a.signature[:-2] + ("00" if a.signature[-2:] != "00" else "01")
    ),
    "another digest": lambda a, r, p: msgspec.structs.replace(a, digest="0" * 64),
    "old version": lambda a, r, p: msgspec.structs.replace(a, version=1),
    "wrong role": lambda a, r, p: msgspec.structs.replace(a, role="targets"),
    "role is a path": lambda a, r, p: msgspec.structs.replace(a, role="../../metadata/1.root"),
    "unknown key": lambda a, r, p: _stranger(a, generate_key(), r.document.signed_bytes),
    "key of another role": lambda a, r, p: _stranger(a, p.keys["tara"], r.document.signed_bytes),
    "another holder's name on it": lambda a, r, p: msgspec.structs.replace(a, key=p.keys["ben"].public.id),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.attack(53, 57, 59, 84)
def test_an_answer_that_lies_is_refused(repository: Repository, lie: str) -> None:
    seen = request(repository)
    given = LIES[lie](ceremony.answer(seen, repository.keys["anna"]), seen, repository)
    with pytest.raises(AnswerRefusedError):
        take(repository, given)
    assert not request(repository).document.metadata.signatures


def test_any_flipped_character_of_an_answer_is_refused_or_harmless(repository: Repository) -> None:
    seen = request(repository)
    text = bytearray(ceremony.write_answer(ceremony.answer(seen, repository.keys["anna"])))
    chance = random.Random(SEED)
    print("seed", SEED)
    for _ in range(300):
        spoiled = bytearray(text)
        spoiled[chance.randrange(len(text))] = chance.randrange(256)
        try:
            name = take(repository, ceremony.read_answer(bytes(spoiled)))
        except AnswerRefusedError:
            continue
        assert name == "anna"  # a space that became another one


def test_any_flipped_character_of_a_request_is_refused_or_changes_its_words(repository: Repository) -> None:
    file = repository.folder / ceremony.request_file("root", 2)
    text, chance = file.read_bytes(), random.Random(SEED)
    print("seed", SEED)
    digest = request(repository).document.digest
    for _ in range(300):
        spoiled = bytearray(text)
        spoiled[chance.randrange(len(text))] = chance.randrange(256)
        try:
            seen = ceremony.read_request(bytes(spoiled))
        except LenskeepError:
            continue
        if seen.document.digest == digest:
            assert seen.document.signed_bytes == request(repository).document.signed_bytes


@pytest.mark.parametrize("role", ["../x", "a/b", "", "Root", "x" * 64])
@pytest.mark.attack(87)
def test_a_request_for_a_role_with_a_forbidden_name_is_refused(repository: Repository, role: str) -> None:
    plain: dict[str, Any] = json.loads((repository.folder / ceremony.request_file("root", 2)).read_text())
    with pytest.raises(KeepingError):
        ceremony.read_request(json.dumps(plain | {"role": role}).encode())


def test_a_stranger_cannot_sign_a_request(repository: Repository) -> None:
    with pytest.raises(NotEntitledError, match="anna"):
        ceremony.answer(request(repository), generate_key())


def test_a_proposal_that_a_crash_left_behind_is_forgotten(repository: Repository) -> None:
    stale = (repository.folder / "pending" / "root.json").read_bytes()
    for name in ("anna", "ben"):
        take(repository, ceremony.answer(request(repository), repository.keys[name]))
    raw = json.loads(stale)
    raw["document"] = json.loads(repository.document("root").raw)
    (repository.folder / "pending" / "root.json").write_text(json.dumps(raw))
    repository.refresh()
    assert proposals.load(Workspace(repository.folder), "root") is None


def asked(repository: Repository, change: Callable[[Any], None], role: str = "root") -> Request:
    """A request whose document a dishonest coordinator has changed."""
    body = documents.body_of(repository.document(role))
    body.version += 1
    change(body)
    plain = json.loads((repository.folder / ceremony.request_file("root", 2)).read_text())
    plain |= {"role": role, "document": json.loads(documents.write(role, body).raw), "present": None}
    plain["judges"] = [] if role == "root" else [json.loads(repository.document("root").raw)]
    return ceremony.read_request(json.dumps(plain).encode())


def _foreign_key(body: Any) -> None:
    body.keys["e" * 64] = documents.SSlibKey("e" * 64, "ed25519", "ed25519", {"public": "ab" * 32})
    body.roles["root"].keyids.append("e" * 64)


def _twin(body: Any) -> None:
    first = body.keys[body.roles["root"].keyids[0]]
    body.keys["e" * 64] = documents.SSlibKey("e" * 64, first.keytype, first.scheme, dict(first.keyval))
    body.roles["root"].keyids.append("e" * 64)


def _wide(body: Any) -> None:
    body.delegations.roles["acme"].paths.append("devices/*")


def _open_ended(body: Any) -> None:
    body.delegations.roles["acme"].terminating = False


def _own_files(body: Any) -> None:
    body.targets["devices/cam-1.json"] = documents.target_of("devices/cam-1.json", 1, "0" * 64)


@pytest.mark.parametrize(
    ("role", "change"),
    [("root", _foreign_key), ("root", _twin), ("root", lambda body: setattr(body, "consistent_snapshot", False)),
     ("targets", _wide), ("targets", _open_ended), ("targets", _own_files)],
)  # fmt: skip
@pytest.mark.attack(58, 62, 88, 95)
def test_a_request_with_something_hidden_in_it_is_shown_and_not_signed(
    repository: Repository, role: str, change: Callable[[Any], None]
) -> None:
    seen = asked(repository, change, role)
    assert any("DO NOT SIGN" in line for line in describing.describe(seen.document, seen.present))
    with pytest.raises(KeepingError, match="Nobody should sign this"):
        ceremony.answer(seen, repository.keys["anna" if role == "root" else "tara"])


def test_a_request_that_lies_about_the_present_root_is_found_by_whoever_knows_it(repository: Repository) -> None:
    seen = request(repository)
    ceremony.check_known(seen, repository.root(1))
    body = documents.body_of(repository.document("root"))
    body.add_key(documents.tuf_key(repository.named("mallory").public, "mallory"), "root")
    forged = documents.write("root", body)
    plain = json.loads((repository.folder / ceremony.request_file("root", 2)).read_text())
    lying = ceremony.read_request(json.dumps(plain | {"present": json.loads(forged.raw)}).encode())
    with pytest.raises(KeepingError, match="root that you know"):
        ceremony.check_known(lying, repository.root(1))
    assert any(
        line.startswith("= root afterwards: 2 of anna") for line in describing.describe(lying.document, lying.present)
    )


def test_a_holders_name_that_is_a_path_is_not_taken_for_a_name(repository: Repository) -> None:
    key = repository.keys["anna"].public
    body = documents.body_of(repository.document("root"))
    for name in ("../../etc/passwd", "a\nb", "\x1b[2J", "x" * 80):
        body.keys[documents.tuf_key(key).keyid].unrecognized_fields[documents.NAME_FIELD] = name
        assert "" in {holder.name for holder in documents.holders_of(body, "root")[1]}
