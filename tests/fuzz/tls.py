"""The server's side of TLS 1.3, to send what no library would.

It is made of whole numbers, as tests/certificates.py, and for tests only: what it writes is right,
but neither fast nor safe. It reads nothing but the client's first message.
"""

import hmac
import math
from hashlib import sha256

import numpy as np

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23  # types of records
HELLO_REQUEST, TICKET, EXTENSIONS, CERTIFICATE, REQUEST, VERIFY = 0, 4, 8, 11, 13, 15
FINISHED, KEY_UPDATE = 20, 24
LARGEST = 16_384  # bytes in a record
X25519, RSA_PSS_SHA256, CHACHA20_POLY1305_SHA256 = b"\0\x1d", b"\x08\x04", b"\x13\x03"
PRIME = 2**255 - 19


def record(kind: int, content: bytes = b"", length: int | None = None) -> bytes:
    """Return an unencrypted record, whose `length` may be a lie."""
    size = len(content) if length is None else length
    return bytes([kind]) + b"\3\3" + size.to_bytes(2, "big") + content


def message(kind: int, content: bytes = b"") -> bytes:
    """Return a handshake message."""
    return bytes([kind]) + _vector(3, content)


def alert(level: int, description: int) -> bytes:
    """Return the content of an alert: `level` 1 warns, 2 is fatal."""
    return bytes([level, description])


def ticket(size: int = 32) -> bytes:
    """Return a NewSessionTicket of `size` bytes."""
    return message(TICKET, bytes(8) + _vector(1, b"n") + _vector(2, bytes(size)) + _vector(2))


class Session:
    """A handshake with the client that sent `hello`.

    Attributes:
        server_hello: the first record, unencrypted.
        flight: the encrypted handshake messages: extensions, certificates, proof, end.
        handshake, data: what seals records before and after the end of `flight`.
    """

    def __init__(self, hello: bytes, chain: list[bytes], key: tuple[int, ...], random: bytes):
        """Answer `hello`, a record, with certificates and the `key` of tests/certificates.py.

        Raises:
            ValueError: `hello` is none, or does not offer X25519.
        """
        session, share = _read_hello(hello)
        private = int.from_bytes(random, "little")
        extensions = b"\0\x2b" + _vector(2, b"\3\4")  # TLS 1.3
        extensions += b"\0\x33" + _vector(2, X25519 + _vector(2, x25519(private, 9)))
        content = b"\3\3" + random + _vector(1, session) + CHACHA20_POLY1305_SHA256 + b"\0"
        server_hello = message(2, content + _vector(2, extensions))
        self.server_hello = record(HANDSHAKE, server_hello)

        zeros, nothing = bytes(32), sha256().digest()
        secret = _derive(_extract(zeros, zeros), b"derived", nothing)
        secret = _extract(secret, x25519(private, int.from_bytes(share, "little") % 2**255))
        said = hello[5:] + server_hello
        traffic = _derive(secret, b"s hs traffic", sha256(said).digest())
        self.handshake = Sealer(traffic)

        certificates = b"".join(_vector(3, each) + _vector(2) for each in chain)
        self.flight = [
            message(EXTENSIONS, _vector(2)),
            message(CERTIFICATE, _vector(1) + _vector(3, certificates)),
        ]
        said += b"".join(self.flight)
        proof = b" " * 64 + b"TLS 1.3, server CertificateVerify\0" + sha256(said).digest()
        self.flight.append(message(VERIFY, RSA_PSS_SHA256 + _vector(2, _sign(proof, key))))
        said += self.flight[-1]
        finished = _derive(traffic, b"finished", b"")
        code = hmac.digest(finished, sha256(said).digest(), "sha256")
        self.flight.append(message(FINISHED, code))
        said += self.flight[-1]
        secret = _extract(_derive(secret, b"derived", nothing), zeros)
        self.data = Sealer(_derive(secret, b"s ap traffic", sha256(said).digest()))


class Sealer:
    """Encrypts records, and changes its key after each KeyUpdate."""

    def __init__(self, secret: bytes):
        """Use `secret`, of 32 bytes."""
        self._secret, self._sequence = secret, 0

    def seal(self, *records: tuple[int, bytes], padding: int = 0) -> bytes:
        """Return (kind, content) of each of `records`, sealed; all at once is faster."""
        plain, keys = [], []
        for kind, content in records:
            nonce = _derive(self._secret, b"iv", b"", 12)
            number = int.from_bytes(nonce, "big") ^ self._sequence
            keys.append((_derive(self._secret, b"key", b""), number.to_bytes(12, "big")))
            plain.append(content + bytes([kind]) + bytes(padding))
            self._sequence += 1
            if kind == HANDSHAKE and content[:1] == bytes([KEY_UPDATE]):
                self._secret, self._sequence = _derive(self._secret, b"traffic upd", b""), 0
        return b"".join(map(_seal, plain, _streams(keys, plain)))


def _seal(plain: bytes, stream: bytes) -> bytes:
    header = bytes([DATA]) + b"\3\3" + (len(plain) + 16).to_bytes(2, "big")
    mixed = int.from_bytes(plain, "big") ^ int.from_bytes(stream[64 : 64 + len(plain)], "big")
    sealed = mixed.to_bytes(len(plain), "big")
    return header + sealed + _poly1305(stream[:32], header, sealed)


