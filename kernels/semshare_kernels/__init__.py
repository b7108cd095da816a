"""Attention, re-alignment and token matching over a pool of reused and fresh KV; few-row products.

Each op is a folder: what it means (`reference`), how it runs on a CPU (`cpu`) and on a GPU (`gpu`,
with its Triton kernel), and one function that chooses by device.
"""

import os

# Triton's default changes in 3.10; a product and a sum are fused on every version here. Before
# anything imports Triton.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from semshare_kernels.decode import DecodePlan, KeyTree, decode_attention, plan_decode
from semshare_kernels.key_table import KeyTable
from semshare_kernels.linear import few_rows_linear, few_rows_linears
from semshare_kernels.merge import merge_states
from semshare_kernels.mixed import MixedPlan, attention_mass, mixed_attention, plan_mixed
from semshare_kernels.pool_write import write_slots
from semshare_kernels.rotary import Rotation, apply_rotary, realign_keys
from semshare_kernels.shape import AttentionShape
from semshare_kernels.simhash import nearest_codes, simhash, simhash_planes

__all__ = [
    "AttentionShape",
    "DecodePlan",
    "KeyTable",
    "KeyTree",
    "MixedPlan",
    "Rotation",
    "apply_rotary",
    "attention_mass",
    "decode_attention",
    "few_rows_linear",
    "few_rows_linears",
    "merge_states",
    "mixed_attention",
    "nearest_codes",
    "plan_decode",
    "plan_mixed",
    "realign_keys",
    "simhash",
    "simhash_planes",
    "write_slots",
]
