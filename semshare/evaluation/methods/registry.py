"""All methods, in the order of the tables."""

from __future__ import annotations

from semshare.errors import InvalidRequest
from semshare.evaluation.methods.base import Method
from semshare.evaluation.methods.cacheblend import CACHEBLEND
from semshare.evaluation.methods.epic import EPIC
from semshare.evaluation.methods.h2o import H2O
from semshare.evaluation.methods.no_realign import NO_REALIGN
from semshare.evaluation.methods.other_prompts import DONOR_TEXT, NO_CONTEXT
from semshare.evaluation.methods.random_map import RANDOM_MAP
from semshare.evaluation.methods.repair import SEMSHARE_REPAIR
from semshare.evaluation.methods.rerun import RERUN
from semshare.evaluation.methods.reuse import ALIGN_ONLY, FULL, PREFIX, SEMSHARE
from semshare.evaluation.methods.semsharekv import SEMSHAREKV
from semshare.evaluation.methods.snapkv import PYRAMIDKV, SNAPKV

_ALL: tuple[Method, ...] = (
    FULL,
    RERUN,
    PREFIX,
    ALIGN_ONLY,
    NO_REALIGN,
    CACHEBLEND,
    EPIC,
    SEMSHAREKV,
    SEMSHARE,
    SEMSHARE_REPAIR,
    RANDOM_MAP,
    DONOR_TEXT,
    NO_CONTEXT,
    SNAPKV,
    PYRAMIDKV,
    H2O,
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """The method of that name; `InvalidRequest` names the known ones."""
    if name not in METHODS:
        raise InvalidRequest(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
