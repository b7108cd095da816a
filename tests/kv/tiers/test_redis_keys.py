"""Keys that nobody can forge, places that come back as they were, and when a breaker opens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from semshare.errors import InvalidRequest
from semshare.kv.tiers.breaker import Breaker
from semshare.kv.tiers.redis_keys import Keys, Location, escaped, namespace_digest, unescaped
from semshare.kv.tiers.redis_url import names_cluster, parse

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.tuples(texts, texts, texts)


def place(namespace: str, *sizes: int) -> Location:
    return Location("0" * 16, namespace_digest(namespace), 10, sizes)


@given(one=names, other=names)
def test_different_donors_have_different_keys(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    def tag(fingerprint: str, namespace: str, donor: str) -> str:
        key = Keys(fingerprint).record(donor, place(namespace))
        assert key.isascii()
        assert key.count("{") == key.count("}") == 1
        return key

    assert (tag(*one) == tag(*other)) == (one == other)


@given(names=names, sizes=st.lists(st.integers(0, 50), max_size=4))
def test_all_of_a_donor_is_in_one_slot(names: tuple[str, str, str], sizes: list[int]) -> None:
    fingerprint, namespace, donor = names
    keys, where = Keys(f"f{fingerprint}"), place(namespace, *sizes)
    chunks = list(keys.chunks(donor, where))
    assert len(set(chunks)) == len(chunks) == sum(-(-size // 10) for size in sizes)
    everything = [keys.record(donor, where), *chunks]
    assert len({key_slot(key.encode()) for key in everything}) == 1
    assert {keys.generation_of(key) for key in everything} == {"0" * 16}
    assert len({key_slot(key.encode()) for key in keys.ledger}) == 1
    assert not {keys.generation_of(key) for key in keys.ledger} - {None}


@given(text=texts, sizes=st.lists(st.integers(0, 2**53), max_size=4))
def test_names_and_places_come_back(text: str, sizes: list[int]) -> None:
    assert unescaped(escaped(text)) == text
    assert not set(escaped(text)) & set(" .:{}*?[]\\")
    where = replace(place(text, *sizes), chunk_bytes=1 << 40)
    assert Location.decode(where.encode()) == where


@pytest.mark.parametrize(
    "text", ["", "g n 1", "g n x 1", "g n 0 1", "g n 1 -1", "g n 1 1 1", f"g n 1 {1 << 21}"]
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Location.decode(text)


def test_urls() -> None:
    nodes, options = parse("rediss+cluster://u:p%40w@a:1,b,[::1]:3/0?client_name=x")
    assert nodes == [("a", 1), ("b", 6379), ("::1", 3)]
    assert (options["username"], options["password"], options["db"]) == ("u", "p@w", 0)
    assert options["connection_class"].__name__ == "SSLConnection"
    assert parse("unix:///run/redis.sock")[0] == [("/run/redis.sock", 0)]
    assert names_cluster("redis+cluster://a")
    assert not names_cluster("redis://a")
    with pytest.raises(InvalidRequest, match="redis://"):
        parse("memcached://a")


def test_a_breaker_opens_tries_and_closes() -> None:
    now = 0.0
    breaker = Breaker(failures=2, first_s=1.0, longest_s=3.0, clock=lambda: now)
    for _ in range(3):  # one failure between others that work is none
        breaker.failed()
        assert breaker.seconds_to_wait() == 0
        breaker.worked()
    breaker.failed()
    breaker.failed()
    for wait_s in (1.0, 2.0, 3.0, 3.0):
        assert breaker.seconds_to_wait() == wait_s
        now += wait_s
        assert breaker.seconds_to_wait() == 0  # this one may try …
        assert breaker.seconds_to_wait() > 0  # … and no other meanwhile
        breaker.failed()
    now += 3.0
    assert breaker.seconds_to_wait() == 0
    breaker.worked()
    assert breaker.seconds_to_wait() == 0
    breaker.failed()
    assert breaker.seconds_to_wait() == 0
