"""`python -m lenskeep.daemon --config FILE`: the device daemon as a process."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
from pathlib import Path

from lenskeep import config as configs
from lenskeep.clock import Clock
from lenskeep.daemon import journal, memory
from lenskeep.daemon.places import Places
from lenskeep.daemon.pointers import start_from_pointers
from lenskeep.errors import ConfigError, LenskeepError
from lenskeep.systemd import Notifier

log = logging.getLogger("lenskeep.daemon")


def main() -> int:
    """Read the configuration and serve; exit code 78 (EX_CONFIG) tells systemd not to try again."""
    memory.keep_small()
    parser = argparse.ArgumentParser(prog="lenskeep daemon", description="Serve the slots of this device.")
    parser.add_argument("--config", type=Path, default=Path("/etc/lenskeep/device.toml"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, handlers=[journal.handler(os.environ)])
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    faulthandler.enable()  # the watchdog's SIGABRT then shows where the daemon hung
    try:
        config = configs.load(arguments.config)
        notifier = Notifier.from_environment()
        places = Places.find(config.storage, os.environ)
        places.make()
        head_starts = start_from_pointers(config, places)
        # heavy, even asyncio: the cameras start meanwhile
        import asyncio

        from lenskeep.daemon import authorities

        authorities.import_without_them()
        memory.keep_lines_small()
        from lenskeep.daemon.app import serve

        asyncio.run(serve(config, arguments.config.parent, places, Clock(), notifier, head_starts))
    except LenskeepError as error:
        log.critical("%s %s\nFix: %s", error.code, error, error.hint)
        return 78 if isinstance(error, ConfigError) else 1
    except Exception:  # the root: what nobody foresaw leaves with its code, and systemd starts us again
        log.critical("%s The daemon ends; its cameras go on and are adopted.", LenskeepError.code, exc_info=True)
        return 70
    return 0


if __name__ == "__main__":
    sys.exit(main())
