"""TFLite Metadata: tells other programs how to feed a .tflite file and what its outputs mean.

MediaPipe Tasks and Android's code generator read it. The tables below are those of its schema,
metadata_schema.fbs, as far as an image classifier needs them:
https://ai.google.dev/edge/litert/models/metadata
"""

import io
import zipfile
from collections.abc import Sequence

import flatbuffers
import numpy as np

from serving.card import CARD_FILE, Card
from serving.classifier import LABELS_FILE
from serving.details import DETAILS_FILE, Details
from serving.runtimes import ACTIVATIONS, PROBABILITIES
from training.backend import stderr_held_back

with stderr_held_back():
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

IDENTIFIER = b"M001"  # of the schema
ENTRY = "TFLITE_METADATA"  # name of the model's buffer with it
# {table: its fields, in the order of the schema}; the fields after the last one used are omitted.
FIELDS = {
    "ModelMetadata": (
        *("name", "description", "version", "subgraph_metadata", "author", "license"),
        *("associated_files", "min_parser_version"),
    ),
    "SubGraphMetadata": ("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
    "TensorMetadata": (
        *("name", "description", "dimension_names", "content", "process_units", "stats"),
        "associated_files",
    ),
    "Content": ("content_properties_type", "content_properties"),
    "ImageProperties": ("color_space",),
    "FeatureProperties": (),
    "ProcessUnit": ("options_type", "options"),
    "NormalizationOptions": ("mean", "std"),
    "Stats": ("max", "min"),
    "AssociatedFile": ("name", "description", "type"),
}
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2  # of the union ContentProperties
NORMALIZATION_OPTIONS = 1  # of the union ProcessUnitOptions
RGB = 1  # of ColorSpaceType
TENSOR_AXIS_LABELS = 2  # of AssociatedFileType
# serving.preprocess.scale: (pixels - MEAN) / STD
MEAN = STD = 127.5

Table = tuple[str, dict]  # name, {field: value}


def add_metadata(
    flatbuffer: bytes, class_names: Sequence[str], details: Details, card: Card | None = None
) -> bytes:
    """Return the .tflite file `flatbuffer` with its metadata and all the others inside.

    They are in a zip archive behind it, the names one a line. Runtimes ignore that; zipfile finds
    it. The outputs are named `PROBABILITIES` and, if there is a second one, `ACTIVATIONS`.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(flatbuffer)
    graph = model.subgraphs[0]
    # Programs that know of one output take the first.
    graph.outputs = sorted(graph.outputs, key=lambda index: len(graph.tensors[index].shape))
    for index, name in zip(graph.outputs, (PROBABILITIES, ACTIVATIONS), strict=False):
        graph.tensors[index].name = name
    content = schema.BufferT()
    content.data = np.frombuffer(describe_classifier(len(graph.outputs) > 1), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.buffers.append(content)
    model.metadata = [*(model.metadata or ()), entry]
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
    with zipfile.ZipFile(file, "a") as archive:
        # A fixed date, so that the same checkpoint gives the same file.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(class_names) + "\n")
        if content := details.to_bytes():
            archive.writestr(zipfile.ZipInfo(DETAILS_FILE), content)
        if card:
            archive.writestr(zipfile.ZipInfo(CARD_FILE), card.to_bytes())
    return file.getvalue()


def describe_classifier(has_activations: bool = False) -> bytes:
    """Return the metadata of an image classifier with class names in `LABELS_FILE`.

    With `has_activations`, it has a second output for them.
    """
    scaling = ("NormalizationOptions", {"mean": [MEAN], "std": [STD]})
    image = (
        "TensorMetadata",
        {
            "name": "image",
            "description": "RGB image, scaled to -1 to 1.",
            "content": _content(IMAGE_PROPERTIES, ("ImageProperties", {"color_space": RGB})),
            "process_units": [
                ("ProcessUnit", {"options_type": NORMALIZATION_OPTIONS, "options": scaling})
            ],
            "stats": ("Stats", {"max": [1.0], "min": [-1.0]}),
        },
    )
    scores = (
        "TensorMetadata",
        {
            "name": "probability",
            "description": "Probability of each class, 0 to 1.",
            "content": _content(FEATURE_PROPERTIES, ("FeatureProperties", {})),
            "stats": ("Stats", {"max": [1.0], "min": [0.0]}),
            "associated_files": [
                (
                    "AssociatedFile",
                    {
                        "name": LABELS_FILE,
                        "description": "Class names, one a line.",
                        "type": TENSOR_AXIS_LABELS,
                    },
                )
            ],
        },
    )
    outputs = [scores, _describe_activations()] if has_activations else [scores]
    network = {"input_tensor_metadata": [image], "output_tensor_metadata": outputs}
    model = {
        "name": "Image classifier",
        "subgraph_metadata": [("SubGraphMetadata", network)],
        "min_parser_version": "1.0.0",
    }
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, ("ModelMetadata", model)), IDENTIFIER)
    return bytes(builder.Output())


def _describe_activations() -> Table:
    return (
        "TensorMetadata",
        {
            "name": ACTIVATIONS,
            "description": "Activations of the last convolution.",
            "content": _content(FEATURE_PROPERTIES, ("FeatureProperties", {})),
        },
    )


def _content(kind: int, properties: Table) -> Table:
    return "Content", {"content_properties_type": kind, "content_properties": properties}


def _write(builder: flatbuffers.Builder, value: str | list | Table) -> int:
    """Write `value` and return where it is."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        if isinstance(value[0], float):
            return builder.CreateNumpyVector(np.array(value, np.float32))
        offsets = [_write(builder, each) for each in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    name, fields = value
    offsets = {
        field: _write(builder, each) for field, each in fields.items() if not isinstance(each, int)
    }
    builder.StartObject(len(FIELDS[name]))
    for field, each in fields.items():
        number = FIELDS[name].index(field)
        if field in offsets:
            builder.PrependUOffsetTRelativeSlot(number, offsets[field], 0)
        else:
            builder.PrependUint8Slot(number, each, 0)
    return builder.EndObject()
