"""Decides which network addresses the service may connect to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from serving.errors import AddressError, UserError

VARIABLE = "FETCH_ALLOW"
ALLOWING = f"{VARIABLE}, set where this runs, allows others."
PORTS = (80, 443)

# IPv6 addresses of the Internet come from this block only (RFC 4291, section 2.4). It excludes
# loopback and unspecified, IPv4-compatible and IPv4-mapped (RFC 4291), IPv4-translated (RFC 2765),
# local NAT64 (RFC 8215), discard-only (RFC 6666), segment routing (RFC 9602), unique local
# (RFC 4193), link-local, site-local (RFC 3879), multicast, and all reserved blocks.
GLOBAL_UNICAST = ip_network("2000::/3")

# Outside of it, one block leads to the Internet: NAT64's (RFC 6052, section 2.1). Networks without
# IPv4 reach it through a gateway that connects to the IPv4 address in the last 32 bits, and their
# name servers make such addresses up for each name (DNS64, RFC 6147).
NAT64 = ip_network("64:ff9b::/96")

# Listed here because the flags of ipaddress differ between versions of Python and let 6to4 and
# AS112 pass. Sources: IANA's special-purpose address registries for IPv4 and IPv6.
SPECIAL_PURPOSE = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network: RFC 791
        "10.0.0.0/8",  # private use: RFC 1918
        "100.64.0.0/10",  # behind a carrier's NAT: RFC 6598
        "127.0.0.0/8",  # loopback: RFC 1122
        "168.63.129.16/32",  # looks public; on Azure it is the host's own services
        "169.254.0.0/16",  # link-local, and clouds' metadata: RFC 3927
        "172.16.0.0/12",  # private use: RFC 1918
        "192.0.0.0/24",  # protocol assignments: RFC 6890
        "192.0.2.0/24",  # documentation: RFC 5737
        "192.31.196.0/24",  # AS112: RFC 7535
        "192.52.193.0/24",  # multicast tunnels: RFC 7450
        "192.88.99.0/24",  # 6to4 relays: RFC 7526
        "192.168.0.0/16",  # private use: RFC 1918
        "192.175.48.0/24",  # AS112: RFC 7534
        "198.18.0.0/15",  # benchmarking: RFC 2544
        "198.51.100.0/24",  # documentation: RFC 5737
        "203.0.113.0/24",  # documentation: RFC 5737
        "224.0.0.0/4",  # multicast: RFC 5771
        "240.0.0.0/4",  # reserved, and broadcast: RFC 1112, RFC 919
        # Protocol assignments: RFC 2928. Among them Teredo (RFC 4380), benchmarking (RFC 5180),
        # ORCHID and its second version (RFC 4843, RFC 7343), AS112 (RFC 7535), drones (RFC 9374).
        "2001::/23",
        "2001:db8::/32",  # documentation: RFC 3849
        "2002::/16",  # 6to4, an IPv4 address inside: RFC 3056
        "2620:4f:8000::/48",  # AS112: RFC 7534
        "3ffe::/16",  # the 6bone, given back: RFC 3701
        "3fff::/20",  # documentation: RFC 9637
    )
)

# The second quarter of an ISATAP interface identifier, before an IPv4 address: RFC 5214, section
# 6.1. One bit says whether the IPv4 address is unique. Any prefix may precede the identifier.
ISATAP = (0x0000_5EFE, 0x0200_5EFE)

_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
# The last label needs a letter, so unusual spellings of IPv4 addresses are not host names.
_HOST = re.compile(rf"({_LABEL}\.)*(?=[0-9_-]*[a-z]){_LABEL}")
_HEXADECIMAL = re.compile(r"0x[0-9a-f]*")


class AllowError(UserError):
    """FETCH_ALLOW is malformed, so nothing is fetched; `str(error)` says what to do."""


@dataclass(frozen=True)
class Allowed:
    """Hosts (in lower case) and networks allowed besides public addresses."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()


def parse_allowed(text: str) -> Allowed:
    """Return the host names and networks listed in `text`, separated by commas.

    Raises:
        AllowError: an entry is neither.
    """
    hosts = set()
    networks = []
    for entry in filter(None, (part.strip().lower() for part in text.split(","))):
        try:
            networks.append(ip_network(entry))
        except ValueError:
            hosts.add(_host(entry))
    return Allowed(frozenset(hosts), tuple(networks))


def check_addresses(host: str, port: int, addresses: Iterable[str], allowed: Allowed) -> None:
    """Refuse `host` unless all of its `addresses` are public or allowed.

    Raises:
        AddressError: one is neither public nor allowed, or `port` is not one of `PORTS` and
            neither the host nor the address is allowed.
    """
    if _bare(host) in allowed.hosts:
        return
    for address in addresses:
        if _is_in(address, allowed.networks):
            continue
        if port not in PORTS:
            raise AddressError(
                "Expected a url at port 80 or 443, the ports of http and https. "
                f"Received: another port. Use one of these; {ALLOWING}"
            )
        if not is_public(address):
            raise AddressError(
                "Expected the address of a host on the public Internet. "
                f"Received: one that is private or reserved. Use a public host; {ALLOWING}"
            )


def is_public(address: str | IPv4Address | IPv6Address) -> bool:
    """Return whether `address` belongs to the public Internet: global, unicast, not special.

    Of an address in `NAT64`, the IPv4 address inside decides. A network may translate a prefix of
    its own to IPv4 (RFC 6052, section 3.1). Such prefixes look like any other, so that network has
    to block the service.

    Raises:
        ValueError: it is not an IP address.
    """
    parsed = ip_address(address)
    if parsed.version == 6 and parsed in NAT64 and not parsed.scope_id:
        parsed = IPv4Address(int(parsed) & 0xFFFF_FFFF)
    if parsed.version == 6 and (
        parsed not in GLOBAL_UNICAST or parsed.scope_id or _embedded(parsed) in ISATAP
    ):
        return False
    # The flags, too: they may include later additions to the registries.
    return parsed.is_global and not (
        any(parsed in network for network in SPECIAL_PURPOSE)
        or parsed.is_multicast
        or parsed.is_reserved
    )


def _embedded(address: IPv6Address) -> int:
    return int(address) >> 32 & 0xFFFF_FFFF


def _is_in(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    return any(ip_address(address) in network for network in networks)


def _host(entry: str) -> str:
    host = _bare(entry)
    if not _HOST.fullmatch(host) or _HEXADECIMAL.fullmatch(host.rpartition(".")[2]):
        raise AllowError(
            f"Expected host names and networks, separated by commas, in {VARIABLE}, such as "
            f"images.internal,10.0.0.0/8. Received: {entry!r}. Correct it, or unset {VARIABLE}."
        )
    return host


def _bare(host: str) -> str:
    return host.lower().removesuffix(".")
