"""The system calls that a judging process has no use for, by what they would be used for, and their numbers.

A list of what is refused and not of what is allowed: what the C library, ONNX Runtime, OpenCV and a camera's driver
ask for differs with their versions, shows in rare moments only, and a call refused by mistake would stop a line. The
service's unit lays a list of what is allowed over it. Calls that are newer than this list are refused as unknown.
Source: Linux 6.18, arch/x86/entry/syscalls/syscall_64.tbl and scripts/syscall.tbl for aarch64.
"""

from __future__ import annotations

import os
import sys

_MACHINES = ("x86_64", "aarch64")
NEWEST = 462  # from here on both machines count alike

# name, number on x86_64, number on aarch64; a dash where the machine never had it
_PROGRAMS = """
execve 59 221, execveat 322 281, fork 57 -, vfork 58 -, unshare 272 97, setns 308 268, personality 135 92,
kexec_load 246 104, kexec_file_load 320 294, uselib 134 -
"""
_OTHER_PROCESSES = """
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, pidfd_open 434 434, pidfd_getfd 438 438,
pidfd_send_signal 424 424, kcmp 312 272, process_madvise 440 440, process_mrelease 448 448, tkill 200 130,
rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, move_pages 279 239, migrate_pages 256 238,
sched_setscheduler 144 119, sched_setattr 314 274, sched_setparam 142 118, ioprio_set 251 30,
shmget 29 194, shmat 30 196, shmctl 31 195, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187,
semget 64 190, semop 65 193, semctl 66 191, semtimedop 220 192, mq_open 240 180, mq_unlink 241 181
"""
_NETWORK = "socketpair 53 199, listen 50 201"
# what Landlock does not judge, and, for kernels without it, whatever removes or renames
_FILES = """
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54,
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16,
utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, truncate 76 45, unlink 87 -, unlinkat 263 35,
rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, link 86 -, linkat 265 37,
symlink 88 -, symlinkat 266 36, mknod 133 -, mknodat 259 33, mount 165 40, umount2 166 39, open_tree 428 428,
move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442,
pivot_root 155 41, chroot 161 51, swapon 167 224, swapoff 168 225, open_by_handle_at 304 265, fanotify_init 300 262,
quotactl 179 60, quotactl_fd 443 443
"""
_IN_A_FOLDER = frozenset(
    ("unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "symlink", "symlinkat")
)
_SYSTEM = """
settimeofday 164 170, clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171, reboot 169 142,
sethostname 170 161, setdomainname 171 162, init_module 175 105, finit_module 313 273, delete_module 176 106,
ioperm 173 -, iopl 172 -, modify_ldt 154 -, vhangup 153 58, acct 163 89, syslog 103 116,
setuid 105 146, setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147, setresgid 119 149,
setfsuid 122 151, setfsgid 123 152, setgroups 116 159, capset 126 91
"""
# wide doors into the kernel, through which processes have become root again and again
_DOORS = """
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, io_setup 206 0, vmsplice 278 75,
splice 275 76, tee 276 77, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, lookup_dcookie 212 18,
add_key 248 217, request_key 249 218, keyctl 250 219
"""
_BY_ARGUMENT = """
kill 62 129, tgkill 234 131, prlimit64 302 261, setpriority 141 140, sched_setaffinity 203 122, clone 56 220,
clone3 435 435, prctl 157 167, ioctl 16 29, fcntl 72 25, sendto 44 206, sendmsg 46 211, sendmmsg 307 269,
socket 41 198, bind 49 200, connect 42 203, accept 43 202, accept4 288 242, seccomp 317 277, capget 125 90
"""


def machine() -> str:
    """Name this process's instruction set as the tables do; empty when they do not know it."""
    name = os.uname().machine
    return name if name in _MACHINES and sys.maxsize > 1 << 32 and sys.byteorder == "little" else ""


def _numbers(text: str, machine: str) -> dict[str, int]:
    rows, column = [row.split() for row in text.split(",")], _MACHINES.index(machine) + 1
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def always_refused(machine: str, *, keeps_folder: bool = False) -> dict[str, int]:
    """Return what no judging process needs; one that has a folder of its own makes, moves and removes files in it."""
    groups = (_PROGRAMS, _OTHER_PROCESSES, _NETWORK, _FILES, _SYSTEM, _DOORS)
    left = _IN_A_FOLDER if keeps_folder else frozenset()
    found = {name: number for group in groups for name, number in _numbers(group, machine).items()}
    return {name: number for name, number in found.items() if name not in left}


def by_argument(machine: str) -> dict[str, int]:
    """Return the calls of which some uses are needed, or whose need depends on the process."""
    return _numbers(_BY_ARGUMENT, machine)
