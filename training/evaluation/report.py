"""What a person looks at after a run: figures, metrics.json and a model card, in one folder."""

import json
import platform
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from serving.image import open_image
from serving.preprocess import preprocess
from training.backend import keras
from training.dataset.scan import Dataset, class_of
from training.evaluation.grad_cam import grad_cam, is_possible
from training.evaluation.metrics import evaluate, percent, shown

GALLERY = 12  # images
METRICS = "metrics.json"
CARD = "README.md"
CURVES = "learning_curves.png"
# What each figure shows; also the order in which the model card has them.
FIGURES = {
    "per_class.png": "Precision, recall and F1 of each class",
    "confusion_matrix.png": "Which class is taken for which",
    "reliability.png": "Whether confidence is to be believed",
    CURVES: "How training went",
    "mistakes.png": "The most confident mistakes",
    "gradcam.png": "Where the model looks",
    "suspects.png": "Labels that are probably wrong",
}
PACKAGES = ("keras", "tensorflow", "jax", "openvino", "numpy", "scipy", "scikit-learn", "pillow")
BEING_WRITTEN, BEING_REPLACED = ".report_new", ".report_old"


@dataclass(frozen=True)
class Run:
    """What is reported on; `write_report` says what each is."""

    checkpoint: Path
    model: keras.Model
    dataset: Dataset
    images: tuple[str, ...]
    probabilities: np.ndarray
    uncalibrated: np.ndarray
    temperature: float
    history: Path
    run_info: dict
    label_issues: Sequence
    curves: Path | None = None

    @cached_property
    def truth(self) -> np.ndarray:
        """Class index of each image, int (n,)."""
        return self.dataset.labels(self.images)

    @cached_property
    def answers(self) -> np.ndarray:
        """Class index that the model answers to each image, int (n,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of each answer, float (n,), 0 to 1."""
        return self.probabilities.max(axis=1)

    @cached_property
    def mistakes(self) -> list[int]:
        """Positions of the wrongly answered images, the most confident first."""
        order = np.argsort(-self.confidence, kind="stable")
        return [int(i) for i in order if self.answers[i] != self.truth[i]]


def write_report(
    folder: Path,
    *,
    checkpoint: Path,
    model: keras.Model,
    dataset: Dataset,
    images: tuple[str, ...],
    probabilities: np.ndarray,
    uncalibrated: np.ndarray,
    temperature: float,
    history: Path,
    run_info: dict,
    label_issues: Sequence,
    curves: Path | None = None,
) -> dict:
    """Write the report of a run into `folder` and return what its metrics.json holds.

    The folder is replaced when all is written: killed at any moment, it is not there, or whole
    as before, or whole and new. Files of others in it are kept.

    Args:
        folder: where to write to; made where it is not there.
        checkpoint: the `.h5` that is reported on; only its name is used.
        model: it, in float32: input (n, height, width, 3), -1 to 1; a layer
            `training.model.BASE_LAYER`, pooling, dense layers, softmax.
        dataset: where the images are, and the class names.
        images: those reported on, "class/file".
        probabilities: the checkpoint's answers to them, float (n, classes), 0 to 1.
        uncalibrated: its answers before the temperature, of the same shape.
        temperature: what its logits were divided by.
        history: CSV, a row an epoch: accuracy, loss, val_accuracy, val_loss; may be missing.
        run_info: what the run says of itself, fit for JSON. The model card has a place for
            `command`, `recipe` and `split` ({name: value}), `seed`, `weights`, `seconds`,
            `picked_on` and `calibrated_on` (sentences: on which images the checkpoint was
            picked and the temperature fitted) and `checks` (lines); each may be missing, and
            what else there is it lists.
        label_issues: probable wrong labels, with `image`, `label`, `suggested`, `confidence`.
        curves: the learning curves that an earlier report has drawn, instead of `history`.

    Raises:
        ValueError: there are no images.
        OSError: an image cannot be read, or `folder` not written.
    """
    run = Run(
        checkpoint,
        model,
        dataset,
        tuple(images),
        probabilities,
        uncalibrated,
        float(temperature),
        history,
        run_info,
        label_issues,
        curves,
    )
    metrics = _metrics(run)
    with replacing(folder) as new:
        drawn = _draw(run, metrics, new)
        text = json.dumps(metrics, indent=1, ensure_ascii=False, default=str)
        (new / METRICS).write_text(text + "\n", encoding="utf-8")
        (new / CARD).write_text(model_card(run, metrics, drawn), encoding="utf-8")
    return metrics


