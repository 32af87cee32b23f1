"""Runs with a time budget, in a world whose clock is a number: what is planned, what is cut, and when it ends."""

from dataclasses import replace

import pytest
from records import record, verdict

from experiments.harness.command import parse_duration
from experiments.harness.run.budget import FEWEST, Budget, Job, Planner, makespan
from experiments.harness.run.case import Case
from experiments.harness.run.schedule import Level, Schedule
from odenets.errors import InputError

# Seconds of the phases, such as a 2-core machine took.
IMPLICIT = {"training": 42, "attacks": 70, "solver": 2, "stability": 16, "checks": 3, "audit": 42}
EXPLICIT = {"training": 5, "attacks": 3, "solver": 0, "stability": 5, "checks": 1, "audit": 4}


class World:
    """A machine on which phases take the times that are given, and what a planner does on it."""

    def __init__(self, seconds, speed=1.0, workers=2, seeds=(0, 1, 2), audits=("first", "cheap"), known=False, **budget):
        self.now, self.workers, self.said, self.done = 0.0, workers, [], []
        self.times = {"explicit_euler": EXPLICIT, "implicit_euler": IMPLICIT}
        self.times = {name: {p: s / speed for p, s in times.items()} for name, times in self.times.items()}
        self.schedule = Schedule(Level(audits[0], seeds[0]), clock=lambda: self.now)
        cases = [case for seed in seeds for case in self.cases(seed)]
        had = {"training", "attacks", "solver", "stability", "checks", "audit"}
        self.schedule.add(cases, lambda case: set(had) if known else set())
        budget = Budget(seconds, 0.0, self.cases, **budget)
        self.planner = Planner(self.schedule, budget, seeds, workers, audits, self.said.append)
        for case in cases if known else ():
            self.planner.learn(case, record(seconds=self.times[case.scheme]))

    def cases(self, seed):
        return [Case(name, 1, seed) for name in ("implicit_euler", "explicit_euler")]

    def run(self, factor=lambda task: 1.0, fail=lambda task: False):
        """Run to the end; `factor`: how much longer a task takes than usual."""
        ends = {}
        while True:
            while len(ends) < self.workers and (task := self.planner.next()):
                ends[task] = self.now + self.times[task.case.scheme][task.phase] * factor(task)
            if not ends:
                return self
            task = min(ends, key=ends.get)
            self.now = max(self.now, ends.pop(task))
            self.planner.ended(task, self.times[task.case.scheme][task.phase] * factor(task))
            self.done.append(task)
            if fail(task):
                self.planner.failed(task.case)

    def had(self, phase, scheme="implicit_euler"):
        """The seeds whose net of a scheme had a phase."""
        return sorted(task.case.seed for task in self.done if task.phase == phase and task.case.scheme == scheme)


@pytest.mark.parametrize("speed", [0.8, 1, 1.5, 3, 10])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_it_ends_within_the_budget_with_whole_seeds_and_as_many_as_fit(speed, workers):
    budget = 480 / speed**0.5 if workers == 1 else 300
    world = World(budget, speed, workers).run()
    seeds = world.planner.seeds
    feasible = workers > 1 or speed >= 1.5
    assert world.now <= budget - 5 or not feasible
    assert seeds == list(range(len(seeds))) and len(seeds) >= FEWEST
    for scheme in world.times:
        for phase in ("training", "attacks", "solver"):
            assert world.had(phase, scheme) == seeds, "a seed counts only when every scheme has it"
        assert sorted(world.had("audit", scheme) + world.had("checks", scheme)) == seeds, "no net without checks"
    one = sum(sum(times.values()) for times in world.times.values())
    assert not feasible or world.now + 1.6 * one > budget - 20, "another seed would have fitted"
    assert all(world.planner.complete(case) for case in world.schedule.had)


def test_the_plan_is_said_when_the_first_nets_are_timed_and_comes_true():
    world = World(300, 2.0).run()
    plan, *more = world.said
    assert f"{world.planner.planned} seeds (0 to {world.planner.planned - 1})" in plan
    assert len(world.planner.seeds) == world.planner.planned + len(more) and len(more) <= 1, "checks were faster than guessed"
    assert "A net takes implicit_euler 68 s, explicit_euler 7 s. Plan for 5 min on 2 workers" in plan
    assert "the nets of seed 0 are audited, the others get the cheap checks" in plan and "Left out" not in plan


