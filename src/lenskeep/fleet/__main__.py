"""`python -m lenskeep.fleet --config FILE`: the fleet server as a process."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import resource
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from lenskeep.clock import Clock
from lenskeep.errors import ConfigError, LenskeepError
from lenskeep.fleet import config as configs
from lenskeep.fleet.app import serve
from lenskeep.fleet.config import FleetConfig, FleetPlaces
from lenskeep.systemd import Notifier

log = logging.getLogger("lenskeep.fleet")


def main() -> int:
    """Read the configuration and serve; exit code 78 (EX_CONFIG) tells systemd not to try again."""
    parser = argparse.ArgumentParser(prog="lenskeep fleet serve", description="Serve a fleet of devices.")
    parser.add_argument("--config", type=Path, help="The configuration file; without one everything is at its default.")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    faulthandler.enable()  # the watchdog's SIGABRT then shows where the server hung
    notifier = Notifier.from_environment()
    try:
        config = configs.load(arguments.config) if arguments.config else FleetConfig()
        places = FleetPlaces.find(config.storage, os.environ)
        os.umask(0o027)
        places.make()
        _make_room()

        def begun(words: str) -> None:
            print(words, flush=True)
            notifier.ready("serving")

        _run(serve(config, places, Clock(), begun, notifier))
    except LenskeepError as error:
        log.critical("%s %s\nFix: %s", error.code, error, error.hint)
        return 78 if isinstance(error, ConfigError) else 1
    except Exception:  # the root: what nobody foresaw leaves with its code, and systemd starts us again
        log.critical("%s The fleet server ends.", LenskeepError.code, exc_info=True)
        return 70
    return 0


def _make_room() -> None:
    """Allow as many connections as the system lets us hold, and let the database's thread wait less for its turn."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setswitchinterval(0.001)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed: TLS connections cost it less than half of the memory."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)


if __name__ == "__main__":
    sys.exit(main())
