"""A repository for tests: true by default, lying at will.

    repository = Repository(tmp_path / "repository")     # 3 root holders (2 needed), targets, one online key
    repository.publisher("acme", "cap-*")                 # its key: repository.keys["acme"]
    repository.release("cap-inspect", "1.0.0")            # a real signed bundle, listed
    repository.assign("cam-1", main="cap-inspect@1.0.0")
    StockClient(repository, tmp_path / "client").target("models/cap-inspect/1.0.0.lkb")

`overwrite` signs anything with any key; `saved`/`restore` play old states again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from lenskeep.bundle.keys import PrivateKey, generate_key
from lenskeep.trust.keeping import changes, director, documents, releases, settling, state
from lenskeep.trust.keeping.changes import NamedKey
from lenskeep.trust.keeping.documents import Document
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import Workspace, writing
from lenskeep.trust.names import METADATA, ROOT
from tests import tinybundle

ROOTS = ("anna", "ben", "clara")


class Repository:
    """A repository in a folder, with all its keys at hand in `keys` by their holders' names."""

    def __init__(self, folder: Path, now_s: float | None = None, terms: Settings | None = None) -> None:
        self.folder = folder
        self.now_s = now_s = time.time() if now_s is None else now_s
        self.keys = {name: generate_key() for name in (*ROOTS, "tara", "online")}
        with writing(folder) as work:
            changes.begin(
                work,
                root=[self.named(name) for name in ROOTS],
                threshold=2,
                targets=[self.named("tara")],
                targets_threshold=1,
                online=[self.named("online")],
                signers=self.signers("anna", "ben", "tara"),
                now_s=now_s,
                terms=terms,
            )
            settling.settle(work, self.signers("online"), now_s)
            work.commit()

    def named(self, name: str) -> NamedKey:
        """The public key of a holder; made when there is none."""
        return NamedKey(name, self.keys.setdefault(name, generate_key()).public)

    def signers(self, *names: str) -> list[PrivateKey]:
        """Private keys; all of them when none is named."""
        return [self.keys[name] for name in names or self.keys]

    def change(self, act: Callable[[Workspace], object], *, force: bool = False) -> settling.Settled:
        """Do something with the folder, put in place what is signed, renew, write."""
        with writing(self.folder) as work:
            act(work)
            settled = settling.settle(work, self.signers(), self.now_s, force=force)
            work.commit()
        return settled

    def publisher(self, role: str, *patterns: str, keys: Sequence[str] = (), threshold: int = 1) -> PrivateKey:
        """Add a publisher with a key of its own name, or with several."""
        named = [self.named(name) for name in keys or (role,)]
        self.change(
            lambda work: changes.add_publisher(work, role, named, threshold, patterns, self.signers(), self.now_s)
        )
        return self.keys[named[0].name]

    def bundle(self, name: str, version: str, key: str, **facts: Any) -> bytes:
        """The bytes of a signed bundle."""
        files = tinybundle.parts({"name": name, "version": version, **facts})
        return tinybundle.pack(files, sig=tinybundle.signature(files, self.keys[key]))

    def release(self, name: str, version: str, *, key: str | None = None, **facts: Any) -> bytes:
        """Publish a bundle signed by the role that owns the name, and return its bytes."""
        path = f"models/{name}/{version}.lkb"
        current = self.state()
        role = next(one for one in current.delegations.values() if one.is_delegated_path(path)).name
        holders = documents.holders_of(current.targets.targets, role)[1] if current.targets else []
        data = self.bundle(name, version, key or holders[0].name, **facts)
        file = self.folder.parent / f"{name}-{version}.lkb"
        file.write_bytes(data)
        self.change(lambda work: releases.publish(work, [file], self.signers(), self.now_s))
        file.unlink()
        return data

    def withdraw(self, name: str, version: str, reason: str = "found faulty") -> None:
        """List a version no more."""
        self.change(lambda work: releases.withdraw(work, name, version, reason, self.signers(), self.now_s))

    def assign(self, device: str, only: bool = False, **slots: str) -> None:
        """Assign `slot="name@version"` to a device."""
        wanted = {slot: (version.partition("@")[0], version.partition("@")[2]) for slot, version in slots.items()}
        self.change(lambda work: director.assign(work, {device: wanted}, self.signers(), self.now_s, only=only))

    def refresh(self, now_s: float | None = None) -> settling.Settled:
        """Sign snapshot and timestamp anew, at another time from here on when one is given."""
        self.now_s = self.now_s if now_s is None else now_s
        return self.change(lambda work: None, force=True)

    def state(self) -> State:
        """What is in force."""
        return state.load(Workspace(self.folder))

    def root(self, version: int = 1) -> bytes:
        """A root's bytes, the first one by default: what a device is provisioned with."""
        return (self.folder / METADATA / f"{version}.{ROOT}.json").read_bytes()

    def document(self, role: str) -> Document:
        """The document of a role that is in force."""
        found = self.state().document(role)
        assert found is not None, role
        return found

    # Lies.

    def overwrite(
        self, role: str, change: Callable[[Any], None], *keys: str, file: str | None = None, chain: bool = True
    ) -> None:
        """Change the signed part of a role's document, sign it with these keys, write it under its version.

        Nothing is checked. `change` gets the standard's object (`version`, `expires`, `targets`, …).
        `chain`: sign a snapshot and a timestamp that name the lie.
        """
        body = documents.body_of(self.document(role))
        change(body)
        document = sign_anyhow(role, body, self.signers(*keys))
        self.write(file or document.file, document.raw)
        if chain and role not in (ROOT, "snapshot", "timestamp"):
            self.chain(document)

    def chain(self, *listed: Document) -> None:
        """Sign a snapshot and a timestamp that list these documents."""
        snapshot = documents.body_of(self.document("snapshot"))
        snapshot.version += 1
        for document in listed:
            snapshot.meta[f"{document.role}.json"] = documents.meta_of(document)
        signed = sign_anyhow("snapshot", snapshot, self.signers("online"))
        self.write(signed.file, signed.raw)
        timestamp = documents.body_of(self.document("timestamp"))
        timestamp.version += 1
        timestamp.snapshot_meta = documents.meta_of(signed)
        self.write("timestamp.json", sign_anyhow("timestamp", timestamp, self.signers("online")).raw)

    def write(self, file: str, data: bytes) -> None:
        """Put bytes into the metadata folder."""
        (self.folder / METADATA / file).write_bytes(data)

    def saved(self, place: Path) -> Path:
        """Copy the repository as it is."""
        return Path(shutil.copytree(self.folder, place))

    def restore(self, place: Path) -> None:
        """Show an old copy again."""
        shutil.rmtree(self.folder)
        shutil.copytree(place, self.folder)


