"""What a model file says of its own accuracy: GET /health passes it on.

`convert_to_tflite.py` writes it (training/export/card.py). Nothing depends on it, so a file may
lack it, and one that is malformed counts as none. Imported when it is first asked for.
"""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

CARD_FILE = "card.json"  # zip entry of the .tflite file
MAX_BYTES = 4000
MAX_TEXT = 600  # characters of its sentences
MAX_SET = 40


@dataclass(frozen=True)
class Card:
    """The accuracy of a model.

    Attributes:
        accuracy: share of images that it classified correctly, 0 to 1.
        interval: 95 % confidence interval of the accuracy.
        images: how many were classified.
        set: what images they were, such as "test".
        text: a sentence or two about it.
    """

    accuracy: float
    interval: tuple[float, float]
    images: int
    set: str
    text: str

    def __post_init__(self) -> None:
        """Raise ValueError unless each is as it has to be."""
        low, high = self.interval
        shares = (low, self.accuracy, high)
        if not all(type(share) in (int, float) for share in shares) or type(self.images) is not int:
            raise ValueError("no numbers")
        if not 0 <= low <= self.accuracy <= high <= 1 or self.images < 1:
            raise ValueError("impossible numbers")
        for text, longest in ((self.set, MAX_SET), (self.text, MAX_TEXT)):
            if not isinstance(text, str) or len(text) > longest or not text.isprintable():
                raise ValueError("no text")

    def to_json(self) -> dict:
        """Return it as {field: value}, ready for JSON."""
        return asdict(self) | {"interval": list(self.interval)}

    def to_bytes(self) -> bytes:
        """Return the content of `CARD_FILE`."""
        return json.dumps(self.to_json(), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Card":
        """Return what `to_bytes` returned; further fields are ignored.

        Raises:
            KeyError, RecursionError, TypeError, ValueError: it is something else.
        """
        record = json.loads(content)
        accuracy, interval, images = (record[n] for n in ("accuracy", "interval", "images"))
        return cls(accuracy, tuple(interval), images, record["set"], record["text"])


def read_card(path: Path) -> Card | None:
    """Return the card in the .tflite file at `path`, None if there is none that is well-formed."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(CARD_FILE) as file:
            content = file.read(MAX_BYTES + 1)  # without a limit, all is unpacked
        return Card.from_bytes(content) if len(content) <= MAX_BYTES else None
    except Exception:  # zipfile raises nearly anything on a damaged file
        return None
