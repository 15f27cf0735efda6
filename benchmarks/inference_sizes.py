"""Compare the accuracy and the speed of a checkpoint at several input sizes.

    python -m benchmarks.inference_sizes --audit experiments/wrong_labels.txt --rounds 0
    python -m benchmarks.inference_sizes --audit experiments/wrong_labels.txt --chart sizes.png

Prints a Markdown table, and draws it. At each size, the checkpoint is calibrated on its validation
images, without those of the audit, and converted to float32 and int8. Accuracy is that of these
files on the images of the report, on OpenVINO if it is installed. Times are of inference alone, on
one thread; sizes, weights and runtimes take turns in random order, each time in a new process.

Files, predictions and finished rounds are kept in --out, so that a stopped run continues. With
--rounds 0 nothing is timed, so that other work may run beside it. The times then take a minute a
round, and want a quiet machine.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

import training  # noqa: F401 - first, since it explains missing packages
from experiments import charts
from experiments.predictions import Predictions, read_predictions
from experiments.records import Records
from serving.model_files import best_model, file_digest, tflite_path
from serving.runtimes import RUNTIMES
from training import cli
from training.backend import keras
from training.checkpoint import Metadata, load_checkpoint, read_metadata, read_split
from training.dataset.scan import Dataset
from training.dataset.split import Split, split_dataset
from training.evaluation.calibration import bake_temperature, fit_temperature
from training.evaluation.evaluate import remaining, scan_classes
from training.evaluation.figures import BLUE, INK, ORANGE, styled
from training.evaluation.metrics import audited, summarize, wilson, with_interval
from training.evaluation.paired import compare_hits
from training.export.compare import choose_images
from training.export.tflite import make_tflite
from training.export.tflite_process import TFLiteProcess
from training.files import write_atomically
from training.images import ImageSource
from training.inference import compile_inference
from training.markdown import markdown_table
from training.model import with_input_size
from training.prefetch import prefetch, progress
from training.recipes import INPUT_SIZES, within

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(".cache", "inference_sizes")
SIZES = (160, 192, 224, 256, 299, 331, 363, 395, 427)  # pixels
# On tflite-runtime, int8 takes three times as long as float32.
KINDS = {
    "tflite-runtime": ("none",),
    "ai-edge-litert": ("none", "int8"),
    "openvino": ("none", "int8"),
}
WEIGHTS = {"none": "float32", "int8": "int8"}
ACCURATE_ON = ("openvino", "ai-edge-litert", "tflite-runtime")  # the fastest first
BATCH_SIZE = 32
REPEATS = 5  # inferences of a process that are timed, after one that is not
MARKS = {"tflite-runtime": (INK, "s"), "ai-edge-litert": (ORANGE, "^"), "openvino": (BLUE, "o")}

Infer = Callable[[np.ndarray], np.ndarray]


class Candidate(NamedTuple):
    """A combination that is timed.

    Attributes:
        size: side of the input in pixels.
        kind: of the weights, "none" for float32.
        runtime: package that runs it.
    """

    size: int
    kind: str
    runtime: str

    @property
    def key(self) -> str:
        """Its name in the records."""
        return " ".join(map(str, self))


@dataclass(frozen=True)
class Subject:
    """What is measured, and where its files are.

    Attributes:
        checkpoint: a `.h5` file of train.py.
        metadata: what it says of itself.
        dataset: its images, with the audit's.
        split: of these.
        folder: for files and predictions, in a folder for each size.
    """

    checkpoint: Path
    metadata: Metadata
    dataset: Dataset
    split: Split
    folder: Path

    @cached_property
    def wrong_labels(self) -> np.ndarray:
        """Which of the evaluated images have a label that the audit found wrong, bool (n,)."""
        return np.array([name in self.dataset.wrong_labels for name in self.split.evaluated])

    def tflite(self, size: int, kind: str) -> Path:
        """Return where the .tflite file of this `size` and `kind` is."""
        return tflite_path(self.folder / str(size) / self.checkpoint.name, kind)


@dataclass(frozen=True)
class Row:
    """What was measured of a size and kind of weights.

    Attributes:
        size: side of the input in pixels.
        kind: of the weights, "none" for float32.
        predictions: for the evaluated images.
        wrong_labels: which of these have a wrong label, bool (n,).
        milliseconds: {runtime: median of an inference}.
    """

    size: int
    kind: str
    predictions: Predictions
    wrong_labels: np.ndarray
    milliseconds: dict[str, float]

    @property
    def audited_hits(self) -> np.ndarray:
        """Which of the audited images it classifies correctly, bool (m,)."""
        return self.predictions.hits[~self.wrong_labels]


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return cli.run_command(lambda: benchmark(options), "benchmarks.inference_sizes")


def benchmark(options: argparse.Namespace) -> None:
    """Print the table and, with --chart, draw it.

    Raises:
        ModelError: there is no checkpoint with its split, or no runtime.
        DataError: its images are missing, or --out has the results of others.
    """
    subject = read_subject(options)
    candidates = [
        Candidate(size, kind, runtime)
        for size in options.sizes
        for runtime in options.runtimes
        for kind in KINDS[runtime]
    ]
    kinds = list(dict.fromkeys(each.kind for each in candidates))
    records = open_records(subject)
    found = {}
    for size in options.sizes:
        convert(subject, size, kinds)
        for kind in kinds:
            found[size, kind] = evaluate(subject, size, kind, options.runtimes)
    times = measure(subject, candidates, options.rounds, records)
    rows = [
        Row(
            *place,
            predictions,
            subject.wrong_labels,
            {each.runtime: times[each] for each in candidates if each[:2] == place and times},
        )
        for place, predictions in found.items()
    ]
    rows.sort(key=lambda row: row.kind == "int8")
    print_table(rows, load_size(subject), options.runtimes)
    if options.chart and times:
        charts.save(draw(rows, options.runtimes), options.chart)


def read_subject(options: argparse.Namespace) -> Subject:
    """Return what the command line names, with images that have to be there."""
    checkpoint = options.checkpoint or best_model(ROOT / "models", ".h5")
    metadata = read_metadata(checkpoint)
    dataset = scan_classes(options.data, metadata.class_names, audit=options.audit)
    split = read_split(checkpoint).spelled_as(dataset.images)
    split = remaining(with_excluded(split, dataset), dataset, None)
    options.out.mkdir(parents=True, exist_ok=True)
    return Subject(checkpoint, metadata, dataset, split, options.out)


def with_excluded(split: Split, dataset: Dataset) -> Split:
    """Return `split` with the images that --exclude left out of its report, as its seed drew them.

    That is `split` itself where its seed draws other sets from `dataset`.
    """
    drawn = split_dataset(
        dataset,
        split.seed,
        validation_fraction=split.validation_fraction,
        test_fraction=split.test_fraction,
    )
    pairs = ((split.validation, drawn.validation), (split.test, drawn.test))
    same = split.train == drawn.train and all(set(part) <= set(whole) for part, whole in pairs)
    return drawn if same else split


def open_records(subject: Subject) -> Records:
    """Return the finished rounds of `subject`; refuse the folder of another one."""
    settings = {
        "checkpoint": file_digest(subject.checkpoint),
        "split": subject.split.fingerprint,
        "audit": sorted(subject.dataset.wrong_labels),
    }
    return Records(subject.folder / "rounds.jsonl", settings)


def load_size(subject: Subject) -> int:
    """Return the input size of the checkpoint, in pixels."""
    return load_checkpoint(subject.checkpoint)[0].input_shape[1]


def evaluate(subject: Subject, size: int, kind: str, runtimes: Sequence[str]) -> Predictions:
    """Return what the file of this `size` and `kind` predicts for the evaluated images."""
    names = subject.split.evaluated
    model = subject.tflite(size, kind)
    path = model.with_suffix(".npz")
    if not path.exists():
        runtime = next(each for each in ACCURATE_ON if each in runtimes and kind in KINDS[each])
        with TFLiteProcess(model, runtime) as process:
            source = ImageSource(subject.dataset, (size, size))
            found = predict(process.predict, source, names, f"  {WEIGHTS[kind]}")
        Predictions(names, found, subject.metadata.class_names).write(path)
    [predictions] = read_predictions([path])
    return predictions


def convert(subject: Subject, size: int, kinds: Sequence[str]) -> None:
    """Write the .tflite files of this `size` and these `kinds`, unless they are there.

    They have neither card nor statistics, which tell nothing of speed or accuracy.
    """
    missing = [kind for kind in kinds if not subject.tflite(size, kind).exists()]
    if not missing:
        return
    names = " and ".join(WEIGHTS[kind] for kind in missing)
    print(f"Convert: at {size} pixels, to {names}.", flush=True)
    (subject.folder / str(size)).mkdir(exist_ok=True)
    model = calibrate(subject, size)
    data = subject.dataset.folder
    images, _ = choose_images(subject.checkpoint, data, (size, size))
    for kind in missing:
        content = make_tflite(model, subject.metadata.class_names, kind, images)
        write_atomically(subject.tflite(size, kind), lambda new, it=content: new.write_bytes(it))


def calibrate(subject: Subject, size: int) -> keras.Model:
    """Return the checkpoint's network for this `size`, calibrated on its validation images."""
    model = with_input_size(load_checkpoint(subject.checkpoint)[0], (size, size))
    dataset = subject.dataset
    names = [name for name in subject.split.validation if name not in dataset.wrong_labels]
    if names:
        infer = compile_inference(model, "float32", BATCH_SIZE)
        source = ImageSource(dataset, (size, size))
        found = predict(infer, source, names, "  calibrate")
        bake_temperature(model, fit_temperature(found, dataset.labels(names)))
    return model


