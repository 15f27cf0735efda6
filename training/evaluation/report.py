"""The report on a checkpoint: figures, metrics.json and a model card, in one folder."""

import json
import platform
import shutil
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from serving.answers import UNKNOWN_BELOW, describe
from serving.image import open_image
from serving.preprocess import preprocess
from serving.runtimes import Prediction
from training.backend import keras
from training.evaluation.grad_cam import grad_cam, is_possible
from training.evaluation.metrics import audited, evaluate, percent, shown
from training.evaluation.model_card import CARD, CURVES, FIGURES, METRICS, model_card
from training.evaluation.run import EvaluationRun
from training.files import replace_folder
from training.outputs import read_head, with_activations
from training.sample import LABELS, draw
from training.sample.others import draw_others

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GALLERY = 12  # images
COVERAGES = (0.8, 0.9)  # at which the risk is told
PACKAGES = ("keras", "tensorflow", "jax", "openvino", "numpy", "scipy", "scikit-learn", "pillow")


def write_report(folder: Path, run: EvaluationRun) -> dict:
    """Write the report on `run` into `folder` and return the content of its metrics.json.

    The folder is written as a whole or not at all. Other files in it are kept.

    Raises:
        ValueError: there are no images.
        OSError: an image cannot be read, or `folder` cannot be written.
    """
    metrics = _metrics(run)
    with replace_folder(folder, {METRICS, CARD, *FIGURES}) as new:
        drawn = _draw(run, metrics, new)
        text = json.dumps(metrics, indent=1, ensure_ascii=False, default=str)
        # Bytes of file names that are not text become JSON's own escapes.
        (new / METRICS).write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
        (new / CARD).write_text(model_card(run, metrics, drawn), encoding="utf-8")
    return metrics


def _metrics(run: EvaluationRun) -> dict:
    before = evaluate(run.uncalibrated, run.true_classes, run.dataset.class_names)
    is_audited = bool(run.dataset.wrong_labels)
    return {
        "checkpoint": run.checkpoint.name,
        "set": run.set_name,
        **evaluate(run.probabilities, run.true_classes, run.dataset.class_names),
        "audited": audited(run.probabilities, run.true_classes, run.wrong_labels)
        if is_audited
        else {},
        "temperature": run.temperature,
        "before_temperature": {
            key: before[key] for key in ("log_loss", "expected_calibration_error")
        },
        "risk_coverage": _risk_coverage(run),
        "unknowns": run.unknowns,
        "class_counts": run.dataset.counts,
        "label_issues": len(run.label_issues),
        "run": run.info.to_record(),
        "versions": versions(),
    }


