"""How a drafter's answer to an order grows: after how long its reports come, and what is there then.

Learned from orders below a root under which nothing had been drafted. The times carry their mean deviation, as TCP's
round trips do (RFC 6298): a report that is later than the mean by twice the deviation is not waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REPORTS = 8  # of one order that are told apart
_SMOOTHING = 0.1
_DEVIATIONS = 2.0


@dataclass(slots=True)
class Report:
    """The means of one report of an order."""

    after_s: float
    deviation_s: float
    worth: float  # sum of the survivals of the nodes that are worth their pass time
    num_nodes: float  # of those
    num_seen: int = 1

    @property
    def latest_s(self) -> float:
        return self.after_s + _DEVIATIONS * self.deviation_s


class GrowthCurve:
    """Of one drafter on one worker: its reports, the first one first."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def learn(self, number: int, after_s: float, worth: float, num_nodes: int) -> None:
        """The order's report `number`, from 0 on, came `after_s` seconds after it."""
        if number >= MAX_REPORTS or number > len(self.reports):
            return
        if number == len(self.reports):
            self.reports.append(Report(after_s, after_s / 2, worth, num_nodes))
            return
        report = self.reports[number]
        report.num_seen += 1
        weight = max(_SMOOTHING, 1 / report.num_seen)
        report.deviation_s += weight * (abs(after_s - report.after_s) - report.deviation_s)
        report.after_s += weight * (after_s - report.after_s)
        report.worth += weight * (worth - report.worth)
        report.num_nodes += weight * (num_nodes - report.num_nodes)
