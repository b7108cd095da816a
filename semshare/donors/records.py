"""Donors as tiers know them, and back. Pure."""

from __future__ import annotations

import numpy as np

from semshare.donors.embedders import Vector
from semshare.donors.namespace import Donor
from semshare.donors.traits import TokenTraits
from semshare.kv.tiers.tier import DonorRecord, StoredForm
from semshare.types import STORED, Slots


def all_stored(n: int) -> Slots:
    """Slots `[n]` of a donor none of whose KV is in the pool: one number in memory, read-only."""
    return np.broadcast_to(np.int64(STORED), (n,))


def record_of(donor: Donor, vector: Vector, maker: str, form: StoredForm) -> DonorRecord:
    """What a tier is told of a donor.

    Args:
        donor: as it is now.
        vector: its prompt's.
        maker: who made the vector (`PromptVectors.maker`).
        form: how its KV is stored.

    """
    return DonorRecord(
        id=donor.id,
        namespace=donor.namespace,
        ids=donor.ids,
        vector=vector,
        embedder=maker,
        history=donor.history,
        coding=form.coding,
        head_bytes=form.head_bytes,
        group_bytes=form.group_bytes,
        pinned=donor.pinned,
        published=donor.published,
        created_at=donor.created_at,
        used_at=donor.used_at,
        expires_at=donor.expires_at,
    )


def stored_donor(record: DonorRecord, traits: TokenTraits, *, tick: int, n_bytes: int) -> Donor:
    """A donor none of whose KV is in the pool.

    Args:
        record: as a tier has it.
        traits: of its tokens.
        tick: orders it by use among others.
        n_bytes: that its KV would take in the pool.

    """
    return Donor(
        id=record.id,
        namespace=record.namespace,
        ids=record.ids,
        pages=np.empty(0, np.int64),
        slots=all_stored(len(record.ids)),
        traits=traits,
        history=record.history,
        node=None,
        pinned=record.pinned,
        last_used=tick,
        bytes=n_bytes,
        created_at=record.created_at,
        used_at=record.used_at,
        expires_at=record.expires_at,
        stored=record.form,
        published=record.published,
    )
