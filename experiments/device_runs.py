r"""Train many short fine-tuning runs on one accelerator, with JAX.

    python -m experiments.device_runs --jobs jobs.json --data flowers/ --weights FILE --out runs/
    python -m experiments.cross_validate --report --out runs/ --audit experiments/wrong_labels.txt

A GPU trains the upper blocks of Xception in seconds, while reading and augmenting images and
starting each run takes minutes. Here the inputs of the part that learns, all views of all images,
are computed once and stay in the accelerator's memory, and an epoch is one compiled loop. Order,
views, mixup, head, learning rate and averaging are those of train.py. Two things differ: the last
epoch is kept, not the best one, and with --refit the second training takes all epochs.

jobs.json is a list of objects: "name", "recipe" as in experiments.cross_validate, such as
"fine-tune --views 18 --ema-momentum 0.995", and, if it learns from soft labels, "teachers": names
of earlier jobs, whose mean probabilities label each view. Every job is trained on each fold; what
is finished in --out is not trained again. TensorFlow is not needed; JAX on a GPU is (jax[cuda12]).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from experiments.command import add_base_flags, run
from experiments.cross_validate import (
    FOLDS,
    ROWS,
    is_finished,
    parse_recipe,
    recipe_settings,
    settings_of,
)
from experiments.cross_validate_report import NamedRecipe, fold_file
from experiments.device_training import Device, fit, probabilities_of, soft_labels
from experiments.predictions import Predictions
from experiments.records import Records
from training import cli
from training.batches import image_indices
from training.dataset.checks import load_dataset
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
    """

    name: str
    recipe: Recipe
    teachers: tuple[str, ...] = ()

    @property
    def named(self) -> NamedRecipe:
        """Its recipe, under its own name."""
        return NamedRecipe(self.name, self.recipe)

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return self.named.slug

    @property
    def settings(self) -> dict:
        """What an earlier job of this name must have in common with it (JSON)."""
        return {**recipe_settings(self.named), "teachers": list(self.teachers)}


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says and return the exit code."""
    return run(train_all, "device_runs", parse_arguments(arguments))


def train_all(options: argparse.Namespace) -> None:
    """Train the jobs that are missing on each fold, and keep their predictions."""
    jobs = read_jobs(options.jobs)
    with claim_folder(options.out):
        dataset = load_dataset(options.data, options.exclude)
        device, records = Device(dataset, options.weights, options.processes), None
        for job in jobs:
            fraction = job.recipe.validation_fraction
            splits = split_folds(dataset, options.split_seed, options.folds, fraction)
            records = records or Records(options.out / ROWS, settings_of(splits, options))
            for number, split in enumerate(splits, 1):
                path = fold_file(options.out, job.slug, number)
                if is_finished(records, job.named, job.settings, number, options.out):
                    print(f"{job.name}: fold {number} is finished.")
                    continue
                started = time.monotonic()
                files = [weights_file(options.out, jobs, name, number) for name in job.teachers]
                learned, probabilities = train_job(device, job, split, files)
                write_weights(weights_file(options.out, jobs, job.name, number), learned)
                path.parent.mkdir(parents=True, exist_ok=True)
                found = Predictions(split.test, probabilities, dataset.class_names)
                found.write(path)
                records.append({"recipe": job.slug, "fold": number, "settings": job.settings})
                print(
                    f"{job.name}: fold {number}, test accuracy {found.hits.mean():.4f}, "
                    f"{time.monotonic() - started:.0f} s.",
                    flush=True,
                )
    print(f"Tables: python -m experiments.cross_validate --report --out {options.out}")


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
            jobs[name] = Job(name, parse_recipe(entry["recipe"]).recipe, tuple(teachers))
            if not jobs.keys() > set(teachers) or name in teachers:
                raise ValueError(f"teachers of {name} that are not earlier jobs")
            if reason := refused(jobs[name].recipe):
                raise ValueError(f"{name} with {reason}")
    except (ValueError, TypeError, KeyError, AttributeError, argparse.ArgumentTypeError) as error:
        raise DataError(
            'Expected a list of jobs in JSON, [{"name": "A", "recipe": "fine-tune"}, ...]. '
            f"Received: {path} with {str(error) or 'something else'}."
        ) from None
    if not jobs or len({job.slug for job in jobs.values()}) < len(jobs):
        raise DataError(f"Expected jobs with names that differ. Received: {len(jobs)} in {path}.")
    return list(jobs.values())


def refused(recipe: Recipe) -> str | None:
    """Return what of `recipe` cannot be trained here."""
    wanted = {
        "fine_tune_at": net.FIRST_LEARNING,
        "head": (),
        "steps_per_epoch": None,
        "final_head_epochs": 0,
    }
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
    images = ImageSource(dataset, recipe.image_size, recipe.augmentation)
    views = device.views(images, range(1, recipe.shown_views(len(split.train)) + 1))
    size = (recipe.final_size, recipe.final_size)
    [plain] = device.views(ImageSource(dataset, size), [0])
    validation, test = (image_indices(dataset, each) for each in (split.validation, split.test))
    networks = [read_weights_file(path, device.learning) for path in teachers]
    for second in (False, True)[: 1 + recipe.refit]:
        run_ = start(device, recipe, split.with_validation_in_training() if second else split)
        soft = soft_labels(device, networks, views, run_) if networks else None
        learned = fit(device, run_, views, soft)
        if not second:  # the second network has learned the images that calibrate
            found = probabilities_of(device, learned, plain, validation)
            temperature = fit_temperature(found, dataset.labels(split.validation))
    return learned, apply_temperature(probabilities_of(device, learned, plain, test), temperature)


def start(device: Device, recipe: Recipe, split: Split) -> Run:
    """Return the run of a recipe, for functions of train.py."""
    images = ImageSource(device.dataset, recipe.image_size, recipe.augmentation)
    return Run(recipe, RunOptions(), Workers(), images, split)


# Weights of teachers, and the command line


def weights_file(out: Path, jobs: Sequence[Job], name: str, number: int) -> Path:
    """Return where what the job `name` learned on fold `number` is."""
    [slug] = [job.slug for job in jobs if job.name == name]
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
    add_base_flags(parser)
    add = parser.add_argument
    add("--jobs", type=cli.path, required=True, metavar="FILE", help="what to train (JSON)")
    add("--folds", type=within(*FOLDS), default=5, help="[%(default)s]")
    add("--split-seed", type=within(0, MAX_SEED), default=ORIGINAL.seed, help="[%(default)s]")
    add("--out", type=cli.path, required=True, metavar="FOLDER", help="where to write to")
    processes = cli.positive(int)
    add(
        "--processes", type=processes, default=os.cpu_count(), help="that read images [%(default)s]"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
