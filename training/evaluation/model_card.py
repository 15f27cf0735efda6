"""The model card of a checkpoint: Markdown, with Hugging Face's metadata in front."""

import json
import re
from collections import Counter
from collections.abc import Sequence

from training.backend import keras
from training.dataset.names import composed
from training.dataset.scan import Dataset, class_of
from training.evaluation.familiarity import describe_shortage
from training.evaluation.metrics import percent
from training.evaluation.run import EvaluationRun
from training.evaluation.unknowns import describe_unmeasured
from training.markdown import markdown_table
from training.streams import counted, printable

METRICS = "metrics.json"
CARD = "README.md"
CURVES = "learning_curves.png"
# The figures and their titles, in the order of the model card.
FIGURES = {
    "per_class.png": "Precision, recall and F1 of each class",
    "confusion_matrix.png": "Confusion matrix",
    "reliability.png": "Reliability diagram",
    "risk_coverage.png": "Risk and coverage",
    CURVES: "Learning curves",
    "mistakes.png": "The most confident mistakes",
    "gradcam.png": "Grad-CAM: where the model looks",
    "activation_maps.png": "Activation maps of drawn images",
    "label_issues.png": "Labels that are probably wrong",
}
MISTAKES = 12  # listed
RUN_FACTS = {
    "seed": "seed",
    "weights": "starting weights",
    "labels": "labels of the training images",
    "reevaluated_by": "report written again by",
    "excluded": "excluded images",
}


def model_card(run: EvaluationRun, metrics: dict, drawn: Sequence[str]) -> str:
    """Return the model card (Markdown); `drawn` lists the file names of the figures."""
    sections = (
        [*_front_matter(run, metrics), "", *_summary(run, metrics)],
        _results(run, metrics),
        *_unknowns(run),
        _figures(run, drawn),
        _data(run),
        _training(run, metrics),
        _limits(run, metrics),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _front_matter(run: EvaluationRun, metrics: dict) -> list[str]:
    """Return Hugging Face's model card metadata (YAML); JSON strings are YAML strings."""
    quoted = json.dumps(run.dataset.folder.resolve().name)
    name = run.set_name
    return [
        "---",
        "license: mit # of the code; a model of your own images is yours to license",
        "library_name: keras",
        "pipeline_tag: image-classification",
        "tags: [image-classification, keras, tflite, xception]",
        "model-index:",
        f"- name: {json.dumps(run.checkpoint.stem)}",
        "  results:",
        "  - task: {type: image-classification}",
        f"    dataset: {{name: {quoted}, type: {quoted}, split: {name}}}",
        "    metrics:",
        f"    - {{type: accuracy, name: {name} accuracy, value: {metrics['accuracy']:.4f}}}",
        f"    - {{type: f1, name: {name} macro F1, value: {metrics['macro_f1']:.4f}}}",
        f"    - {{type: log_loss, name: {name} log loss, value: {metrics['log_loss']:.4f}}}",
        "---",
    ]


def _summary(run: EvaluationRun, metrics: dict) -> list[str]:
    names = [_plain(name) for name in run.dataset.class_names]
    accuracy = _percent(metrics["accuracy"], metrics["accuracy_interval"])
    return [
        f"# {_plain(run.checkpoint.stem)}",
        "",
        f"Xception, fine-tuned to classify images as {', '.join(names[:-1])} or {names[-1]}.",
        f"Its {run.set_name} accuracy is **{accuracy}** on {counted(metrics['n'], 'image')}, with "
        f"an expected calibration error of {metrics['expected_calibration_error']:.3f}.",
        *_audited(metrics),
        *_as_labelled(run),
        "",
        f"All numbers are in [{METRICS}]({METRICS}). Intervals are Wilson's 95 % intervals unless "
        "stated otherwise.",
    ]


def _audited(metrics: dict) -> list[str]:
    found = metrics["audited"]
    if not found:
        return []
    accuracy = _percent(found["accuracy"], found["accuracy_interval"])
    return [
        f"Without {found['wrong_labels']} of these whose labels an audit found wrong, it is "
        f"**{accuracy}** on {counted(found['n'], 'image')}, with a calibration error of "
        f"{found['expected_calibration_error']:.3f}."
    ]


def _as_labelled(run: EvaluationRun) -> list[str]:
    known = run.info.as_labelled
    if not known:
        return []
    accuracy = _percent(known["accuracy"], known["interval"])
    they_are = "it is" if known["excluded"] == 1 else "they are"
    return [
        f"With the {counted(known['excluded'], 'excluded image')}, as {they_are} labelled, it is "
        f"**{accuracy}** on {counted(known['n'], 'image')}."
    ]


def _results(run: EvaluationRun, metrics: dict) -> list[str]:
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
        markdown_table(["class", "precision", "recall", "F1", "images"], rows),
        "",
        f"- {run.set_name} accuracy {_number(metrics['accuracy'], metrics['accuracy_interval'])}, "
        f"n = {metrics['n']}",
        f"- macro F1 {macro}, the interval by bootstrap",
        f"- log loss {metrics['log_loss']:.3f} nats; "
        f"{metrics['before_temperature']['log_loss']:.3f} before calibration",
        f"- {_calibration(run, metrics)}",
    ]


