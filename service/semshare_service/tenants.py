"""Who asks, and the part of the engine that is theirs."""

from __future__ import annotations

from dataclasses import dataclass

# Between a tenant's name and the namespace its client sent, which can't hold it (`Namespace`).
_SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of those whose donors, prefixes, metrics and handles are kept apart.

    name: of letters, digits, `.`, `_` and `-`; empty for the only one of a service without keys.
    operator: sees what is the whole process's, metrics of all tenants among it.
    """

    name: str = ""
    operator: bool = False

    def space(self, namespace: str) -> str:
        """The engine's namespace that stands for a namespace of this tenant."""
        return f"{self.name}{_SEPARATOR}{namespace}" if self.name else namespace

    def namespace(self, space: str) -> str:
        """The tenant's own name for one of the engine's namespaces that is theirs."""
        return space.removeprefix(f"{self.name}{_SEPARATOR}") if self.name else space


ANYONE = Tenant()