@pytest.mark.parametrize(
    ("speed", "cut", "late"),
    [
        (1.2, "", False),
        (0.82, "whole audits", False),
        (0.72, "whole audits and the dynamics of all nets but those of seed 0", False),
        (0.4, "whole audits and the dynamics of all nets but those of seed 0", True),
    ],
)
def test_what_gives_way_on_a_slow_machine_is_said_and_three_seeds_never_do(speed, cut, late):
    world = World(300, speed).run()
    (plan,) = world.said
    assert world.planner.seeds == [0, 1, 2] == world.had("attacks") and (world.now > 300) == late
    assert f"Left out, so that 3 seeds fit: {cut}." in plan if cut else "Left out" not in plan
    assert ("longer than 5 min" in plan) == late
    assert world.had("audit") == ([] if cut else [0]) and world.had("checks") == ([0, 1, 2] if cut else [1, 2])
    assert world.had("stability") == ([0] if "dynamics" in cut else [0, 1, 2])


def test_what_was_asked_for_is_not_cut():
    assert World(300, 0.75, audits=("all",)).run().had("audit") == [0, 1, 2]
    world = World(300, 10, seeds=(4, 7), extendable=False).run()
    assert world.planner.seeds == [4, 7] and world.had("audit") == [4] and world.now < 60
    assert World(300, 10, at_most=4).run().planner.seeds == [0, 1, 2, 3]


def test_a_resumed_run_knows_its_times_and_takes_further_seeds():
    world = World(300, 1.0, known=True).run()
    assert world.planner.seeds[:3] == [0, 1, 2] and len(world.planner.seeds) > 3 and world.now <= 295
    assert world.had("attacks") == world.planner.seeds[3:] and "audit" not in {task.phase for task in world.done}
    assert not World(60, 1.0, known=True).run().done, "no further seed fits into a minute"


def test_further_seeds_are_the_smallest_that_are_left():
    assert World(300, 2.0, seeds=(1, 5, 0), known=True).run().planner.seeds[:5] == [1, 5, 0, 2, 3]


def test_times_that_change_change_the_plan():
    slower = World(300, 3.0).run(lambda task: 1.0 if task.case.seed < 2 else 1.6)
    assert slower.now <= 300 and f"{slower.planner.planned} seeds" in slower.said[0]
    assert len(slower.planner.seeds) < slower.planner.planned
    faster = World(300, 3.0).run(lambda task: 1.0 if task.case.seed < 1 else 0.5)
    assert len(faster.planner.seeds) > faster.planner.planned and "Time is left: seed" in faster.said[-1]


def test_a_scheme_that_fails_ends_the_run_and_its_other_nets_are_checked():
    world = World(300, 3.0).run(fail=lambda task: task.case.scheme == "implicit_euler" and task.phase == "training")
    assert world.planner.seeds == [0, 1, 2] and world.had("audit", "explicit_euler") == [0] and world.had("attacks") == []


def test_cheap_checks_are_timed_apart_from_audits():
    world = World(300)
    audit = replace(verdict(), extent="cheap")
    world.planner.learn(Case("implicit_euler", 1, 1), record(seconds={"audit": 3.0}, audit=audit))
    assert world.planner.expected(Case("implicit_euler", 1, 5), "checks") == 3.0


def test_makespan_of_a_list_schedule():
    assert makespan([Job(None, 3, [1])], 2) == 4
    assert makespan([Job(None, 3, [2, 2]), Job(None, 1, [])], 2) == 5, "the phases after training run at once"
    assert makespan([Job(None, 1, [1]), Job(None, 2, [9])], 1) == 13
    assert makespan([Job(0.0, 0, [4])], 2, [1, 3]) == 5
    assert makespan([Job(6.0, 0, [4])], 2, [6]) == 10, "what is being trained is waited for"
    assert makespan([], 3) == 0


def test_levels():
    first, other = Case("rk4", 1, 3), Case("rk4", 1, 4)
    assert "audit" in Level("first", 3).phases(first) and "checks" in Level("first", 3).phases(other)
    assert "stability" in Level("none", 3, False).phases(first) and "stability" not in Level("none", 3, False).phases(other)
    assert not {"audit", "checks"} & {*Level("none", 3).phases(first)}
    assert "audit" in Level("all", 3).phases(other) and "checks" in Level("cheap", 3).phases(first)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("1h", 3600), ("2m5s", 125)])
def test_durations(text, seconds):
    assert parse_duration(text, "--budget") == seconds and parse_duration(None, "--budget") is None


@pytest.mark.parametrize("text", ["", "5", "0m", "-5m", "5 minutes", "1.5h", "m", "30m1h", "5mm", "nan", "9999999h", "٥m"])
def test_times_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--budget takes a time such as 30s, 5m or 1h30m, got "):
        parse_duration(text, "--budget")
