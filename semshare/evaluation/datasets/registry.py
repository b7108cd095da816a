"""Every dataset of the evaluation by its name."""

from __future__ import annotations

from semshare.errors import InvalidRequest
from semshare.evaluation.datasets.base import Dataset
from semshare.evaluation.datasets.packaged import PACKAGED
from semshare.evaluation.datasets.public import PUBLIC

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (*PACKAGED, *PUBLIC)}


def dataset_named(name: str) -> Dataset:
    """The dataset of that name; `InvalidRequest` names the known ones."""
    if name not in DATASETS:
        raise InvalidRequest(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name]
