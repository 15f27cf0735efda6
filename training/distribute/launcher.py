"""Train as one over all GPUs of a machine, and over the processes of several machines.

Keras does it on JAX: every process runs the same script, has a copy of the weights, and computes
its rows of each batch; gradients are averaged over all of them after each step. Process 0, the
chief, is alone in what it prints, writes, and reads of an earlier run.

Whoever uses it runs twice. The process that a person starts only watches (`launch`), because
JAX's runtime aborts when another process is lost, without a chance to say so. Its child (`work`),
in which `KERAS_BACKEND` is set before Keras is imported, trains. So this module imports neither
Keras nor JAX before it has to.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

WORKER = "FLOWERS_WORKER"  # the environment variable that tells the child from its parent
HEARTBEAT_SECONDS = 20  # a process that is silent for so long counts as lost
START_SECONDS = 150  # JAX gives up waiting for the others at about twice that
SHOWN_CHARACTERS = 10_000  # of an error; JAX's may print whole weights
STOP_SECONDS = 30  # from Ctrl-C until a child that does not end is killed


class DistributeError(Exception):
    """The processes cannot train as one; `str(error)` says what to do."""


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


def find_cluster(options: argparse.Namespace, environment: Mapping[str, str]) -> Cluster:
    """Return what the flags of `add_flags` or, without them, a launcher's variables say.

    Raises:
        DistributeError: they contradict themselves, or say only a part.
    """
    given = (options.coordinator, options.processes, options.process)
    if not options.distribute and given != (None, None, None):
        raise DistributeError(
            "Expected --distribute beside --coordinator, --processes and --process. "
            "Received: these alone. Add it."
        )
    if given == (None, None, None):
        return _launched_cluster(environment) if options.distribute else Cluster()
    coordinator, count, index = given
    if count == 1 and coordinator is None and index in (None, 0):
        return Cluster()  # even where a launcher started more of them
    if None in given:
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


def is_worker() -> bool:
    """Return whether this is the process that trains, not the one that a person started."""
    return WORKER in os.environ


# The process that a person starts


def relaunch() -> None:
    """Run this script once more, on JAX, and exit as that does, if `--distribute` is asked for.

    Has to come before Keras is imported. In the process that this starts it does nothing.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    options, _ = parser.parse_known_args()
    if is_worker() or not options.distribute:
        return
    try:
        sys.exit(launch(options, sys.argv[1:]))
    except DistributeError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def launch(options: argparse.Namespace, arguments: list[str]) -> int:
    """Run this script with `arguments` in a child, on JAX, and return its exit code.

    `options` holds what the flags of `add_flags` were parsed to.

    Raises:
        DistributeError: the flags are wrong, JAX is missing, another process was lost, or the
            child was killed.
    """
    cluster = find_cluster(options, os.environ)
    if cluster.coordinator and cluster.index == 0:
        _check_free(cluster.coordinator)
    if importlib.util.find_spec("jax") is None:
        raise DistributeError(
            "Expected JAX, which --distribute trains on. Received: no module named jax. "
            'Install it: pip install "jax[cuda12]<0.8", or jax alone without a GPU.'
        )
    with tempfile.TemporaryFile() as notes, tempfile.TemporaryDirectory() as scratch:
        code = _run_child([sys.argv[0], *arguments], notes, scratch)
        notes.seek(0)
        written = notes.read().decode(errors="replace")
    if code < 0:
        raise DistributeError(_reason(written, signal.Signals(-code), cluster))
    return code


def _check_free(coordinator: str) -> None:
    # JAX's runtime says so too, but on its way out it may crash.
    port = int(coordinator.rsplit(":", 1)[1])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except (OSError, OverflowError) as error:
        raise DistributeError(
            f"Expected port {port} of this machine to be free. Received: {error}. "
            "Choose another in --coordinator, in all processes."
        ) from error


def _run_child(arguments: list[str], notes: IO[bytes], scratch: str) -> int:
    """Run `arguments` in a child and return its exit code, negative for a signal.

    What C++ writes to standard error goes into `notes`, temporary files into the folder `scratch`.
    """
    shown = os.dup(2)
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", __file__, str(shown), *arguments],
            stdin=subprocess.PIPE,  # closes when this process ends, whatever ends it
            stderr=notes,
            pass_fds=[shown],
            env=os.environ | {"KERAS_BACKEND": "jax", WORKER: "1", "TMPDIR": scratch},
            process_group=0,  # a terminal's Ctrl-C would reach it twice
        )
    finally:
        os.close(shown)
    with child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                return child.wait(STOP_SECONDS)
            return 130
        finally:
            child.kill()


