"""serving.addresses: what is public, and what is allowed besides."""

from ipaddress import ip_address, ip_network

import pytest

from serving.addresses import (
    SPECIAL_PURPOSE,
    Allowed,
    AllowError,
    check_addresses,
    is_public,
    parse_allowed,
)
from serving.errors import AddressError

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.128.0.1",
    "172.32.0.1",
    "192.0.1.1",
    "198.20.0.1",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a02:ec80:300:ed1a::1",
    "64:ff9b::8.8.8.8",  # NAT64
    "64:ff9b::5db8:d822",
]

NOT_PUBLIC = {
    "unspecified": "0.0.0.0",  # noqa: S104
    "this network": "0.1.2.3",
    "loopback": "127.0.0.1",
    "all of loopback": "127.255.255.254",
    "private of class A": "10.1.2.3",
    "private of class B": "172.31.255.255",
    "private of class C": "192.168.1.1",
    "link-local": "169.254.1.1",
    "metadata of AWS, Google Cloud and Azure": "169.254.169.254",
    "credentials of ECS": "169.254.170.2",
    "host services of Azure": "168.63.129.16",
    "metadata of Alibaba, behind carriers' NAT": "100.100.100.200",
    "metadata of Oracle, among protocol assignments": "192.0.0.192",
    "port control anycast, which ipaddress calls global": "192.0.0.9",
    "documentation 1": "192.0.2.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "benchmarking": "198.19.255.255",
    "relays of 6to4": "192.88.99.1",
    "AS112": "192.31.196.1",
    "AS112 by delegation": "192.175.48.1",
    "multicast tunnels": "192.52.193.1",
    "multicast": "224.0.0.1",
    "multicast, global": "239.255.255.255",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 unspecified": "::",
    "IPv6 loopback": "::1",
    "IPv4-compatible": "::127.0.0.1",
    "IPv4-compatible of a public address": "::8.8.8.8",
    "IPv4-mapped": "::ffff:127.0.0.1",
    "IPv4-mapped of a public address": "::ffff:8.8.8.8",
    "IPv4-translated": "::ffff:0:127.0.0.1",
    "NAT64 of metadata": "64:ff9b::169.254.169.254",
    "NAT64 of a private address": "64:ff9b::a00:1",
    "NAT64 of loopback": "64:ff9b::7f00:1",
    "NAT64's first address": "64:ff9b::",
    "NAT64's last address": "64:ff9b::ffff:ffff",
    "NAT64 with a zone": "64:ff9b::8.8.8.8%eth0",
    "beside NAT64": "64:ff9b:0:0:0:1:808:808",
    "local NAT64": "64:ff9b:1::10.0.0.1",
    "local NAT64 of a public address": "64:ff9b:1::8.8.8.8",
    "discard-only": "100::1",
    "dummy prefix": "100:0:0:1::1",
    "Teredo": "2001:0:7f00:1::",
    "IPv6 protocol assignments, which ipaddress calls global": "2001:1::1",
    "IPv6 benchmarking": "2001:2::1",
    "ORCHID": "2001:10::1",
    "ORCHIDv2": "2001:20::1",
    "drones": "2001:30::1",
    "IPv6 documentation": "2001:db8::1",
    "IPv6 documentation, newer": "3fff::1",
    "6bone": "3ffe::1",
    "6to4": "2002:a9fe:a9fe::",
    "6to4 of a public address": "2002:808:808::1",
    "IPv6 AS112": "2620:4f:8000::1",
    "ISATAP": "2606:4700::5efe:a9fe:a9fe",
    "ISATAP of a unique address": "2606:4700::200:5efe:808:808",
    "ISATAP, link-local": "fe80::5efe:127.0.0.1",
    "segment routing": "5f00::1",
    "unallocated": "4000::1",
    "unique local": "fc00::1",
    "metadata of AWS": "fd00:ec2::254",
    "metadata of Google Cloud": "fd20:ce::254",
    "IPv6 link-local": "fe80::1",
    "IPv6 link-local with a zone": "fe80::1%eth0",
    "a public address with a zone": "2606:4700:4700::1111%eth0",
    "site-local": "fec0::1",
    "IPv6 multicast": "ff02::1",
    "IPv6 multicast, global": "ff0e::1",
    "IPv6's last": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address):
    assert is_public(address)
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_what_is_not_public_is_not(address):
    assert not is_public(address)


@pytest.mark.parametrize("network", SPECIAL_PURPOSE, ids=str)
def test_special_networks_are_refused_from_the_first_address_to_the_last(network):
    assert not is_public(network[0])
    assert not is_public(network[-1])


