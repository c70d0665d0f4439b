"""Our client beside plain python-tuf on documents that are signed correctly and malformed in every way we could think of.

Whatever a role's key signs, our client answers with a verdict or a refusal and never with an exception, and it accepts
nothing that python-tuf refuses. `LENSKEEP_FUZZ_CASES=20000` runs that many cases; each is named by its seed, which
stands in the failure. `pytest -s` prints what we refuse and python-tuf accepts.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.exceptions import FormatError
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from lenskeep.messages.trust import Look, Refusal, Unproven, Verdict
from lenskeep.trust.client import LIMITS, look
from tests.forger import DAY_S, Forger, key_dict, when

CASES = int(os.environ.get("LENSKEEP_FUZZ_CASES", "2000"))
CHUNKS = 10
MODEL, DEVICE = "models/cap-inspect/1.0.0.lkb", "devices/cam-1.json"
ROLES = ["root", "timestamp", "snapshot", "targets", "cap-team", "director"]

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 10**15, 10**40, -(10**40), "", "x", "1", "ä", "\u202e", "\x00", "x" * 5000, "../x",
    [], {}, [[]], [None], [1], ["x"], {"": 0}, {"x": {}}, {"x": [{"y": "z"}]}, "root", "targets", "*", "**", "models/*/*",
]  # fmt: skip
EXPIRES = [
    "2030-01-01T00:00:00Z", "2030-1-1T0:0:0Z", "2030-01-01T00:00:00", "2030-01-01T00:00:00+00:00", "9999-12-31T23:59:59Z",
    "10000-01-01T00:00:00Z", "2030-02-30T00:00:00Z", "2030-01-01T24:00:00Z", "2030-01-01T00:00:60Z", "0001-01-01T00:00:00Z",
    " 2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z\n", "2030-01-01 00:00:00Z", "２030-01-01T00:00:00Z", "never", "", 4e0,
]  # fmt: skip
SPECS = ["1.0", "1.0.31", "1.99.99", "2.0.0", "1", "1.0.0.0", "١.0", "1.٠.0", "", "1.x", "01.0.0", 1]
HASHES: list[Any] = [
    {}, {"sha256": ""}, {"sha256": "0" * 64}, {"sha256": "A" * 64}, {"sha512": "0" * 128}, {"md5": "0" * 32}, {"": ""},
    {"none": "x"}, {"sha256": 1}, {"sha256": None}, None, [], "x", {"shake_128": "00"}, {"blake2b-256": "0" * 64},
]  # fmt: skip
NAMES: list[Any] = [
    "", "a", "../x", "/x", "?", "a/b", "root", "targets", "snapshot", "timestamp", "cap-team", "director", "ä", "\n", 1, None,
    True, [], {}, "x" * 300, "1.a",
]  # fmt: skip
PATHS: list[Any] = [
    [], ["*"], ["*/*/*"], ["models/*/*"], ["models/cap-*/*"], ["devices/*"], [""], ["["], ["[!a]*/*/*"], [1], [None], "x",
    "models/cap-*/*", {}, None, ["models/cap-*/*"] * 2, ["x" * 5000],
]  # fmt: skip


class Memory(FetcherInterface):
    """A repository in memory: a source for us, a fetcher for python-tuf."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, name: str, bytes_max: int) -> bytes | None:
        return self.files.get(name)

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url not in self.files:
            raise DownloadHTTPError(url, 404)
        yield self.files[url]


# --- what is done to a document ---------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the way to every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*at, key)
        yield from places(each, (*at, key))


def holder(document: Any, at: tuple[Any, ...]) -> Any:
    for key in at[:-1]:
        document = document[key]
    return document


def anywhere(rng: random.Random, signed: dict[str, Any]) -> None:
    """Do something to a random value: replace, remove, double, rename, nest, or add to it."""
    at = rng.choice(list(places(signed)))
    inside, key = holder(signed, at), at[-1]
    kind = rng.randrange(7)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(["", "x", "__proto__", "keyids", "version", "ä", "\x00"])] = inside.pop(key)
    elif kind == 2 and isinstance(inside, list):
        inside.append(copy.deepcopy(inside[key]))
    elif kind == 3:
        for _ in range(rng.choice([1, 2, 40, 400])):
            inside[key] = [inside[key]]
    elif kind == 4 and isinstance(inside[key], dict):
        inside[key] = [[name, each] for name, each in inside[key].items()]
    elif kind == 5 and isinstance(inside[key], dict):
        inside[key][rng.choice(["x", "x-custom", "custom", "length", "hashes"])] = rng.choice(VALUES)
    else:
        inside[key] = copy.deepcopy(rng.choice(VALUES))


