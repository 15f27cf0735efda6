"""training.export.metadata: what other programs read in a .tflite file."""

import struct
import zipfile

import flatbuffers
import numpy as np
from flatbuffers import number_types
from tensorflow.lite.python import schema_py_generated as schema

from training.export.metadata import ENTRY, IDENTIFIER, describe_classifier


class Table:
    """A table of a flatbuffer, read by field numbers as in metadata_schema.fbs."""

    def __init__(self, buffer, position):
        self.table = flatbuffers.table.Table(buffer, position)

    def _at(self, field):
        offset = self.table.Offset(4 + 2 * field)
        assert offset, f"no field {field}"
        return offset

    def number(self, field):
        return self.table.Get(number_types.Uint8Flags, self.table.Pos + self._at(field))

    def text(self, field):
        return self.table.String(self.table.Pos + self._at(field)).decode()

    def child(self, field):
        position = self.table.Pos + self._at(field)
        return Table(self.table.Bytes, self.table.Indirect(position))

    def children(self, field):
        start, count = self.table.Vector(self._at(field)), self.table.VectorLen(self._at(field))
        return [Table(self.table.Bytes, self.table.Indirect(start + 4 * i)) for i in range(count)]

    def floats(self, field):
        return self.table.GetVectorAsNumpy(number_types.Float32Flags, self._at(field)).tolist()


def read_metadata(content):
    """Return the root table of the metadata in a .tflite file."""
    model = schema.Model.GetRootAsModel(content, 0)
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    [entry] = [each for each in entries if each.Name() == ENTRY.encode()]
    buffer = bytes(model.Buffers(entry.Buffer()).DataAsNumpy())
    assert buffer[4:8] == IDENTIFIER
    return Table(buffer, struct.unpack_from("<I", buffer)[0])


def test_the_metadata_tells_the_scaling_and_where_the_class_names_are(small_tflite):
    [network] = read_metadata(small_tflite.read_bytes()).children(3)  # ModelMetadata
    [image], [scores] = network.children(2), network.children(3)  # SubGraphMetadata
    assert image.child(3).number(0) == 2  # Content: ImageProperties
    assert image.child(3).child(1).number(0) == 1  # of RGB images
    [step] = image.children(4)
    assert step.number(0) == 1  # ProcessUnit: NormalizationOptions
    assert (step.child(1).floats(0), step.child(1).floats(1)) == ([127.5], [127.5])
    assert (image.child(5).floats(0), image.child(5).floats(1)) == ([1.0], [-1.0])
    [names] = scores.children(6)
    assert (names.text(0), names.number(2)) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS


def test_the_metadata_names_as_many_outputs_as_there_are(telling):
    # MediaPipe refuses a file with another number.
    [network] = read_metadata(telling.tflite.read_bytes()).children(3)
    scores, activations = network.children(3)
    assert (scores.text(0), activations.text(0)) == ("probability", "activations")
    assert scores.children(6)[0].text(0) == "labels.txt"
    model = schema.Model.GetRootAsModel(telling.tflite.read_bytes(), 0)
    assert model.Subgraphs(0).OutputsLength() == 2


def test_the_metadata_scales_as_serving_does(small_tflite):
    from serving.preprocess import scale

    [network] = read_metadata(small_tflite.read_bytes()).children(3)
    scaling = network.children(2)[0].children(4)[0].child(1)
    pixels = np.arange(256, dtype=np.float32).reshape(1, 16, 16)
    expected = (pixels - scaling.floats(0)[0]) / scaling.floats(1)[0]
    assert np.abs(scale(pixels) - expected).max() < 1e-6


def test_the_class_names_are_found_by_any_zip_program(small_tflite):
    content = small_tflite.read_bytes()
    # The end of central directory; where its offset is wrong, unzip warns of extra bytes.
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", content, end + 12)
    assert start + size == end
    assert content[start : start + 4] == b"PK\x01\x02"
    with zipfile.ZipFile(small_tflite) as archive:
        [entry] = archive.infolist()
        assert archive.testzip() is None
    assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
    assert content[entry.header_offset :].startswith(b"PK\x03\x04")


def test_the_metadata_is_small_and_always_the_same():
    assert describe_classifier() == describe_classifier()
    assert len(describe_classifier()) < 1000
