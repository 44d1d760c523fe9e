"""A right deployment passes, and each wrong one is seen for what is wrong with it.

The seeds are fixed; the false-alarm rate of the law's tests is the plan's alpha.
"""

from __future__ import annotations

import pytest

from cluster.conformance import report
from cluster.conformance.findings import Finding
from outrider.errors import ServerUnavailable
from outrider.v1 import inference_pb2 as pb
from tests.conformance.conftest import PLAN, Verify
from tests.conformance.toy import Toy


def verdicts(findings: list[Finding], check: str) -> set[str]:
    return {finding.verdict for finding in findings if finding.check == check}


async def test_a_deployment_that_keeps_its_promises_passes_every_check(verify: Verify) -> None:
    findings = await verify(Toy(), PLAN)
    assert [finding for finding in findings if finding.verdict != "passed"] == []
    assert {finding.check for finding in findings} == {"same tokens", "labels", "same seed, same answer", "law"}
    assert report.exit_code(findings, requires_drafts=True) == 0


async def test_one_other_token_with_drafts_is_a_breach_that_names_the_place_and_both_tokens(verify: Verify) -> None:
    findings = await verify(Toy(other_token_with_drafts=True), PLAN)
    [greedy] = [finding for finding in findings if finding.subject == "greedy"]
    assert greedy.verdict == "breach"
    assert "1 differs; first: prompt 'count', greedy, token 6 of the answer: " in greedy.detail
    assert "without drafts" in greedy.detail
    assert verdicts(findings, "law") == {"passed"}, "the other token comes after what the law's tests look at"
    assert report.exit_code(findings, requires_drafts=False) == 1


async def test_a_rejection_rule_that_shares_its_stream_with_the_drafter_breaks_the_law_and_nothing_else(
    verify: Verify,
) -> None:
    findings = await verify(Toy(shares_streams=True), PLAN)
    broken = [finding for finding in findings if finding.verdict == "breach"]
    assert broken
    assert {finding.check for finding in broken} == {"law"}
    assert all(finding.subject.startswith("rejection") for finding in broken)
    assert "expected" in broken[0].detail


async def test_a_server_that_never_drafts_has_shown_nothing(verify: Verify) -> None:
    findings = await verify(Toy(drafts=False))
    assert verdicts(findings, "same tokens") == verdicts(findings, "law") == {"not shown"}
    assert report.verdict_of(findings) == "not shown"
    assert report.exit_code(findings, requires_drafts=False) == 0
    assert report.exit_code(findings, requires_drafts=True) == 1


async def test_each_of_several_drafters_is_tried_alone(verify: Verify) -> None:
    findings = await verify(Toy(drafters=("ngram", "small")))
    subjects = {finding.subject for finding in findings}
    assert {"all drafters", "drafter ngram alone", "drafter small alone"} <= subjects
    [greedy] = [finding for finding in findings if finding.subject == "greedy"]
    assert greedy.figures["compared"] == 2 * 3


async def test_a_drafter_that_the_server_refuses_is_named_as_not_shown(verify: Verify) -> None:
    findings = await verify(Toy(idle_drafters={"odd": (pb.WORKER_STATE_REFUSED, "unfit")}))
    [odd] = [finding for finding in findings if finding.subject == "drafter odd"]
    assert (odd.verdict, odd.detail) == ("not shown", "it is refused: unfit")


async def test_a_starved_drafter_is_not_shown_with_the_reason_and_the_way_out(verify: Verify) -> None:
    idle = {"poor": (pb.WORKER_STATE_STARVED, ""), "new": (pb.WORKER_STATE_CONNECTING, "")}
    details = {each.subject: each.detail for each in await verify(Toy(idle_drafters=idle)) if each.detail}
    assert details["drafter poor"].startswith("it is starved: of late its drafts have not been worth a pass's time")
    assert "draft_wait_s" in details["drafter poor"]
    assert details["drafter new"] == "it is connecting"


async def test_a_refused_parameter_is_an_error_that_names_it_and_the_rest_goes_on(verify: Verify) -> None:
    findings = await verify(Toy(refuses="typical_p"))
    [failed] = [finding for finding in findings if finding.verdict == "error"]
    assert failed.subject == "typical_p"
    assert "sampling.typical_p is set: it can't be done" in failed.detail
    assert report.exit_code(findings, requires_drafts=False) == 1


async def test_without_log_probabilities_the_law_is_an_error_that_says_so(verify: Verify) -> None:
    findings = await verify(Toy(refuses="logprobs"))
    [law] = [finding for finding in findings if finding.check == "law"]
    assert law.verdict == "error"
    assert "sampling.logprobs" in law.detail


async def test_a_model_that_has_no_answer_under_a_setting_shows_nothing_there(verify: Verify) -> None:
    findings = await verify(Toy(has_no_token=True))
    [schema] = [finding for finding in findings if finding.subject == "json_schema"]
    assert (schema.verdict, schema.detail) == ("not shown", "the target alone has no answer: no token is left")


async def test_a_seed_that_gives_another_answer_the_next_time_is_a_breach(verify: Verify) -> None:
    findings = await verify(Toy(forgets_seeds=True))
    assert verdicts(findings, "same seed, same answer") == {"breach"}


async def test_in_16_bits_a_difference_that_nobody_can_judge_is_not_shown_and_a_gap_is_a_breach(
    verify: Verify,
) -> None:
    findings = await verify(Toy(other_token_with_drafts=True, dtype="bfloat16"))
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["greedy"].verdict == "breach"
    assert "logits" in by_subject["greedy"].detail
    assert by_subject["top_k"].verdict == "not shown"


@pytest.mark.parametrize(("hides", "verdict"), [(False, "passed"), (True, "breach")])
async def test_a_lossy_rule_must_be_called_lossy(verify: Verify, hides: bool, verdict: str) -> None:
    findings = await verify(Toy(allows_lossy=True, hides_lossy=hides))
    [typical] = [finding for finding in findings if finding.subject == "typical"]
    assert typical.verdict == verdict


async def test_a_server_that_goes_away_ends_the_suite(verify: Verify) -> None:
    with pytest.raises(ServerUnavailable, match="draining"):
        await verify(Toy(is_gone=True))