def common(rng: random.Random, signed: dict[str, Any]) -> None:
    """Change what every role has."""
    field, values = rng.choice(
        [
            ("version", [0, -1, 1, 2, 3, True, "2", 2**31, 2**63, 10**16, 10**30, None]),
            ("expires", EXPIRES), ("spec_version", SPECS),
            ("_type", [*ROLES, "", 1, None, [], "Root", "mirrors"]),
            ("x-lenskeep-issued", [0, -1, "1", True, 10**20, 10**12, None]),
        ]
    )  # fmt: skip
    signed[field] = rng.choice(values)


def roles_in(signed: dict[str, Any]) -> list[dict[str, Any]]:
    if signed["_type"] == "root":
        return list(signed["roles"].values())
    return list(signed.get("delegations", {}).get("roles", []))


def roles(rng: random.Random, signed: dict[str, Any]) -> None:
    """Change who signs what: thresholds, ids, keys, names, paths."""
    if signed["_type"] not in ("root", "targets") or not roles_in(signed):
        return common(rng, signed)
    role = rng.choice(roles_in(signed))
    keys = signed["keys"] if "keys" in signed else signed["delegations"]["keys"]
    keyid = rng.choice(list(keys))
    changes: list[Callable[[], Any]] = [
        lambda: role.update(threshold=rng.choice([0, -1, True, False, 1, 2, 99, "1", None, 10**20])),
        lambda: role.update(keyids=rng.choice([[], [keyid], [keyid, keyid], ["x"], [1], [None], keyid, None, {}])),
        lambda: role["keyids"].append(rng.choice(["unknown", keyid, 1, None])),
        lambda: role.update(name=rng.choice(NAMES)), lambda: role.update(paths=rng.choice(PATHS)),
        lambda: role.update(path_hash_prefixes=rng.choice([[], [""], ["0"], ["zz"], [1], "0", None])),
        lambda: (role.pop("paths", None), role.update(path_hash_prefixes=rng.choice([[""], ["0", "a"], [], [1], "", None]))),
        lambda: role.update(terminating=rng.choice([True, False, 0, 1, "yes", None, []])),
        lambda: keys[keyid].update(keytype=rng.choice(["ecdsa", "ed25519", "rsa", "", 1, None, "ecdsa-sha2-nistp256"])),
        lambda: keys[keyid].update(scheme=rng.choice(["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ed25519", "", 1])),
        lambda: keys[keyid].update(keyval=rng.choice([{}, {"public": ""}, {"public": 1}, {"public": "-----BEGIN"}, [], None])),
        lambda: keys.update(again=copy.deepcopy(keys[keyid])), lambda: keys.pop(keyid),
        lambda: signed.update(consistent_snapshot=rng.choice([True, False, None, 1, 0, "true", []])),
        lambda: signed.setdefault("delegations", {}).update(
            succinct_roles={"keyids": [keyid], "threshold": 1, "bit_length": rng.choice([1, 8, 33, 0, "1"]), "name_prefix": "b"}
        ),
    ]  # fmt: skip
    return rng.choice(changes)()


def files(rng: random.Random, signed: dict[str, Any]) -> None:
    """Change what is said about files: versions, lengths, digests, names."""
    said = signed.get("meta") or signed.get("targets")
    if not said:
        return common(rng, signed)
    name = rng.choice(list(said))
    changes: list[Callable[[], Any]] = [
        lambda: said[name].update(version=rng.choice([0, -1, 1, 2, 3, True, "2", None, 10**17])),
        lambda: said[name].update(length=rng.choice([0, -1, 1, 10**9, 10**18, True, "9", None, {}])),
        lambda: said[name].update(hashes=rng.choice(HASHES)), lambda: said.pop(name),
        lambda: said.update({rng.choice(["x", "x.json", "../x.json", "", "ä.json", "models/x"]): rng.choice(VALUES)}),
        lambda: said.update({str(rng.choice(NAMES)) + ".json": {"version": 1}}),
    ]  # fmt: skip
    return rng.choice(changes)()


def envelope(rng: random.Random, document: dict[str, Any]) -> Any:
    """Change what is around the signed part; nobody signs that."""
    signatures = document["signatures"]
    first = signatures[0]
    changes: list[Callable[[], Any]] = [
        lambda: signatures.append(dict(first)), lambda: signatures.clear(), lambda: document.pop("signatures"),
        lambda: document.pop("signed"), lambda: document.update(signatures=rng.choice([None, {}, "x", [None], [[]], [{}]])),
        lambda: first.update(keyid=rng.choice([1, None, "", [], "x"])), lambda: document.update(extra=rng.choice(VALUES)),
        lambda: first.update(sig=rng.choice(["", "zz", "0", 1, None, "AB" * 36, "00" * 36, "30" * 5000, "ä"])),
        lambda: first.update(extra=rng.choice(VALUES)), lambda: signatures.append({"keyid": "x", "sig": "00"}),
        lambda: signatures.insert(0, {"keyid": "x", "sig": rng.choice(["", "not hex", 1, None])}),
    ]  # fmt: skip
    rng.choice(changes)()
    return rng.choice([document, document, document, [document], {"signed": document}])