def _calibration(run: EvaluationRun, metrics: dict) -> str:
    error = metrics["expected_calibration_error"]
    by_chance = metrics["expected_calibration_error_by_chance"]
    verdict = "no more than chance explains" if error <= by_chance else "more than chance explains"
    return (
        f"expected calibration error {error:.3f} (15 bins), {verdict}; "
        f"{metrics['before_temperature']['expected_calibration_error']:.3f} before "
        f"calibration by the temperature T = {run.temperature:.3f}, which is part of the last "
        f"layer's weights. With {counted(metrics['n'], 'image')}, a perfectly calibrated model "
        f"stays below {by_chance:.3f} in 19 of 20 cases"
    )


def _unknowns(run: EvaluationRun) -> list[list[str]]:
    """Return the section on images of no class, as the only one of a list; [] without."""
    found = run.unknowns
    if not found:
        shortage = describe_shortage(run.details, 0) if run.details.familiarity else None
        return [["## Images that are none of these", "", shortage]] if shortage else []
    sets = found["prediction_sets"]
    alarms = [
        f"- called unknown at {percent(row['promised'])}: of {row['n']} {run.set_name} images "
        f"{_percent(row['found'], row['interval'])}, of at most {percent(row['promised'])} promised"
        for row in found["false_alarms"]
    ]
    measured = {row["promised"] for row in found["false_alarms"]}
    levels = [float(level) for level in found["far"]["all"]["called_unknown"]]
    alarms += [
        f"- {describe_unmeasured(level, found['validation_images'])}"
        for level in levels
        if level not in measured
    ]
    far = [_unknowns_row(f"drawn: {kind}", row) for kind, row in found["far"].items()]
    left_out = [
        _unknowns_row(f"{_plain(name)}, left out", row) for name, row in found["left_out"].items()
    ]
    called = [f"called unknown at {percent(level)}" for level in levels]
    head = ["images", "n", "AUROC", *called, "AUROC of the largest score"]
    lines = [
        "## Images that are none of these",
        "",
        f"Its statistics are those of {found['training_images']} training images, compared with "
        f"{found['validation_images']} validation images; {_held_out(run)}. The AUROC is how often "
        "one of these images looks stranger than one of its classes.",
        "",
        markdown_table(head, far + left_out),
        "",
        *alarms,
        f"- prediction sets hold the true class of {_percent(sets['found'], sets['interval'])} of "
        f"{sets['n']} {run.set_name} images, of {percent(sets['promised'])} promised; their mean "
        f"size is {sets['mean_size']:.2f}",
        "",
        "Drawn images are far from photographs, so they are found easily. A class that is left out "
        "is near: the statistics are those of the other classes, but the network has learned from "
        "its images, so a class that it never saw is told less well.",
    ]
    return [lines]


def _held_out(run: EvaluationRun) -> str:
    if run.set_name == "test":
        return "all numbers here are on other images"
    return "for the numbers here, each half of these is compared with the other half"


def _unknowns_row(name: str, row: dict) -> list[str]:
    baseline = row["auroc_of_confidence"]
    return [
        name,
        str(row["n"]),
        f"{row['auroc']:.3f}",
        *("" if share is None else percent(share) for share in row["called_unknown"].values()),
        "" if baseline is None else f"{baseline:.3f}",
    ]


def _figures(run: EvaluationRun, drawn: Sequence[str]) -> list[str]:
    lines = ["## Figures"]
    for name in drawn:
        lines += ["", f"### {FIGURES[name]}", "", f"![{FIGURES[name]}]({name})"]
        if name == "mistakes.png" and run.mistakes:
            lines += ["", _mistakes_table(run)]
    if "gradcam.png" not in drawn:
        backend = keras.backend.backend()
        lines += ["", f"There is no Grad-CAM figure: Keras' {backend} backend is not supported."]
    return lines


def _mistakes_table(run: EvaluationRun) -> str:
    names = run.dataset.class_names
    rows = [
        [
            _plain(run.images[i]),
            _plain(names[run.predicted_classes[i]]),
            f"{run.confidence[i]:.3f}",
        ]
        for i in run.mistakes[:MISTAKES]
    ]
    return markdown_table(["image", "predicted class", "confidence"], rows)