def predict(infer: Infer, source: ImageSource, names: Sequence[str], what: str) -> np.ndarray:
    """Return the probabilities that `infer` gives the images `names`, float32 (n, classes)."""
    places = {name: index for index, name in enumerate(source.dataset.images)}
    samples = [(places[name], 0) for name in names]
    batches = [samples[i : i + BATCH_SIZE] for i in range(0, len(samples), BATCH_SIZE)]
    found = []
    with progress(len(samples), what) as bar:
        for batch, inputs in prefetch(batches, source.inputs):
            found.append(infer(inputs))
            bar.update(len(batch))
    return np.concatenate(found)


def measure(
    subject: Subject, candidates: Sequence[Candidate], rounds: int, records: Records
) -> dict[Candidate, float]:
    """Return the median milliseconds of an inference of each candidate; {} without rounds.

    Rounds of the same candidates in `records` count, and missing ones are added there.
    """
    keys = {each.key for each in candidates}
    finished = [row for row in records.rows if row.keys() == keys]
    order = random.Random(len(finished))  # noqa: S311
    total = max(rounds - len(finished), 0) * len(candidates)
    with progress(total, "  times", "measurements") as bar:
        for _ in range(len(finished), rounds):
            row = {}
            for each in order.sample(candidates, len(candidates)):
                row[each.key] = time(subject.tflite(each.size, each.kind), each)
                bar.update()
            records.append(row)
            finished.append(row)
    return {
        each: 1000 * float(np.median(np.concatenate([row[each.key] for row in finished])))
        for each in (candidates if finished else ())
    }


