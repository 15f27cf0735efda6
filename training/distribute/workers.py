"""The processes that train as one, on Keras' JAX backend."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.distribute.cluster import Cluster, Flags, find_cluster
from training.distribute.launcher import HEARTBEAT_SECONDS, is_worker
from training.errors import DistributeError

START_SECONDS = 150  # JAX gives up waiting for the others at about twice that


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
    def is_main(self) -> bool:
        """Whether this is process 0, which prints and writes."""
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
                f"images. Try --batch-size {fitting}."
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
                "Expected the same flags and images in all processes. "
                f"Received: different {names}. Start the same command everywhere, with equal "
                "copies of the images."
            )

    def broadcast_file(self, path: Path) -> Path:
        """Return where this process can read what the main process has at `path`, if anything.

        That is `path` for the main process itself, so that no shared folder is needed.
        """
        if self.count == 1:
            return path
        from jax.experimental.multihost_utils import broadcast_one_to_all

        held = path.read_bytes() if self.is_main and path.exists() else None
        size = int(broadcast_one_to_all(np.int32(-1 if held is None else len(held))))
        if size < 0:
            return path if self.is_main else Path(tempfile.mkdtemp(), path.name)
        content = np.frombuffer(held, np.uint8) if self.is_main else np.zeros(size, np.uint8)
        content = np.asarray(broadcast_one_to_all(content))
        if self.is_main:
            return path
        copy = Path(tempfile.mkdtemp(), path.name)
        copy.write_bytes(content.tobytes())
        return copy

    def broadcast(self, number: int) -> int:
        """Return the main process' `number`."""
        if self.count == 1:
            return number
        from jax.experimental.multihost_utils import broadcast_one_to_all

        return int(broadcast_one_to_all(np.int32(number)))

    def replicate(self, model: Any, seed: int) -> Any:
        """Return a copy of `model`, not compiled, on all devices, with the main process' weights.

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
        keras.utils.set_random_seed(seed)  # the main process may have drawn more than the others
        copy = keras.models.clone_model(model)
        copy.set_weights(values)
        return copy

    def main_process_callbacks(self, *callbacks: Any) -> list:
        """Return the Keras `callbacks` that the main process has to itself, for the others none.

        Saving a model makes variables, at the end of an epoch; here they stay its own.
        """
        if not self.is_main:
            return []
        if self.distributed:
            for callback in callbacks:
                callback.on_epoch_end = unsharded()(callback.on_epoch_end)
        return list(callbacks)

    def release(self) -> None:
        """Let each process make models of its own again, after one that `replicate` returned."""
        if self.distributed:
            import keras

            keras.distribution.set_distribution(None)

    def shutdown(self) -> None:
        """Wait for all processes, then leave them; the main process may take its time.

        Models that were on all devices cannot be used any more.
        """
        if not self.distributed:
            return
        import jax

        self.release()
        jax.distributed.shutdown()


@contextmanager
def unsharded() -> Generator[None]:
    """Let this process make variables that the others do not; those stay on its own device."""
    import keras

    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def initialize(flags: Flags) -> Workers:
    """Find the other processes, and silence this one unless it is the main process.

    Has to come before anything is computed. Without --distribute there are no others.

    Raises:
        DistributeError: they cannot be found, or have another number of devices.
    """
    cluster = find_cluster(flags, os.environ)
    if not flags.distribute:
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
    if not workers.is_main:
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
