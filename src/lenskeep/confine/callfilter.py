"""Refuses system calls: a program for the kernel's own little machine, given to it once for all threads to come.

Rules. A refused call fails with "not permitted", so whoever makes it hears of it like of any other refusal. Arguments
can be compared as numbers only; what lies behind a pointer (a path, an address) is Landlock's to judge. Calls whose
arguments are not looked at cost nothing measurable: the kernel remembers that they are allowed.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable

from msgspec import Struct

from lenskeep.confine import calls, kernel

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_AT_LEAST = 0x15, 0x35
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _END_PROCESS, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_SET_FILTER = 1
_ALL_THREADS, _NO_SLOWER_PROCESSOR = 1, 4  # without the latter, older kernels slow all of the inference down
_MODE_FILTER = 2
_WHOLE = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]


class Only(Struct, frozen=True):
    """A call is allowed only when an argument, seen through a mask, is one of these values."""

    name: str
    argument: int
    values: frozenset[int]
    mask: int = _WHOLE


class Never(Struct, frozen=True):
    """A call is refused when an argument is one of these values."""

    name: str
    argument: int
    values: frozenset[int]


Rule = Only | Never


def program(machine: str, refused: Iterable[str], rules: Iterable[Rule], *, keeps_folder: bool = False) -> bytes:
    """Write the filter for a machine.

    Args:
        refused: calls of `calls.by_argument` that are refused whole, beside those that always are.
    """
    known = calls.by_argument(machine)
    numbers = [*calls.always_refused(machine, keeps_folder=keeps_folder).values(), *(known[name] for name in refused)]
    code: list[Instruction] = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_IF_EQUAL, 1, 0, _MACHINES[machine]),
        (_RETURN, 0, 0, _END_PROCESS),  # another instruction set in the same process: nothing of ours does that
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 0, 1, calls.NEWEST + 1),
        _fail(errno.ENOSYS),
        *_refusal(known["clone3"], errno.ENOSYS),  # its flags lie behind a pointer; the C library then takes clone
    ]
    for number in sorted(numbers):
        code += _refusal(number, errno.EPERM)
    for rule in rules:
        code += _judged(known[rule.name], rule)
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _fail(number: int) -> Instruction:
    return (_RETURN, 0, 0, _FAIL | number)


def _refusal(number: int, code: int) -> list[Instruction]:
    return [(_IF_EQUAL, 0, 1, number), _fail(code)]


def _judged(number: int, rule: Rule) -> list[Instruction]:
    """Look at one argument of one call; the call's number is loaded again at the end, for the next rule."""
    values = sorted(rule.values)
    load = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * rule.argument)]  # the low half: ints and flags have no other
    if isinstance(rule, Only):
        load.append((_AND, 0, 0, rule.mask))
        looks = [(_IF_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
        body = [*load, *looks, _fail(errno.EPERM)]
    else:
        looks = [(_IF_EQUAL, len(values) - 1 - place, 0, value) for place, value in enumerate(values)]
        looks[-1] = (_IF_EQUAL, 0, 1, values[-1])
        body = [*load, *looks, _fail(errno.EPERM)]
    body.append((_LOAD, 0, 0, _NUMBER_AT))
    return [(_IF_EQUAL, 0, len(body), number), *body]


def enforce(machine: str, code: bytes) -> None:
    """Put a filter in force for this thread and those it begins. Raises: OSError when the kernel has none.

    Asserts: no_new_privs is set.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    try:
        kernel.call(calls.by_argument(machine)["seccomp"], _SET_FILTER, _ALL_THREADS | _NO_SLOWER_PROCESSOR, head)
    except OSError as error:
        # an older kernel, or a service that does not let this call through: the older way has no flags
        if not kernel.control(kernel.PR_SET_SECCOMP, _MODE_FILTER, head):
            raise error from None
