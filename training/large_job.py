"""Labels up to millions of images into a folder or bucket: predict.py --out.

The images are listed once, sorted and divided into shards. serving/shards.py says what is written
where, and labels a shard; training/shard_workers.py runs that on all processors.
"""

import argparse
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serving.bucket_events import LABELS
from serving.classifier import file_digest
from serving.fetch import prepare
from serving.shards import (
    JOB_FILE,
    MANIFEST,
    RESULTS,
    Manifest,
    is_job_file,
    list_name,
    result_name,
)
from serving.stores import Bucket, Store, is_bucket, open_store
from training import cli
from training.dataset.names import read_lines
from training.errors import DataError
from training.image_files import is_url, visible_files
from training.streams import counted, print_error, printable

if TYPE_CHECKING:
    from training.shard_workers import Summary

SHARD_SIZE = 1000  # images: 100 seconds of work, and a file of results of 300 kB
WRITERS = 16  # lists that are written at the same time
ENGINES = ("processes", "ray")
NAMED_INPUTS = 10  # in the manifest
# Objects that are not looked for in their bucket, which would take a request or two for each.
JOB_FILES = re.compile(rf"/({JOB_FILE.pattern})\Z")  # of any job
IMAGE_KEY = re.compile(r".*\.(jpe?g|png|webp|gif|bmp|tiff?|avif)", re.IGNORECASE | re.DOTALL)
AWS_JOB = re.compile(r"s3://[^/]+/jobs/([^/]+)/?")  # a job of the stack in deploy/, by its name


class Part(NamedTuple):
    """Which shards a run labels: those whose number, divided by `count`, leaves `index`."""

    index: int
    count: int


class Job(NamedTuple):
    """What a run labels.

    Attributes:
        images: files, folders, URLs and addresses in buckets.
        listed: the same, from lists; what is missing of these is a row with an error.
        out: folder or address of a bucket for the results.
        model: a .tflite file.
        runtime: package that runs it.
        unknown_below: the p-value below which an image is unknown.
        shard_size: images in a file of results; None for that of the manifest, or `SHARD_SIZE`.
    """

    images: list[str]
    listed: list[str]
    out: str
    model: Path
    runtime: str
    unknown_below: float
    shard_size: int | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of large jobs to `parser`."""
    group = parser.add_argument_group("large jobs")
    add = group.add_argument
    add(
        "--out",
        type=_place,
        metavar="PLACE",
        help="write results to a folder, s3://, gs:// or az://",
    )
    add(
        "--from",
        dest="lists",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="also the files, folders, URLs and addresses in FILE, one a line",
    )
    add("--list-only", action="store_true", help="list the images, but label none")
    add("--shard", type=_part, metavar="I/N", help="only part I of N, from 0 on [all]")
    add(
        "--shard-size",
        type=cli.at_least(1),
        metavar="IMAGES",
        help=f"images in a file of results [{SHARD_SIZE}]",
    )
    add("--processes", type=cli.at_least(1), help="that run the model [one a processor]")
    add("--engine", choices=ENGINES, default=ENGINES[0], help="what runs them [processes]")


def check_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Let `parser` end the program if the `flags` do not go together."""
    if not flags.images and not flags.lists:
        parser.error("the following arguments are required: IMAGE_OR_URL")
    if flags.out is None:
        given = {
            "--from": flags.lists,
            "--list-only": flags.list_only,
            "--shard": flags.shard,
            "--shard-size": flags.shard_size,
            "--engine ray": flags.engine != ENGINES[0],
            "--processes": flags.processes,
        }
        for name in (name for name, value in given.items() if value):
            parser.error(f"{name} needs --out, where results are written")
    elif flags.printer or flags.details or flags.heatmap:
        parser.error("--out writes JSON of its own: leave out --json, --csv, --details, --heatmap")
    elif flags.list_only and flags.shard:
        parser.error("--list-only lists all images: leave out --shard")


def read_lists(paths: Iterable[Path]) -> list[str]:
    """Return the lines of the files at `paths` that are not empty.

    Raises:
        OSError: one cannot be read.
    """
    lines: list[str] = []
    for path in paths:
        lines += [line.strip() for line in read_lines(path) if line.strip()]
    return lines