def _reason(notes: str, killed_by: signal.Signals, cluster: Cluster) -> str:
    """Return a sentence for a child that ended by a signal; `notes` has what C++ wrote."""
    lost = sorted({int(n) for part in re.findall(LOST, notes) for n in re.findall(TASK, part)})
    if COORDINATOR_LOST in notes:
        lost = [0]
    if lost:
        processes = f"process{'es' * (len(lost) > 1)} {', '.join(map(str, lost))}"
        return (
            f"Expected all processes to go on. Received: {processes} stopped answering. "
            "Start all of them again with --resume."
        )
    if NOT_MET in notes:
        place = cluster.coordinator or f"the address that {cluster.launcher} gave"
        return (
            f"Expected all processes to meet at {place}. Received: no answer in time. See that "
            "all were started, that --coordinator names the machine of process 0, and that no "
            "firewall closes its port."
        )
    last = notes.strip().splitlines()[-1:]
    return (
        f"Expected the training process to go on. Received: {killed_by.name}"
        f"{''.join(f' ({line[:300]})' for line in last)}. "
        + "Often memory ran out: try a smaller --batch-size. " * (killed_by == signal.SIGKILL)
        + "Go on with --resume."
    )


# What JAX's runtime writes before it aborts.
LOST = r"stopped sending heartbeats\):\n((?:/job:\S+\n)+)"
TASK = r"task:(\d+)"
COORDINATOR_LOST = "Failed to send RPC to coordination service"
NOT_MET = "CoordinationService/RegisterTask"


# Its child


