"""What `outriderd token` says: a new token, once, and what the tokens file needs for it."""

from __future__ import annotations

import re

from cluster.errors import ConfigError
from scheduler.tokens import NAME, digest_of, new_token


def token_and_entry(tenant: str) -> tuple[str, str]:
    """The token, for the tenant, and the file's lines, which do not tell it. Raises ConfigError for a bad name."""
    if not re.fullmatch(NAME, tenant):
        raise ConfigError(f"the tenant is {tenant!r}: letters and digits, and . _ - behind the first one, 63 at most")
    token = new_token()
    return token, f'[[tenants]]\nname = "{tenant}"\ntokens = ["{digest_of(token)}"]\n'
