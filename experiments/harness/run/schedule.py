"""Which task comes next. The training of a case comes first; its other phases may run at once."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.harness.run.case import TRAINING, Case, Task, every_phase, phases_of

AUDITED = ("all", "first", "cheap", "none")
PACKED = 2  # nets for each worker at the end of a run, which take their turns by length: more of them gain less than 2 %


@dataclass(frozen=True)
class Level:
    """What nets get beside training, attacks and the figures of their solves.

    audit: one of `AUDITED`; "all" audits every net whole, "first" those of the first seed, and the others get the cheap checks.
    first: that seed. stability: whether every net has its dynamics measured, or those of the first seed alone.
    """

    audit: str
    first: int
    stability: bool = True

    def phases(self, case: Case) -> list[str]:
        """Of a case, in their order."""
        whole = self.audit == "all" or (self.audit == "first" and case.seed == self.first)
        audit = None if self.audit == "none" else "audit" if whole else "checks"
        return phases_of(case, audit, self.stability or case.seed == self.first)


@dataclass
class Schedule:
    """The tasks of a run. level: what cases shall have. had: {case: phases that it has, or that have begun}."""

    level: Level
    clock: Callable[[], float] = time.monotonic
    had: dict[Case, set[str]] = field(default_factory=dict)
    running: dict[Task, float] = field(default_factory=dict)

    def add(self, cases: Iterable[Case], had: Callable[[Case], set[str]] = lambda case: set()) -> None:
        """Further cases, after those that are there; had: what each has already."""
        self.had |= {case: had(case) for case in cases}

    def left(self, case: Case) -> list[str]:
        """The phases of a case that have not begun."""
        return [phase for phase in self.level.phases(case) if phase not in self.had[case]]

    def ready(self) -> list[Task]:
        """What may begin, case by case: its training, or once that has ended the other phases."""
        tasks = []
        for case in self.had:
            left = self.left(case)
            if Task(case, TRAINING) not in self.running:
                tasks += [Task(case, phase) for phase in (left[:1] if TRAINING in left else left)]
        return tasks

    def next(self, urgency: Callable[[Task], Any] = lambda task: 0) -> Task | None:
        """The most urgent task that is ready, of equals the first, which now counts as running; None where there is none."""
        task = max(self.ready(), key=urgency, default=None)
        if task:
            self.had[task.case].add(task.phase)
            self.running[task] = self.clock()
        return task

    def ended(self, task: Task, seconds: float) -> None:
        """A task runs no longer, and took so long."""
        del self.running[task]

    def failed(self, case: Case) -> None:
        """Nothing more of a case."""
        self.had[case] = {*every_phase(case)}

    def complete(self, case: Case) -> bool:
        """Whether nothing of a case is left or running."""
        return not self.left(case) and not any(task.case == case for task in self.running)


def in_order(cases: Iterable[Case], seeds: Sequence[int], workers: int) -> list[Case]:
    """Seed by seed, the dear nets of each first: a run that is cut short has all schemes of the seeds that it has.

    The last seeds, never the first, are one group, the dear nets of it first, so that no worker idles at the end: seed by seed
    to the end would take up to 12 % longer (simulated, 2 to 34 schemes, 2 to 16 workers).
    """
    dear_first = sorted(cases, key=lambda case: (-case.cost, case.seed))
    kinds = len({case.kind for case in dear_first})
    last = seeds[max(1, len(seeds) - -(-PACKED * workers // max(1, kinds))) :]
    return sorted(dear_first, key=lambda case: seeds.index(last[0] if case.seed in last else case.seed))
