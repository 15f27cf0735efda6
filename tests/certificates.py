"""Self-signed certificates for servers in tests, made of whole numbers.

No package that is installed makes certificates, not every machine has the openssl command, and
keys have no place in a repository.
"""

import ipaddress
import math
import secrets
from base64 import encodebytes
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path

EXPONENT = 65537
INTEGER, BITS, OCTETS, NULL, TEXT, TIME, SEQUENCE, SET = 2, 3, 4, 5, 12, 23, 48, 49
RSA = bytes.fromhex("06092a864886f70d010101")
SHA256_WITH_RSA = bytes.fromhex("06092a864886f70d01010b")
SHA256 = bytes.fromhex("0609608648016503040201")
COMMON_NAME = bytes.fromhex("0603550403")
ALTERNATIVE_NAMES = bytes.fromhex("0603551d11")


def write_certificate(path: Path, *names: str, days: int = 1, common_name: str = "test") -> Path:
    """Write to `path` a key and its certificate for `names`, hosts or IP addresses; return `path`.

    It is valid from two days ago until `days` from now: -1 has it expired. Without `names`, it
    has no subjectAltName.
    """
    _, key = rsa_key()
    certificate = make_certificate(names, days, common_name)
    path.write_text(
        _pem("RSA PRIVATE KEY", _sequence(*map(_integer, key))) + _pem("CERTIFICATE", certificate)
    )
    return path


def make_certificate(names: Sequence[str], days: int = 1, common_name: str = "test") -> bytes:
    """Return the certificate that `write_certificate` writes."""
    modulus, key = rsa_key()
    algorithm = _sequence(SHA256_WITH_RSA, _der(NULL))
    name = _sequence(_der(SET, _sequence(COMMON_NAME, _der(TEXT, common_name.encode()))))
    extensions = []
    if names:
        alternatives = _sequence(*map(_alternative, names))
        extension = _sequence(ALTERNATIVE_NAMES, _der(OCTETS, alternatives))
        extensions = [_der(0xA3, _sequence(extension))]
    now = datetime.now(UTC)
    content = _sequence(
        _der(0xA0, _integer(2)),
        _integer(secrets.randbits(64)),
        algorithm,
        name,
        _sequence(_time(now - timedelta(days=2)), _time(now + timedelta(days=days))),
        name,
        _sequence(
            _sequence(RSA, _der(NULL)),
            _der(BITS, b"\0", _sequence(_integer(modulus), _integer(EXPONENT))),
        ),
        *extensions,
    )
    signature = _sign(content, modulus, key[3])
    return _sequence(content, algorithm, _der(BITS, b"\0", signature))


def _sign(content: bytes, modulus: int, exponent: int) -> bytes:
    """Return the RSA signature of `content` by RFC 8017, section 8.2."""
    size = modulus.bit_length() // 8
    digest = _sequence(_sequence(SHA256, _der(NULL)), _der(OCTETS, sha256(content).digest()))
    padded = b"\0\1" + b"\xff" * (size - len(digest) - 3) + b"\0" + digest
    return pow(int.from_bytes(padded, "big"), exponent, modulus).to_bytes(size, "big")


@cache
def rsa_key() -> tuple[int, tuple[int, ...]]:
    """Return the modulus of a 2048-bit RSA key, and what RFC 8017, A.1.2 writes of the key."""
    p, q = _prime(), _prime()
    modulus = p * q
    private = pow(EXPONENT, -1, math.lcm(p - 1, q - 1))
    key = (0, modulus, EXPONENT, private, p, q, private % (p - 1), private % (q - 1), pow(q, -1, p))
    return modulus, key


def _prime() -> int:
    small = math.prod(n for n in range(3, 1000) if all(n % m for m in range(2, math.isqrt(n) + 1)))
    while True:
        # The two highest bits make the product as long as both factors together.
        candidate = secrets.randbits(1024) | 3 << 1022 | 1
        if (
            math.gcd(candidate, small) == 1
            and candidate % EXPONENT != 1
            and pow(2, candidate - 1, candidate) == 1
        ):
            return candidate


def _alternative(name: str) -> bytes:
    try:
        return _der(0x87, ipaddress.ip_address(name).packed)
    except ValueError:
        return _der(0x82, name.encode())


def _sequence(*parts: bytes) -> bytes:
    return _der(SEQUENCE, *parts)


def _integer(number: int) -> bytes:
    return _der(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _time(moment: datetime) -> bytes:
    return _der(TIME, moment.strftime("%y%m%d%H%M%SZ").encode())


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 128 | len(length)]) + length + content


def _pem(kind: str, content: bytes) -> str:
    return f"-----BEGIN {kind}-----\n{encodebytes(content).decode()}-----END {kind}-----\n"
