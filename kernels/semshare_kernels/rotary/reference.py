"""`realign_keys` by its definition: a rotation of each plane (i, i + r/2) by its angle."""

from __future__ import annotations

import torch
from torch import Tensor

from semshare_kernels.rotary.rotation import Rotation


def realign_keys(keys: Tensor, source: Tensor, target: Tensor, rotation: Rotation | None) -> None:
    """See `semshare_kernels.rotary.realign_keys`."""
    moved = keys[source].double()
    if rotation is not None:
        half = rotation.cos.shape[1]
        turn = torch.complex(rotation.cos.double(), rotation.sin.double())[:, None]
        plane = torch.complex(moved[..., :half], moved[..., half : 2 * half]) * turn
        moved[..., :half], moved[..., half : 2 * half] = plane.real, plane.imag
    keys[target] = moved.to(keys.dtype)
