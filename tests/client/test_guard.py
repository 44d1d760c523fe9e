"""How errors leave a server: with their status and their message, however long it is and in whatever script."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider.errors import InvalidRequest
from outrider.guard import MAX_ERROR_BYTES, Guard

TIMEOUT_S = 30.0
NUM_BYTES = {"a": 1, "~": 1, "%": 3, "\n": 3, "\x7f": 3, "é": 6, "漢": 9, "🦊": 12}  # as gRPC encodes them


async def refuse(request: bytes, context: Any) -> None:
    raise InvalidRequest(request.decode())


async def message_of(error: str) -> str:
    """What a client is told, over real gRPC, when its call ends with an InvalidRequest."""
    server = grpc.aio.server(interceptors=[Guard(lambda context: nullcontext())])
    methods = {"Refuse": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Guarded", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary("/Guarded/Refuse")(error.encode(), timeout=TIMEOUT_S)
    finally:
        await server.stop(0)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return raised.value.details() or ""


@pytest.mark.parametrize("letter", NUM_BYTES, ids=ascii)
async def test_a_long_message_is_cut_to_what_grpc_carries(letter: str) -> None:
    assert await message_of(letter * 10_000) == letter * (MAX_ERROR_BYTES // NUM_BYTES[letter])


async def test_a_message_that_grpc_carries_is_told_whole() -> None:
    message = "100 % of 漢字 and 🦊\n" * 20
    assert await message_of(message) == message