def sign_anyhow(role: str, body: Any, keys: Sequence[PrivateKey]) -> Document:
    """Sign whatever it is with these keys, entitled or not."""
    document = documents.write(role, body)
    holders = [documents.Holder(key.public.id, "", key.public.pem, documents.tuf_key(key.public).keyid) for key in keys]
    return documents.sign(document, keys, holders)


class FolderFetcher(FetcherInterface):
    """Files of a folder for the standard's client."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url.removeprefix("file://"))
        if not path.is_file():
            raise DownloadHTTPError(f"{path} is not there", 404)
        yield path.read_bytes()


class StockClient:
    """The standard's own client over a repository's folder, with a memory of its own."""

    def __init__(self, repository: Repository | Path, folder: Path, root: bytes | None = None) -> None:
        self._folder = repository if isinstance(repository, Path) else repository.folder
        self._memory = folder
        self._root = root or (self._folder / METADATA / f"1.{ROOT}.json").read_bytes()
        (folder / "targets").mkdir(parents=True, exist_ok=True)

    def updater(self) -> Updater:
        """A client that has looked at everything that is current. Raises what the standard's client raises."""
        base = f"file://{self._folder}"
        updater = Updater(
            str(self._memory), f"{base}/metadata/", str(self._memory / "targets"), f"{base}/targets/",
            fetcher=FolderFetcher(), bootstrap=self._root,
        )  # fmt: skip
        updater.refresh()
        return updater

    def target(self, path: str) -> bytes | None:
        """A target's verified bytes, or None when nobody lists it."""
        updater = self.updater()
        found = updater.get_targetinfo(path)
        if found is None:
            return None
        return Path(
            updater.download_target(found, str(self._memory / "targets" / hashlib.sha256(path.encode()).hexdigest()))
        ).read_bytes()

    def versions(self) -> dict[str, int]:
        """Versions by role as the client sees them."""
        self.updater()
        snapshot = json.loads((self._memory / "snapshot.json").read_text())
        return {name.removesuffix(".json"): meta["version"] for name, meta in snapshot["signed"]["meta"].items()}
