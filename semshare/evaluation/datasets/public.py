"""The papers' sets as datasets: records of the user's become pairs of similar prompts."""

from __future__ import annotations

import random
import zlib
from functools import partial
from itertools import islice
from pathlib import Path

from semshare.errors import InvalidRequest
from semshare.evaluation.datasets.base import Dataset, check_request
from semshare.evaluation.datasets.documents import (
    DOCUMENT_SCENARIOS,
    Document,
    similar_prompts,
    without_middle,
)
from semshare.evaluation.datasets.public_sets import PUBLIC_SETS, PublicSet, Sample
from semshare.evaluation.datasets.records import Record, presence_of, records_of
from semshare.evaluation.material import Example, Material
from semshare.evaluation.texts import Split

# Of a file: enough to choose from, without reading a million patents for twelve examples.
MOST_RECORDS = 5_000


def public_dataset(public: PublicSet) -> Dataset:
    """The set with every scenario that documents have."""
    return Dataset(
        public.name,
        public.about,
        DOCUMENT_SCENARIOS,
        public.metric,
        public.max_tokens,
        presence=partial(presence_of, public.name, public.hub),
        build=partial(_build, public),
    )


def _build(
    public: PublicSet, scenario: str, material: Material, limit: int, folder: Path | None
) -> list[Example]:
    check_request(public.name, DOCUMENT_SCENARIOS, scenario, limit)
    records = islice(records_of(public.name, public.hub, folder), MOST_RECORDS)
    samples = [(record, public.read(record)) for record in records]
    own = [item for item in samples if _split_of(item[1].document) == material.split]
    if len(own) < limit:
        raise InvalidRequest(
            f"{limit} examples of {public.name} wanted, {len(own)} of its {len(samples)} records "
            f"are in the split {material.split!r}: lower the limit or bring more records"
        )
    # One more than asked for: a text to overlap with.
    rng = random.Random(f"{public.name}-{material.split}-{material.seed}")  # noqa: S311 - an order
    drawn = rng.sample(own, len(own))[: limit + 1]
    documents = [_document(public, record, sample, material) for record, sample in drawn]
    return similar_prompts(scenario, documents, limit, material.seed)


def _document(public: PublicSet, record: Record, sample: Sample, material: Material) -> Document:
    ask = partial(public.ask, question=sample.question)
    room = material.room_in(ask(""))
    text = without_middle(sample.document, material.text_tokens, room)
    if not text.strip():
        raise InvalidRequest(
            f"a prompt of {material.tokens} tokens has no room for a document of {public.name}: "
            "ask for a longer one"
        )
    return Document(str(record.number), text, sample.references, ask, public.ask_otherwise)


def _split_of(document: str) -> Split:
    """A fifth is `val`, a fifth `train`, whatever the order and the number of the records."""
    fifth = zlib.crc32(document.encode()) % 5
    return "val" if fifth == 0 else "train" if fifth == 1 else "test"


PUBLIC = tuple(map(public_dataset, PUBLIC_SETS))
