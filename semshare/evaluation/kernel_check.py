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
        from semshare_kernels.check import check_all  # noqa: PLC0415 - the only user of Triton here
    except ImportError as error:
        raise TritonMissing(
            f"kernels are compiled by Triton ({error}): pip install 'semshare[gpu]'"
        ) from error
    reports = []
    results = check_all()
    first, total = next(results)
    with progress_bar("compiling", total, enabled=True) as (_, advance):
        for report, _ in [(first, total)]:
            reports.append(report)
            advance(report.kernel)
        for report, _ in results:
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