def time(model: Path, candidate: Candidate) -> list[float]:
    """Return how long `REPEATS` inferences took one after the other, in seconds."""
    size, _, runtime = candidate
    inputs = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    seconds = []
    with TFLiteProcess(model, runtime, threads=1) as process:
        for _ in range(REPEATS + 1):
            process.predict(inputs)
            seconds.append(process.seconds)
    return seconds[1:]


def print_table(rows: Sequence[Row], own_size: int, runtimes: Sequence[str]) -> None:
    """Print a row for each size and kind; p is against float32 of `own_size`, if measured."""
    reference = next((row for row in rows if (row.size, row.kind) == (own_size, "none")), None)
    n, m = len(rows[0].wrong_labels), int((~rows[0].wrong_labels).sum())
    head = ["pixels", "weights", f"accuracy as labelled, n = {n}", f"audited, n = {m}"]
    head += ["points", "p", "calibration error"]
    head += [f"{runtime} ms" for runtime in runtimes]
    print(markdown_table(head, [cells(row, reference, runtimes) for row in rows]))


def cells(row: Row, reference: Row | None, runtimes: Sequence[str]) -> list[str]:
    """Return the cells of `row` in the table, beside `reference`."""
    predictions = row.predictions
    found = [summarize(predictions.probabilities, predictions.labels)]
    found.append(audited(predictions.probabilities, predictions.labels, row.wrong_labels))
    accuracies = [with_interval(each["accuracy"], each["accuracy_interval"]) for each in found]
    paired = ["", ""]
    if reference and reference is not row:
        compared = compare_hits(reference.audited_hits, row.audited_hits)
        paired = [f"{100 * compared.difference:+.1f}", f"{compared.p_value:.2g}"]
    error = f"{found[-1]['expected_calibration_error']:.3f}"
    times = [row.milliseconds.get(runtime) for runtime in runtimes]
    shown = ["–" if each is None else f"{each:.1f}" for each in times]
    return [str(row.size), WEIGHTS[row.kind], *accuracies, *paired, error, *shown]


