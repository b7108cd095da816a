"""What requests and donors of some namespaces may take, where that is bounded at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from semshare.errors import PromptOverLimit, QuotaExceeded


@dataclass(frozen=True, slots=True)
class NamespaceLimits:
    """Bounds of all namespaces whose names begin with `prefix`, together; None: no bound.

    max_prompt_tokens: of one prompt.
    max_donors:        that are kept at a time.
    max_donor_bytes:   KV bytes of these, as `DonorInfo.bytes` counts them.
    """

    prefix: str = ""
    max_prompt_tokens: int | None = None
    max_donors: int | None = None
    max_donor_bytes: int | None = None

    def check_prompt(self, tokens: int) -> None:
        """Raise `PromptOverLimit` where a prompt has more tokens than it may have."""
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise PromptOverLimit(
                f"the prompt has {tokens} tokens and may have {self.max_prompt_tokens} "
                "(max_prompt_tokens): shorten it, or ask the operator for more"
            )

    def check_donor(self, donors: int, donor_bytes: int, n_bytes: int) -> None:
        """Raise `QuotaExceeded` where there is no room for one more donor.

        Args:
            donors: that are kept already.
            donor_bytes: of these.
            n_bytes: of the new one.

        """
        if self.max_donors is not None and donors >= self.max_donors:
            raise QuotaExceeded(
                f"{donors} donors are kept, of {self.max_donors} (max_donors): delete some, give "
                "them a ttl_s, or ask the operator for more"
            )
        if self.max_donor_bytes is not None and donor_bytes + n_bytes > self.max_donor_bytes:
            raise QuotaExceeded(
                f"a donor of {n_bytes} bytes beside {donor_bytes} that are kept is more than "
                f"{self.max_donor_bytes} (max_donor_bytes): delete donors, shorten the prompt, or "
                "ask the operator for more"
            )


LimitsOf = Callable[[str], NamespaceLimits]  # of the namespace of that name


def unlimited(_: str) -> NamespaceLimits:
    """No bounds for any namespace."""
    return NamespaceLimits()