def _data(run: EvaluationRun) -> list[str]:
    evaluated = Counter(composed(class_of(image)) for image in run.images)
    rows = [
        [_plain(name), str(count), str(evaluated[composed(name)])]
        for name, count in run.dataset.counts.items()
    ]
    rows.append(["all", str(len(run.dataset.images)), str(len(run.images))])
    lines = [
        "## Data",
        "",
        f"The images of {_plain(run.dataset.folder.resolve().name)}, one folder a class; "
        f"{_skipped(run.dataset)}.",
        "",
        markdown_table(["class", "images", f"{run.set_name} images"], rows),
    ]
    if run.info.split:
        sets = ", ".join(f"{_plain(name)} {count}" for name, count in run.info.split.items())
        lines += ["", f"Split: {sets}."]
    for sentence in (run.info.picked_on, run.info.calibrated_on):
        if sentence:
            lines += ["", _sentence(sentence)]
    return lines


def _skipped(dataset: Dataset) -> str:
    by_hand = dataset.excluded
    excluded = Counter(reason for file, reason in dataset.skipped if file in by_hand)
    skipped = [f"{counted(len(dataset.skipped) - len(by_hand), 'unusable file')} skipped"]
    return ", ".join(skipped + [f"{n} {_plain(reason)}" for reason, n in excluded.items()])


def _training(run: EvaluationRun, metrics: dict) -> list[str]:
    info = run.info
    lines = ["## Training"]
    if info.command:
        lines += ["", *(f"    {line}" for line in printable(info.command).splitlines())]
    facts = {title: getattr(info, name) for name, title in RUN_FACTS.items()}
    facts["time"] = _time(info.seconds)
    known = {title: value for title, value in facts.items() if value is not None}
    lines += [""] * bool(known) + [f"- {title}: {_plain(value)}" for title, value in known.items()]
    if info.recipe:
        rows = [[_plain(name), _plain(value)] for name, value in info.recipe.items()]
        lines += ["", markdown_table(["setting", "value"], rows)]
    versions = ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())
    return [*lines, "", f"Versions: {versions}."]


def _limits(run: EvaluationRun, metrics: dict) -> list[str]:
    widest, row = max(
        metrics["per_class"].items(),
        key=lambda item: item[1]["recall_interval"][1] - item[1]["recall_interval"][0],
    )
    limits = [
        f"The model knows {len(run.dataset.class_names)} classes. Any other image gets one of "
        "them, too, at times with high confidence"
        f"{', so ask whether it is unknown' * bool(run.unknowns)}.",
        "Do not use it where a wrong answer does harm, for instance to decide whether a plant may "
        "be eaten or touched.",
        "Accuracy and confidence hold for images like those of the data set; other cameras, places "
        "and seasons may lower both.",
        *_optimism(run),
        *_stand_in(run),
        *_labels(run),
        "The intervals cover the choice of images only: not another seed, another split, or the "
        "choice of the model.",
        f"Least is known about {_plain(widest)}: {counted(row['support'], 'image')}, recall "
        f"{row['recall_interval'][0]:.2f} to {row['recall_interval'][1]:.2f}.",
        "Grad-CAM shows coarsely which regions speak for a class; it does not prove why.",
    ]
    return ["## Limits", "", *(f"- {limit}" for limit in limits)]


def _optimism(run: EvaluationRun) -> list[str]:
    if run.set_name == "test":
        return []
    return [
        "The images that the report is about also picked the epoch and calibrated the model, so "
        "the numbers are slightly better than on new images."
    ]


def _stand_in(run: EvaluationRun) -> list[str]:
    weights = run.info.weights or ""
    if not weights.startswith("the base of"):
        return []
    return [
        f"Training started from {_plain(weights)}, not from ImageNet's weights. If that was "
        "trained on some of these images, the numbers are too high."
    ]


def _labels(run: EvaluationRun) -> list[str]:
    lines = ["The labels are folder names; a wrong label counts as a mistake or hides one."]
    if run.label_issues:
        total = f"{len(run.label_issues)} of {len(run.dataset.images)}"
        lines = [f"{lines[0]} A cross-validated model doubts {total} labels."]
    if run.dataset.excluded:
        lines.append(
            "Excluded images are in none of these numbers; images like them would lower the "
            "accuracy."
        )
    return lines


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _number(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _percent(value: float, interval: Sequence[float]) -> str:
    low, high = (percent(bound, 1) for bound in interval)
    return f"{percent(value, 1)} ({low} to {high})"


def _sentence(text: str) -> str:
    text = _plain(text).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _plain(value: object) -> str:
    """Return `value` as one line of Markdown that renders literally."""
    text = printable(" ".join(str(value).split()))
    return re.sub(r"[\\`*|<>\[\]$]|\b_|_\b", r"\\\g<0>", text)
