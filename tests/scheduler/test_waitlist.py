"""Who starts next: exact laws of the waitlist, with any number of places and requests of random sizes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from outrider.v1.inference_pb2 import ServiceClass
from scheduler.events import NewRequest
from scheduler.request import Request
from scheduler.service_class import SHARE
from scheduler.waitlist import Waitlist
from tests.scheduler.classes import BATCH, INTERACTIVE, STANDARD, asked


class Places:
    """A waitlist and the places that it fills. Answers take turns, a token each; all have their max_tokens tokens."""

    def __init__(self, num_places: int) -> None:
        self.waitlist = Waitlist()
        self.running: list[Request] = []
        self.started: list[Request] = []
        self.tokens: Counter[ServiceClass] = Counter()  # that were served, by class
        self.on_start: Callable[[Request], None] = lambda _: None
        self._num_places = num_places

    def ask(self, new: NewRequest) -> Request:
        request = Request(new, 0.0)
        self.waitlist.add(request)
        return request

    def fill(self) -> None:
        while len(self.running) < self._num_places:
            request = self.waitlist.next(lambda _: True)
            if request is None:
                return
            self.waitlist.start(request)
            self._serve(request, request.committed_len if request.stats.started_s is None else 0)
            request.stats.started_s = 0.0
            self.running.append(request)
            self.started.append(request)
            self.on_start(request)

    def commit(self) -> None:
        """A token of each that runs."""
        for request in list(self.running):
            request.tokens.append(2)
            self._serve(request, 1)
            self.waitlist.note_served(request, 1)
            if request.num_completion_tokens == request.new.max_tokens:
                self.end(request)

    def end(self, request: Request) -> None:
        self.running.remove(request)
        self.waitlist.note_end(request)

    def preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.waitlist.put_back(request)

    def run(self, is_over: Callable[[], bool]) -> None:
        for _ in range(100_000):
            self.fill()
            if is_over():
                return
            self.commit()
        raise AssertionError("it does not come to an end")

    def _serve(self, request: Request, num_tokens: int) -> None:
        self.tokens[request.new.service_class] += num_tokens


def numbers(requests: list[Request]) -> list[int]:
    return [request.number for request in requests]


def test_the_most_urgent_class_starts_first_and_within_it_who_came_first() -> None:
    places = Places(1)
    for number, service_class in enumerate([BATCH, STANDARD, INTERACTIVE, BATCH, STANDARD, INTERACTIVE], 1):
        places.ask(asked(number, service_class))
    places.run(lambda: len(places.started) == 6)
    assert numbers(places.started) == [3, 6, 2, 5, 1, 4]


def cost(request: Request) -> int:
    return len(request.new.prompt) + request.new.max_tokens


@pytest.mark.parametrize("num_places", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_two_tenants_that_always_wait_never_differ_by_more_than_one_request(seed: int, num_places: int) -> None:
    """One has asked for a hundred at once, the other keeps a single one waiting."""
    rng, places = random.Random(seed), Places(num_places)

    def new(number: int, tenant: str) -> NewRequest:
        return asked(number, STANDARD, tenant, prompt=rng.randint(1, 50), max_tokens=rng.randint(1, 50))

    for number in range(1, 101):
        places.ask(new(number, "many"))
    claimed: Counter[str] = Counter()

    def note_start(request: Request) -> None:
        claimed[request.new.tenant] += cost(request)
        assert abs(claimed["many"] - claimed["one"]) <= 100, "a request has a hundred tokens at most"
        if request.new.tenant == "one":
            places.ask(new(100 + len(places.started), "one"))

    places.on_start = note_start
    places.ask(new(101, "one"))
    places.run(lambda: places.waitlist.num_waiting_of("many") == 0)
    assert sum(request.new.tenant == "one" for request in places.started) > 50


def test_being_idle_earns_no_credit() -> None:
    places = Places(1)
    for number in range(1, 41):
        places.ask(asked(number, tenant="busy"))
    places.run(lambda: len(places.started) == 20)
    for number in range(41, 51):
        places.ask(asked(number, tenant="back"))
    places.run(lambda: len(places.started) == 40)
    tenants = [request.new.tenant for request in places.started[20:]]
    assert tenants == ["back", "busy"] * 10


def test_an_answer_that_ends_early_counts_as_what_it_had() -> None:
    places = Places(1)
    for number in range(1, 4):
        places.ask(asked(number, tenant="short", prompt=1, max_tokens=1000))
    for number in range(4, 7):
        places.ask(asked(number, tenant="long", prompt=1, max_tokens=10))
    places.fill()
    places.commit()
    places.end(places.running[0])  # of its thousand tokens it had one
    places.run(lambda: len(places.started) == 2)
    assert numbers(places.started) == [1, 4]
    places.run(lambda: len(places.started) == 4)
    assert numbers(places.started)[2:] == [2, 5], "two tokens are less than eleven, and then a thousand are more"


def test_what_a_tenant_had_in_one_class_does_not_count_in_another() -> None:
    places = Places(1)
    places.ask(asked(1, BATCH, "a", max_tokens=1000))
    places.run(lambda: len(places.started) == 1)
    places.ask(asked(2, INTERACTIVE, "a"))
    places.ask(asked(3, INTERACTIVE, "b"))
    places.run(lambda: len(places.started) == 3)
    assert numbers(places.started) == [1, 2, 3]


def test_a_preempted_request_is_the_first_of_its_tenant_and_owes_its_prompt_once() -> None:
    places = Places(1)
    for number in (1, 2):
        places.ask(asked(number, BATCH, "a", prompt=90, max_tokens=10))
    for number in (3, 4):
        places.ask(asked(number, BATCH, "b", prompt=140, max_tokens=10))
    places.fill()
    places.commit()
    places.preempt(places.running[0])
    places.run(lambda: len(places.started) == 5)
    assert numbers(places.started) == [1, 3, 1, 2, 4], "91, then 100 tokens, are less than 150"


@pytest.mark.parametrize("low", [STANDARD, BATCH])
@pytest.mark.parametrize("num_places", [1, 3])
def test_a_class_under_endless_urgent_load_has_its_share_of_the_tokens(low: ServiceClass, num_places: int) -> None:
    rng, places = random.Random(1), Places(num_places)
    numbers_from = iter(range(1, 1_000_000))
    for _ in range(100):
        places.ask(asked(next(numbers_from), low, max_tokens=20))
    for _ in range(10):
        places.ask(asked(next(numbers_from), INTERACTIVE, max_tokens=10))

    def is_over() -> bool:
        while places.waitlist._lines[INTERACTIVE].num_waiting < 10:
            places.ask(asked(next(numbers_from), INTERACTIVE, prompt=rng.randint(1, 20), max_tokens=10))
        return sum(places.tokens.values()) > 10_000

    places.run(is_over)
    assert places.tokens[low] == pytest.approx(SHARE * places.tokens[INTERACTIVE], abs=24 * (num_places + 1))


def test_what_a_class_was_due_is_gone_when_nothing_of_it_waits() -> None:
    places = Places(1)
    cancelled = places.ask(asked(1, BATCH))
    for number in range(2, 1002):
        places.ask(asked(number, INTERACTIVE))
    places.run(lambda: len(places.started) == 15)
    places.waitlist.remove(cancelled)
    places.ask(asked(2000, BATCH))
    places.run(lambda: len(places.started) == 30)
    assert all(request.new.service_class == INTERACTIVE for request in places.started)


def test_one_that_may_not_start_lets_the_next_of_its_tenant_go() -> None:
    waitlist = Waitlist()
    for number in (1, 2):
        waitlist.add(Request(asked(number), 0.0))
    found = waitlist.next(lambda request: request.number != 1)
    assert found is not None
    assert found.number == 2


def test_accounts_of_tenants_that_are_gone_are_forgotten() -> None:
    places = Places(2)
    for number in range(1, 101):
        places.ask(asked(number, tenant=f"tenant {number}"))
    places.run(lambda: len(places.waitlist) == 0 and not places.running)
    assert all(not line.accounts._by_tenant for line in places.waitlist._lines.values())
