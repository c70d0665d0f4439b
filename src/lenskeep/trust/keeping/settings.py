"""`keeping.toml`: what the keepers of a repository agreed upon. Nothing secret, and no device believes it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field

from lenskeep.errors import ConfigError
from lenskeep.trust.keeping.workspace import SETTINGS, Workspace
from lenskeep.trust.names import EXPIRY_DAYS, TIMESTAMP, TOP_ROLES, USB_TIMESTAMP_DAYS

DAY_S = 86400.0
_DAYS_MAX = 3650
# Up to here a device that fetches the whole list fetches less than 200 kB; more devices are shared out to bins.
DEVICES_IN_ONE_LIST_MAX = 1000
_LIST_MAX = 25_000  # what 5 MB, the most that a device reads, have room for
_HEAD = """\
# Settings of this repository's keepers. Devices never read this file.

# Some sites are served by stick: the timestamp is then good for more days.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """How long each role's signature is good for."""

    usb_sites: bool = False
    devices_in_one_list_max: int = DEVICES_IN_ONE_LIST_MAX
    expiry_days: dict[str, int] = field(default_factory=lambda: dict(EXPIRY_DAYS))

    def life_s(self, role: str) -> float:
        """Return how long a role's signature is good for, in seconds."""
        if role == TIMESTAMP and self.usb_sites:
            return max(self.expiry_days[TIMESTAMP], USB_TIMESTAMP_DAYS) * DAY_S
        known = role in TOP_ROLES or role in self.expiry_days
        return self.expiry_days[role if known else "publisher"] * DAY_S


def load(work: Workspace) -> Settings:
    """Read the settings; a missing file means the defaults. Raises: ConfigError naming the field."""
    raw = work.read(SETTINGS)
    if raw is None:
        return Settings()
    try:
        table = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{SETTINGS} cannot be read: {error}") from error
    unknown = set(table) - {"usb_sites", "expiry_days", "devices_in_one_list_max"}
    days = table.get("expiry_days", {})
    usb = table.get("usb_sites", False)
    most = table.get("devices_in_one_list_max", DEVICES_IN_ONE_LIST_MAX)
    if type(most) is not int or not 0 <= most <= _LIST_MAX:
        raise ConfigError(f"{SETTINGS}: devices_in_one_list_max = {most!r} is not understood.")
    if unknown or not isinstance(usb, bool) or not isinstance(days, dict):
        raise ConfigError(f"{SETTINGS}: {', '.join(sorted(unknown)) or 'a value'} is not understood.")
    for role, value in days.items():
        if role not in EXPIRY_DAYS or not isinstance(value, int) or not 0 < value <= _DAYS_MAX:
            raise ConfigError(f"{SETTINGS}: expiry_days.{role} = {value!r} is not understood.")
    return Settings(usb, most, EXPIRY_DAYS | days)


def text(settings: Settings) -> bytes:
    """Return the file that says these settings."""
    lines = [
        f"usb_sites = {str(settings.usb_sites).lower()}",
        "",
        "# The director lists so many devices in one file. With more of them the list is shared out to 256 files, for",
        "# good, and each device fetches its own. Devices older than this setting cannot read that: update them first.",
        f"devices_in_one_list_max = {settings.devices_in_one_list_max}",
        "",
        "# How many days a signature of each role is good for.",
    ]
    lines += ["[expiry_days]", *(f"{role} = {days}" for role, days in settings.expiry_days.items())]
    return (_HEAD + "\n".join(lines) + "\n").encode()
