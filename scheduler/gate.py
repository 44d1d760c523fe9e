"""The gate before the public service: a bearer token says who asks, and the tokens file how much they may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from outrider.errors import Unauthenticated
from outrider.guard import Context
from outrider.reload import Reloaded
from scheduler.quotas import Quotas
from scheduler.tenants import tenant as current_tenant
from scheduler.tokens import Tenant, read_tokens

log = logging.getLogger(__name__)

METADATA_KEY = "authorization"
_SCHEME = "bearer "
_REFRESH_S = 1.0  # until a change of the file is seen


class Gate:
    """Raises InvalidRequest for a tokens file that is no good; one that becomes so later is left aside."""

    def __init__(self, tokens_file: Path) -> None:
        self._tokens = Reloaded([tokens_file], partial(read_tokens, tokens_file))
        self._quotas = Quotas()

    @contextmanager
    def enter(self, context: Context) -> Iterator[None]:
        """Around a call. Raises Unauthenticated, or Overloaded where the tenant has used up what it may."""
        tenant = self._tenant_of(context)
        self._quotas.enter(tenant, asyncio.get_running_loop().time())
        try:
            # gRPC gives every call a task, and so a context, of its own: nothing has to be set back.
            current_tenant.set(tenant.name)
            yield
        finally:
            self._quotas.leave(tenant)

    async def keep_fresh(self) -> None:
        """Looks at the file now and then, for ever, off the event loop."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            await asyncio.to_thread(self._tokens.refresh)

    def _tenant_of(self, context: Context) -> Tenant:
        value = dict(context.invocation_metadata() or ()).get(METADATA_KEY, "")
        if not isinstance(value, str) or not value[: len(_SCHEME)].lower() == _SCHEME:
            raise Unauthenticated("no token: send the metadata `authorization: Bearer TOKEN`")
        tenant = self._tokens.last.tenant_of(value[len(_SCHEME) :].strip())
        if tenant is None:
            log.warning("%s: refused, since nobody has its token", context.peer())
            raise Unauthenticated("nobody has this token: it is wrong, or was taken back")
        return tenant
