"""`camera` and `watch`: what the cameras deliver and what comes of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from lenskeep.cli.commands.status import results, total_latency
from lenskeep.cli.options import DURATION
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import Exit, clean, count, milliseconds, plural
from lenskeep.errors import StorageError, UnknownNameError, fault_book
from lenskeep.messages.control import SlotView, Status
from lenskeep.messages.runner import CameraState


@click.group()
def camera() -> None:
    """List, test and look through the cameras.

    \b
      lenskeep camera list
      lenskeep camera test cam-1
      lenskeep camera snapshot cam-1 --out part.jpg
    """


@camera.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """List the configured cameras and what is plugged in.

    \b
      lenskeep camera list
      lenskeep camera list --json
      lenskeep camera test cam-1
    """
    client = run_of(context).client()
    cameras, devices = client.cameras(), client.camera_devices()
    data = {"cameras": cameras, "devices": devices}
    emit(context, "cameras/1", data, lambda screen: _show_cameras(screen, cameras, devices))


def _show_cameras(screen: Screen, cameras: list[CameraState], devices: list[dict[str, Any]]) -> None:
    if cameras:
        screen.table(
            [_camera_row(each) for each in cameras], ["CAMERA", "STATE", "FPS", "SIZE", "FRAMES", "PASSED OVER"]
        )
    else:
        screen.line("No camera is running.")
    for each in cameras:
        if each.code:
            screen.line(f" {screen.mark('bad')} {clean(each.name)}: {clean(each.code)} {clean(each.message)}")
    plugged = [device for device in devices if device.get("capture", True)]
    if plugged:
        screen.line("")
        screen.line("Plugged into this machine; the source goes into the configuration:")
        screen.table([[str(each.get("source", "")), str(each.get("name", ""))] for each in plugged], ["SOURCE", "NAME"])


def _camera_row(state: CameraState) -> list[str]:
    dropped = ", ".join(f"{reason} {count(number)}" for reason, number in state.drops.items() if number)
    return [
        state.name, state.state, f"{state.fps:.1f}", f"{state.width_px}×{state.height_px}", count(state.frames),
        dropped or "-",
    ]  # fmt: skip


@camera.command()
@click.argument("name", metavar="CAMERA")
@click.option("--seconds", type=DURATION, default="5s", show_default=True, metavar="TIME", help="How long to look.")
@click.pass_context
def test(context: click.Context, name: str, seconds: float) -> None:
    """Open a camera apart from the line and measure what it delivers.

    \b
      lenskeep camera test cam-1
      lenskeep camera test cam-1 --seconds 20s
      lenskeep camera test cam-1 --json
    """
    run = run_of(context)
    client = run.client()
    if not run.screen.json:
        run.screen.note(f"Looking at {clean(name)} for {seconds:.0f} s ...")
    found = client.test_camera(name, seconds)
    emit(context, "camera-test/1", found, lambda screen: _show_test(screen, found))
    if found.get("code"):
        context.exit(int(Exit.FAILED))


def _show_test(screen: Screen, found: dict[str, Any]) -> None:
    name, code = clean(found.get("camera", "")), str(found.get("code", ""))
    if code:
        screen.line(f"{screen.mark('bad')} {clean(code)} {clean(found.get('message', ''))}")
        hint = found.get("hint") or fault_book().get(code, UnknownNameError).hint
        screen.line(f"{screen.style('Fix:', 'strong')} {clean(hint)}")
        return
    screen.line(f"{screen.mark('good')} {name} works: {clean(found.get('source', ''))}")
    screen.line(f"  Picture     {found.get('width_px', 0)}×{found.get('height_px', 0)}, {found.get('fps', 0)} fps")
    for title, key, unit in (
        ("First", "first_frame_ms", "ms after opening"),
        ("Jitter", "jitter_ms", "ms"),
        ("Longest", "interval_ms_max", "ms between two pictures"),
        ("Sharpness", "sharpness", ""),
        ("Brightness", "brightness", "of 1"),
    ):
        if isinstance(found.get(key), (int, float)):
            screen.line(f"  {title:12}{found[key]:g} {unit}".rstrip())
    if found.get("live") and found.get("identical"):
        screen.line(f"  {screen.mark('warn')} {plural(int(found['identical']), 'picture')} equal to the one before.")


@camera.command()
@click.argument("name", metavar="CAMERA")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write; CAMERA.jpg otherwise.")
@click.pass_context
def snapshot(context: click.Context, name: str, out: Path | None) -> None:
    """Write what a camera sees now, with what was found drawn in.

    \b
      lenskeep camera snapshot cam-1
      lenskeep camera snapshot cam-1 --out part.jpg
      lenskeep camera test cam-1
    """
    jpeg, headers = run_of(context).client().snapshot(name)
    target = out or Path(f"{name}.jpg")
    try:
        target.write_bytes(jpeg)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    age = headers.get("X-Frame-Age-Ms", "?")
    data = {"file": str(target), "frame_age_ms": age, "bundle": headers.get("X-Model-Version", "")}
    emit(
        context,
        "snapshot/1",
        data,
        lambda screen: screen.line(f"Wrote {clean(target)}; the frame is {clean(age)} ms old."),
    )


@click.command()
@click.option("--camera", "name", metavar="CAMERA", help="Only this camera.")
@click.option("--times", type=click.IntRange(min=1), metavar="N", help="Stop after so many lines.")
@click.option("--every", type=DURATION, default="1s", show_default=True, metavar="TIME", help="Time between lines.")
@click.pass_context
def watch(context: click.Context, name: str | None, times: int | None, every: float) -> None:
    """Watch speed and results as they come.

    A line a second until Ctrl-C.

    \b
      lenskeep watch
      lenskeep watch --camera cam-1
      lenskeep watch --times 10 --json
    """
    client = run_of(context).client()
    shown = 0
    while times is None or shown < times:
        if shown:
            time.sleep(every)
        now = client.status()
        known = {state.name for slot in now.slots for state in slot.cameras}
        if name is not None and name not in known:
            raise UnknownNameError(f"No camera is named {name!r}; there are {', '.join(sorted(known)) or 'none'}.")
        emit(context, "watch/1", now, lambda screen, now=now: _show_meter(screen, now, name))  # type: ignore[misc]
        shown += 1


def _show_meter(screen: Screen, now: Status, name: str | None) -> None:
    for slot in now.slots:
        for state in slot.cameras:
            if name in (None, state.name):
                screen.line(_meter(screen, slot, state))


def _meter(screen: Screen, slot: SlotView, state: CameraState) -> str:
    total = total_latency(slot)
    speed = "no frame yet"
    if total is not None:
        over = slot.budget_ms and total.p99_ms > slot.budget_ms
        speed = f"p50 {milliseconds(total.p50_ms):>7}  p99 {milliseconds(total.p99_ms):>7}"
        speed = screen.style(f"{speed} over budget", "warn") if over else speed
    how = f"{state.fps:5.1f} fps" if state.state == "running" else screen.style(state.state, "warn")
    now = time.strftime("%H:%M:%S")
    return f"{now}  {clean(state.name)}  {how}  {speed}  {clean(slot.active)}  {results(slot.outcomes)}"
