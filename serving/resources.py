"""The memory and the processors that the service may use."""

import os
import resource
from pathlib import Path

MEMORY = "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"  # in megabytes; AWS and its emulator set it
MEGABYTES_PER_VCPU = 1769  # AWS Lambda allocates one vCPU for this much memory
# The limit of a container, whatever its function is said to have: of cgroups 2 and 1.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
STATM = Path("/proc/self/statm")
# Kept for what the other processes have of their own, what sockets hold, and AWS's runtime.
RESERVE = 64_000_000
# However much there is. The worst of what is within the limits takes 1.3 GB.
MOST = 1_500_000_000
LEAST = 32_000_000  # however little is left, small images are worth a try


def thread_count() -> int:
    """Return the threads to use: the usable processors, or by memory on Lambda.

    Lambda shows at least two processors at any memory size, but allocates CPU time by memory.
    """
    if megabytes := _function_memory():
        return max(1, round(megabytes / MEGABYTES_PER_VCPU))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_share() -> float:
    """Return the share of one processor that a thread has: more than 0, at most 1."""
    return min(1.0, (_function_memory() or MEGABYTES_PER_VCPU) / MEGABYTES_PER_VCPU)


def decoding_memory(processes: int = 1) -> int:
    """Return how many bytes decoding an image may take now.

    That is what the function, container or machine has for each of `processes` that decode at the
    same time, less what this one takes.
    """
    return max(LEAST, min((_total() - RESERVE) // processes - _resident(), MOST))


def _total() -> int:
    """Return the bytes of memory of the function, the container or the machine."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if megabytes := _function_memory():
        limits.append(megabytes << 20)
    for path in CONTAINER_LIMITS:
        if path.exists() and (count := path.read_text().strip()).isdecimal():  # or "max"
            limits.append(int(count))
    return min(limits)


def _resident() -> int:
    """Return the bytes of memory of this process."""
    if not STATM.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def _function_memory() -> int | None:
    """Return the megabytes of memory of the Lambda function; None elsewhere."""
    megabytes = os.environ.get(MEMORY, "")
    return int(megabytes) if megabytes.isdecimal() and int(megabytes) else None
