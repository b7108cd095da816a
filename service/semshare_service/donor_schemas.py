"""Requests that list donors, change them or publish them, validated."""

from __future__ import annotations

from types import EllipsisType
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from semshare_service.schemas import NamespaceFields, StrictModel, TimeToLive
from semshare_service.settings import TenantName


class DonorListQuery(NamespaceFields):
    """`GET /v1/donors`: one page.

    limit: most donors on it.
    after: the last donor's id of the page before; the first page where left out.
    """

    limit: Annotated[int, Field(strict=False, ge=1, le=1000)] = 100  # a query is all text
    after: str | None = None


class DonorChanges(StrictModel):
    """`PATCH /v1/donors/{id}`. What is left out stays as it is.

    pinned: never evicted.
    ttl_s:  seconds from now until it expires; null: it stays.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    pinned: bool | None = None
    ttl_s: TimeToLive | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing to change: give pinned, ttl_s or both")
        return self

    def time_to_live(self) -> float | EllipsisType | None:
        """As `Engine.update_donor` takes it: null is not the same as left out."""
        return self.ttl_s if "ttl_s" in self.model_fields_set else ...


class PublishQuery(NamespaceFields):
    """`POST /v1/donors/{id}/publish`.

    tenant: whose donor; the own where left out.
    """

    tenant: TenantName | None = None