def text(rng: random.Random, data: bytes) -> bytes:
    """Change the spelling of a document and not what most readers take it for."""
    key = rng.choice(
        [b'"version":', b'"_type":', b'"expires":', b'"signed":', b'"signatures":', b'"keyids":', b'"meta":']
    )
    extra = rng.choice([b"0", b"1", b'"x"', b"[]", b"{}", b"null", b"NaN", b"-Infinity", b"1.5", b"1e400", b"9" * 5000])
    opening = b'{"signatures"'
    return rng.choice(
        [
            data.replace(key, key + extra + b"," + key, 1), data.replace(opening, b'{"x":' + extra + b',"signatures"', 1),
            b"\xef\xbb\xbf" + data, data + rng.choice([b" ", b"\n\n", b"x", b"\0", b"{}", b",", b" " * 20_000]),
            data.decode().encode("utf-16"), data[: rng.randrange(len(data))], data.replace(b'"', b"'"),
            data.replace(opening, opening + b"/**/", 1), data.replace(b"2", b"\xff", 1), b"[" * 5000 + data + b"]" * 5000,
            data.replace(opening, b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b',"signatures"', 1),
            data.replace(opening, b'{"x":"\\ud800","signatures"', 1), data.replace(b"version", b"\\u0076ersion", 1),
        ]
    )  # fmt: skip


def in_general(refusal: Refusal | Unproven) -> str:
    """Return a refusal's sentence without what differs from case to case."""
    text = refusal.message.replace(" What was trusted before stays so.", "").replace(refusal.role, "ROLE")
    return re.sub(r"'[^']*'|\b[0-9a-f]{16}\b|-?[0-9]+|`\$.*", "…", text)[:110]


# --- one case ----------------------------------------------------------------------------------------------------------


