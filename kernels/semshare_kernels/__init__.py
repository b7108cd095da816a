"""Attention, re-alignment and token matching over a pool of reused and fresh KV.

`mixed_attention` has a plain-torch definition in `reference` and chooses its implementation by
device. Re-alignment is torch on every device; token codes are compared by NumPy on the CPU.
"""

from semshare_kernels.mixed_attention import (
    AttentionPlan,
    attention_mass,
    mixed_attention,
    plan_attention,
)
from semshare_kernels.rotary import apply_rotary, realign_keys
from semshare_kernels.simhash import hamming_nearest, simhash, simhash_planes

__all__ = [
    "AttentionPlan",
    "apply_rotary",
    "attention_mass",
    "hamming_nearest",
    "mixed_attention",
    "plan_attention",
    "realign_keys",
    "simhash",
    "simhash_planes",
]
