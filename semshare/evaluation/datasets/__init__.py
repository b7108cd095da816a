"""The evaluation's datasets: what ships as packages, and the papers' sets as users have them."""

from semshare.evaluation.datasets.registry import DATASETS, dataset_named

__all__ = ["DATASETS", "dataset_named"]