def run(job: Job, part: Part | None, processes: int | None, engine: str = ENGINES[0]) -> int:
    """Label the images of `job`, or those of its `part`, and return the exit code.

    It is 0 if all of their results are written, those of bad images included, and 1 if some are
    missing. Shards that have results are left as they are.

    Raises:
        DataError: there are no images, or `job` is not what the results in its place are of.
        StoreError: a folder or bucket cannot be listed, read or written.
        RayError: the engine is ray, which is not installed or does not start.
        ModelError, AllowError, SettingError: as in `predict.py`.
        KeyboardInterrupt: with a sentence on what is written.
    """
    label = _load_engine(engine)
    store, manifest = _open(job)
    index, count = part or Part(0, 1)
    numbers = range(index, manifest.shards, count)
    waiting = _without_results(store, numbers)
    if not waiting:
        have = "the only shard has" if len(numbers) == 1 else f"all {len(numbers):,} shards have"
        reason = f"{have} results" if numbers else "no shard is in this part"
        print_error(f"Label: nothing is left, since {reason}.")
        return 0
    total, left = (sum(map(manifest.size_of, each)) for each in (numbers, waiting))
    print_error(
        f"Label: {left:,} of {counted(total, 'image')} left, in {counted(len(waiting), 'shard')}."
    )
    # Imported only here: they take a tenth of a second, and few images are labelled without.
    from training.prefetch import progress
    from training.shard_workers import Setup

    setup = Setup(job.model, job.out, manifest)
    try:
        with progress(total, "Label", initial=total - left) as bar:
            summary = label(setup, _shuffle(waiting), processes, bar.update)
    except KeyboardInterrupt:
        done = len(numbers) - len(_without_results(store, numbers))
        raise KeyboardInterrupt(
            f"Stopped, with results of {done:,} of {counted(len(numbers), 'shard')}. Run the same "
            "command again for the others."
        ) from None
    return _report(summary, len(waiting), job.out)


def _load_engine(name: str) -> Callable[..., "Summary"]:
    """Return the function that labels shards by the engine `name`.

    Raises:
        RayError: it is ray, which is not installed.
    """
    if name == "ray":
        from training import ray_engine

        ray_engine.require_ray()
        return ray_engine.label
    from training import shard_workers

    return shard_workers.label


def list_only(job: Job) -> int:
    """List the images of `job`, unless they are listed, say how to go on, and return 0.

    Raises:
        UserError: as `run`.
    """
    _, manifest = _open(job)
    print_error(
        f"List: {printable(job.out)} lists {counted(manifest.images, 'image')}, in "
        f"{counted(manifest.shards, 'shard')}. To label them, run the same command without "
        "--list-only, or on several machines with --shard."
    )
    if found := AWS_JOB.fullmatch(job.out):
        name = json.dumps({"job": found[1]})
        print_error(f"Or start the state machine of docs/aws.md with --input '{name}'.")
    return 0


def _open(job: Job) -> tuple[Store, Manifest]:
    """Return where the results of `job` are, and its manifest; list the images if it has none."""
    inputs = [_absolute(image) for image in (*job.images, *job.listed)]
    if any(is_url(image) and not is_bucket(image) for image in inputs):
        prepare()
    store = open_store(job.out)
    manifest = Manifest.read(store) or _list_images(store, job, inputs)
    _require_same(manifest, job, inputs)
    return store, manifest


def _without_results(store: Store, numbers: Iterable[int]) -> list[int]:
    """Return those of `numbers` whose shards have no results."""
    written = set(store.names(RESULTS))
    return [number for number in numbers if result_name(number) not in written]


def _shuffle(numbers: list[int]) -> list[int]:
    """Return `numbers` in any order.

    Two runs at once then seldom do the same, and shards of one host that is gone, which are
    neighbours, are seldom tried one after the other.
    """
    return secrets.SystemRandom().sample(numbers, len(numbers))


def _report(summary: "Summary", shards: int, out: str) -> int:
    """Say what came of this run's `shards`, and return its exit code."""
    print_error(
        f"Wrote: {counted(summary.images, 'row')}, {summary.errors:,} with an error, in "
        f"{printable(out)}."
    )
    for sentence in summary.failures:
        print_error(f"predict.py: {sentence}")
    if summary.missing:
        print_error(
            f"predict.py: Expected results of {counted(shards, 'shard')}. Received: "
            f"{summary.missing:,} without. Run the same command again; it labels only these."
        )
    return 1 if summary.missing else 0


def _absolute(image: str) -> str:
    """Return the address of `image` from any folder."""
    return image if is_url(image) else os.path.abspath(os.path.expanduser(image))


