"""Keys and values in a byte a number: int8 codes and a float16 scale for each group of channels.

A scale for each token and a few channels of one head follows outliers closely enough that 8 bits
lose little (FlexGen, arXiv 2303.06865, quantizes KV in groups the same way, at 4 bits). Outliers of
keys sit in a few channels (KIVI, arXiv 2402.02750), which is why a group is not the whole head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semshare.errors import InvalidRequest

GROUP = 32  # channels that share a scale; a head that it doesn't divide has one scale
MOST = 127  # codes are −127 … 127: symmetric, so that 0 is exact
_SCALE_BYTES = torch.float16.itemsize
LARGEST = MOST * torch.finfo(torch.float16).max  # what the largest scale can express


@dataclass(frozen=True, slots=True)
class Int8Codec:
    """Symmetric int8 of rows `[n, kv_heads, d]`, a row of bytes for each token.

    A group's scale s is its largest magnitude / 127 rounded *up* to float16, so no code is ever
    clipped and every number comes back within s / 2, plus the rounding of float32 (s × 2⁻¹⁷) and
    of the dtype it comes back in. s is at most (largest magnitude / 127) × (1 + 2⁻¹⁰) + 2⁻²⁴:
    float16 has steps of 2⁻¹⁰ of a number, and of 2⁻²⁴ near zero. A group of zeros has the scale 0
    and stays zeros.
    """

    n_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Channels that share a scale."""
        return GROUP if self.head_dim % GROUP == 0 else self.head_dim

    @property
    def bytes_per_token(self) -> int:
        """Of keys, or of values, in one layer."""
        return self._channels + self._groups * _SCALE_BYTES

    def encode(self, rows: Tensor) -> Tensor:
        """Quantize.

        Args:
            rows: `[n, kv_heads, d]`, any floating dtype.

        Returns:
            `[n, bytes_per_token]` uint8: the codes by head and channel, then the scales.

        Raises:
            InvalidRequest: a number is NaN, infinite or beyond what a float16 scale can express.

        """
        groups = rows.float().reshape(len(rows), self._groups, self.group)
        largest = groups.abs().amax(dim=-1)
        if not bool((largest <= LARGEST).all()):  # false of NaN, too
            raise InvalidRequest(
                f"keys or values reach {float(largest.max())}: int8 can store magnitudes up to "
                f"{LARGEST:.0f}; keep donors in full, or load the model in another dtype"
            )
        scales = _rounded_up(largest / MOST, at_least=largest)
        steps = scales.float()[..., None]
        codes = (groups / steps.where(steps > 0, 1)).round().to(torch.int8)
        return torch.cat((codes.flatten(1).view(torch.uint8), scales.view(torch.uint8)), dim=1)

    def decode(self, coded: Tensor, dtype: torch.dtype) -> Tensor:
        """What `encode` was given, to within its error, as `[n, kv_heads, d]` of `dtype`."""
        codes = coded[:, : self._channels].view(torch.int8)
        # A copy of its own: where there are odd many codes, the scales lie at odd addresses.
        scales = coded[:, self._channels :].clone(memory_format=torch.contiguous_format)
        steps = scales.view(torch.float16).float()[..., None]
        numbers = codes.reshape(len(coded), self._groups, self.group) * steps
        # 127 times a scale that was rounded up may pass float16's range by less than a step.
        limit = torch.finfo(dtype).max
        rows = numbers.clamp_(-limit, limit).to(dtype)
        return rows.view(len(coded), self.n_kv_heads, self.head_dim)

    @property
    def _channels(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def _groups(self) -> int:
        return self._channels // self.group


def _rounded_up(scales: Tensor, *, at_least: Tensor) -> Tensor:
    """The least float16 not below `scales` float32, such that 127 of it reach `at_least`."""
    nearest = scales.to(torch.float16)
    # The bits of positive floats, read as integers, are in the order of the numbers.
    next_up = (nearest.view(torch.int16) + 1).view(torch.float16)
    return torch.where(nearest.float() * MOST < at_least, next_up, nearest)
