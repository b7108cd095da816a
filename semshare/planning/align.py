"""Maps target tokens to donor tokens, from what was found. Pure index arithmetic.

Exact prefix first, then spans, then - in semantic mode, for what is left - a monotone alignment
with each similar donor: the longest common subsequence of ids gives anchors, and a token whose id
the donor does not have is mapped to the nearest code within a window around the place where the
anchors expect it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from torch import Tensor

from semshare.donors.span_index import Span
from semshare.donors.token_lsh import TokenLSH
from semshare.types import Alignment, Ids, Mask, Positions, TokenSource
from semshare_kernels import nearest_codes

# Donors compete for stretches of this many target tokens; in a stretch one donor serves all.
STRETCH_TOKENS = 256
# A stretch of whose unmatched ids a donor shares fewer in order than this is left to be computed
# (docs/decisions.md): rewritten papers share 0.48 of a stretch, unrelated ones 0.15.
MIN_COMMON = 0.3
# How far from the expected donor position the nearest code is looked for, on each side.
WINDOW = 12
# The common subsequence takes an eighth of a byte for each pair of tokens: no more than 256 MB.
MAX_PAIRS = 1 << 31


@dataclass(frozen=True, slots=True)
class FuzzyCandidate:
    """A similar donor, with what aligning needs of it."""

    name: str
    ids: Ids
    codes: Tensor  # [n, words] int64


class AlignmentBuilder:
    """The arrays of an `Alignment` while they are filled, first come first served."""

    def __init__(self, n: int) -> None:
        self.source = np.zeros(n, dtype=np.uint8)
        self.donor = np.full(n, -1, dtype=np.int32)
        self.position = np.full(n, -1, dtype=np.int32)
        self.in_order = np.zeros(n, dtype=np.bool_)
        self._donors: list[str] = []

    def donor_index(self, name: str) -> int:
        """Index of a donor in the alignment's table, added if it is new."""
        if name not in self._donors:
            self._donors.append(name)
        return self._donors.index(name)

    def set_prefix(self, tokens: int, donor: str | None) -> None:
        """The first `tokens` tokens are cached exactly, by `donor` if one is known."""
        self.source[:tokens] = TokenSource.PREFIX
        self.position[:tokens] = np.arange(tokens)
        self.in_order[:tokens] = True
        if donor is not None and tokens:
            self.donor[:tokens] = self.donor_index(donor)

    def set_spans(self, spans: Sequence[Span]) -> None:
        """Identical runs; they don't overlap each other or the prefix."""
        for span in spans:
            at = slice(span.start, span.start + span.length)
            self.source[at] = TokenSource.SPAN
            self.donor[at] = self.donor_index(span.donor)
            self.position[at] = np.arange(span.donor_start, span.donor_start + span.length)
            self.in_order[at] = True

    def set_tokens(
        self,
        at: NDArray[np.int64],
        source: TokenSource,
        donor: str,
        positions: Positions,
        *,
        in_order: bool = False,
    ) -> None:
        """Single tokens of one donor."""
        self.source[at] = source
        self.donor[at] = self.donor_index(donor)
        self.position[at] = positions
        self.in_order[at] = in_order

    def build(self) -> Alignment:
        """The finished alignment."""
        return Alignment(self.source, self.donor, self.position, self.in_order, tuple(self._donors))


def common_subsequence(ids: Ids, donor_ids: Ids) -> Positions:
    """For each of `ids` the position of its partner in a longest common subsequence, or −1."""
    partner = np.full(len(ids), -1, dtype=np.int32)
    for block in LCSseq.opcodes(ids.tolist(), donor_ids.tolist()):
        if block.tag == "equal":
            partner[block.src_start : block.src_end] = np.arange(block.dest_start, block.dest_end)
    return partner


