r"""Train many short fine-tuning runs on one accelerator, with JAX.

    python -m experiments.device_runs --jobs jobs.json --data flowers/ --weights FILE --out runs/
    python -m experiments.cross_validate --report --out runs/ --audit experiments/wrong_labels.txt

A GPU trains the upper blocks of Xception in seconds, while reading and augmenting images and
starting each run takes minutes. Here the inputs of the part that learns, all views of all images,
are computed once and stay in the accelerator's memory, and an epoch is one compiled loop. Order,
views, mixup, head, learning rate and averaging are those of train.py. Two things differ: the last
epoch is kept, not the best one, and with --refit the second training takes all epochs.

jobs.json is a list of objects: "name"; "recipe" as in experiments.cross_validate, such as
"fine-tune --views 18 --ema-momentum 0.995"; to learn from soft labels, "teachers": names of earlier
jobs, whose mean probabilities label each view; and "without_wrong_labels": true, to test the images
that --audit lists, but not to learn from them. Every job is trained on each fold; what is finished
in --out is not trained again. TensorFlow is not needed; JAX on a GPU is (jax[cuda12]).
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# JAX 0.11 on an H100 crashed in XLA's triton_tiling_propagation, at the strided residual
# connections of blocks 2 to 4. XLA reads this once, when the first array is made.
if "xla_gpu_enable_triton_gemm" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join(
        [os.environ.get("XLA_FLAGS", ""), "--xla_gpu_enable_triton_gemm=false"]
    ).strip()

import jax
import jax.numpy as jnp
import numpy as np

from experiments import device_network as net
from experiments.command import add_weights_flag, run
from experiments.cross_validate import (
    FOLDS,
    ROWS,
    is_finished,
    parse_recipe,
    recipe_settings,
    settings_of,
)
from experiments.cross_validate_report import NamedRecipe, fold_file, slug_of
from experiments.device_training import (
    Device,
    View,
    fit,
    probabilities_of,
    soft_labels,
    view_of,
)
from experiments.predictions import Predictions
from experiments.records import Records
from training import cli
from training.batches import image_indices
from training.dataset.checks import load_dataset
from training.dataset.scan import Dataset
from training.dataset.split import Split, split_folds
from training.distribute import Workers
from training.errors import DataError
from training.evaluation.calibration import apply_temperature, fit_temperature
from training.files import claim_folder, write_atomically
from training.fit import Run
from training.images import ImageSource
from training.recipes import MAX_SEED, ORIGINAL, Recipe, RunOptions, within

WEIGHTS = "weights"  # folder of what teachers learned


@dataclass(frozen=True)
class Job:
    """A recipe to train on every fold.

    Attributes:
        name: of its predictions.
        recipe: its settings.
        teachers: names of the jobs that label its views; none for the images' classes.
        is_cleaned: whether images whose labels --audit lists as wrong neither train nor validate.
    """

    name: str
    recipe: Recipe
    teachers: tuple[str, ...] = ()
    is_cleaned: bool = False

    @property
    def named(self) -> NamedRecipe:
        """Its recipe, under its own name."""
        return NamedRecipe(self.name, self.recipe)

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return self.named.slug

    @property
    def learns_pixels(self) -> bool:
        """Whether all blocks learn, and none is frozen."""
        return self.recipe.fine_tune_at == 1

    def settings(self, dataset: Dataset) -> dict:
        """Return what an earlier job of this name must have in common with it (JSON)."""
        wrong = json.dumps(sorted(dataset.wrong_labels))
        return {
            **recipe_settings(self.named),
            "teachers": list(self.teachers),
            "without": hashlib.sha256(wrong.encode()).hexdigest()[:16] if self.is_cleaned else None,
        }


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says and return the exit code."""
    return run(train_all, "device_runs", parse_arguments(arguments))


def train_all(options: argparse.Namespace) -> None:
    """Train the jobs that are missing on each fold, and keep their predictions."""
    jobs = read_jobs(options.jobs)
    if any(job.is_cleaned for job in jobs) and not options.audit:
        raise DataError(
            "Expected a list of wrong labels for the jobs that learn without them. Received: none. "
            "Name it with --audit."
        )
    with claim_folder(options.out):
        dataset = load_dataset(options.data, options.exclude, options.audit)
        device = Device(dataset, options.weights, options.processes)
        for place, job in enumerate(jobs):
            device.keep_only({view for each in jobs[place:] for view in views_of(each, dataset)})
            train_folds(device, job, jobs[:place], options)
    print(f"Tables: python -m experiments.cross_validate --report --out {options.out}")


