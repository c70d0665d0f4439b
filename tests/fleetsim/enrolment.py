"""Many devices let in at once, through the operators' door: each with a key and a certificate of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lenskeep.bundle.keys import generate_key
from lenskeep.cli.fleetclient import FleetClient
from lenskeep.cli.wire import parse_address
from lenskeep.messages.fleet import GrantAsk
from lenskeep.trust import certificates

AUTHORITY = "authority.crt"
AT_ONCE = 8


def enrol_many(operator: str, folder: Path, names: list[str]) -> None:
    """Enrol the named devices; one `NAME.pem` (key and certificate) each. Who has one there is left as he is."""
    folder.mkdir(parents=True, exist_ok=True)
    client = FleetClient(parse_address(operator))
    (folder / AUTHORITY).write_text(client.authority().certificate)

    def enrol(name: str) -> None:
        path = folder / f"{name}.pem"
        if path.exists():
            return
        key = generate_key()
        csr = certificates.write_request(key, name)
        made = client.grant(GrantAsk(device=name, csr=csr, key_id=key.public.id))
        part = path.with_suffix(".part")
        part.write_bytes(key.pem() + made.certificate.encode())
        part.rename(path)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(enrol, names))