# The first and the last address of each network, and their neighbours where those are public:
# said anew, since a mistake in the table itself would not show by the table.
ENDS = [
    ("0.0.0.0", "0.255.255.255", None, "1.0.0.0"),  # noqa: S104
    ("10.0.0.0", "10.255.255.255", "9.255.255.255", "11.0.0.0"),
    ("100.64.0.0", "100.127.255.255", "100.63.255.255", "100.128.0.0"),
    ("127.0.0.0", "127.255.255.255", "126.255.255.255", "128.0.0.0"),
    ("168.63.129.16", "168.63.129.16", "168.63.129.15", "168.63.129.17"),
    ("169.254.0.0", "169.254.255.255", "169.253.255.255", "169.255.0.0"),
    ("172.16.0.0", "172.31.255.255", "172.15.255.255", "172.32.0.0"),
    ("192.0.0.0", "192.0.0.255", "191.255.255.255", "192.0.1.0"),
    ("192.0.2.0", "192.0.2.255", "192.0.1.255", "192.0.3.0"),
    ("192.31.196.0", "192.31.196.255", "192.31.195.255", "192.31.197.0"),
    ("192.52.193.0", "192.52.193.255", "192.52.192.255", "192.52.194.0"),
    ("192.88.99.0", "192.88.99.255", "192.88.98.255", "192.88.100.0"),
    ("192.168.0.0", "192.168.255.255", "192.167.255.255", "192.169.0.0"),
    ("192.175.48.0", "192.175.48.255", "192.175.47.255", "192.175.49.0"),
    ("198.18.0.0", "198.19.255.255", "198.17.255.255", "198.20.0.0"),
    ("198.51.100.0", "198.51.100.255", "198.51.99.255", "198.51.101.0"),
    ("203.0.113.0", "203.0.113.255", "203.0.112.255", "203.0.114.0"),
    ("224.0.0.0", "239.255.255.255", "223.255.255.255", None),
    ("240.0.0.0", "255.255.255.255", None, None),
    ("2001::", f"2001:1ff{':ffff' * 6}", f"2000{':ffff' * 7}", "2001:200::"),
    ("2001:db8::", f"2001:db8{':ffff' * 6}", f"2001:db7{':ffff' * 6}", "2001:db9::"),
    ("2002::", f"2002{':ffff' * 7}", f"2001{':ffff' * 7}", "2003::"),
    (
        "2620:4f:8000::",
        f"2620:4f:8000{':ffff' * 5}",
        f"2620:4f:7fff{':ffff' * 5}",
        "2620:4f:8001::",
    ),
    ("3ffe::", f"3ffe{':ffff' * 7}", f"3ffd{':ffff' * 7}", None),
    ("3fff::", f"3fff:fff{':ffff' * 6}", None, "3fff:1000::"),
]


@pytest.mark.parametrize(("first", "last", "before", "behind"), ENDS)
def test_special_networks_end_where_the_rfcs_say(first, last, before, behind, monkeypatch):
    """By the table alone, whatever this version of Python knows of them."""
    for flag in ("is_global", "is_multicast", "is_reserved"):
        monkeypatch.setattr(type(ip_address(first)), flag, flag == "is_global")
    assert (is_public(first), is_public(last)) == (False, False)
    assert all(is_public(neighbour) for neighbour in (before, behind) if neighbour)


def test_no_special_network_is_left_out_here():
    spans = [(ip_address(first), ip_address(last)) for first, last, *_ in ENDS]
    for network in SPECIAL_PURPOSE:
        same = [span for span in spans if span[0].version == network.version]
        assert any(first <= network[0] and network[-1] <= last for first, last in same), network


@pytest.mark.parametrize(
    "network", ["9.0.0.0/8", "11.0.0.0/8", "128.0.0.0/16", "192.88.98.0/24", "192.88.100.0/24"]
)
def test_their_neighbours_are_not(network):
    assert is_public(ip_network(network)[0])
    assert is_public(ip_network(network)[-1])


@pytest.mark.parametrize(
    ("flag", "address"),
    [("is_global", "1.1.1.1"), ("is_multicast", "1.1.1.1"), ("is_reserved", "2606:4700::1111")],
)
def test_what_ipaddress_knows_of_is_refused_too(flag, address, monkeypatch):
    """Later versions of Python may know networks that the table does not."""
    assert is_public(address)
    monkeypatch.setattr(type(ip_address(address)), flag, flag != "is_global")
    assert not is_public(address)


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_nothing_is_allowed_by_default(text):
    assert parse_allowed(text) == Allowed()


