"""The tokens file, and how much a tenant may ask."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.errors import InvalidRequest, Overloaded
from scheduler.quotas import Quotas
from scheduler.tokens import Tenant, digest_of, new_token, read_tokens

TOKENS = [new_token() for _ in range(3)]


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def entry(name: str, *tokens: str, more: str = "") -> str:
    digests = ", ".join(f'"{digest_of(token)}"' for token in tokens)
    return f'[[tenants]]\nname = "{name}"\ntokens = [{digests}]\n{more}\n'


def test_a_token_leads_to_its_tenant_and_any_other_text_to_nobody(tmp_path: Path) -> None:
    file = written(tmp_path / "tokens", entry("one", TOKENS[0], TOKENS[1]) + entry("two", TOKENS[2]))
    tokens = read_tokens(file)
    found = [tokens.tenant_of(token) for token in TOKENS]
    assert [tenant.name for tenant in found if tenant] == ["one", "one", "two"]
    for wrong in ("", TOKENS[0][:-1], TOKENS[0] + " ", TOKENS[0].swapcase(), digest_of(TOKENS[0]), "ü\x00"):
        assert tokens.tenant_of(wrong) is None


def test_the_file_gives_no_token_away(tmp_path: Path) -> None:
    file = written(tmp_path / "tokens", entry("one", TOKENS[0]))
    assert TOKENS[0] not in file.read_text(encoding="utf-8")


def test_tokens_are_long_and_all_different() -> None:
    drawn = {new_token() for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in drawn), "256 bits"


BAD = {
    "": "tenants: Field required",
    "tenants = []": "at least 1 item",
    entry("one", TOKENS[0])[:20]: "it is not TOML",
    entry("one", TOKENS[0]) + entry("one", TOKENS[1]): "two tenants are named one",
    entry("one", TOKENS[0]) + entry("two", TOKENS[0]): "two entries have the token sha256:",
    entry("one"): "at least 1 item",
    entry("one two", TOKENS[0]): "tenants.0.name",
    entry("one", TOKENS[0], more="max_calls = 0"): "tenants.0.max_calls",
    entry("one", TOKENS[0], more="calls_per_minute = 0.5"): "tenants.0.calls_per_minute",
    entry("one", TOKENS[0], more="max_call = 1"): "Extra inputs are not permitted",
    f'[[tenants]]\nname = "one"\ntokens = ["{TOKENS[0]}"]\n': "tenants.0.tokens.0",  # a token, not its hash
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_file_that_is_no_good_is_refused_with_the_reason_and_without_a_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(BAD[text])) as raised:
        read_tokens(written(tmp_path / "tokens", text))
    assert TOKENS[0] not in raised.value.message


def tenant(**limits: int) -> Tenant:
    return Tenant(name="one", tokens=[digest_of(TOKENS[0])], **limits)


def test_calls_at_once_are_counted_and_one_that_ends_makes_room() -> None:
    quotas, limited = Quotas(), tenant(max_calls=2)
    quotas.enter(limited, 0.0)
    quotas.enter(limited, 0.0)
    with pytest.raises(Overloaded, match="2 calls running") as raised:
        quotas.enter(limited, 0.0)
    assert raised.value.retry_after_s is not None
    quotas.leave(limited)
    quotas.enter(limited, 0.0)


def test_a_tenant_at_its_limit_keeps_nobody_else_out() -> None:
    quotas, limited = Quotas(), tenant(max_calls=1)
    quotas.enter(limited, 0.0)
    quotas.enter(limited.model_copy(update={"name": "two"}), 0.0)


def test_a_refused_call_may_come_back_when_it_was_told_and_no_sooner() -> None:
    quotas, limited = Quotas(), tenant(calls_per_minute=6)
    for _ in range(6):
        quotas.enter(limited, 100.0)
    with pytest.raises(Overloaded) as raised:
        quotas.enter(limited, 101.0)
    assert raised.value.retry_after_s == pytest.approx(9.0)
    with pytest.raises(Overloaded):
        quotas.enter(limited, 109.9)
    quotas.enter(limited, 110.0)


@given(
    st.integers(1, 20), st.lists(st.floats(0, 120, allow_nan=False).map(lambda second: round(second, 3)), max_size=80)
)
def test_no_minute_has_more_calls_than_twice_the_limit_and_no_wait_is_longer_than_a_calls_share(
    limit: int, times: list[float]
) -> None:
    """A bucket holds a minute's calls and is filled again within the same minute: that is the twice."""
    quotas, limited = Quotas(), tenant(calls_per_minute=limit)
    admitted: list[float] = []
    waits_s: list[float] = []
    for now_s in sorted(times):
        try:
            quotas.enter(limited, now_s)
        except Overloaded as err:
            waits_s.append(err.retry_after_s or 0.0)
        else:
            admitted.append(now_s)
    assert admitted[:1] == sorted(times)[:1], "the first call is always let in"
    assert all(0 < wait_s <= 60 / limit + 1e-6 for wait_s in waits_s)
    for start_s in admitted:
        assert sum(start_s <= at < start_s + 60 for at in admitted) <= 2 * limit
