"""A real PostgreSQL that speaks TLS: proven in full, refused in words, and no password said to a stranger."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lenskeep.errors import ConfigError, StoreNotProvenError
from lenskeep.fleet.store import postgres
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import open_engine
from lenskeep.fleet.store.proving import Proofs
from tests.fleetrig import Member
from tests.fleetstore import Filled
from tests.postgresql import Postgres
from tests.replicas import Replica
from tests.x509 import TestAuthority

ACCESS = """
local all postgres trust
hostssl all postgres 127.0.0.1/32 trust
hostssl all lenskeep 127.0.0.1/32 cert
"""


class TlsPostgres(Postgres):
    """A server that speaks TLS alone, for `localhost`; the user lenskeep must show a certificate."""

    def __init__(self) -> None:
        super().__init__()
        self.pem = Path(tempfile.mkdtemp(prefix="lp-"))
        self.plant = TestAuthority(self.pem / "plant", "plant")
        self.stranger = TestAuthority(self.pem / "stranger", "stranger")
        (self.folder / "data" / "pg_hba.conf").write_text(ACCESS)
        self.show(*self.plant.issue("db", "localhost"))

    def show(self, certificate: Path, key: Path) -> None:
        """Give it another certificate; to be read at its start."""
        for source, name in ((certificate, "server.crt"), (key, "server.key"), (self.plant.file, "root.crt")):
            self.own(Path(shutil.copy(source, self.folder / "data" / name)), 0o600)

    def start(self, *more: str) -> None:
        super().start(*(more or ("ssl=on", "ssl_ca_file=root.crt")))

    def make(self) -> str:
        self._names += 1
        self._run(
            "psql", "-h", self.folder, "-p", self.port, "-U", "postgres", "-c", f"CREATE DATABASE fleet{self._names}"
        )
        return self.url(f"fleet{self._names}")

    def url(self, name: str, user: str = "postgres", host: str = "localhost") -> str:
        return f"postgresql://{user}@{host}:{self.port}/{name}"

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.pem)


@pytest.fixture(scope="module")
def server() -> Iterator[TlsPostgres]:
    started = TlsPostgres()
    started._run("pg_ctl", "--version")
    started.start()
    started._run(
        "psql", "-h", started.folder, "-p", started.port, "-U", "postgres", "-c", "CREATE ROLE lenskeep LOGIN SUPERUSER"
    )
    yield started
    started.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "AGAIN_S", (0.01,))


def proofs(server: TlsPostgres) -> Proofs:
    return Proofs(authority=str(server.plant.file))


async def versions(engine: Engine) -> set[str]:
    """The versions of TLS in which the fleet's connections are."""
    async with engine.read() as tx:
        rows = await tx.all(
            "SELECT version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'lenskeep-fleet'"
        )
    return {row["version"] for row in rows}


async def refused(server: TlsPostgres, url: str, given: Proofs) -> StoreNotProvenError:
    with pytest.raises(StoreNotProvenError) as caught:
        async with open_engine(url, "", server.folder / "x", {}, given):
            pass
    assert "127.0.0.1" in str(caught.value) or "localhost" in str(caught.value)
    return caught.value


# --- proven -----------------------------------------------------------------------------------------------------------


async def test_every_method_of_the_stores_works_over_tls_and_every_connection_is_in_it(server: TlsPostgres) -> None:
    async with open_engine(server.make(), "", server.folder / "x", {}, proofs(server)) as engine:
        await Filled(engine).fill()
        assert await versions(engine) == {"TLSv1.3"}


async def test_the_fleet_proves_itself_by_a_certificate_from_files_or_credentials(server: TlsPostgres) -> None:
    name = server.make().rpartition("/")[2]
    chain, key = server.plant.issue("lenskeep")
    both = chain.with_name("both.pem")
    both.write_bytes(chain.read_bytes() + key.read_bytes())
    environment = {"CREDENTIALS_DIRECTORY": str(chain.parent)}
    for certificate, word in (
        (str(chain), str(key)),
        (str(both), ""),
        ("credential:lenskeep.crt", "credential:lenskeep.key"),
    ):
        given = Proofs(str(server.plant.file), certificate, word)
        async with open_engine(server.url(name, "lenskeep"), "", server.folder / "x", environment, given) as engine:
            assert await versions(engine) == {"TLSv1.3"}


# --- refused ----------------------------------------------------------------------------------------------------------


async def test_another_authority_another_host_and_one_that_is_over_are_refused_in_words(server: TlsPostgres) -> None:
    url = server.make()
    wrong = await refused(server, url, Proofs(str(server.stranger.file)))
    assert "database_ca" in wrong.hint
    wrong = await refused(server, url.replace("localhost", "127.0.0.1"), proofs(server))
    assert "127.0.0.1" in str(wrong)
    assert "name that its certificate is made for" in wrong.hint
    server.stop()
    server.show(*server.plant.issue("over", "localhost", ends=-datetime.timedelta(minutes=1)))
    server.start()
    wrong = await refused(server, url, proofs(server))
    assert "expired" in str(wrong)
    assert "clock" in wrong.hint
    server.stop()
    server.show(*server.plant.issue("db", "localhost"))
    server.start()


