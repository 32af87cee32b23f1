"""A run with a time budget: the first nets are timed, then as many seeds and phases are taken as fit.

Every scheme has every seed that is taken, and there are three at least: where they do not fit, phases that no accuracy hangs
on give way, and what gave way is said.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from experiments.harness.run.case import TRAINING, Case, Task
from experiments.harness.run.schedule import Level, Schedule
from experiments.harness.run.schema import Record
from experiments.harness.words import count, duration, listed

FEWEST = 3  # seeds: with two the interval of a difference is 13 standard errors wide to either side
# Of the budget and in seconds, for starting, for the tables and the report, and for what takes longer than it did.
RESERVE, RESERVE_SECONDS = 0.05, 5.0
# Of the attacks' time: what an audit is guessed to take before one has been timed.
GUESSED = {"audit": 0.8, "checks": 0.1}


@dataclass(frozen=True)
class Budget:
    """seconds: from `started` on, a time of the clock of the `Schedule`. seeds: the first and, if any may follow, those
    after them; at_most: their number in all, None for no bound."""

    seconds: float
    started: float
    cases: Callable[[int], list[Case]]
    extendable: bool = True
    at_most: int | None = None

    @property
    def deadline(self) -> float:
        """When the tasks should have ended."""
        return self.started + self.seconds - RESERVE * self.seconds - RESERVE_SECONDS


class Planner:
    """Hands out the tasks of a `Schedule`; once every scheme's first net is timed, chooses phases and further seeds.

    Args:
        schedule: With the cases of `seeds`.
        budget: What there is.
        seeds: Those that are taken in any case, in their order.
        workers: How many tasks run at once.
        audits: The audits to choose from, the most wanted first; one of `AUDITED` each.
        say: Called with a sentence that the user should read.
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget,
        seeds: Sequence[int],
        workers: int,
        audits: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.schedule, self.budget, self.seeds, self.workers, self.say = schedule, budget, list(seeds), workers, say
        self.times: dict[tuple[Case, str], list[float]] = {}
        self.kinds = [case.kind for case in budget.cases(self.seeds[0])]
        wanted, first = schedule.level, seeds[0]
        self.levels = [replace(wanted, audit=audit) for audit in audits]
        self.levels.append(replace(self.levels[-1], stability=False))
        # Before there are times, what is chosen last and dropped first does not begin.
        schedule.level = Level("none", first, stability=False)
        self.decided = False
        self.planned = len(self.seeds)

    def next(self) -> Task | None:
        """The next task; None where none is ready. A further seed begins where a worker would idle and it fits."""
        if not self.decided and (self._timed() or not (self.schedule.running or self._waiting())):
            self._decide()
        task = self.schedule.next(self._urgency)
        if task is None and self.decided and self._may_extend() and self._fits(self._further(1)):
            if len(self.seeds) >= self.planned:
                self.say(f"Time is left: seed {self._after(1)[0]} too.")
            self.schedule.add(self._further(1))
            self.seeds += self._after(1)
            task = self.schedule.next(self._urgency)
        return task

    def _urgency(self, task: Task) -> tuple:
        """By how much time hangs on a task; before times are known what tells them: nets, then the phases of the first seed."""
        expected = self.expected(*task)
        if task.phase == TRAINING:
            expected += max(self.expected(task.case, phase) for phase in self.schedule.left(task.case)[1:])
        return (expected,) if self.decided else (task.phase == TRAINING, task.case.seed == self.seeds[0])

    def ended(self, task: Task, seconds: float) -> None:
        """A task runs no longer, and took so long."""
        self.schedule.ended(task, seconds)
        self.note(*task, seconds)

    def failed(self, case: Case) -> None:
        """Nothing more of a case."""
        self.schedule.failed(case)

    def complete(self, case: Case) -> bool:
        """Whether nothing of a case is left, running, or still to be decided."""
        return self.decided and self.schedule.complete(case)

    @property
    def had(self) -> dict[Case, set[str]]:
        """The cases, and the phases that each has or that have begun."""
        return self.schedule.had

    def learn(self, case: Case, record: Record) -> None:
        """What a record of this machine tells of times."""
        for phase, seconds in record.seconds.items():
            phase = "checks" if phase == "audit" and record.audit and record.audit.extent == "cheap" else phase
            self.note(case, phase, seconds)

    def note(self, case: Case, phase: str, seconds: float) -> None:
        """What a phase took."""
        self.times.setdefault((case.kind, phase), []).append(seconds)

    def expected(self, case: Case, phase: str) -> float:
        """Seconds that a phase takes: as it did with other seeds, or a guess."""
        known = self.times.get((case.kind, phase))
        if known:
            return sum(known) / len(known)
        return GUESSED[phase] * self.expected(case, "attacks") if phase in GUESSED else 0.0

    def net(self, case: Case, level: Level) -> float:
        """Seconds that a net takes on one worker."""
        return sum(self.expected(case, phase) for phase in level.phases(case))

    def _timed(self) -> bool:
        """Whether every kind of net has its phases timed that no plan does without."""
        needed = [(kind, phase) for kind in self.kinds for phase in (*Level("none", -1, False).phases(kind), "stability")]
        return all(entry in self.times for entry in needed)

    def _waiting(self) -> bool:
        return any(self.schedule.left(case) for case in self.schedule.had)

    def _may_extend(self) -> bool:
        at_most = self.budget.at_most
        return self.budget.extendable and self._timed() and (at_most is None or len(self.seeds) < at_most)

    def _after(self, count: int) -> list[int]:
        """The seeds that follow: the smallest numbers that are none of those there."""
        return [seed for seed in range(len(self.seeds) + count) if seed not in self.seeds][:count]

    def _further(self, count: int) -> list[Case]:
        return [case for seed in self._after(count) for case in self.budget.cases(seed)]

    def _seconds(self, further: Iterable[Case] = ()) -> float:
        """How long what is left will take, and further cases."""
        schedule, now, busy = self.schedule, self.schedule.clock(), {}
        for task, start in schedule.running.items():
            usual = self.expected(*task)
            busy[task] = max(usual - (now - start), 0.1 * usual)
        jobs = []
        for case in schedule.had:
            phases = schedule.left(case)
            ready = None if TRAINING in phases else busy.get(Task(case, TRAINING), 0.0)
            jobs.append(self._job(case, phases, ready))
        jobs += [self._job(case, schedule.level.phases(case)) for case in further]
        return makespan(jobs, self.workers, list(busy.values()))

    def _job(self, case: Case, phases: Sequence[str], ready: float | None = None) -> "Job":
        times = {phase: self.expected(case, phase) for phase in phases}
        return Job(ready, times.pop(TRAINING, 0.0), sorted(times.values(), reverse=True))

    def _fits(self, further: Iterable[Case] = ()) -> bool:
        return self.schedule.clock() + self._seconds(further) <= self.budget.deadline

    def _decide(self) -> None:
        """Choose the phases; foretell the seeds, each of which is looked at again before it begins."""
        self.decided = True
        for level in self.levels:
            self.schedule.level = level
            if self._fits():
                break
        more = 0
        if self._may_extend():
            most = None if self.budget.at_most is None else self.budget.at_most - len(self.seeds)
            while more != most and self._fits(self._further(more + 1)):
                more += 1
        self.planned = len(self.seeds) + more
        self.say(self._plan(self._further(more), [*self.seeds, *self._after(more)]))

    def _plan(self, further: Sequence[Case], seeds: Sequence[int]) -> str:
        """The plan, in sentences."""
        level, budget = self.schedule.level, duration(self.budget.seconds)
        nets = ", ".join(f"{kind.scheme} {self.net(kind, replace(level, first=-1)):.0f} s" for kind in self.kinds[:6])
        whole = self.schedule.clock() + self._seconds(further) - self.budget.started
        audits = {
            "all": "every net is audited",
            "first": f"the nets of seed {level.first} are audited, the others get the cheap checks of the audit",
            "cheap": "every net gets the cheap checks of the audit",
            "none": "no net is audited",
        }[level.audit]
        cut = []
        if level.audit != self.levels[0].audit:
            cut.append("whole audits")
        if not level.stability:
            cut.append(f"the dynamics of all nets but those of seed {level.first}")
        parts = [
            f"A net takes {nets}.",
            f"Plan for {budget} on {count(self.workers, 'worker')}: {count(len(seeds), 'seed')} ({_span(seeds)}); {audits}; "
            f"{duration(whole)} in all.",
        ]
        if cut:
            parts.append(f"Left out, so that {len(self.seeds)} seeds fit: {' and '.join(cut)}.")
        if whole > self.budget.seconds:
            parts.append(f"That is longer than {budget}, but fewer seeds than {len(self.seeds)} tell nothing.")
        return " ".join(parts)


def _span(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 3 else listed(seeds)


@dataclass
class Job:
    """Of a case: when its net is there (None: training is to begin, and takes `training`), the times of phases, descending."""

    ready: float | None
    training: float
    phases: list[float]

    def urgency(self) -> float:
        """How much time hangs on its next task."""
        return self.phases[0] if self.ready is not None else self.training + max(self.phases, default=0.0)


def makespan(jobs: Sequence[Job], workers: int, busy: Sequence[float] = ()) -> float:
    """Seconds until all is done, where a free worker takes the most urgent task that is ready.

    busy: for how long workers still are.
    """
    free = [*busy, *[0.0] * (workers - len(busy))]
    heapq.heapify(free)
    end = max(free)
    while jobs := [job for job in jobs if job.phases or job.ready is None]:
        now = heapq.heappop(free)
        job = max((job for job in jobs if job.ready is None or job.ready <= now), key=Job.urgency, default=None)
        if job is None:  # every net that has work left is still being trained
            heapq.heappush(free, min(job.ready for job in jobs if job.ready is not None))
            continue
        if job.ready is None:
            done = job.ready = now + job.training
        else:
            done = now + job.phases.pop(0)
        end = max(end, done)
        heapq.heappush(free, done)
    return end
