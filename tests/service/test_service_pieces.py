"""A prompt's pieces: characters stay whole wherever tokens are cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reading_engine import ReadingEngine

from semshare_service.pieces import prompt_pieces, token_texts


class Bytes(ReadingEngine):
    """Each byte is a token."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def byte_ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def test_a_character_stands_whole_at_its_last_token() -> None:
    assert token_texts(Bytes(), byte_ids("aé€")) == ["a", "", "é", "", "", "€"]
    assert token_texts(Bytes(), byte_ids("€")[:2]) == ["", "�"]
    assert token_texts(Bytes(), byte_ids("")) == []


@given(st.text(st.characters(codec="utf-8")), st.data())
def test_pieces_join_to_the_prompt_wherever_they_are_cut(text: str, data: st.DataObject) -> None:
    ids = byte_ids(text)
    cuts = data.draw(st.sets(st.integers(1, max(len(ids) - 1, 1)))) if len(ids) > 1 else set()
    edges = [0, *sorted(cuts), len(ids)]
    runs = [
        {"start": start, "end": end, "donor": None, "donor_start": None}
        for start, end in pairwise(edges)
    ]
    pieces = prompt_pieces(Bytes(), "default", ids, runs)
    assert "".join(piece["text"] for piece in pieces) == text
