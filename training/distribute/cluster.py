"""Where the processes of a distributed run meet: flags, or a launcher's variables."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import DistributeError


@dataclass(frozen=True)
class Cluster:
    """Where the processes of a run meet.

    Attributes:
        coordinator: "host:port" of process 0, None where the launcher tells JAX.
        count: how many processes there are.
        index: which of them this is, None where the launcher tells JAX.
        launcher: JAX's name of what started the processes, None where flags say it all.
    """

    coordinator: str | None = None
    count: int = 1
    index: int | None = 0
    launcher: str | None = None


@dataclass(frozen=True)
class Flags:
    """What the flags of `add_flags` were set to.

    Attributes:
        distribute: whether to train over all GPUs.
        coordinator: "host:port" of process 0, or None.
        processes: how many there are, or None.
        process: which one this is, from 0, or None.
    """

    distribute: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say over what to train."""
    group = parser.add_argument_group(
        "several GPUs or machines",
        "Slurm, Open MPI and Kubernetes tell --distribute the rest; elsewhere start the same "
        "command on each machine, with its own --process.",
    )
    add = group.add_argument
    add("--distribute", action="store_true", help="train over all GPUs of this machine, on JAX")
    add("--coordinator", metavar="HOST:PORT", help="where process 0 runs, and a free port there")
    add("--processes", type=int, metavar="N", help="how many there are in all")
    add("--process", type=int, metavar="K", help="which one this is, from 0")


def read_flags(options: argparse.Namespace) -> Flags:
    """Return the flags of `add_flags` in the parsed command line."""
    return Flags(options.distribute, options.coordinator, options.processes, options.process)


def find_cluster(flags: Flags, environment: Mapping[str, str]) -> Cluster:
    """Return what `flags` or, without them, a launcher's environment variables say.

    Raises:
        DistributeError: they contradict themselves, or say only a part.
    """
    given = (flags.coordinator, flags.processes, flags.process)
    if not flags.distribute and given != (None, None, None):
        raise DistributeError(
            "Expected --distribute beside --coordinator, --processes and --process. "
            "Received: these alone. Add it."
        )
    if given == (None, None, None):
        return _launched_cluster(environment) if flags.distribute else Cluster()
    coordinator, count, index = given
    if count == 1 and coordinator is None and index in (None, 0):
        return Cluster()  # even where a launcher started more of them
    if coordinator is None or count is None or index is None:
        raise DistributeError(
            "Expected --coordinator, --processes and --process together. "
            f"Received: {coordinator}, {count} and {index}. Give all three, on each machine."
        )
    if not 0 <= index < count:
        raise DistributeError(
            f"Expected --process from 0 to {count - 1}, as there are {count}. "
            f"Received: {index}. Number them from 0."
        )
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise DistributeError(
            "Expected --coordinator as HOST:PORT of the machine that process 0 runs on. "
            f"Received: {coordinator}. Name any free port there, such as {coordinator}:7890."
        )
    return Cluster(coordinator, count, index)


def _launched_cluster(environment: Mapping[str, str]) -> Cluster:
    # Not left to JAX, which takes any shell within a Slurm allocation for a task of a job.
    try:
        count = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
        if count > 1:
            return Cluster(None, count, None, "ompi")
        if "SLURM_STEP_NODELIST" in environment:  # what JAX reads, and only `srun` sets
            count = int(environment.get("SLURM_NTASKS", 1))
    except ValueError as error:
        raise DistributeError(
            f"Expected the launcher to say how many processes there are. Received: {error}. "
            "Say so with --coordinator, --processes and --process."
        ) from error
    # An interactive step (`salloc`, `srun --pty bash`) has one task.
    if count > 1:
        return Cluster(None, count, None, "slurm")
    if "JOB_COMPLETION_INDEX" in environment:
        return Cluster(None, 0, None, "k8s")  # Kubernetes' own interface knows how many
    return Cluster()