def train_folds(
    device: Device, job: Job, earlier: Sequence[Job], options: argparse.Namespace
) -> None:
    """Train a job on the folds that are missing, and keep their predictions."""
    out, dataset, fraction = options.out, device.dataset, job.recipe.validation_fraction
    splits = split_folds(dataset, options.split_seed, options.folds, fraction)
    settings = job.settings(dataset)
    records = Records(out / ROWS, settings_of(splits, options))
    slugs = [each.slug for each in earlier if each.name in job.teachers]
    for number, split in enumerate(splits, 1):
        if is_finished(records, job.named, settings, number, out):
            print(f"{job.name}: fold {number} is finished.")
            continue
        started, path = time.monotonic(), fold_file(out, job.slug, number)
        files = [weights_file(out, slug, number) for slug in slugs]
        learned, probabilities = train_job(device, job, split, files)
        write_weights(weights_file(out, job.slug, number), learned)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = Predictions(split.test, probabilities, dataset.class_names)
        found.write(path)
        records.append({"recipe": job.slug, "fold": number, "settings": settings})
        print(
            f"{job.name}: fold {number}, test accuracy {found.hits.mean():.4f}, "
            f"{time.monotonic() - started:.0f} s.",
            flush=True,
        )


def read_jobs(path: Path) -> list[Job]:
    """Return the jobs in the JSON file at `path`.

    Raises:
        DataError: it cannot be read, or holds something else or a recipe that is not trained here.
    """
    jobs: dict[str, Job] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = cli.reason_of(error) if isinstance(error, OSError) else f"no UTF-8 in {path}"
        raise DataError(
            f"Expected a list of jobs in JSON. Received: {reason}. Name another file with --jobs."
        ) from None
    try:
        for entry in json.loads(text):
            name, teachers = entry["name"], entry.get("teachers", ())
            if not isinstance(name, str) or slug_of(name) in map(slug_of, ("", *jobs)):
                raise ValueError(f"the name {name!r}, which is none or another job's")
            is_cleaned = entry.get("without_wrong_labels", False)
            job = Job(name, parse_recipe(entry["recipe"]).recipe, tuple(teachers), is_cleaned)
            jobs[name] = job
            if reason := refused(job, jobs):
                raise ValueError(f"{name} with {reason}")
    except (ValueError, TypeError, KeyError, AttributeError, argparse.ArgumentTypeError) as error:
        raise DataError(
            'Expected a list of jobs in JSON, [{"name": "A", "recipe": "fine-tune"}, ...]. '
            f"Received: {path} with {str(error) or 'something else'}."
        ) from None
    if not jobs:
        raise DataError(f"Expected jobs. Received: none in {path}.")
    return list(jobs.values())


def refused(job: Job, jobs: Mapping[str, Job]) -> str | None:
    """Return what of a job cannot be trained here; `jobs` are it and those before, by name."""
    recipe, teachers = job.recipe, job.teachers
    if not jobs.keys() > set(teachers) or job.name in teachers:
        return "teachers that are not earlier jobs"
    if any(jobs[each].learns_pixels != job.learns_pixels for each in teachers):
        return "teachers that learn from block 1 on where it does not, or the other way round"
    if recipe.fine_tune_at not in {1, *net.MIDDLE}:
        return f"fine_tune_at other than 1 or {net.MIDDLE[0]} to {net.MIDDLE[-1]}"
    wanted = {"head": (), "steps_per_epoch": None, "final_head_epochs": 0}
    others = [name for name, value in wanted.items() if getattr(recipe, name) != value]
    others += [] if recipe.warmup_epochs is not None else ["a constant learning rate"]
    return f"{others[0]} other than fine-tune's" if others else None


