"""The core's side of drafting: who drafts for whom, what each drafter was told, and which ones keep up.

Part of the core: no I/O. A drafter's nodes are found by their numbers within (request, epoch), so a growth that
verdicts have overtaken still finds its place, or is seen to be out of date. A drafter is late when nothing comes for
its newest order in time.

A request whose rule asks for drawn nodes has one drafter: nodes of two that bear the same token would be one node with
two laws. One that draws is preferred; nodes that were not drawn are right too, and accepted less often.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from outrider.draft_law import DraftLaw
from outrider.tree import Node
from scheduler.events import Growth, ReleaseDrafter, SendOrder
from scheduler.places import Places
from scheduler.policy.policy import Policy
from scheduler.request import DrafterHealth, DrafterView, Request
from scheduler.survival import Survival

RUN_AHEAD = 3  # times a pass's nodes: what a drafter may have waiting, those in flight among them
MAX_TREE_NODES = 1024
MIN_VERDICTS = 64  # before a drafter is judged
MAX_ASKED = 32  # orders of a request whose times are remembered
TRIED_EVERY = 32  # orders: one that is starved gets so few


class Drafting:
    """Orders to drafters, and the nodes that come back.

    `policy_of`: the policy of the target group that a request runs on. `running`: the core's running requests, by
    number. A drafter that does not answer an order in `late_after_s` is late: no row waits for it, and it gets a new
    order only when it has answered the old one.
    """

    def __init__(
        self,
        late_after_s: float,
        run_ahead: int,
        policy_of: Callable[[Request], Policy],
        running: Mapping[int, Request],
        epochs: Iterator[int],
    ) -> None:
        self._late_after_s = late_after_s
        self._run_ahead = run_ahead
        self._policy_of = policy_of
        self._health: defaultdict[tuple[str, str], DrafterHealth] = defaultdict(DrafterHealth)  # by worker and name
        self._running = running
        self._epochs = epochs
        self.survival = Survival()
        self._workers: dict[str, tuple[str, ...]] = {}  # names of the drafters on each worker
        self._drawing: set[str] = set()  # names of those that can draw
        self._leaving: set[str] = set()  # workers that get no new order
        self._generation = 1  # another one whenever the workers are others
        self._unanswered: OrderedDict[DrafterView, None] = OrderedDict()  # those that are silent, by the order's time

    def health(self, worker: str, drafter: str) -> DrafterHealth:
        return self._health.get((worker, drafter)) or DrafterHealth()

    def order(self, request: Request, now_s: float) -> list[SendOrder | ReleaseDrafter]:
        """Tell this request's drafters its newest state, and ask for nodes below it."""
        moved = self._settle(request)
        self._assign(request)
        policy = self._policy_of(request)
        orders = [
            self._order(request, view, policy, now_s)
            for view in request.drafters.values()
            if not (view.is_silent and view.health.is_late) and self._has_turn(view.health, policy)
        ]
        return [*moved, *orders]

    def note_verdict(self, request: Request, chosen: int) -> None:
        """The target chose this token behind the root."""
        self._policy_of(request).note_verdict(request)
        for node in request.tree.children(None).values():
            for name, vote in node.votes.items():
                if vote.rank == 0 and name in request.drafters:
                    request.drafters[name].health.learn(is_accepted=node.token == chosen)

    def is_starved(self, health: DrafterHealth, policy: Policy) -> bool:
        """Its best guesses come true less often than would be worth a pass's time: so it is asked now and then, and
        comes back by itself where they come true again."""
        return health.num_verdicts >= MIN_VERDICTS and health.acceptance < policy.min_survival

    def _has_turn(self, health: DrafterHealth, policy: Policy) -> bool:
        if not policy.drafts_pay:
            health.num_orders_skipped += 1
            return False
        if self.is_starved(health, policy) and health.num_skipped < TRIED_EVERY - 1:
            health.num_skipped += 1
            health.num_orders_skipped += 1
            return False
        health.num_skipped = 0
        return True

    def add_worker(
        self, worker: str, drafters: Sequence[str], drawing: frozenset[str], now_s: float
    ) -> list[SendOrder]:
        self._workers[worker] = tuple(drafters)
        self._drawing |= drawing
        self._generation += 1
        return self._order_from_new(now_s)

    def retire_worker(self, worker: str) -> None:
        """No new order for it. Its requests have what it still sends until their next verdict; then they move."""
        if self._workers.pop(worker, None) is not None:
            self._leaving.add(worker)
            self._generation += 1

    def num_requests_on(self, worker: str) -> int:
        return sum(health.num_requests for (each, _), health in self._health.items() if each == worker)

    def lose_worker(self, worker: str, now_s: float) -> list[SendOrder]:
        """Its nodes stay in the trees: they are as good as any. Its requests move to another worker if one is there."""
        self._workers.pop(worker, None)
        self._leaving.discard(worker)
        self._generation += 1
        for pair in [pair for pair in self._health if pair[0] == worker]:
            del self._health[pair]
        for request in self._running.values():
            for name in [name for name, view in request.drafters.items() if view.worker == worker]:
                self._unanswered.pop(request.drafters.pop(name), None)
        return self._order_from_new(now_s)

    def release(self, request: Request) -> list[ReleaseDrafter]:
        views = request.drafters.values()
        for view in views:
            self._forget(view)
        return [ReleaseDrafter(view.worker, view.drafter, request.number, view.epoch) for view in views]

    def note_late(self, now_s: float) -> None:
        while self._unanswered:
            view = next(iter(self._unanswered))
            if now_s < view.ordered_s + self._late_after_s:
                return
            del self._unanswered[view]
            view.health.num_times_late += not view.health.is_late
            view.health.is_late = True

    def grow(self, grown: Growth, vocab_size: int, now_s: float) -> list[SendOrder]:
        """Take nodes into their request's tree; what is stale, or makes no sense, is dropped."""
        request = self._running.get(grown.request)
        view = request.drafters.get(grown.drafter) if request is not None else None
        if request is None or view is None or (view.worker, view.epoch) != (grown.worker, grown.epoch):
            self.health(grown.worker, grown.drafter).num_stale_reports += 1
            return []
        if grown.is_prefix_missing:
            return self._reopen(request, view, now_s)
        if grown.committed_len > request.committed_len:
            return []  # no drafter knows more than the scheduler
        policy = self._policy_of(request)
        self._note_report(view, grown, policy, now_s)
        if not request.is_drawn_for or grown.committed_len == request.committed_len:
            self._add_nodes(request, view, grown, vocab_size)
        else:
            view.health.num_dropped_nodes += len(grown.tokens)
        if view.ordered_len is None or grown.committed_len < view.ordered_len:
            return []
        return self._note_answer(request, view, policy, grown.is_done, now_s)

    def _note_report(self, view: DrafterView, grown: Growth, policy: Policy, now_s: float) -> None:
        """How long the drafter took for so many nodes, also where a verdict has overtaken them."""
        asked = view.asked.get(grown.committed_len)
        if asked is None or not grown.tokens:
            return
        asked_s, num_nodes = asked[0], asked[1] + len(grown.tokens)
        view.asked[grown.committed_len] = asked_s, num_nodes
        policy.note_report(view, num_nodes, now_s - asked_s)

    def _order_from_new(self, now_s: float) -> list[SendOrder]:
        return [
            self._order(request, view, self._policy_of(request), now_s)
            for request in self._running.values()
            for view in self._assign(request)
        ]

    def _assign(self, request: Request) -> list[DrafterView]:
        """Give a request one worker for each drafter that it may use and lacks: the one with the fewest requests."""
        if request.assigned == self._generation:
            return []
        request.assigned = self._generation
        added: list[DrafterView] = []
        for name in self._names_for(request):
            if name in request.drafters:
                continue
            workers = [worker for worker, names in self._workers.items() if name in names]
            worker = min((self._health[worker, name].num_requests, worker) for worker in workers)[1]
            health = self._health[worker, name]
            health.num_requests += 1
            request.drafters[name] = DrafterView(worker, name, epoch=next(self._epochs), health=health)
            added.append(request.drafters[name])
        return added

    def _names_for(self, request: Request) -> list[str]:
        names = {name for names in self._workers.values() for name in names if request.new.may_use(name)}
        if not request.is_drawn_for:
            return sorted(names)
        # The one that it has stays: another's nodes would be mixed with those that are there.
        return sorted(names, key=lambda name: (name not in request.drafters, name not in self._drawing, name))[:1]

    def _settle(self, request: Request) -> list[ReleaseDrafter]:
        """Once after workers have come or gone: leave those that retire, and those that have more than their share.
        What is drafted stays; the worker that comes next has to be told, and to compute, the whole text."""
        if request.settled == self._generation:
            return []
        request.settled = self._generation
        left = [view for view in request.drafters.values() if view.worker in self._leaving or self._is_crowded(view)]
        for view in left:
            self._forget(view)
            del request.drafters[view.drafter]
            request.assigned = 0
        return [ReleaseDrafter(view.worker, view.drafter, request.number, view.epoch) for view in left]

    def _is_crowded(self, view: DrafterView) -> bool:
        loads = [
            self._health[each, view.drafter].num_requests for each, d in self._workers.items() if view.drafter in d
        ]
        return view.health.num_requests >= min(loads, default=view.health.num_requests) + 2

    def _forget(self, view: DrafterView) -> None:
        self._unanswered.pop(view, None)
        view.health.num_requests -= 1

    def _order(self, request: Request, view: DrafterView, policy: Policy, now_s: float) -> SendOrder:
        committed_len = request.committed_len
        if request.is_drawn_for:  # nodes of a drafter that is lost may be there: siblings are drawn by one drafter
            request.tree.clear()
            view.places = Places()
        view.is_opening = view.told_len == 0
        if not view.is_opening:  # with it comes the prompt, which takes its own time
            view.asked[committed_len] = now_s, 0
            if len(view.asked) > MAX_ASKED:
                del view.asked[next(iter(view.asked))]
        order = SendOrder(
            worker=view.worker,
            drafter=view.drafter,
            request=request.number,
            epoch=view.epoch,
            committed_len=committed_len,
            opening=request.new.opening if view.is_opening else None,
            tokens_start=view.told_len,
            tokens=request.tokens[view.told_len :],
            max_nodes=request.new.max_nodes * (1 if request.is_drawn_for else self._run_ahead),
            min_survival=0.0 if self.is_starved(view.health, policy) else policy.min_survival,
        )
        view.health.num_orders += 1
        view.num_reports, view.began_empty = 0, not len(request.tree)
        view.told_len = view.ordered_len = committed_len
        view.ordered_s, view.is_silent = now_s, True
        self._unanswered[view] = None
        self._unanswered.move_to_end(view)
        return order

    def _reopen(self, request: Request, view: DrafterView, now_s: float) -> list[SendOrder]:
        """Send everything again. A drafter that misses what it was just sent whole waits for the next commit."""
        self._unanswered.pop(view, None)
        view.epoch, view.told_len, view.ordered_len, view.is_silent = next(self._epochs), 0, None, False
        view.places, view.asked = Places(), {}
        return [] if view.is_opening else [self._order(request, view, self._policy_of(request), now_s)]

    def _note_answer(
        self, request: Request, view: DrafterView, policy: Policy, is_done: bool, now_s: float
    ) -> list[SendOrder]:
        """Something has come for the newest order. A drafter that kept nobody waiting is not late any more."""
        if view.is_silent:
            view.health.num_answers += 1
            view.health.answer_s += now_s - view.ordered_s
            if now_s - view.ordered_s <= self._late_after_s:
                view.health.is_late = False
        view.is_silent = False
        self._unanswered.pop(view, None)
        is_outdated = view.ordered_len != request.committed_len
        if not is_outdated:
            policy.note_growth(request, view, now_s)
        view.num_reports += 1
        if is_done:
            view.ordered_len = None
        return [self._order(request, view, policy, now_s)] if is_outdated and policy.drafts_pay else []

    def _add_nodes(self, request: Request, view: DrafterView, grown: Growth, vocab_size: int) -> None:
        """Merge nodes into the tree. Dropped: those whose place is gone, or unknown; those outside the vocabulary, or
        with a law that they can't have been drawn from; and whatever would make the tree too large.
        """
        is_drawn_for, guesses, source = request.is_drawn_for, request.guesses, view.drafter
        laws = grown.laws if grown.laws and is_drawn_for else [None] * len(grown.tokens)
        tree, places, committed, last = request.tree, view.places, request.committed_nodes, request.committed_len - 1
        room = min(MAX_TREE_NODES - len(tree), 2 * MAX_TREE_NODES - len(places))
        num_added = 0
        newest: Node | None = None  # the number before: most nodes are its children
        votes, chance = None, 0.0  # of the node before: most have the same
        entries = zip(grown.tokens, grown.parents, grown.scores, laws, strict=True)
        for number, (token, parent_number, score, law) in enumerate(entries, grown.first_node):
            parent: Node | int | None
            if not parent_number:
                parent = grown.committed_len - 1
            elif newest is not None and parent_number == number - 1:
                parent = newest
            else:
                parent = places.find(parent_number, tree, committed)
            newest = None
            if parent is None or not 0 <= token < vocab_size or room <= 0:
                continue
            if isinstance(parent, Node):
                above = parent
            elif parent == last:
                above = None
            else:
                if request.tokens[parent + 1] == token:
                    places.put(number, parent + 1)
                    room -= 1
                continue
            if is_drawn_for and not _can_be_drawn(token, law, tree.children(above), vocab_size):
                continue
            newest = node = tree.add(above, token, source, score, law)
            if node.votes is not votes:
                votes = node.votes
                chance = self.survival.chance(votes, guesses)
            node.chance = chance
            places.put(number, node)
            room -= 1
            num_added += 1
        request.stats.of_drafter(source).num_drafted_nodes += num_added
        view.health.num_dropped_nodes += len(grown.tokens) - num_added


def _can_be_drawn(token: int, law: DraftLaw | None, siblings: Mapping[int, Node], vocab_size: int) -> bool:
    """Whether the target would take the node with this law: one that comes with the first of siblings, or with none.
    One that is there already may be told again, by a drafter that has forgotten it since."""
    if token in siblings:
        return True
    if siblings:
        shared = next(iter(siblings.values())).law
        return law is None and (shared is None or token in shared.ids)
    return law is None or (token in law.ids and all(0 <= each < vocab_size for each in law.ids))