@styled
def draw(rows: Sequence[Row], runtimes: Sequence[str]) -> Figure:
    """Draw accuracy, as labelled and audited, by the milliseconds of each runtime."""
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    wrong = rows[0].wrong_labels
    for axes, title, kept in zip(
        panels, ("As labelled", "Audited"), (np.ones_like(wrong), ~wrong), strict=True
    ):
        for runtime in runtimes:
            for kind in KINDS[runtime]:
                draw_line(axes, [row for row in rows if row.kind == kind], runtime, kept)
        fastest = runtimes[-1]
        of_kind = [row for row in rows if row.kind == KINDS[fastest][-1]]
        mark_sizes(axes, of_kind, fastest, kept)
        axes.set_title(f"{title}: {kept.sum()} test images")
        axes.set_xscale("log")
        axes.margins(x=0.09, y=0.1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("milliseconds an image, one thread")
        axes.grid()
    panels[0].set_ylabel("accuracy")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        title="number: pixels, the same on each line; bar: 95 % interval",
        title_fontsize=9,
    )
    return figure


def draw_line(axes: Axes, rows: Sequence[Row], runtime: str, kept: np.ndarray) -> None:
    """Draw `rows`, of one kind of weights, on the images `kept`, bool (n,)."""
    is_float = rows[0].kind == "none"
    colour, mark = MARKS[runtime]
    axes.plot(
        [row.milliseconds[runtime] for row in rows],
        [row.predictions.hits[kept].mean() for row in rows],
        color=colour,
        marker=mark,
        ls="-" if is_float else "--",
        mfc=colour if is_float else "white",
        label=f"{runtime}, {WEIGHTS[rows[0].kind]}",
    )


def mark_sizes(axes: Axes, rows: Sequence[Row], runtime: str, kept: np.ndarray) -> None:
    """Draw the interval of each point of the line of `draw_line`, and write the size above it."""
    for row in rows:
        hits = row.predictions.hits[kept]
        milliseconds, colour = row.milliseconds[runtime], MARKS[runtime][0]
        low, high = wilson(int(hits.sum()), len(hits))
        axes.vlines(milliseconds, low, high, color=colour, alpha=0.35)
        axes.annotate(
            str(row.size),
            (milliseconds, high),
            xytext=(2, 2),
            textcoords="offset points",
            rotation=45,
            rotation_mode="anchor",
            fontsize=9,
        )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m benchmarks.inference_sizes")
    add = parser.add_argument
    installed = [name for name, module in RUNTIMES.items() if find_spec(module.split(".")[0])]
    sides, default = within(*INPUT_SIZES), " ".join(map(str, SIZES))
    add("--data", type=Path, default=Path("flowers"), help="[flowers/]")
    cli.add_audit_flag(parser)
    add("--checkpoint", type=Path, help="a .h5 file with its split [the best of models/]")
    add("--sizes", type=sides, nargs="+", default=SIZES, metavar="PIXELS", help=f"[{default}]")
    add("--runtimes", nargs="+", choices=KINDS, default=installed, help="[those installed]")
    add("--rounds", type=cli.at_least(0), default=5, help="timed ones in all [%(default)s]")
    add("--chart", type=Path, metavar="PNG", help="where to draw the table")
    add("--out", type=Path, default=OUT, help="what is kept [%(default)s/]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
