"""The tokens file: who may ask, and how much. TOML:

    [[tenants]]
    name = "search"
    tokens = ["sha256:…"]      # two while one is being changed for another
    max_calls = 32             # at once; unset: no limit
    calls_per_minute = 600     # unset: no limit

A file that is read by others gives no token away: it has hashes. One round of SHA-256 will do, since a token is 256
random bits (`new_token`): there is no list of likely ones to try, which is what slow hashes are against, and here
they would let anybody keep the scheduler busy with wrong tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outrider.errors import InvalidRequest

_PREFIX = "sha256:"
_TOKEN_BYTES = 32
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

Digest = Annotated[str, Field(pattern=rf"^{_PREFIX}[0-9a-f]{{64}}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Tenant(_Closed):
    """One of those who may ask, with its limits."""

    name: str = Field(pattern=NAME)
    tokens: Sequence[Digest] = Field(min_length=1)
    max_calls: int | None = Field(default=None, ge=1)
    calls_per_minute: int | None = Field(default=None, ge=1)


class _File(_Closed):
    tenants: list[Tenant] = Field(min_length=1)  # a file cut short is not to shut everybody out


class Tokens:
    """The tenants of one state of the file."""

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self._by_digest = [(digest.encode(), tenant) for tenant in tenants for digest in tenant.tokens]

    def tenant_of(self, token: str) -> Tenant | None:
        """Whose token it is. How long that takes says nothing of how near a wrong one comes."""
        digest = digest_of(token).encode()
        found: Tenant | None = None
        for known, tenant in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def digest_of(token: str) -> str:
    """A token as the file has it."""
    return _PREFIX + hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A random token that nobody has yet."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def read_tokens(file: Path) -> Tokens:
    """Raises InvalidRequest, which names what is wrong with the file."""
    try:
        tenants = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))).tenants
    except OSError as err:
        raise InvalidRequest.of("auth.tokens_file", str(file), f"it can't be read ({err.strerror})") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise InvalidRequest.of("auth.tokens_file", str(file), f"it is not TOML: {err}") from err
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequest.of("auth.tokens_file", str(file), f"{where}: {first['msg']}") from err
    _check_unique(file, "tenants are named", [tenant.name for tenant in tenants])
    _check_unique(file, "entries have the token", [digest for tenant in tenants for digest in tenant.tokens])
    return Tokens(tenants)


def _check_unique(file: Path, what: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InvalidRequest.of("auth.tokens_file", str(file), f"two {what} {value}: each is to be there once")
