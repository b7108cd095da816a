"""How many requests of a tenant may run or wait at the same time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from semshare_service.errors import ConcurrencyExceeded
from semshare_service.tenants import Tenant

_RETRY_AFTER_S = 1.0  # one of the tenant's own must end, which may be at any time


class Places:
    """A tenant's places, at most its `max_concurrency`. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()  # by tenant

    def check(self, tenant: Tenant) -> None:
        """Raise `ConcurrencyExceeded` where all are taken."""
        taken, most = self._taken[tenant.name], tenant.max_concurrency
        if most is not None and taken >= most:
            raise ConcurrencyExceeded(
                f"{taken} requests of this tenant run or wait, of {most} (max_concurrency): try "
                "again when one has ended",
                retry_after_s=_RETRY_AFTER_S,
            )

    def take(self, tenant: Tenant) -> None:
        """Take one until it is given back; raises as `check` does."""
        with self._lock:
            self.check(tenant)
            self._taken[tenant.name] += 1

    def give_back(self, tenant: Tenant) -> None:
        """Let another have it."""
        with self._lock:
            self._taken[tenant.name] -= 1
            if not self._taken[tenant.name]:
                del self._taken[tenant.name]

    @contextmanager
    def taken(self, tenant: Tenant) -> Iterator[None]:
        """Take one for a block."""
        self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)
