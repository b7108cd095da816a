"""`semshare kernels check`: every kernel compiled for real GPUs, with a bar while it runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from semshare.errors import SemShareError
from semshare.evaluation.environment import machine, versions
from semshare.evaluation.progress import progress_bar


class TritonMissing(SemShareError):
    """Triton is not installed."""


def run_check() -> dict[str, Any]:
    """Compile everything that dispatch can choose.

    Returns:
        `kernels`, a report for each kernel, configuration and architecture, and whether all are
        `ok`.

    """
    try:
        from semshare_kernels.check import (  # noqa: PLC0415 - the only user of Triton here
            ARCHS,
            check_all,
            variants,
        )
    except ImportError as error:
        raise TritonMissing(
            f"kernels are compiled by Triton ({error}): pip install 'semshare[gpu]'"
        ) from error
    reports = []
    with progress_bar("compiling", len(ARCHS) * len(variants()), enabled=True) as (_, advance):
        for report in check_all():
            reports.append(report)
            advance(f"{report.kernel} {report.config} {report.arch}")
    reports.sort(key=lambda report: (report.kernel, report.config, report.arch))
    return {
        "ok": all(report.ok for report in reports),
        "n": len(reports),
        "kernels": [asdict(report) for report in reports],
        "machine": machine(),
        "versions": versions(),
    }


def summary(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kernel and architecture: the most any configuration takes, and problems."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for report in reports:
        groups.setdefault((report["kernel"], report["arch"]), []).append(report)
    return [
        {
            "kernel": kernel,
            "arch": arch,
            "configurations": len(group),
            **{
                name: max(report[name] for report in group)
                for name in ("registers", "shared_bytes", "stack_bytes", "spill_bytes")
            },
            "problems": "; ".join(
                f"{report['config']} {report['problem']}" for report in group if not report["ok"]
            ),
        }
        for (kernel, arch), group in groups.items()
    ]