def _metrics(run: Run) -> dict:
    before = evaluate(run.uncalibrated, run.truth, run.dataset.class_names)
    return {
        "checkpoint": run.checkpoint.name,
        **evaluate(run.probabilities, run.truth, run.dataset.class_names),
        "temperature": run.temperature,
        "before_temperature": {
            key: before[key] for key in ("log_loss", "expected_calibration_error")
        },
        "class_counts": run.dataset.counts,
        "suspects": len(run.label_issues),
        "run": run.run_info,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of what was computed with, as far as installed."""
    found = {"python": platform.python_version(), "keras backend": keras.backend.backend()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill that takes the place of `folder` once the block has ended.

    If the block fails, `folder` stays as it was. What is in it that a report does not write
    itself is copied into the new one.
    """
    new = folder.with_name(f".{folder.name}{BEING_WRITTEN}")
    old = folder.with_name(f".{folder.name}{BEING_REPLACED}")
    if old.exists() and not folder.exists():
        old.rename(folder)  # a run was killed between the two renames below
    for left in folder.parent.glob(f".*{BEING_WRITTEN}"):
        shutil.rmtree(left)
    new.mkdir(parents=True)
    try:
        yield new
        _keep_others(folder, new)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _keep_others(folder: Path, new: Path) -> None:
    for path in folder.iterdir() if folder.exists() else ():
        if path.name in {METRICS, CARD, *FIGURES}:
            continue
        if path.is_dir():
            shutil.copytree(path, new / path.name)
        else:
            shutil.copy2(path, new / path.name)


# Figures


def _draw(run: Run, metrics: dict, folder: Path) -> list[str]:
    """Draw what there is to draw into `folder` and return the files' names, in order."""
    from training.evaluation import (
        figures,  # and with it matplotlib, which nobody needs before the end
    )

    plots = {
        "per_class.png": figures.per_class(metrics),
        "confusion_matrix.png": figures.confusion_matrix(
            np.array(metrics["confusion_matrix"]), run.dataset.class_names
        ),
        "reliability.png": figures.reliability(
            run.uncalibrated, run.probabilities, run.truth, run.temperature
        ),
        "mistakes.png": _mistakes(run),
    }
    if run.curves:
        shutil.copyfile(run.curves, folder / CURVES)
    else:
        plots[CURVES] = figures.learning_curves(
            figures.read_history(run.history), figures.kept_epoch(run.checkpoint)
        )
    if is_possible():
        plots["gradcam.png"] = _gradcam(run)
    if run.label_issues:
        plots["suspects.png"] = _suspects(run)
    for name, figure in plots.items():
        figures.save(figure, folder / name)
    return [name for name in FIGURES if (folder / name).exists()]


def _mistakes(run: Run):
    from training.evaluation import figures

    if not run.mistakes:
        text = f"None: the model is right on all {len(run.images)} images."
        return figures.note("The most confident mistakes", text)
    chosen = run.mistakes[:GALLERY]
    count = f"{len(chosen)} of {len(run.mistakes)}" if len(chosen) < len(run.mistakes) else "all"
    tiles = [figures.Tile(_open(run, run.images[i]), _verdict(run, i)) for i in chosen]
    return figures.gallery(f"The most confident mistakes ({count})", tiles, columns=6)


def _gradcam(run: Run):
    from training.evaluation import figures

    chosen = _explained(run)
    size = run.model.input_shape[1:3]
    images = [_open(run, run.images[i]) for i in chosen]
    inputs = np.concatenate([preprocess(image, size) for image in images])
    heat = grad_cam(run.model, inputs, run.answers[chosen])
    tiles = [
        figures.Tile(image, _verdict(run, i), warmth)
        for i, image, warmth in zip(chosen, images, heat, strict=True)
    ]
    return figures.gallery("What speaks for the answer, red the most (Grad-CAM)", tiles, columns=3)


def _explained(run: Run) -> list[int]:
    """Return positions of images to explain: one right of each class, then mistakes.

    Of the right ones the one of median confidence: a typical one, not the best.
    """
    right = []
    for index in range(len(run.dataset.class_names)):
        hits = np.flatnonzero((run.truth == index) & (run.answers == index))
        if len(hits):
            right.append(int(hits[np.argsort(run.confidence[hits])][len(hits) // 2]))
    right = right[:9]
    room = (9 if len(right) <= 6 else GALLERY) - len(right)
    return right + run.mistakes[: min(room, 4) if right else GALLERY]


def _suspects(run: Run):
    from training.evaluation import figures

    chosen = sorted(run.label_issues, key=lambda label_issue: -label_issue.confidence)[:GALLERY]
    tiles = [
        figures.Tile(
            _open(run, label_issue.image),
            (
                (
                    f"{shown(label_issue.suggested, 16)} {percent(label_issue.confidence)}?",
                    figures.ORANGE,
                ),
                (f"label: {shown(label_issue.label, 16)}", figures.INK),
            ),
        )
        for label_issue in chosen
    ]
    title = f"Labels that are probably wrong ({len(chosen)} of {len(run.label_issues)})"
    return figures.gallery(title, tiles, columns=6)


def _verdict(run: Run, position: int) -> tuple[tuple[str, str], ...]:
    """Return the caption of an image: the answer, and the truth where that is another."""
    from training.evaluation import figures

    names = run.dataset.class_names
    answer, truth = names[run.answers[position]], names[run.truth[position]]
    said = f"{shown(answer, 16)} {percent(run.confidence[position])}"
    if answer == truth:
        return ((said, figures.GREEN),)
    return ((said, figures.RED), (f"truth: {shown(truth, 16)}", figures.INK))


def _open(run: Run, image: str):
    return open_image(run.dataset.folder / image)


# Model card


def model_card(run: Run, metrics: dict, drawn: Sequence[str]) -> str:
    """Return the model card (Markdown); `drawn` are the figures' file names."""
    sections = (
        _opening(run, metrics),
        _results(run, metrics),
        _figures(run, drawn),
        _data(run),
        _training(run, metrics),
        _limits(run, metrics),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _opening(run: Run, metrics: dict) -> list[str]:
    names = [_plain(name) for name in run.dataset.class_names]
    accuracy = _percent(metrics["accuracy"], metrics["accuracy_interval"])
    return [
        f"# {_plain(run.checkpoint.stem)}",
        "",
        f"Xception, fine-tuned to tell {len(names)} classes of images apart: "
        f"{', '.join(names[:-1])} and {names[-1]}.",
        f"On {metrics['n']} images that it was not trained on it is right in **{accuracy}**, "
        f"and its confidence is off by {metrics['expected_calibration_error']:.3f} on average "
        "(expected calibration error).",
        "",
        f"All numbers: [{METRICS}]({METRICS}). Intervals are Wilson's for 95 % unless said "
        "otherwise.",
    ]


def _results(run: Run, metrics: dict) -> list[str]:
    rows = [
        [
            _plain(name),
            *(_number(row[key], row[f"{key}_interval"]) for key in ("precision", "recall", "f1")),
            str(row["support"]),
        ]
        for name, row in metrics["per_class"].items()
    ]
    macro = _number(metrics["macro_f1"], metrics["macro_f1_interval"])
    return [
        "## Results",
        "",
        *_table(["class", "precision", "recall", "F1", "images"], rows),
        "",
        f"- accuracy {_number(metrics['accuracy'], metrics['accuracy_interval'])}, "
        f"n = {metrics['n']}",
        f"- macro F1 {macro}, the interval by bootstrap",
        f"- log loss {metrics['log_loss']:.3f} nats; "
        f"{metrics['before_temperature']['log_loss']:.3f} before the temperature",
        f"- {_calibration(run, metrics)}",
    ]


def _calibration(run: Run, metrics: dict) -> str:
    from training.evaluation.calibration import TARGET

    error = metrics["expected_calibration_error"]
    asked = "within" if error <= TARGET else "**above**"
    return (
        f"expected calibration error {error:.3f} (15 bins), {asked} the {TARGET} that is asked "
        f"for; {metrics['before_temperature']['expected_calibration_error']:.3f} before the "
        f"temperature T = {run.temperature:.3f}, which is inside the model's last layer. On so "
        "many images a perfectly calibrated model stays under "
        f"{metrics['expected_calibration_error_by_chance']:.3f}, 19 times out of 20"
    )


def _figures(run: Run, drawn: Sequence[str]) -> list[str]:
    lines = ["## Figures"]
    for name in drawn:
        lines += ["", f"### {FIGURES[name]}", "", f"![{FIGURES[name]}]({name})"]
        if name == "mistakes.png" and run.mistakes:
            lines += ["", *_mistakes_table(run)]
    if "gradcam.png" not in drawn:
        backend = keras.backend.backend()
        lines += ["", f"Grad-CAM is left out: not made on Keras' {backend} backend."]
    return lines


def _mistakes_table(run: Run) -> list[str]:
    names = run.dataset.class_names
    return _table(
        ["image", "answer", "confidence"],
        [
            [
                _plain(run.images[i]),
                _plain(names[run.answers[i]]),
                f"{run.confidence[i]:.3f}",
            ]
            for i in run.mistakes[:GALLERY]
        ],
    )


def _data(run: Run) -> list[str]:
    reported: dict[str, int] = dict.fromkeys(run.dataset.class_names, 0)
    for image in run.images:
        reported[class_of(image)] += 1
    rows = [
        [_plain(name), str(count), str(reported[name])]
        for name, count in run.dataset.counts.items()
    ]
    rows.append(["all", str(len(run.dataset.images)), str(len(run.images))])
    split = run.run_info.get("split") or {}
    lines = [
        "## Data",
        "",
        f"Images of {_plain(run.dataset.folder.resolve().name)}, one folder a class; "
        f"{_left_out(run.dataset)}.",
        "",
        *_table(["class", "images", "reported on"], rows),
    ]
    if split:
        lines += ["", "Split: " + ", ".join(f"{_plain(k)} {v}" for k, v in split.items()) + "."]
    for key in ("picked_on", "calibrated_on"):
        if run.run_info.get(key):
            lines += ["", _sentence(run.run_info[key])]
    checks = run.run_info.get("hygiene") or ()
    checks = [checks] if isinstance(checks, str) else checks
    return lines + [""] * bool(checks) + [f"- {_plain(line)}" for line in checks]


def _left_out(dataset: Dataset) -> str:
    by_hand = dataset.excluded
    excluded = Counter(reason for file, reason in dataset.skipped if file in by_hand)
    told = [f"{len(dataset.skipped) - len(by_hand)} unusable files skipped"]
    return ", ".join(told + [f"{n} {_plain(reason)}" for reason, n in excluded.items()])


def _training(run: Run, metrics: dict) -> list[str]:
    run_info = run.run_info
    lines = ["## Training"]
    if run_info.get("command"):
        lines += ["", *(f"    {line}" for line in str(run_info["command"]).splitlines())]
    facts = {"seed": run_info.get("seed"), "starting weights": run_info.get("weights")}
    facts["time"] = _time(run_info.get("seconds"))
    told = {"command", "seed", "weights", "seconds", "recipe", "split", "hygiene"}
    told |= {"picked_on", "calibrated_on"}
    facts |= {name: value for name, value in run_info.items() if name not in told}
    facts = {name: value for name, value in facts.items() if value is not None}
    lines += [""] * bool(facts) + [f"- {_plain(n)}: {_plain(v)}" for n, v in facts.items()]
    recipe = run_info.get("recipe") or {}
    if recipe:
        lines += ["", *_table(["recipe", ""], [[_plain(k), _plain(v)] for k, v in recipe.items()])]
    found = ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())
    return [*lines, "", f"Versions: {found}."]


def _limits(run: Run, metrics: dict) -> list[str]:
    widest, row = max(
        metrics["per_class"].items(),
        key=lambda item: item[1]["recall_interval"][1] - item[1]["recall_interval"][0],
    )
    limits = [
        f"It knows these {len(run.dataset.class_names)} classes and nothing else. Any other "
        "image gets one of them as well, at times with high confidence.",
        "Not for decisions in which a wrong answer does harm, such as whether a plant may be "
        "eaten or touched.",
        "Results and confidence hold for images like those of the data; other cameras, places "
        "and seasons may lower both.",
        _bias(run),
        _labels(run),
        *_excluded(run.dataset),
        "The intervals say what other images of the same kind would have changed. Not in them: "
        "another seed, another split, and how the model was picked.",
        f"Least is known of {_plain(widest)}: {row['support']} images, recall "
        f"{row['recall_interval'][0]:.2f} to {row['recall_interval'][1]:.2f}.",
        "Grad-CAM shows which regions speak for an answer, coarsely; it does not prove why.",
    ]
    return ["## Limits", "", *(f"- {limit}" for limit in limits)]


def _bias(run: Run) -> str:
    told = f"{_sentence(run.run_info['picked_on'])} " if run.run_info.get("picked_on") else ""
    return (
        f"{told}Where an image that is reported on took part in picking the checkpoint or its "
        "temperature, the numbers are a little better than new images would show."
    )


def _labels(run: Run) -> str:
    wrong = "The labels are the folders' names; a wrong one counts as a mistake or hides one."
    if not run.label_issues:
        return wrong
    suspected = f"a cross-validated model suspects {len(run.label_issues)}"
    return f"{wrong} Of the {len(run.dataset.images)}, {suspected}."


def _excluded(dataset: Dataset) -> list[str]:
    if not dataset.excluded:
        return []
    return ["What was excluded is in none of these numbers; images like it would lower them."]


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _number(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _percent(value: float, interval: Sequence[float]) -> str:
    low, high = (percent(bound, 1) for bound in interval)
    return f"{percent(value, 1)} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table's lines; the cells are Markdown already."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _sentence(text: str) -> str:
    text = _plain(text).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _plain(value: object) -> str:
    """Return `value` as Markdown that shows it as it is, in one line."""
    text = " ".join(str(value).split())
    return re.sub(r"[\\`*|<>\[\]$]|\b_|_\b", r"\\\g<0>", text)