def _poly1305(key: bytes, header: bytes, sealed: bytes) -> bytes:
    """Return the tag of RFC 8439, section 2.8."""
    text = header + bytes(11) + sealed + bytes(-len(sealed) % 16)
    text += len(header).to_bytes(8, "little") + len(sealed).to_bytes(8, "little")
    factor = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for place in range(0, len(text), 16):
        block = int.from_bytes(text[place : place + 16], "little") + 2**128
        total = (total + block) * factor % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def _streams(keys: list[tuple[bytes, bytes]], plain: list[bytes]) -> list[bytes]:
    """Return ChaCha20's key stream for each text: a block for its tag, then as much as it has.

    RFC 8439, section 2.3, for all blocks of all texts at once.
    """
    counts = [1 + math.ceil(len(text) / 64) for text in plain]
    state = np.concatenate(
        [
            np.concatenate(
                [
                    np.tile(np.frombuffer(b"expand 32-byte k" + key, "<u4"), (count, 1)),
                    np.arange(count, dtype=np.uint32)[:, None],
                    np.tile(np.frombuffer(nonce, "<u4"), (count, 1)),
                ],
                axis=1,
            )
            for (key, nonce), count in zip(keys, counts, strict=True)
        ]
    ).T.astype(np.uint32)
    rows = state.reshape(4, 4, -1).copy()
    for _ in range(10):
        _quarter_rounds(rows)
        for row in (1, 2, 3):
            rows[row] = np.roll(rows[row], -row, axis=0)
        _quarter_rounds(rows)
        for row in (1, 2, 3):
            rows[row] = np.roll(rows[row], row, axis=0)
    blocks = (rows.reshape(16, -1) + state).T.astype("<u4")
    ends = np.cumsum(counts)
    return [blocks[end - count : end].tobytes() for end, count in zip(ends, counts, strict=True)]


def _quarter_rounds(rows: np.ndarray) -> None:
    """Mix the four columns of `rows` (4, 4, blocks)."""
    for target, source, mixed, bits in ((0, 1, 3, 16), (2, 3, 1, 12), (0, 1, 3, 8), (2, 3, 1, 7)):
        rows[target] += rows[source]
        rows[mixed] ^= rows[target]
        rows[mixed] = rows[mixed] << np.uint32(bits) | rows[mixed] >> np.uint32(32 - bits)


def x25519(scalar: int, point: int) -> bytes:
    """Return `point` times `scalar`, by the ladder of RFC 7748, section 5."""
    scalar = scalar & (2**254 - 8) | 2**254
    x2, z2, x3, z3 = 1, 0, point, 1
    for bit in range(254, -1, -1):
        swap = scalar >> bit & 1
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        sum2, difference2 = x2 + z2, x2 - z2
        square, other = sum2 * sum2 % PRIME, difference2 * difference2 % PRIME
        cross, crossed = (x3 - z3) * sum2 % PRIME, (x3 + z3) * difference2 % PRIME
        x3, z3 = (cross + crossed) ** 2 % PRIME, point * (cross - crossed) ** 2 % PRIME
        x2, z2 = square * other % PRIME, (square - other) * (square + 121665 * (square - other))
        z2 %= PRIME
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, PRIME - 2, PRIME) % PRIME).to_bytes(32, "little")


def _sign(text: bytes, key: tuple[int, ...]) -> bytes:
    """Return the RSA-PSS signature of `text` by RFC 8017, section 9.1, with a salt of zeros."""
    modulus, (p, q, exponent1, exponent2, inverse) = key[1], key[4:]
    size = modulus.bit_length() // 8
    salt = bytes(32)
    digest = sha256(bytes(8) + sha256(text).digest() + salt).digest()
    block = bytes(size - 66) + b"\1" + salt
    counters = (number.to_bytes(4, "big") for number in range(math.ceil(len(block) / 32)))
    mask = b"".join(sha256(digest + counter).digest() for counter in counters)[: len(block)]
    masked = bytearray(left ^ right for left, right in zip(block, mask, strict=True))
    masked[0] &= 0x7F
    encoded = bytes(masked) + digest + b"\xbc"
    number = int.from_bytes(encoded, "big")
    first, second = pow(number, exponent1, p), pow(number, exponent2, q)
    return (second + (first - second) * inverse % p * q).to_bytes(size, "big")


def _read_hello(hello: bytes) -> tuple[bytes, bytes]:
    """Return the session id and the X25519 share in a client's first record."""
    session, rest = _cut(hello[43:], 1)
    _, rest = _cut(rest, 2)  # cipher suites
    _, rest = _cut(rest, 1)  # compressions
    rest, _ = _cut(rest, 2)
    while rest:
        kind, (extension, rest) = rest[:2], _cut(rest[2:], 2)
        if kind == b"\0\x33":
            shares, _ = _cut(extension, 2)
            while shares:
                group, (share, shares) = shares[:2], _cut(shares[2:], 2)
                if group == X25519:
                    return session, share
    raise ValueError("Expected a ClientHello with an X25519 share. Received: none.")


def _cut(data: bytes, width: int) -> tuple[bytes, bytes]:
    """Return the vector that begins `data`, whose length is of `width` bytes, and the rest."""
    end = width + int.from_bytes(data[:width], "big")
    return data[width:end], data[end:]


def _vector(width: int, content: bytes = b"") -> bytes:
    return len(content).to_bytes(width, "big") + content


def _extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, secret, "sha256")


def _derive(secret: bytes, label: bytes, context: bytes, size: int = 32) -> bytes:
    """Return HKDF-Expand-Label of RFC 8446, section 7.1, for at most 32 bytes."""
    info = size.to_bytes(2, "big") + _vector(1, b"tls13 " + label) + _vector(1, context)
    return hmac.digest(secret, info + b"\1", "sha256")[:size]
