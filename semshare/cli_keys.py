"""`semshare keys`: API keys for the service's tenants."""

from __future__ import annotations

from typing import Annotated

import typer

from semshare.cli_options import Json
from semshare.cli_output import emit, say

keys = typer.Typer(help="API keys for the service's tenants.", no_args_is_help=True)


@keys.command()
def new(
    tenant: Annotated[str, typer.Argument(help="Whose key: letters, digits, `.`, `_`, `-`.")],
    json_output: Json = False,
) -> None:
    """Print a new random key, once, and what to add to the settings file for it."""
    from semshare_service.auth import hash_key, new_key  # noqa: PLC0415 - see `semshare.cli`
    from semshare_service.settings import check_tenant_name  # noqa: PLC0415

    check_tenant_name(tenant)
    key = new_key()
    digest = hash_key(key)
    if json_output:
        emit({"tenant": tenant, "key": key, "hash": digest})
        return
    say("The key; it is shown this once and kept nowhere:")
    typer.echo(key)
    say("Add to the settings file, or the digest to the keys that the tenant has:")
    typer.echo(f'[tenants."{tenant}"]\nkeys = ["{digest}"]')
