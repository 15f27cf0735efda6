"""Labels shards with Ray Data, on this machine or a cluster: predict.py --engine ray.

RAY_ADDRESS names a cluster, as for every program of Ray. Without it, Ray is started on this machine
for the time of the job. Each of Ray's actors holds a model and a decoder and labels one shard after
the other by the same function as the processes of training/shard_workers.py.

The files of results are the checkpoint of the job. Ray Data has checkpoints of its own
(CheckpointConfig), but only for rows that Ray itself writes, and no other engine could go on from
them.

Ray is an optional package, imported when the first function here needs it.
"""

import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from serving import addresses, fetch
from serving.classifier import Classifier, file_digest
from serving.decoder import Decoder
from serving.errors import StoreError, UserError
from serving.resources import thread_count
from serving.shards import Counts, Labeler, Manifest
from serving.stores import open_store
from training import cli
from training.files import claim_folder
from training.shard_workers import (
    MOST_FAILURES,
    PROGRESS_S,
    Failed,
    Finished,
    Setup,
    ShardLabeler,
    Summary,
)
from training.streams import without_info_lines

ADDRESS = "RAY_ADDRESS"  # the variable that names a cluster
PACKAGES = [str(Path(__file__).resolve().parents[1] / name) for name in ("serving", "training")]
FORWARDED = (addresses.VARIABLE, fetch.CONTACT)  # variables of the job, not of its machines
# Of what is started here.
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux, too: listens on 127.0.0.1 alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as this process has; Ray's own default is 15
}
FOLDER = "/tmp"  # noqa: S108 - short, since the path of a socket has at most 107 bytes
PREFIX = "flower-classifier-ray-"
STORE_BYTES = 200_000_000  # of memory that actors share, beside the model
CONNECT_S = 10.0  # seconds to wait for a cluster
ANSWER_S = 10.0  # seconds to wait for the number of labelled images
OTHERS = -1  # images of a shard that another run has labelled
MOST_TRIES = 3  # of a shard whose actor is killed each time; Ray has no limit


class RayError(UserError):
    """Ray is not installed, does not start, or its cluster cannot be used."""


def require_ray() -> None:
    """Raise RayError if Ray is not installed."""
    _load_ray()


def label(
    setup: Setup, numbers: Sequence[int], processes: int | None, progress: Callable[[int], object]
) -> Summary:
    """Label the shards `numbers` in several actors and return what came of them.

    `processes` are the actors, by default one for each processor that Ray has. `progress` is called
    with how many more images are labelled.

    Raises:
        RayError: Ray is not installed, does not start, or its cluster cannot be used.
    """
    ray = _load_ray()
    out = setup.out if "://" in setup.out else os.path.abspath(setup.out)
    setup = setup._replace(model=setup.model.resolve(), out=out)
    summary = Summary(len(numbers))
    with _connect(ray, setup, processes):
        # On the machine of this process, which the job ends with anyway.
        here = ray.get_runtime_context().get_node_id()
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        monitor = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=place).remote()
        with _follow(ray, monitor, progress):
            for report in _reports(ray, setup, numbers, processes, monitor):
                summary.add(report)
                if summary.failed >= MOST_FAILURES:
                    break
    return summary


class Monitor:
    """An actor that knows what the others do."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._tries: Counter[int] = Counter()
        self._images: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Return how many times an actor has begun to label shard `number`."""
        self._tries[number] += 1
        self._images[number] = 0  # a killed actor's have no row
        return self._tries[number]

    def add(self, number: int, images: int) -> None:
        """Count `images` of shard `number` that have a row, fewer than 0 if it has failed."""
        self._images[number] += images

    def images(self) -> int:
        """Return how many images have a row."""
        return self._images.total()


class LabelingActor:
    """An actor that labels shards, each a row with its number."""

    def __init__(self, setup: Setup, sharing: int, model: list, monitor: Any):
        """Load the model, as one of `sharing` actors on a machine.

        `model` is a list with a reference to the content of the model's file.
        """
        self._monitor, self._number, self._failure = monitor, 0, None
        try:
            _require_shared(setup)
            decoder = Decoder()
            classifier = load_classifier(setup, *model)
            labeler = Labeler(classifier, decoder, setup.manifest.unknown_below, sharing)
            self._shards = ShardLabeler(setup, labeler, self._count)
        except UserError as error:
            self._failure = Failed(str(error))

    def __call__(self, batch: dict) -> dict:
        """Label the shard batch["number"], and return what came of it as a row."""
        [self._number] = batch["number"].tolist()
        report = self._failure or self._label()
        if isinstance(report, Failed):
            return {"images": [0], "errors": [0], "failure": [report.sentence]}
        images, errors = report.counts or (OTHERS, OTHERS)
        return {"images": [images], "errors": [errors], "failure": [""]}

    def _count(self, images: int) -> None:
        self._monitor.add.remote(self._number, images)

    def _label(self) -> Finished | Failed:
        if import_module("ray").get(self._monitor.begin.remote(self._number)) <= MOST_TRIES:
            return self._shards.label(self._number)
        return Failed(
            f"Labelling shard {self._number} was killed {MOST_TRIES} times, usually for lack of "
            "memory. Use fewer --processes."
        )


