"""The settings that both ends share."""

from __future__ import annotations

import json

from outrider import rpc
from outrider.v1 import inference_pb2 as pb


def test_a_server_never_sends_away_a_client_that_pings_as_agreed() -> None:
    client, server = dict(rpc.client_options()), dict(rpc.server_options())
    link = dict(rpc.link_options())
    for pinging in (client, link, server):
        assert pinging["grpc.keepalive_time_ms"] > server["grpc.http2.min_recv_ping_interval_without_data_ms"]  # type: ignore[operator]
    assert server["grpc.keepalive_permit_without_calls"] == 1


def test_only_an_unreachable_server_is_tried_again() -> None:
    (method,) = json.loads(str(dict(rpc.client_options())["grpc.service_config"]))["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert [name["service"] for name in method["name"]] == [pb.DESCRIPTOR.services_by_name["Inference"].full_name]


def test_links_to_workers_never_repeat_a_call() -> None:
    assert dict(rpc.link_options())["grpc.enable_retries"] == 0


def test_every_request_that_a_server_takes_fits_the_retry_buffer() -> None:
    limit = dict(rpc.server_options())["grpc.max_receive_message_length"]
    assert dict(rpc.client_options())["grpc.per_rpc_retry_buffer_size"] > limit  # type: ignore[operator]


def test_a_worker_service_takes_messages_of_any_size() -> None:
    assert dict(rpc.server_options(-1))["grpc.max_receive_message_length"] == -1


def test_no_option_is_given_twice() -> None:
    for options in (rpc.client_options(), rpc.link_options(), rpc.server_options()):
        assert len(dict(options)) == len(options)
