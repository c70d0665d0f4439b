"""`python -m lenskeep.daemon --config FILE`: the device daemon as a process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from lenskeep import config as configs
from lenskeep.clock import Clock
from lenskeep.daemon.places import Places
from lenskeep.daemon.systemd import Notifier
from lenskeep.errors import ConfigError, LenskeepError


def main() -> int:
    """Read the configuration and serve; exit code 78 (EX_CONFIG) tells systemd not to try again."""
    parser = argparse.ArgumentParser(prog="lenskeep daemon", description="Serve the slots of this device.")
    parser.add_argument("--config", type=Path, default=Path("/etc/lenskeep/device.toml"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    try:
        config = configs.load(arguments.config)
        from lenskeep.daemon.app import serve  # heavy; a wrong configuration is told without it

        places = Places.find(config.storage, os.environ)
        asyncio.run(serve(config, places, Clock(), Notifier.from_environment()))
    except ConfigError as error:
        print(f"{error.code} {error}\nFix: {error.hint}", file=sys.stderr)
        return 78
    except LenskeepError as error:
        print(f"{error.code} {error}\nFix: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
