"""Who asks, and the part of the engine that is theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from semshare.types import DonorInfo

# Between a tenant's name and the namespace its client sent, which can't hold it (`Namespace`).
_SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of those whose donors, prefixes, metrics and handles are kept apart.

    name:            of letters, digits, `.`, `_` and `-`; empty for the only one of a service
                     without keys.
    operator:        may publish donors, whoever's they are, and sees what is the whole process's,
                     metrics of all tenants among it.
    max_concurrency: requests that run or wait at the same time; None: no bound of its own.
    """

    name: str = ""
    operator: bool = False
    max_concurrency: int | None = None

    @property
    def prefix(self) -> str:
        """What the engine's names of this tenant's namespaces begin with, and no other's."""
        return f"{self.name}{_SEPARATOR}" if self.name else ""

    def space(self, namespace: str) -> str:
        """The engine's namespace that stands for a namespace of this tenant."""
        return self.prefix + namespace

    def namespace(self, space: str) -> str:
        """The tenant's own name for one of the engine's namespaces that is theirs."""
        if not space.startswith(self.prefix):
            raise AssertionError("another tenant's namespace must not be told")
        return space.removeprefix(self.prefix)

    def own(self, donor: DonorInfo) -> DonorInfo:
        """One of the engine's donors that are theirs, under their own name of its namespace."""
        return replace(donor, namespace=self.namespace(donor.namespace))


def tenant_name(space: str) -> str:
    """The name of the tenant that one of the engine's namespaces belongs to."""
    name, separator, _ = space.partition(_SEPARATOR)
    return name if separator else ""


# Without keys whoever reaches the service may do everything.
ANYONE = Tenant(operator=True)