def _require_shared(setup: Setup) -> None:
    """Raise StoreError if this machine does not see the job."""
    if Manifest.read(open_store(setup.out)) != setup.manifest:
        raise StoreError(
            f"Expected {setup.out} to be the same on all machines of the cluster. Received: one "
            "where the job's manifest is missing. Name a bucket or a shared folder as --out."
        )


def load_classifier(setup: Setup, content: Any) -> Classifier:
    """Return the classifier of the model's file or, on another machine, of its `content`."""
    runtime = setup.manifest.runtime
    with suppress(OSError):
        if file_digest(setup.model) == setup.manifest.model_digest:
            return Classifier(setup.model, 1, runtime)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / setup.model.name
        copy.write_bytes(import_module("ray").get(content))
        return Classifier(copy, 1, runtime)


def _reports(
    ray: Any, setup: Setup, numbers: Sequence[int], processes: int | None, monitor: Any
) -> Iterator[Finished | Failed]:
    """Yield what came of each shard; of one whose actor was killed again and again, nothing."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # such a shard does not end the others
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    count = processes or max(1, sum(nodes))
    model = [ray.put(setup.model.read_bytes())]
    rows = [{"number": number} for number in numbers]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        LabelingActor,
        fn_constructor_args=(setup, min(count, max(nodes)), model, monitor),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            size=min(count, len(rows)), max_tasks_in_flight_per_actor=1
        ),
    )
    for row in dataset.iter_rows():
        if row["failure"]:
            yield Failed(row["failure"])
        else:
            counts = Counts(row["images"], row["errors"])
            yield Finished(None if counts.images == OTHERS else counts)


@contextmanager
def _follow(ray: Any, monitor: Any, progress: Callable[[int], object]) -> Generator[None]:
    """Report how many images have a row while the block runs."""
    ended = threading.Event()

    def follow() -> None:
        shown, last = 0, False
        while not last:
            last = ended.wait(PROGRESS_S)
            with suppress(ray.exceptions.RayError):
                images = ray.get(monitor.images.remote(), timeout=ANSWER_S)
                progress(images - shown)
                shown = images

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _connect(ray: Any, setup: Setup, processes: int | None) -> Generator[None]:
    """Use the cluster at RAY_ADDRESS while the block runs, or start Ray on this machine."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if _cluster():
            settings = {name: os.environ[name] for name in FORWARDED if name in os.environ}
            options["runtime_env"] = {"py_modules": PACKAGES, "env_vars": settings}
        else:
            folder = stack.enter_context(_temporary_folder())
            _spare_grammar(folder)
            options |= {
                "address": "local",
                "num_cpus": processes or thread_count(),
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES + setup.model.stat().st_size,
                "_temp_dir": str(folder),
            }
        stack.callback(ray.shutdown)
        try:
            _require_cluster(_cluster())
            with without_info_lines():
                ray.init(**options)
        except RayError:
            raise
        except Exception as error:
            raise RayError(_cannot_start(error)) from error
        yield


def _cluster() -> str:
    """Return the address of the cluster to use; "" to start Ray on this machine."""
    address = os.environ.get(ADDRESS, "")
    return "" if address == "local" else address


def _require_cluster(address: str) -> None:
    """Raise RayError or OSError for an address that Ray fails with, some after five minutes."""
    if "://" in address:
        raise RayError(
            f"Expected {ADDRESS} to be HOST:PORT. Received: {address}. Run the command on a "
            "machine of the cluster, or hand it to ray job submit."
        )
    if found := re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), CONNECT_S).close()


def _cannot_start(error: Exception) -> str:
    if place := _cluster():
        return (
            f"Expected a Ray cluster at {ADDRESS}={place}. Received: {cli.first_line(error)}. "
            f"Check the address, or unset {ADDRESS} to use this machine alone."
        )
    return (
        f"Expected Ray to start on this machine. Received: {cli.first_line(error)}. Run the same "
        "command again when fewer programs run, or use --engine processes."
    )


@contextmanager
def _temporary_folder() -> Generator[Path]:
    """Yield a folder for Ray's sockets and logs; remove those that killed runs have left."""
    for left in Path(FOLDER).glob(f"{PREFIX}*"):
        with suppress(UserError, OSError), claim_folder(left):
            shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=FOLDER, ignore_cleanup_errors=True) as name,
        claim_folder(Path(name)),
    ):
        yield Path(name)


def _spare_grammar(folder: Path) -> None:
    """Keep Ray's processes from compiling a grammar that they do not need, by a file in `folder`.

    All import jsonschema, which takes two seconds of processor time longer if rfc3987_syntax can be
    imported, a package of `make sbom`. Some have to answer 15 seconds after they were started.
    """
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)


def _load_ray() -> Any:
    """Return the package ray, set up for what is started here.

    Raises:
        RayError: it is not installed.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data causes an error by itself
    if not _cluster():
        # Without a token in the environment, Ray writes one into the home folder.
        os.environ.update(SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    try:
        import_module("ray.data")
        return import_module("ray")
    except ImportError:
        raise RayError(
            "Expected the package ray with its extra data, for --engine ray. Received: an "
            "environment without it. Install it with: "
            ".venv/bin/python -m pipenv sync --categories ray"
        ) from None