class Bench:
    """One repository, seen once, whose next versions are spoilt in one place for each case."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.forger = Forger(folder / "repository")
        self.forger.add("cap-team", MODEL, b"the bundle")
        self.forger.assign("cam-1")
        self.forger.publish()
        self.bootstrap = self.forger.root(1)
        verdict = self.ours({}, self.repository())
        assert isinstance(verdict, Verdict)
        self.seen = verdict.stored
        self.words = self.forger.copy()
        self.counts: Counter[str] = Counter()

    def repository(self) -> dict[str, bytes]:
        files = (path for path in self.forger.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.forger.folder)): path.read_bytes() for path in files}

    def spoilt(self, rng: random.Random) -> tuple[str, dict[str, bytes]]:
        """Return the role that is spoilt and the files of the repository."""
        forger, role = self.forger, rng.choice(ROLES)
        forger.signed = copy.deepcopy(self.words)
        signed = forger.signed[role]
        next_version = signed["version"] + 1
        signed["version"] = next_version
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            with suppress(
                TypeError, KeyError, IndexError, AttributeError, ValueError
            ):  # nothing is left to change there
                rng.choice([anywhere, anywhere, common, roles, files])(rng, signed)
        try:
            data = forger.sign(signed, forger.keys[role])
        except (FormatError, UnicodeEncodeError):
            data = forger.sign(
                self.words[role], forger.keys[role]
            )  # nobody can sign that: a signature of something else
            data = json.dumps(json.loads(data) | {"signed": signed}).encode()
        way = rng.randrange(8)
        if way == 0:
            data = json.dumps(envelope(rng, json.loads(data))).encode()
        elif way == 1:
            fresh = self.words[role] | {"version": next_version}
            data = text(rng, forger.sign(fresh, forger.keys[role]))
        return role, self.filed(role, next_version, data)

    def filed(self, role: str, version: int, data: bytes) -> dict[str, bytes]:
        """Put a spoilt document in its place, with a snapshot and a timestamp that name it."""
        forger, files = self.forger, dict(self.base())
        if role == "root":
            return files | {f"metadata/{version}.root.json": data}
        snapshot, timestamp = copy.deepcopy(self.words["snapshot"]), copy.deepcopy(self.words["timestamp"])
        snapshot["version"] += 1
        timestamp["version"] += 1
        timestamp["meta"]["snapshot.json"]["version"] = snapshot["version"]
        if role not in ("snapshot", "timestamp"):
            snapshot["meta"][f"{role}.json"]["version"] = version
            files[f"metadata/{version}.{role}.json"] = data
        files[f"metadata/{snapshot['version']}.snapshot.json"] = forger.sign(snapshot, forger.keys["snapshot"])
        files["metadata/timestamp.json"] = forger.sign(timestamp, forger.keys["timestamp"])
        if role in ("snapshot", "timestamp"):
            files["metadata/timestamp.json" if role == "timestamp" else f"metadata/{version}.snapshot.json"] = data
        return files

    def base(self) -> dict[str, bytes]:
        if not hasattr(self, "_base"):
            self._base = self.repository()
        return self._base

    def ours(self, stored: dict[str, bytes], files: dict[str, bytes], *, partly: bool = False) -> Verdict | Refusal:
        request = Look(
            bootstrap=self.bootstrap, stored=stored, now_s=self.forger.now_s, device="cam-1", paths=[MODEL], partly=partly
        )  # fmt: skip
        shutil.rmtree(self.work, ignore_errors=True)
        return look(request, Memory(files), self.work)

    def theirs(self, stored: dict[str, bytes], files: dict[str, bytes]) -> Exception | None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for name, raw in stored.items():
            if "/" not in name and name != "root.json":
                (self.work / name).write_bytes(raw)
        try:
            updater = Updater(
                str(self.work), "metadata/", fetcher=Memory(files), config=LIMITS, bootstrap=self.bootstrap
            )
            updater.refresh()
            for path in (DEVICE, MODEL):
                updater.get_targetinfo(path)
        except Exception as error:
            return error
        return None

    def case(self, seed: int) -> None:
        rng = random.Random(seed)
        role, repository = self.spoilt(rng)
        stored, partly = rng.choice([{}, self.seen]), rng.random() < 0.3
        ours, theirs = self.ours(stored, repository, partly=partly), self.theirs(stored, repository)
        refused: Refusal | Unproven
        if isinstance(ours, Refusal):
            refused = ours
        elif ours.unproven:
            refused = ours.unproven[0]
        else:
            assert theirs is None, f"seed {seed}: we accept a {role} that python-tuf refuses: {theirs!r}"
            self.counts["both accept"] += 1
            return
        assert refused.code.startswith("LK-41"), f"seed {seed}: {refused.code} {refused.message}"
        assert "cannot be judged" not in refused.message, f"seed {seed}: {refused.message}"
        kind = type(theirs).__module__.partition(".")[0]
        if theirs is None:
            self.counts[f"only we refuse: {refused.code} {in_general(refused)}"] += 1
        elif kind in ("tuf", "securesystemslib"):
            self.counts["both refuse"] += 1
        else:
            self.counts[f"we refuse, python-tuf raises {type(theirs).__name__}"] += 1


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    in_memory = tempfile.mkdtemp(dir="/dev/shm") if Path("/dev/shm").is_dir() else None
    bench = Bench(Path(in_memory) if in_memory else tmp_path_factory.mktemp("differential"))
    yield bench
    if in_memory:
        shutil.rmtree(in_memory)
    print(f"\n{CASES} cases of correctly signed and malformed documents:")
    for what, count in bench.counts.most_common(120):
        print(f"{count:6}  {what}")


@pytest.mark.timeout(600)
@pytest.mark.attack(44, 45, 46)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_what_is_signed_and_malformed_is_refused_without_an_exception_and_never_more_lightly_than_by_python_tuf(
    bench: Bench, chunk: int
) -> None:
    for seed in range(chunk, CASES, CHUNKS):
        bench.case(seed)


def test_a_key_that_speaks_for_two_ids_is_what_python_tuf_would_count_twice(bench: Bench) -> None:
    """The one known case of a threshold that python-tuf lets one key reach alone."""
    forger = bench.forger
    forger.signed = copy.deepcopy(bench.words)
    key, said = forger.keys["cap-team"][0], forger.signed["targets"]["delegations"]
    said["keys"]["twin"] = key_dict(key)
    said["roles"][0] |= {"keyids": [key.public.id, "twin"], "threshold": 2}
    words = forger.signed["cap-team"] | {"version": 2, "expires": when(forger.now_s + DAY_S)}
    document = json.loads(forger.sign(words, [key]))
    document["signatures"].append(document["signatures"][0] | {"keyid": "twin"})
    forger.signed["targets"]["version"] = 2
    files = bench.filed("targets", 2, forger.sign(forger.signed["targets"], forger.keys["targets"]))
    snapshot = json.loads(files["metadata/2.snapshot.json"])["signed"]
    snapshot["meta"]["cap-team.json"]["version"] = 2
    files["metadata/2.snapshot.json"] = forger.sign(snapshot, forger.keys["snapshot"])
    files["metadata/2.cap-team.json"] = json.dumps(document).encode()
    assert bench.theirs({}, files) is None
    refusal = bench.ours({}, files)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "LK-4113"