def work() -> NoReturn:
    """Run the script of `launch` as if it had been started itself, and end with its exit code."""
    sys.stderr = open(int(sys.argv[1]), "w", buffering=1)  # noqa: SIM115
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        error = traceback.format_exc()
        # A lost connection is seen before JAX knows whose it was, and then it aborts us.
        time.sleep(HEARTBEAT_SECONDS + 5 if _met() else 0)
        print(error[:SHOWN_CHARACTERS], end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # as JAX would now wait for the others to end, who wait for us
    sys.exit()


def _exit_code(end: SystemExit) -> int:
    """Do with what `sys.exit` was given as Python does."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _end_with_parent() -> NoReturn:
    os.read(0, 1)  # returns when the pipe closes
    os._exit(1)


def _met() -> bool:
    """Return whether this process is one of several that have found each other."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


@dataclass(frozen=True)
class Workers:
    """The processes that train as one, as one of them sees it.

    Attributes:
        index: of this one.
        count: of processes.
        devices: of all of them.
    """

    index: int = 0
    count: int = 1
    devices: int = 1
    distributed: bool = False

    @property
    def chief(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.index == 0

    def rows(self, batch_size: int) -> slice:
        """Return which rows of a batch of `batch_size` are this process's.

        Raises:
            DistributeError: the batch does not divide among the devices.
        """
        if batch_size % self.devices:
            fitting = -(-batch_size // self.devices) * self.devices
            raise DistributeError(
                f"Expected a batch that {self.devices} devices can share. Received: {batch_size} "
                f"pictures. Try --batch-size {fitting}."
            )
        share = batch_size // self.count
        return slice(self.index * share, (self.index + 1) * share)

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Compare `settings` (JSON) with those of the other processes.

        Raises:
            DistributeError: they differ; all processes raise it.
        """
        if self.count == 1:
            return
        from jax.experimental import multihost_utils

        texts = (json.dumps(value, sort_keys=True).encode() for value in settings.values())
        digests = np.stack([_digest(text) for text in texts])
        seen = np.asarray(multihost_utils.process_allgather(digests))
        differ = (seen != seen[0]).any(axis=(0, 2))
        if differ.any():
            names = ", ".join(name for name, other in zip(settings, differ, strict=True) if other)
            raise DistributeError(
                "Expected the same flags and pictures in all processes. "
                f"Received: different {names}. Start the same command everywhere, with equal "
                "copies of the pictures."
            )

    def chiefs_file(self, path: Path) -> Path:
        """Return where this process can read what the chief has at `path`, if anything.

        That is `path` for the chief itself, so that no shared folder is needed.
        """
        if self.count == 1:
            return path
        from jax.experimental.multihost_utils import broadcast_one_to_all

        held = path.read_bytes() if self.chief and path.exists() else None
        size = int(broadcast_one_to_all(np.int32(-1 if held is None else len(held))))
        if size < 0:
            return path if self.chief else Path(tempfile.mkdtemp(), path.name)
        content = np.frombuffer(held, np.uint8) if self.chief else np.zeros(size, np.uint8)
        content = np.asarray(broadcast_one_to_all(content))
        if self.chief:
            return path
        copy = Path(tempfile.mkdtemp(), path.name)
        copy.write_bytes(content.tobytes())
        return copy

    def spread(self, model: Any, seed: int) -> Any:
        """Return a copy of `model`, not compiled, on all devices, with the chief's weights.

        From here on all processes draw the same random numbers, from `seed`, and have to do the
        same with the copy: each value given to one of its variables is compared among them.
        """
        if not self.distributed:
            return model
        import keras
        from jax.experimental.multihost_utils import broadcast_one_to_all

        values = broadcast_one_to_all(model.get_weights())
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
        keras.utils.set_random_seed(seed)  # the chief may have drawn more than the others
        copy = keras.models.clone_model(model)
        copy.set_weights(values)
        return copy

    def chiefs(self, *callbacks: Any) -> list:
        """Return the Keras `callbacks` that the chief has to itself, for the others none.

        Saving a model makes variables, at the end of an epoch; here they stay its own.
        """
        if not self.chief:
            return []
        if self.distributed:
            for callback in callbacks:
                callback.on_epoch_end = by_itself()(callback.on_epoch_end)
        return list(callbacks)

    def part(self) -> None:
        """Wait until all have come here; then each is by itself, and the chief may take its time.

        What was on all devices cannot be computed with any more.
        """
        if not self.distributed:
            return
        import jax
        import keras

        keras.distribution.set_distribution(None)
        jax.distributed.shutdown()


@contextmanager
def by_itself() -> Iterator[None]:
    """Let this process make variables that the others do not; those stay on its own device."""
    import keras

    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def join(options: argparse.Namespace) -> Workers:
    """Find the other processes, and silence this one unless it is the chief.

    Has to come before anything is computed. Without --distribute there are no others.

    Raises:
        DistributeError: they cannot be found, or have another number of devices.
    """
    cluster = find_cluster(options, os.environ)
    if not options.distribute:
        return Workers()
    if not is_worker():
        raise DistributeError(
            "Expected --distribute on the command line of a script. Received: a call. "
            "Run python train.py --distribute."
        )
    import jax

    if cluster != Cluster():
        try:
            _initialize(cluster, os.environ)
        except Exception as error:  # jaxlib's are as general as the launchers' ways to fail
            raise DistributeError(
                f"Expected to find the other processes ({cluster.coordinator or cluster.launcher})."
                f" Received: {_first_line(error)}. Choose another port if that is taken; or say "
                "where they are with --coordinator, --processes and --process."
            ) from error
    workers = Workers(jax.process_index(), jax.process_count(), jax.device_count(), True)
    if workers.devices != workers.count * jax.local_device_count():
        raise DistributeError(
            f"Expected as many devices on each machine. Received: {jax.local_device_count()} of "
            f"{workers.devices} here, among {workers.count} processes. Hide some with "
            "CUDA_VISIBLE_DEVICES."
        )
    if not workers.chief:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    print(
        f"Distribute: {workers.devices} device{'s' * (workers.devices > 1)} "
        f"({jax.devices()[0].device_kind}) of "
        f"{workers.count} process{'es' * (workers.count > 1)}.",
        flush=True,
    )
    return workers


def _initialize(cluster: Cluster, environment: Mapping[str, str]) -> None:
    import jax

    jax.distributed.initialize(
        cluster.coordinator,
        cluster.count or None,
        cluster.index,
        local_device_ids=_local_devices(environment) if cluster.launcher else None,
        cluster_detection_method=cluster.launcher or "deactivate",
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Return [] for a process that takes all GPUs it sees, None for one of several on a machine.

    JAX gives each process of Slurm and Open MPI one GPU, the n-th process the n-th, also where
    there is one process a machine, or where each process sees no GPU but its own.
    """
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or (
        "OMPI_COMM_WORLD_SIZE" not in environment
        and environment.get("SLURM_NTASKS") == environment.get("SLURM_STEP_NUM_NODES")
    )
    own = environment.get("CUDA_VISIBLE_DEVICES", "").count(",") == 0
    return [] if alone or ("CUDA_VISIBLE_DEVICES" in environment and own) else None


def _digest(text: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text).digest(), np.uint32)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


if __name__ == "__main__":
    work()
