"""How the synthetic line looks: the belt, the light on it, and the pucks with their caps, painted once.

Everything takes its chance from the generator it is given and is the same for the same seed.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Plane = NDArray[np.float32]

_SPRITE_PX: Final = 320
_PUCK_RADIUS_PX: Final = 140  # in the sprite; what is left around it is for the shadow
_CAP_RADIUS: Final = 0.82  # of the puck's radius
_FLUTES: Final = 21  # a crown cap has 21 teeth
_LIGHT_ANGLE: Final = math.atan2(-0.8, -0.6)  # the lamp stands above and to the left
_PAINTS_BGR: Final = (
    (40, 38, 178),
    (150, 84, 28),
    (70, 120, 30),
    (36, 130, 200),
    (124, 116, 20),
    (96, 36, 96),
)
_INKS_BGR: Final = ((235, 240, 242), (150, 215, 240), (228, 226, 205))


@dataclass(frozen=True)
class Sprite:
    """One puck with or without its cap: colours already multiplied by `alpha`, both square and uint8."""

    bgr: Image
    alpha: Image


def belt_strip(rng: np.random.Generator, period_px: int, width_px: int, height_px: int) -> Image:
    """Paint the belt: woven rubber with a seam and scuffs, one period repeated past the frame's width."""
    y, x = np.mgrid[0:height_px, 0:period_px].astype(np.float32)
    weave_px = height_px / 90
    waves = period_px / round(period_px / weave_px)  # whole waves, or the repeat would show
    shade = 1 + 0.07 * np.sin(2 * np.pi * x / waves) * np.sin(2 * np.pi * y / weave_px)
    margin_px = height_px // 8
    scuffs = np.pad(
        rng.normal(0, 1, (height_px, period_px)).astype(np.float32), ((0, 0), (margin_px, margin_px)), "wrap"
    )
    scuffs = cv2.GaussianBlur(scuffs, (0, 0), height_px / 30, sigmaY=height_px / 160)[:, margin_px:-margin_px]
    shade += 0.08 * scuffs / scuffs.std()
    seam = np.abs(x - period_px * 0.5) / height_px
    shade *= 1 - 0.5 * np.exp(-((seam / 0.006) ** 2)) + 0.18 * np.exp(-(((seam - 0.014) / 0.004) ** 2))
    edge = np.minimum(y, height_px - 1 - y) / height_px
    shade *= 0.55 + 0.45 * np.clip(edge / 0.03, 0, 1)
    tint = np.array([52, 58, 50], np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    tile = (shade[..., None] * tint).clip(0, 255).astype(np.uint8)
    return np.tile(tile, (1, 1 + -(-width_px // period_px), 1))


def light(rng: np.random.Generator, width_px: int, height_px: int, station: bool) -> Image:
    """Paint the light on the frame: a slope across it, or a ring lamp's pool; 160 changes nothing."""
    y, x = np.mgrid[-1 : 1 : height_px * 1j, -1 : 1 : width_px * 1j].astype(np.float32)
    angle, slope, level = rng.uniform(-0.6, 0.6), rng.uniform(0.08, 0.16), rng.uniform(0.94, 1.06)
    gain = 1 - slope * (x * math.cos(angle) + y * math.sin(angle)) - 0.1 * (x * x + y * y)
    if station:
        gain = 1.12 - 0.28 * (x * x + y * y) - 0.3 * slope * x
    painted: Image = cv2.merge([(160 * level * gain).clip(0, 255).astype(np.uint8)] * 3)
    return painted


@functools.cache
def _polar() -> tuple[Plane, Plane]:
    """Radius (1 at the puck's edge) and angle of each sprite pixel."""
    y, x = (np.mgrid[0:_SPRITE_PX, 0:_SPRITE_PX].astype(np.float32) - (_SPRITE_PX - 1) / 2) / _PUCK_RADIUS_PX
    return np.hypot(x, y), np.arctan2(y, x)


def _inside(distance: Plane) -> Plane:
    """Cover 1 inside (positive distance, in puck radii), 0 outside, with one soft pixel between."""
    return _plane(np.clip(distance * _PUCK_RADIUS_PX + 0.5, 0, 1))


def _bump(value: Plane, centre: float, width: float) -> Plane:
    return _plane(np.exp(-(((value - centre) / width) ** 2)))


def puck_sprite(rng: np.random.Generator, label: str, puck_px: int) -> Sprite:
    """Paint one puck, `puck_px` wide, with its cap or with its empty seat, and the shadow it throws."""
    radius, _ = _polar()
    colour = _puck(rng)
    colour = _seat(colour) if label == "missing" else _cap(colour, rng, scratched=label == "scratched")
    cover = _inside(1 - radius)
    drop = round(0.05 * _PUCK_RADIUS_PX)
    shadow = cv2.GaussianBlur(np.roll(cover, (drop, drop), (0, 1)), (0, 0), 6) * 0.6
    alpha = 1 - (1 - cover) * (1 - shadow)
    return Sprite(_scaled(colour * cover[..., None], puck_px), _scaled(alpha * 255, puck_px))


def _scaled(plane: Plane, puck_px: int) -> Image:
    side_px = round(puck_px * _SPRITE_PX / (2 * _PUCK_RADIUS_PX))
    kernel = cv2.INTER_AREA if side_px < _SPRITE_PX else cv2.INTER_LINEAR
    pixels = np.rint(plane).clip(0, 255).astype(np.uint8)
    scaled: Image = cv2.resize(pixels, (side_px, side_px), interpolation=kernel)
    return scaled


def _puck(rng: np.random.Generator) -> Plane:
    """Render the carrier: a grey plastic disc with a bevelled edge and a groove."""
    radius, angle = _polar()
    facing = np.cos(angle - _LIGHT_ANGLE)
    shade = 1 + 0.45 * facing * _inside(radius - 0.94) - 0.3 * facing * _bump(radius, 0.885, 0.02)
    return _plane(shade[..., None] * _colour((112, 108, 104), rng.uniform(0.9, 1.1)))


def _seat(colour: Plane) -> Plane:
    """Sink an empty seat into the puck: a dark well with a bright lip and three spring clips."""
    radius, angle = _polar()
    facing = np.cos(angle - _LIGHT_ANGLE)
    floor = 30 - 16 * facing * radius + 26 * _bump(radius, 0.3, 0.03) + 14 * _bump(radius, 0.5, 0.015)
    clips = _inside((np.cos(3 * angle + 0.5) - 0.9) * 0.3) * _inside(radius - 0.56) * _inside(0.76 - radius)
    floor = floor * (1 - clips) + (150 - 40 * facing) * clips
    lip = 70 * (1 - 0.6 * facing) * _bump(radius, 0.8, 0.02)
    cover = _inside(0.79 - radius)
    metal = (floor * cover + lip)[..., None] * _colour((1.0, 0.97, 0.94))
    return _plane(colour * (1 - cover[..., None]) + metal)


def _cap(colour: Plane, rng: np.random.Generator, *, scratched: bool) -> Plane:
    """Set a crown cap on the puck: fluted skirt, bevel, gleam, printed top."""
    radius, angle = _polar()
    radius = radius / _CAP_RADIUS
    flutes = np.cos(_FLUTES * angle + rng.uniform(0, 2 * np.pi))
    facing = np.cos(angle - _LIGHT_ANGLE)
    top = _top(rng, scratched=scratched)
    skirt = _inside((radius - 0.84) * _CAP_RADIUS)
    dome = 1.02 + 0.16 * facing * radius + 0.05 * np.cos(2 * (angle - 0.4)) * radius
    shade = dome * (1 - skirt) + (0.62 + 0.28 * facing + 0.26 * flutes) * skirt
    gleam = 90 * _bump(np.hypot(radius * facing - 0.5, radius * np.sin(angle - _LIGHT_ANGLE)), 0.0, 0.34)
    gleam += 110 * _bump(radius, 0.83, 0.025) * np.clip(facing, 0, 1)
    cover = _inside((0.97 + 0.03 * flutes - radius) * _CAP_RADIUS)
    return _over(colour, cover, (top * shade[..., None] + gleam[..., None]).clip(0, 255))


def _top(rng: np.random.Generator, *, scratched: bool) -> Plane:
    """Paint the cap's flat top: paint, print, and bare metal with a dark burr where it is scratched."""
    paint = _colour(_PAINTS_BGR[rng.integers(len(_PAINTS_BGR))], rng.uniform(0.9, 1.1))
    top = np.broadcast_to(paint, (_SPRITE_PX, _SPRITE_PX, 3))
    top = _over(top, _print(rng), _colour(_INKS_BGR[rng.integers(len(_INKS_BGR))]))
    if scratched:
        mark = _scratches(rng)
        burr = cv2.GaussianBlur(np.roll(mark, (2, 2), (0, 1)), (0, 0), 2.5)
        top = _over(top, _plane((2.2 * burr).clip(0, 0.75)), _colour((18, 18, 18)))
        top = _over(top, mark, _colour((205, 208, 210)))
    return top


def _over(below: Plane, cover: Plane, above: Plane) -> Plane:
    return _plane(below + cover[..., None] * (above - below))


def _print(rng: np.random.Generator) -> Plane:
    """Draw the printed mark: a ring, ticks inside it, and a star at any angle."""
    canvas = np.zeros((_SPRITE_PX, _SPRITE_PX), np.uint8)
    radius, turn, points = _PUCK_RADIUS_PX * _CAP_RADIUS, rng.uniform(0, 2 * np.pi), int(rng.integers(5, 7))
    centre = _SPRITE_PX // 2
    cv2.circle(canvas, (centre, centre), round(0.72 * radius), 255, round(0.05 * radius), cv2.LINE_AA)
    for tick in range(24):
        spot = _point(centre + 0.61 * radius * _unit(turn + tick * np.pi / 12))
        cv2.circle(canvas, spot, round(0.022 * radius), 255, -1, cv2.LINE_AA)
    corners = [
        centre + radius * (0.46, 0.2)[corner % 2] * _unit(turn + corner * np.pi / points)
        for corner in range(2 * points)
    ]
    cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 255, cv2.LINE_AA)
    return _plane(canvas / 255)


def _scratches(rng: np.random.Generator) -> Plane:
    """Draw one to three rough, slightly bent lines across the top."""
    canvas = np.zeros((_SPRITE_PX, _SPRITE_PX), np.uint8)
    radius, centre = _PUCK_RADIUS_PX * _CAP_RADIUS, _SPRITE_PX / 2
    heading = rng.uniform(0, np.pi)
    for _ in range(int(rng.integers(1, 4))):
        along, across = _unit(heading + rng.uniform(-0.35, 0.35)), _unit(heading + np.pi / 2)
        way = np.linspace(-1, 1, 14) * rng.uniform(0.5, 0.78)
        bend = rng.uniform(-0.12, 0.12) * (1 - way**2) + rng.uniform(-0.45, 0.45)
        bend += rng.normal(0, 0.008, way.size)
        line = centre + radius * (way[:, None] * along + bend[:, None] * across)
        widths = rng.uniform(4, 7) * (1 - 0.5 * np.linspace(-1, 1, 13) ** 2) + rng.uniform(-0.8, 0.8, 13)
        for (start, end), width in zip(itertools.pairwise(line), widths, strict=True):
            cv2.line(canvas, _point(start), _point(end), 255, round(float(width)), cv2.LINE_AA)
    on_top = _inside(0.84 * _CAP_RADIUS - _polar()[0])
    return _plane(canvas / 255 * on_top)


def _unit(angle: float) -> NDArray[np.float64]:
    return np.array([math.cos(angle), math.sin(angle)])


def _point(position: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(position[0])), round(float(position[1]))


def _colour(bgr: tuple[float, float, float], gain: float = 1.0) -> Plane:
    return np.array(bgr, np.float32) * np.float32(gain)


def _plane(values: Any) -> Plane:
    return np.asarray(values, np.float32)
