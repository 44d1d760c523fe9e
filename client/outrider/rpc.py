"""gRPC settings that every process of Outrider shares: one place, so that both ends agree.

Keepalive: clients ping every 30 s, also without calls; servers allow a ping every 10 s, so that no client
is sent away for `too_many_pings`.
"""

from __future__ import annotations

import json

DEFAULT_PORT = 50051
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # of a client's request, or a drafter's report; other streams have no limit
KEEPALIVE_TIME_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
MIN_PING_INTERVAL_MS = 10_000
MAX_PENDING_CALLS = 8192  # that a server has not looked at yet
MAX_PENDING_S = 300

Options = list[tuple[str, int | str]]

_INFERENCE = "outrider.v1.Inference"

# A call is repeated only while no part of an answer has arrived (gRPC's own rule) and only where the server
# could not be reached: then nobody has seen a token, and the same request gives the same answer.
_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": _INFERENCE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def client_options() -> Options:
    """Channel options of a user's client: keepalive and the safe retries."""
    return [
        *_keepalive(),
        # A server that was restarted is to be found soon: gRPC's own pauses grow to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.service_config", json.dumps(_RETRY)),
        # gRPC repeats a call only while its request fits this buffer: at the default of 256 KiB, no long prompt.
        ("grpc.per_rpc_retry_buffer_size", 2 * MAX_MESSAGE_BYTES),
    ]


def link_options(max_receive_bytes: int = -1) -> Options:
    """Channel options of the scheduler's links to workers: no retries; -1 is no limit to the size of a message."""
    return [
        *_keepalive(),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def server_options(max_receive_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Server options; `max_receive_bytes` -1 for worker services, whose only peer is the scheduler."""
    return [
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # gRPC's own ways with a burst of calls: to refuse some beyond 1,000 without a hint, and to cancel those that
        # wait for half a minute. The server is to say itself what it has no room for.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
        ("grpc.server_max_unrequested_time_in_server", MAX_PENDING_S),
        ("grpc.so_reuseport", 0),
    ]


def _keepalive() -> Options:
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
