"""One run of the command line: where it writes, which device it asks, and how it follows long work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import click

from lenskeep.cli.client import Client
from lenskeep.cli.output import Progress, Screen
from lenskeep.cli.wire import fault_of, find_address
from lenskeep.cli.words import clean, size
from lenskeep.errors import RequestError
from lenskeep.messages.control import Operation, SlotView

WAIT_S = 600.0

STAGES = {
    "load": "Loading the model",
    "prepare": "Making it ready for this device",
    "golden": "Comparing with its golden pictures",
    "latency": "Measuring its speed here",
}
KINDS = {
    "import": "Trying it on this device",
    "check": "Trying it on this device",
    "activate": "Making it ready beside what runs",
    "rollback": "Going back",
}


class Run:
    """What the root knows and every command may use."""

    def __init__(self, screen: Screen, environment: Mapping[str, str]) -> None:
        self.screen = screen
        self.environment = environment
        self.device: str | None = None

    def client(self) -> Client:
        """Return the device to ask. Raises: DaemonUnreachableError."""
        return Client(find_address(self.device, self.environment), self.environment.get("LENSKEEP_TOKEN"))

    def follow(self, client: Client, operation: Operation, wait_s: float = WAIT_S) -> Operation:
        """Show the operation's progress and return it when it has succeeded.

        Raises: the fault that it ended with, TimedOutError. Ctrl-C leaves it running and says how to follow it.
        """
        progress = Progress(self.screen)
        try:
            operation = client.wait(operation, wait_s, lambda now: _show(progress, now))
        except KeyboardInterrupt:
            progress.clear()
            self.screen.note(f"It goes on by itself on the device. Follow it with: lenskeep op show {operation.id}")
            raise
        progress.clear()
        if operation.error is not None:
            raise fault_of(operation.error)
        return operation

    def transfer(self, stage: str) -> Callable[[int, int], None]:
        """Return a callback that shows bytes moved."""
        progress = Progress(self.screen)

        def moved(done: int, total: int) -> None:
            if done >= total:
                progress.clear()
            else:
                progress.show(stage, f"{size(done)} of {size(total)}  {100 * done // total} %")

        return moved


def _show(progress: Progress, operation: Operation) -> None:
    now = operation.progress
    if now is None or operation.kind in ("activate", "rollback"):
        progress.show(KINDS.get(operation.kind, "Working"), clean(operation.subject))
        return
    text = f"{now.done} of {now.total} {clean(now.unit)}".rstrip() if now.total else clean(operation.subject)
    progress.show(STAGES.get(now.stage, clean(now.stage)), text)


def run_of(context: click.Context) -> Run:
    """Return this run."""
    run = context.find_root().obj
    assert isinstance(run, Run), "the root makes the run before any command runs"
    return run


def only_slot(client: Client, wanted: str | None) -> SlotView:
    """Return the slot that is meant; it may be left out when there is only one. Raises: RequestError."""
    if wanted is not None:
        return client.slot(wanted)
    slots = client.slots()
    if len(slots) != 1:
        names = ", ".join(slot.slot for slot in slots) or "none is configured"
        raise RequestError(f"Which slot is meant? {names}.", hint="Name it with --slot.")
    return slots[0]
