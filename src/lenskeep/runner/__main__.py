"""`python -m lenskeep.runner PLAN.json`: the process that serves one slot, and its composition root.

It listens before it loads anything heavy, so that a daemon can dial at once. It never stops because the daemon is
gone: it stops on SIGTERM or when it is told to.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from enum import IntEnum
from pathlib import Path

import msgspec

from lenskeep.messages.runner import BundleRef, Confinement, FromRunner, SlotPlan
from lenskeep.runner.confine.cameras import LonePlaces
from lenskeep.runner.confine.policy import confine_runner
from lenskeep.runner.libraries import settle_libraries
from lenskeep.runner.nudge import Nudge
from lenskeep.runner.reporter import STUCK_EXIT, ReporterThread
from lenskeep.runner.ring import ResultRing
from lenskeep.runner.sealed import ReadAhead
from lenskeep.runner.wire import SocketTakenError, listen

log = logging.getLogger("lenskeep.runner")

NEWS_MAX = 1000  # kept for a daemon that is away
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
SWITCH_S = 0.0005  # how long the loop may wait when the interpreter's lock was offered to a thread that does not run
YOUNG_OBJECTS_MAX = 50_000  # a collection is a pause of the line; results are the only objects that pile up


class ExitCode(IntEnum):
    """How the process ends."""

    OK = 0
    USAGE = 64
    BAD_PLAN = 65
    FAULT = 70  # a thread met something that nobody foresaw; the daemon starts the process again
    STUCK = STUCK_EXIT  # it was told to stop and the model would not let go of its frame
    SLOT_TAKEN = 73
    OTHER_RIGHTS = 75  # a camera's folder is another one now, and this process may not read it


def main(arguments: list[str]) -> ExitCode:
    """Serve the slot of a plan until told to stop."""
    gc.disable()  # until everything that stays is loaded
    sys.setswitchinterval(SWITCH_S)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if len(arguments) != 1:
        log.error("usage: python -m lenskeep.runner PLAN.json")
        return ExitCode.USAGE
    try:
        plan = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=SlotPlan)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("plan %s cannot be used: %s", arguments[0], error)
        return ExitCode.BAD_PLAN
    try:
        server = listen(Path(plan.socket_path))
    except SocketTakenError as error:
        log.error("slot %s: %s", plan.slot, error)
        return ExitCode.SLOT_TAKEN
    except OSError as error:
        log.error("slot %s: cannot listen on %s: %s", plan.slot, plan.socket_path, error)
        return ExitCode.BAD_PLAN
    _name_process(plan.slot)
    threading.excepthook = _end_at_fault
    confined = confine_runner(plan)  # before any thread, so that it holds for all of them
    return serve(plan, server, ResultRing(os.urandom(8).hex(), plan.result_ring), *confined)


def serve(
    plan: SlotPlan, server: socket.socket, ring: ResultRing, confinement: Confinement, places: LonePlaces
) -> ExitCode:
    """Build the parts and run the loop in this thread until it is told to stop."""
    bundle = plan.bundle
    ahead = bundle and _read_ahead(bundle)
    settle_libraries()
    from lenskeep.runner.sessions import SessionThread
    from lenskeep.runner.swap import Changeover

    news: deque[FromRunner] = deque(maxlen=NEWS_MAX)
    sessions = SessionThread()
    sessions.start()
    changeover = Changeover(plan, news, sessions)
    if bundle and ahead:
        changeover.start(bundle, ahead)
    del ahead  # used or not, its memory goes when the load is over
    from lenskeep.runner.line import Line  # while the first version loads, which does not hold the interpreter

    nudge = Nudge()
    line = Line(plan, ring, changeover, news, nudge, confinement, places)
    reporter = ReporterThread(server, ring, line, nudge)
    signal.set_wakeup_fd(nudge.writer)
    signal.signal(signal.SIGTERM, lambda *_: line.stop())
    signal.signal(signal.SIGINT, lambda *_: line.stop())
    line.start()
    reporter.start()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 100)
    gc.enable()
    log.info("slot %s: run %s with %d cameras", plan.slot, ring.run, len(plan.cameras))
    line.loop.run()
    line.close()
    reporter.finish()
    log.info("slot %s: ended after %d frames", plan.slot, line.loop.judged)
    return ExitCode.OTHER_RIGHTS if line.outgrown else ExitCode.OK


def _read_ahead(bundle: BundleRef) -> ReadAhead:
    if bundle.prepared_path:
        return ReadAhead(bundle.prepared_path, bundle.prepared_sha256)
    return ReadAhead(bundle.model_path, bundle.model_sha256)


def _name_process(slot: str) -> None:
    """Show the slot in process lists, and let nobody of this user read frames and models out of the memory."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_NAME, f"lenskeep-{slot}".encode()[:15], 0, 0, 0)
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _end_at_fault(fault: threading.ExceptHookArgs) -> None:
    """A thread that died silently would be a slot that looks alive: end the process, it is started again."""
    log.critical("thread %s failed", fault.thread.name if fault.thread else "?", exc_info=fault.exc_value)
    os._exit(ExitCode.FAULT)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # nothing is left to do that a thread stuck in a driver could not hold up
