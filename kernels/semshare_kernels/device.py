"""Where Triton's kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def current_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes a tensor's GPU the current one: Triton launches there, wherever its arguments are."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