def test_host_names_and_networks_are_allowed_in_one_list():
    assert parse_allowed("Images.Internal. , 10.0.0.0/8,127.0.0.1, fd00::/8,s3_local,") == Allowed(
        frozenset({"images.internal", "s3_local"}),
        (ip_network("10.0.0.0/8"), ip_network("127.0.0.1/32"), ip_network("fd00::/8")),
    )


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "*.internal",
        ".internal",
        "a..b",
        "-a.internal",
        "10.0.0.0/33",
        "10.0.0.1/8",  # bits of the host are set: which of the two is meant?
        "300.1.1.1",
        "10.1",
        "0x7f.1",
        "127.0.0.0x1",
        "2130706433",
        "[::1]",
        "::1/129",
        "images.internal:8080",
        "http://images.internal",
        "user@images.internal",
        "images internal",
        "bücher.example",
    ],
)
def test_what_is_neither_is_an_error_that_names_it(entry):
    with pytest.raises(AllowError, match="^Expected host names and networks") as caught:
        parse_allowed(f"images.internal,{entry}")
    assert f"Received: '{entry}'. Correct it, or unset FETCH_ALLOW." in str(caught.value)


@pytest.mark.parametrize("port", [80, 443])
def test_public_addresses_at_the_ports_of_the_web_pass(port):
    check_addresses("example.com", port, PUBLIC, Allowed())


@pytest.mark.parametrize("port", [0, 22, 8080, 9001, 65535])
def test_other_ports_do_not(port):
    with pytest.raises(AddressError, match="^Expected a url at port 80 or 443"):
        check_addresses("example.com", port, PUBLIC, Allowed())


@pytest.mark.parametrize("addresses", [["10.0.0.1", "1.1.1.1"], ["1.1.1.1", "10.0.0.1"]])
def test_one_private_answer_refuses_all(addresses):
    with pytest.raises(AddressError, match="host on the public Internet"):
        check_addresses("example.com", 443, addresses, Allowed())


def test_the_sentence_does_not_say_which_address():
    with pytest.raises(AddressError) as caught:
        check_addresses("db.internal", 443, ["10.9.8.7"], Allowed())
    assert "10.9" not in str(caught.value)
    assert "internal" not in str(caught.value)


@pytest.mark.parametrize("host", ["images.internal", "IMAGES.internal", "images.internal."])
def test_an_allowed_host_may_be_anywhere(host):
    check_addresses(host, 9000, ["10.0.0.1", "::1"], parse_allowed("images.internal"))


@pytest.mark.parametrize("host", ["internal", "a.images.internal", "images.internal.com"])
def test_only_the_very_host_is_allowed(host):
    with pytest.raises(AddressError):
        check_addresses(host, 80, ["10.0.0.1"], parse_allowed("images.internal"))


def test_an_allowed_network_may_stand_beside_public_addresses():
    check_addresses("example.com", 443, ["10.0.0.1", "1.1.1.1"], parse_allowed("10.0.0.0/8"))
    check_addresses("example.com", 9000, ["10.0.0.1", "10.1.1.1"], parse_allowed("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("port", "addresses"),
    [
        (443, ["10.0.0.1", "127.0.0.1"]),
        (443, ["::ffff:10.0.0.1"]),
        (443, ["64:ff9b::10.0.0.1"]),
        (9000, ["10.0.0.1", "1.1.1.1"]),
    ],
)
def test_an_allowed_network_opens_no_other(port, addresses):
    with pytest.raises(AddressError):
        check_addresses("example.com", port, addresses, parse_allowed("10.0.0.0/8"))


def test_a_wrong_list_is_refused_in_this_sentence():
    with pytest.raises(AllowError) as caught:
        parse_allowed("10.0.0.0/8,10.0.0.0/99")
    assert str(caught.value) == (
        "Expected host names and networks, separated by commas, in FETCH_ALLOW, such as "
        "images.internal,10.0.0.0/8. Received: '10.0.0.0/99'. Correct it, or unset FETCH_ALLOW."
    )


def test_an_allowed_address_goes_on_to_the_next_one():
    allowed = parse_allowed("10.0.0.0/8")
    with pytest.raises(AddressError):
        check_addresses("example.com", 80, ["10.0.0.1", "192.168.0.1"], allowed)
    check_addresses("example.com", 80, [], Allowed())
