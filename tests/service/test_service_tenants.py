"""The part of the engine that is a tenant's: no name leads out of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare_service.tenants import ANYONE, Tenant, tenant_name

names = st.text("ab._-1", min_size=1, max_size=4)
namespaces = st.text("ab.:_-1", min_size=1, max_size=6)


@examples(200)
@given(name=names, other=names, namespace=namespaces, another=namespaces)
def test_spaces_of_two_tenants_are_never_the_same(
    name: str, other: str, namespace: str, another: str
) -> None:
    space = Tenant(name).space(namespace)
    assert Tenant(name).namespace(space) == namespace
    assert tenant_name(space) == name
    assert (space == Tenant(other).space(another)) == ((name, namespace) == (other, another))
    assert space.startswith(Tenant(other).prefix) == (name == other)
    assert space != ANYONE.space(another)


def test_without_keys_a_namespace_is_the_engines_own() -> None:
    assert ANYONE.space("default") == ANYONE.namespace("default") == "default"
    assert tenant_name("default") == ""


def test_another_tenants_namespace_is_never_told() -> None:
    with pytest.raises(AssertionError, match=re.escape("must not be told")):
        Tenant("a").namespace("ab/default")