def _list_images(store: Store, job: Job, inputs: Sequence[str]) -> Manifest:
    """List the images of `inputs`, write the lists of the shards, and return the manifest.

    If several processes do this at once, the first manifest is that of all.
    """
    for place in inputs[: len(job.images)]:
        if not is_url(place) and not os.path.exists(place):
            raise DataError(
                f"Expected a file or folder. Received: {place}, which does not exist. Check its "
                "name."
            )
    print_error("List: finding the images ...")
    # Not what this job has written, if its place is among its inputs.
    images = sorted({image for image in _expand(inputs) if not is_job_file(store, image)})
    if not images:
        raise DataError("Expected images. Received: none. Name some, or check the lists of --from.")
    size = job.shard_size or SHARD_SIZE
    starts = range(0, len(images), size)
    contents = [_to_lines(images[start : start + size]) for start in starts]
    lists = f"lists/{_digest(contents)}"
    with ThreadPoolExecutor(WRITERS) as pool:
        names = (list_name(lists, number) for number in range(len(contents)))
        list(pool.map(store.write, names, contents))
    manifest = Manifest(
        inputs=[printable(text) for text in inputs[:NAMED_INPUTS]],
        inputs_digest=_inputs_digest(inputs),
        images=len(images),
        shards=len(contents),
        shard_size=size,
        lists=lists,
        model=job.model.name,
        model_digest=file_digest(job.model),
        runtime=job.runtime,
        unknown_below=job.unknown_below,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    store.create(MANIFEST, manifest.to_bytes())
    return Manifest.read(store) or manifest


def _to_lines(images: Iterable[str]) -> bytes:
    return "".join(f"{json.dumps(image)}\n" for image in images).encode()


def _expand(inputs: Iterable[str]) -> Iterator[str]:
    """Yield the address of each image in `inputs`.

    Raises:
        DataError: a folder or prefix has none.
        StoreError: a bucket has no name, or cannot be listed.
    """
    for place in inputs:
        found: Iterable[str] = [place]
        if is_bucket(place):
            bucket = Bucket(place)
            named = [f"{bucket.root}/{bucket.key}"]
            found = named if IMAGE_KEY.fullmatch(place) else list(_images_in(bucket))
        elif not is_url(place) and os.path.isdir(place):
            found = [path for path in visible_files(place) if path != place]
        if not found:
            raise DataError(
                f"Expected images in {place}. Received: none. Check its name and, for a bucket, "
                "the prefix: s3://bucket/prefix is all below prefix/."
            )
        yield from found


def _images_in(bucket: Bucket) -> Iterator[str]:
    """Yield the address of each image in `bucket`: not what jobs and the AWS stack write there.

    The stack writes `rose.jpg.json` beside `rose.jpg`.
    """
    found = list(bucket.addresses())
    every = set(found)
    for address in found:
        is_label = address.endswith(LABELS) and address.removesuffix(LABELS) in every
        if not is_label and not JOB_FILES.search(address):
            yield address


def _require_same(manifest: Manifest, job: Job, inputs: Sequence[str]) -> None:
    """Raise DataError unless `manifest` is of the images, model and settings of `job`."""
    other = "Name another --out, or label the same again."
    if manifest.inputs_digest != _inputs_digest(inputs):
        raise DataError(
            f"Expected the images that {job.out} is for: {_shorten(manifest.inputs)}. "
            f"Received: {_shorten(list(inputs))}. {other}"
        )
    if manifest.model_digest != file_digest(job.model):
        raise DataError(
            f"Expected the model that {job.out} has results of, {manifest.model}. "
            f"Received: {job.model}, another file. {other}"
        )
    settings = {
        "--runtime": (manifest.runtime, job.runtime),
        "UNKNOWN_BELOW": (manifest.unknown_below, job.unknown_below),
        "--shard-size": (manifest.shard_size, job.shard_size or manifest.shard_size),
    }
    for name, (old, new) in settings.items():
        if old != new:
            raise DataError(
                f"Expected {name} to be {old}, as for the results in {job.out}. Received: {new}. "
                f"{other}"
            )


def _shorten(inputs: Sequence[str]) -> str:
    return printable(", ".join(inputs[:3]) + ", …" * (len(inputs) > 3))


def _inputs_digest(inputs: Sequence[str]) -> str:
    return _digest(text.encode(errors="surrogateescape") for text in inputs)


def _digest(contents: Iterable[bytes]) -> str:
    """Return 16 digits that other `contents` do not have."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]


def _place(text: str) -> str:
    return text if is_url(text) else os.path.expanduser(text)


def _part(text: str) -> Part:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part = Part(int(found[1]), int(found[2])) if found else Part(0, 0)
    if part.index >= part.count:
        raise argparse.ArgumentTypeError(
            f"expected I/N with I from 0 to N - 1, such as 0/4. Received: {text}"
        )
    return part