def align_fuzzy(
    builder: AlignmentBuilder,
    ids: Ids,
    candidates: Sequence[FuzzyCandidate],
    lsh: TokenLSH,
) -> None:
    """Map what is still unmatched onto similar donors.

    Args:
        builder: holds the prefix and the spans; matched tokens are added.
        ids: `[n]` of the target.
        candidates: similar donors, the most similar first; those too long to compare are left out.
        lsh: codes the target's tokens.

    """
    candidates = [one for one in candidates if len(one.ids) * len(ids) <= MAX_PAIRS]
    if not candidates:
        return
    partners = [common_subsequence(ids, candidate.ids) for candidate in candidates]
    choice = _best_donor(partners, builder.source == TokenSource.FRESH)
    for index, (candidate, partner) in enumerate(zip(candidates, partners, strict=True)):
        free = np.flatnonzero((choice == index) & (builder.source == TokenSource.FRESH))
        if len(free) == 0:
            continue
        shared = free[partner[free] >= 0]
        builder.set_tokens(shared, TokenSource.SPAN, candidate.name, partner[shared], in_order=True)
        rest = free[partner[free] < 0]
        rest, expected = _expected_within(rest, partner, len(candidate.ids))
        position = _nearest_by_code(ids, rest, expected, candidate, lsh)
        same = ids[rest] == candidate.ids[position]
        builder.set_tokens(rest[same], TokenSource.SPAN, candidate.name, position[same])
        builder.set_tokens(rest[~same], TokenSource.FUZZY, candidate.name, position[~same])


def align_nearest(
    builder: AlignmentBuilder, ids: Ids, candidate: FuzzyCandidate, lsh: TokenLSH
) -> None:
    """Map all that is unmatched to the donor's token with the nearest code, wherever it stands.

    The published matching (SemShareKV, arXiv 2509.24832): the codes carry the positions, so that of
    equal tokens the one at the same place is nearest, but order is asked for nowhere.

    Args:
        builder: holds the prefix; every other token is added.
        ids: `[n]` of the target.
        candidate: the donor.
        lsh: codes the target's tokens.

    """
    free = np.flatnonzero(builder.source == TokenSource.FRESH)
    centre = torch.from_numpy(free)
    anywhere = max(len(ids), len(candidate.ids))
    nearest = nearest_codes(lsh.encode(ids[free], free), candidate.codes, centre, anywhere)
    position = nearest[:, 0].numpy().astype(np.int32)
    same = ids[free] == candidate.ids[position]
    builder.set_tokens(free[same], TokenSource.SPAN, candidate.name, position[same])
    builder.set_tokens(free[~same], TokenSource.FUZZY, candidate.name, position[~same])


def _best_donor(partners: Sequence[Positions], free: Mask) -> NDArray[np.int64]:
    """`[n]` index of the donor that shares most ids around each token, −1 where none does.

    Counted over the `free` tokens `[n]` alone: a question, an instruction or a next turn beside
    text that is identical has no part in that text.
    """
    starts = np.arange(0, len(free), STRETCH_TOKENS)
    sizes = np.maximum(np.add.reduceat(free, starts, dtype=np.int64), 1)
    shares = np.stack(
        [np.add.reduceat((partner >= 0) & free, starts, dtype=np.int64) for partner in partners]
    )
    best = shares.argmax(axis=0)
    best[shares.max(axis=0) < MIN_COMMON * sizes] = -1
    return np.repeat(best, STRETCH_TOKENS)[: len(free)]


def _expected_within(
    at: NDArray[np.int64], partner: Positions, donor_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Those of the target tokens `at` that anchors expect inside the donor, and where."""
    anchors = np.flatnonzero(partner >= 0)
    expected = np.interp(at, anchors, partner[anchors])
    # Outside the anchors the texts are taken to run on side by side, as far as the donor goes.
    expected += np.minimum(at - anchors[0], 0) + np.maximum(at - anchors[-1], 0)
    within = (expected >= 0) & (expected < donor_tokens)
    return at[within], expected[within]


def _nearest_by_code(
    ids: Ids,
    at: NDArray[np.int64],
    expected: NDArray[np.float64],
    candidate: FuzzyCandidate,
    lsh: TokenLSH,
) -> Positions:
    """For target tokens `at`, the donor position with the nearest code around the expected one."""
    codes = lsh.encode(ids[at], expected)
    centre = torch.from_numpy(np.rint(expected).astype(np.int64))
    return nearest_codes(codes, candidate.codes, centre, WINDOW)[:, 0].numpy().astype(np.int32)