def train_job(
    device: Device, job: Job, split: Split, teachers: Sequence[Path]
) -> tuple[net.Tree, np.ndarray]:
    """Train on `split`; return what was learned, and calibrated test probabilities.

    `teachers` are the files of those that label the views.
    """
    recipe, dataset = job.recipe, device.dataset
    split = cleaned(split, dataset.wrong_labels) if job.is_cleaned else split
    augmented, final = sources(job, dataset)
    counts = [len(split.train), len(split.train + split.validation)]  # the second for a refit
    shown = max(map(recipe.shown_views, counts[: 1 + recipe.refit]))
    views = device.views(augmented, range(1, shown + 1), as_pixels=job.learns_pixels)
    [plain] = device.views(final, [0], as_pixels=job.learns_pixels)
    start, scales = device.network(recipe.fine_tune_at)
    networks = [(read_weights_file(path, start), scales) for path in teachers]

    def train(split: Split) -> net.Tree:
        run_ = start_run(recipe, split, augmented)
        soft = soft_labels(networks, views, run_) if networks else None
        return fit(device, run_, views, soft)

    def predict(learned: net.Tree, names: Sequence[str]) -> np.ndarray:
        return probabilities_of((learned, scales), plain, image_indices(dataset, names))

    learned = train(split)
    found = predict(learned, split.validation)
    temperature = fit_temperature(found, dataset.labels(split.validation))
    if recipe.refit:  # the second network learns the images that calibrate
        learned = train(split.with_validation_in_training())
    return learned, apply_temperature(predict(learned, split.test), temperature)


def sources(job: Job, dataset: Dataset) -> tuple[ImageSource, ImageSource]:
    """Return the sources of the views that train, and of the plain images that are predicted."""
    recipe = job.recipe
    size = (recipe.final_size, recipe.final_size)
    augmented = ImageSource(dataset, recipe.image_size, recipe.augmentation)
    return augmented, ImageSource(dataset, size)


def views_of(job: Job, dataset: Dataset) -> Generator[View]:
    """Yield the views that a job may take."""
    augmented, final = sources(job, dataset)
    for number in range(1, job.recipe.views + 1):
        yield view_of(augmented, number, is_pixels=job.learns_pixels)
    yield view_of(final, 0, is_pixels=job.learns_pixels)
    plain = ImageSource(dataset, job.recipe.image_size)  # for the head alone
    yield view_of(plain, 0, is_pixels=False)


def cleaned(split: Split, wrong_labels: Collection[str]) -> Split:
    """Return `split` without images of wrong labels in its training and validation sets."""
    train, validation = (
        tuple(image for image in part if image not in wrong_labels)
        for part in (split.train, split.validation)
    )
    return replace(split, train=train, validation=validation)


def start_run(recipe: Recipe, split: Split, images: ImageSource) -> Run:
    """Return the run of a recipe, for functions of train.py."""
    return Run(recipe, RunOptions(), Workers(), images, split)


# Weights of teachers, and the command line


def weights_file(out: Path, slug: str, number: int) -> Path:
    """Return where what a job learned on fold `number` is."""
    return out / WEIGHTS / slug / f"fold_{number}.npz"


def write_weights(path: Path, learned: net.Tree) -> None:
    """Write what was learned to `path`, in the order of its leaves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = [np.asarray(each) for each in jax.tree.leaves(learned)]
    write_atomically(path, lambda new: np.savez(new, *leaves))


def read_weights_file(path: Path, like: net.Tree) -> net.Tree:
    """Return what `write_weights` wrote; `like` is of the same structure but for the head."""
    structure = jax.tree.structure({**like, "head": (0, 0)})
    with np.load(path) as found:
        return jax.tree.unflatten(structure, [jnp.asarray(found[name]) for name in found.files])


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m experiments.device_runs")
    cli.add_data_flags(parser)
    add_weights_flag(parser)
    add = parser.add_argument
    wrong = "images whose labels are wrong, one class/file a line, for jobs that learn without them"
    add("--audit", type=Path, metavar="FILE", help=wrong)
    add("--jobs", type=Path, required=True, metavar="FILE", help="what to train (JSON)")
    add("--folds", type=within(*FOLDS), default=5, help="[%(default)s]")
    add("--split-seed", type=within(0, MAX_SEED), default=ORIGINAL.seed, help="[%(default)s]")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where to write to")
    processes = cli.positive(int)
    add(
        "--processes", type=processes, default=os.cpu_count(), help="that read images [%(default)s]"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
