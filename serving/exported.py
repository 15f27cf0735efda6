"""A model as OpenVINO compiled it, in two files beside its .tflite file.

Reading and compiling a .tflite file takes OpenVINO about three times as long as importing what it
exported, so the container image holds an export (serving/image_build.py). OpenVINO refuses to
import one of another version of itself, or for a processor with other instructions. Both are in its
first bytes, here called its head; what follows is the same for all processors, so it is kept once:

    NAME.openvino         room for a head, then what follows all heads
    NAME.openvino.json    the heads, in base64, and the digest of the .tflite file
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.model_files import file_digest

HEAD_BYTES = 4096  # room for a head; a page, so that no other page is copied to change it


@dataclass(frozen=True)
class Export:
    """What the files hold.

    Attributes:
        path: of the larger file.
        heads: one for each kind of processor.
        model_digest: what `file_digest` returned of the .tflite file.
    """

    path: Path
    heads: tuple[bytes, ...]
    model_digest: str

    def blobs(self) -> Iterator[np.ndarray]:
        """Yield the export for each kind of processor, uint8 (bytes,).

        Each is in the same memory, which shows the file and must be kept while the model is used.
        """
        memory = np.memmap(self.path, np.uint8, mode="c")  # changes stay in this process
        for head in self.heads:
            start = HEAD_BYTES - len(head)
            memory[start:HEAD_BYTES] = np.frombuffer(head, np.uint8)
            yield memory[start:]


def export_path(model: Path) -> Path:
    """Return where the export of the .tflite file `model` is."""
    return model.with_suffix(".openvino")


def read_export(model: Path) -> Export | None:
    """Return the export of the .tflite file `model`, None if there is none.

    It may be of another file that had the same name: its digest tells.
    """
    path = export_path(model)
    try:
        record = json.loads(_record_path(path).read_bytes())
    except FileNotFoundError:
        return None
    return Export(path, tuple(map(base64.b64decode, record["heads"])), record["model"])


def write_export(model: Path, exports: Sequence[bytes]) -> Export:
    """Write `exports` of the .tflite file `model`, one for each kind of processor.

    Returns what is written: the first one, and those that differ from it in their heads only.
    """
    first = exports[0]
    ends = [(export, _common_end(first, export)) for export in exports]
    alike = [
        (export, end)
        for export, end in ends
        if max(len(first), len(export)) - end <= HEAD_BYTES // 2
    ]
    length = min(end for _, end in alike)
    heads = dict.fromkeys(export[: len(export) - length] for export, _ in alike)
    path, model_digest = export_path(model), file_digest(model)
    with path.open("wb") as file:
        file.write(bytes(HEAD_BYTES) + first[len(first) - length :])
    record = {"model": model_digest, "heads": [base64.b64encode(head).decode() for head in heads]}
    _record_path(path).write_text(json.dumps(record))
    return Export(path, tuple(heads), model_digest)


def _record_path(path: Path) -> Path:
    return path.with_suffix(".openvino.json")


def _common_end(one: bytes, other: bytes) -> int:
    """Return how many bytes at their ends are the same."""
    length = min(len(one), len(other))
    ends = (np.frombuffer(data, np.uint8)[len(data) - length :] for data in (one, other))
    differs = np.flatnonzero(np.not_equal(*ends))
    return length - int(differs[-1]) - 1 if len(differs) else length
