"""End this process where it writes a file or opens a socket, in Python or in C++.

A seccomp filter: Linux itself looks at every system call of this thread and of those it starts.
"""

import ctypes
import errno
import os
import platform
import resource
import struct

# asm/unistd.h: those that make something, whatever their arguments are, and those that open a
# file, each with the place of its flags among the arguments.
MAKE = {
    # socket, creat, mkdir, mkdirat, io_uring_setup, openat2
    "x86_64": (41, 85, 83, 258, 425, 437),
    "aarch64": (198, 34, 425, 437),  # without the old ones
}
OPEN = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}  # open, openat
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# linux/bpf_common.h, linux/seccomp.h, linux/prctl.h
LOAD, JUMP_EQUAL, JUMP_BITS, RETURN = 0x20, 0x15, 0x45, 0x06
KILL_PROCESS, ALLOW = 0x8000_0000, 0x7FFF_0000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # places in struct seccomp_data


def forbid_writes_and_sockets() -> None:
    """Have Linux kill this process (SIGSYS) at its first such system call from now on.

    Raises:
        OSError: this system has no such filter.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # or its end writes a file, too
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURE:
        raise OSError(errno.ENOSYS, "no filter is known for this system")
    program = _program(platform.machine())
    buffer = ctypes.create_string_buffer(program)
    # struct sock_fprog: the number of instructions of eight bytes, and where they are.
    filtered = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = ctypes.c_ulong(0)
    if prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) or prctl(
        PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.c_char_p(filtered), zero, zero
    ):
        raise OSError(ctypes.get_errno(), "no filter can be set")


def _program(machine: str) -> bytes:
    """Return the filter: each instruction is (what, if true skip, if false skip, number)."""
    kill, allow = (RETURN, 0, 0, KILL_PROCESS), (RETURN, 0, 0, ALLOW)
    code = [(LOAD, 0, 0, MACHINE), (JUMP_EQUAL, 1, 0, ARCHITECTURE[machine]), kill]
    code += [(LOAD, 0, 0, NUMBER)]
    for call in MAKE[machine]:
        code += [(JUMP_EQUAL, 0, 1, call), kill]
    for call, flags in OPEN[machine]:
        place = ARGUMENTS + 8 * flags
        code += [(JUMP_EQUAL, 0, 4, call), (LOAD, 0, 0, place), (JUMP_BITS, 0, 1, WRITE), kill]
        code += [allow]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in [*code, allow])