async def test_a_server_without_tls_is_refused_and_hears_no_password(server: TlsPostgres, tmp_path: Path) -> None:
    url = server.make()
    server.stop()
    server.start("ssl=off")
    wrong = await refused(server, url, proofs(server))
    assert "speaks no TLS" in str(wrong)
    server.stop()
    server.start()
    (tmp_path / "password").write_text("sesame")
    heard = bytearray()
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:  # says no to TLS and listens on
        stranger.settimeout(5)

        def listen() -> None:
            try:
                while True:
                    with closing(stranger.accept()[0]) as connection:
                        heard.extend(connection.recv(8))
                        connection.sendall(b"N")
                        heard.extend(connection.recv(4096))
            except OSError:
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        address = f"postgresql://me@localhost:{stranger.getsockname()[1]}/fleet"
        with pytest.raises(StoreNotProvenError):
            async with open_engine(address, f"{tmp_path}/password", tmp_path / "x", {}, proofs(server)):
                pass
        stranger.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert heard
    assert b"sesame" not in heard
    assert b"me\0" not in heard


async def test_a_fleet_without_its_certificate_or_with_a_strangers_is_told_so(server: TlsPostgres) -> None:
    url = server.url(server.make().rpartition("/")[2], "lenskeep")
    with pytest.raises(ConfigError, match="certificate"):
        async with open_engine(url, "", server.folder / "x", {}, proofs(server)):
            pass
    chain, key = server.stranger.issue("lenskeep")
    wrong = await refused(server, url, Proofs(str(server.plant.file), str(chain), str(key)))
    assert "database_certificate" in wrong.hint


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere.crt", "", ""), "database_ca: .*nowhere.crt cannot be read"),
        (("garbage", "", ""), "database_ca: .*no certificate"),
        (("credential:ca", "", ""), "database_ca: there is no systemd credential"),
        (("", "lenskeep.crt", "lenskeep.key"), "needs database_ca"),
        (("plant.crt", "", "lenskeep.key"), "needs database_certificate"),
        (("plant.crt", "lenskeep.crt", "garbage"), "cannot be used together"),
        (("plant.crt", "lenskeep.crt", "other.key"), "cannot be used together"),
        (("plant.crt", "nowhere.crt", "lenskeep.key"), "database_certificate: .*cannot be read"),
    ],
)
async def test_files_that_are_none_are_named_by_their_key(
    server: TlsPostgres, words: tuple[str, str, str], says: str
) -> None:
    folder = server.plant.folder
    server.plant.issue("lenskeep")
    server.plant.issue("other")
    (folder / "garbage").write_text("no PEM")
    given = Proofs(*(word if ":" in word or not word else str(folder / word) for word in words))
    with pytest.raises(ConfigError, match=says):
        async with open_engine(server.url("fleet1"), "", server.folder / "x", {}, given):
            pass


@pytest.mark.parametrize("address", ["postgresql://u@localhost/d?sslmode=disable", "postgresql:///d?host=/run/x"])
async def test_an_address_that_says_otherwise_is_refused(server: TlsPostgres, address: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.database"):
        async with open_engine(address, "", server.folder / "x", {}, proofs(server)):
            pass


# --- the server itself ------------------------------------------------------------------------------------------------


async def test_a_fleet_is_moved_there_serves_and_outlives_a_database_that_shows_a_wrong_certificate_for_a_while(
    server: TlsPostgres, tmp_path: Path
) -> None:
    chain, key = server.plant.issue("lenskeep")
    url = server.url(server.make().rpartition("/")[2], "lenskeep")
    tls = f'database_ca = "{server.plant.file}"\ndatabase_certificate = "{chain}"\ndatabase_key = "{key}"'
    fleet = Replica(tmp_path / "a", "sqlite", storage=tls)
    fleet.start()
    try:
        member = await Member(fleet, "cam-1", tmp_path).join()
        fleet.close()
        move = [sys.executable, "-m", "lenskeep.fleet.moving", "--config", fleet.config, "migrate", "--to", url]
        subprocess.run(move, check=True, stdout=subprocess.DEVNULL, env=os.environ)
        fleet.config.write_text(fleet.config.read_text().replace('database = "sqlite"', f'database = "{url}"'))
        fleet.start()
        await member.send(member.report())
        server.stop()
        server.show(*server.stranger.issue("db", "localhost"))
        server.start()
        said = await member.send(member.report())
        assert getattr(said, "code", "") == "LK-7045", said
        await asyncio.sleep(5.5)  # every loop of the server has looked meanwhile
        server.stop()
        server.show(*server.plant.issue("db", "localhost"))
        server.start()
        assert not getattr(await member.send(member.report(member.counter)), "code", "")
        assert fleet.process is not None
        assert fleet.process.poll() is None
    finally:
        fleet.close()