def _risk_coverage(run: EvaluationRun) -> dict:
    """Return the risk of answering the surest images only: `area`, and `risk` {coverage: risk}."""
    coverage, risk = run.risk_coverage
    places = {share: np.searchsorted(coverage, share - 1e-9) for share in COVERAGES}
    return {
        "area": float(risk.mean()),
        "risk": {str(share): float(risk[place]) for share, place in places.items()},
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that compute."""
    found = {"python": platform.python_version(), "keras backend": keras.backend.backend()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _draw(run: EvaluationRun, metrics: dict, folder: Path) -> list[str]:
    """Draw the figures into `folder` and return their file names, in order."""
    from training.evaluation import figures  # imports Matplotlib, which only reports need

    plots = {
        "per_class.png": figures.per_class(metrics),
        "confusion_matrix.png": figures.confusion_matrix(
            np.array(metrics["confusion_matrix"]), run.dataset.class_names
        ),
        "reliability.png": figures.reliability(
            run.uncalibrated, run.probabilities, run.true_classes, run.temperature
        ),
        "risk_coverage.png": figures.risk_coverage(*run.risk_coverage),
        "mistakes.png": _mistakes(run),
    }
    if run.curves:
        shutil.copyfile(run.curves, folder / CURVES)
    elif run.history:
        plots[CURVES] = figures.learning_curves(
            figures.read_history(run.history),
            run.kept_epoch or figures.kept_epoch(run.checkpoint),
        )
    if is_possible():
        plots["gradcam.png"] = _grad_cam(run)
    if activation_maps := _activation_maps(run):
        plots["activation_maps.png"] = activation_maps
    if run.label_issues:
        plots["label_issues.png"] = _label_issues(run)
    for name, figure in plots.items():
        figures.save(figure, folder / name)
    return [name for name in FIGURES if (folder / name).exists()]


def _mistakes(run: EvaluationRun) -> "Figure":
    from training.evaluation import figures

    if not run.mistakes:
        text = f"None: all {len(run.images)} images are classified correctly."
        return figures.note("The most confident mistakes", text)
    chosen = run.mistakes[:GALLERY]
    count = f"{len(chosen)} of {len(run.mistakes)}" if len(chosen) < len(run.mistakes) else "all"
    tiles = [figures.Tile(_cropped(run, run.images[i]), _caption(run, i)) for i in chosen]
    return figures.gallery(f"The most confident mistakes ({count})", tiles, columns=6)


def _grad_cam(run: EvaluationRun) -> "Figure":
    from training.evaluation import figures

    chosen = _explained(run)
    size = run.model.input_shape[1:3]
    images = [_open(run, run.images[i]) for i in chosen]
    inputs = np.concatenate([preprocess(image, size) for image in images])
    heat = grad_cam(run.model, inputs, run.predicted_classes[chosen])
    tiles = [
        figures.Tile(image, _caption(run, i), warmth)
        for i, image, warmth in zip(chosen, images, heat, strict=True)
    ]
    return figures.gallery("Where the predicted class is seen (Grad-CAM)", tiles, columns=3)


def _activation_maps(run: EvaluationRun) -> "Figure | None":
    """Return the figure of drawn images, as nobody's photographs are in it; None without maps."""
    from training.evaluation import figures

    details, rng = replace(run.details, head=read_head(run.model)), np.random.default_rng(0)
    if not details.head:
        return None
    images = [draw(label, rng) for label in LABELS]
    images += [others[0] for others in draw_others(1).values()]
    inputs = np.concatenate([preprocess(image, run.model.input_shape[1:3]) for image in images])
    outputs = with_activations(run.model).predict(inputs, batch_size=GALLERY, verbose=0)
    names = run.dataset.class_names
    tiles = [
        figures.answer_tile(image, describe(names, details, Prediction(*found), UNKNOWN_BELOW))
        for image, *found in zip(images, *outputs, strict=True)
    ]
    return figures.gallery("Drawn images: where the predicted class is seen", tiles, columns=4)


def _explained(run: EvaluationRun) -> list[int]:
    """Return positions of images to explain: a correct one of each class, then mistakes.

    Of the correct ones the one of median confidence: a typical one, not the best.
    """
    correct = []
    for index in range(len(run.dataset.class_names)):
        hits = np.flatnonzero((run.true_classes == index) & (run.predicted_classes == index))
        if len(hits):
            correct.append(int(hits[np.argsort(run.confidence[hits])][len(hits) // 2]))
    correct = correct[:9]
    room = (9 if len(correct) <= 6 else GALLERY) - len(correct)
    return correct + run.mistakes[: min(room, 4) if correct else GALLERY]


def _label_issues(run: EvaluationRun) -> "Figure":
    from training.evaluation import figures

    chosen = sorted(run.label_issues, key=lambda issue: -issue.confidence)[:GALLERY]
    tiles = []
    for issue in chosen:
        suggested = f"{shown(issue.suggested, 16)} {percent(issue.confidence)}?"
        label = f"label: {shown(issue.label, 16)}"
        caption = ((suggested, figures.ORANGE), (label, figures.INK))
        tiles.append(figures.Tile(_cropped(run, issue.image), caption))
    title = f"Labels that are probably wrong ({len(chosen)} of {len(run.label_issues)})"
    return figures.gallery(title, tiles, columns=6)


def _caption(run: EvaluationRun, position: int) -> tuple[tuple[str, str], ...]:
    """Return the caption of an image: predicted class and, if it differs, the true class."""
    from training.evaluation import figures

    names = run.dataset.class_names
    predicted = names[run.predicted_classes[position]]
    true = names[run.true_classes[position]]
    text = f"{shown(predicted, 16)} {percent(run.confidence[position])}"
    if predicted == true:
        return ((text, figures.GREEN),)
    return ((text, figures.RED), (f"true class: {shown(true, 16)}", figures.INK))


def _open(run: EvaluationRun, image: str) -> Image.Image:
    return open_image(run.dataset.folder / image)


def _cropped(run: EvaluationRun, image: str) -> Image.Image:
    from training.evaluation import figures

    return figures.crop(_open(run, image))
