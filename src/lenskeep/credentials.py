"""Where a secret is: a file, what systemd handed over, or the environment.

A configuration names the place; the secret itself never stands in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lenskeep.errors import ConfigError

_SECRET_BYTES_MAX = 4096


def read_secret(word: str, environment: Mapping[str, str], key: str) -> str:
    """Read a secret from a file, `credential:NAME` or `env:NAME`. Raises: ConfigError, which does not repeat it."""
    kind, _, name = word.partition(":")
    if kind == "env":
        if not environment.get(name):
            raise ConfigError(f"{key}: the environment has no {name}.")
        return environment[name]
    path = secret_path(word, environment, key)
    try:
        secret = path.read_bytes()[:_SECRET_BYTES_MAX].decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read.") from error
    if not secret:
        raise ConfigError(f"{key}: {path} is empty.")
    return secret


def secret_path(word: str, environment: Mapping[str, str], key: str) -> Path:
    """Return the file that is meant by a path or `credential:NAME`. Raises: ConfigError."""
    kind, _, name = word.partition(":")
    if kind != "credential":
        return Path(word)
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder or not name or "/" in name or name in (".", ".."):
        raise ConfigError(f"{key}: there is no systemd credential {name!r} here.")
    return Path(folder) / name
