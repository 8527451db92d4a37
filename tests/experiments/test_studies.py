"""The declared studies: valid conditions, statements that are all answered, and claims on numbers made for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import configured

from experiments.paper import STATEMENTS
from experiments.studies import all_studies, alpha, baselines, methods, walk
from experiments.study import Cell, Results, Study
from experiments.study.plan import composed
from experiments.study.verdicts import Claim, Series, Verdict
from gkd_rl.config.validation import validate

STUDIES = all_studies()
OTHERS = ["alpha_tradeoff", "families", "methods"]  # about no statement of the paper


def results_of(value: Callable[[str, str, int], float], names: tuple[str, ...], metrics: tuple[str, ...]) -> Results:
    """Runs of five seeds whose trained student measures value(condition, metric, seed); 0 before and of the teacher."""

    def run(name: str, seed: int) -> dict[str, Any]:
        after = {metric: {"mean": value(name, metric, seed)} for metric in metrics}
        none = {metric: {"mean": 0.0} for metric in metrics}
        cost = {"time/total": value(name, "time/total", seed), "flops/student": 1.0}
        return {"student after": after, "student before": none, "teacher": none, "cost": cost}

    return Results({name: {seed: run(name, seed) for seed in range(5)} for name in names}, tuple(range(5)))


def verdicts(found: Study, results: Results) -> list[str]:
    return [claim.verdict.value for claim in found.claims(results)]


def test_every_study_states_question_command_and_expectation() -> None:
    assert len(STUDIES) == 16 and [name for name, one in STUDIES.items() if not one.in_paper] == OTHERS
    for name, found in STUDIES.items():
        assert found.name == name and found.question.endswith("?") and found.expected.endswith("."), name
        assert found.conditions and (found.seeds or found.gate), name


def test_every_statement_is_answered_or_left_out() -> None:
    answered = {
        claim.statement for found in STUDIES.values() for claim in found.claims(Results({}, (0, 1))) if claim.statement
    }
    assert answered.isdisjoint(number for number, one in STATEMENTS.items() if one.left_out)
    assert answered | {number for number, one in STATEMENTS.items() if one.left_out} == set(range(1, 13))


@pytest.mark.parametrize("name", list(STUDIES))
def test_without_runs_a_claim_is_undecided_and_says_what_is_missing(name: str) -> None:
    for claim in STUDIES[name].claims(Results({}, (3,))):
        assert claim.verdict is Verdict.undecided
        assert claim.missing and all("seed 3" in one for one in claim.missing)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_condition_is_valid_and_on_its_tasks_budget() -> None:
    for found in STUDIES.values():
        composed(Cell(next(iter(found.conditions.values())), 0).effective)  # which Hydra takes
        for name, overrides in found.conditions.items():
            config = configured(*Cell(overrides, 0).effective)
            validate(config)
            sequences = config.trainer.prompts_per_step * config.rollout.per_prompt
            assert sequences == config.scale.sequences_per_step == 64 and config.scale.threads == 1, name
            steps = 120 if "xsum" in config.task["_target_"] else 500 if name == walk.LONGER else 250
            if found.in_paper or found.name == "methods":
                assert config.trainer.steps == (steps if found.in_paper else 200), name


def test_the_walks_share_their_runs() -> None:
    three = [STUDIES["walk"], STUDIES["lambda_sweep"], STUDIES["data_efficiency"]]
    cells = {cell.folder for one in three for cell in one.cells((4,))}
    assert len(cells) == 8  # four of walk, lambda 0.25, three with a quarter of the prompts
    assert len({cell.folder for one in three for cell in one.gate_cells()}) == 12


def test_methods_and_families_have_a_run_for_each_condition() -> None:
    for name, count in (("methods", 25), ("families", 12), ("alpha_tradeoff", 6)):
        assert len({cell.folder for cell in STUDIES[name].cells((0,))}) == len(STUDIES[name].conditions) == count


def test_the_best_divergence_is_not_chosen_by_the_seed_that_it_is_judged_on() -> None:
    lucky = Series({0: 100.0, 1: 1.0, 2: 1.0})
    steady = Series({0: 3.0, 1: 3.0, 2: 3.0})
    assert baselines.best_elsewhere([lucky, steady]).by_seed == {0: 3.0, 1: 1.0, 2: 1.0}
    assert baselines.best_elsewhere([Series({0: 1.0})]).by_seed == {}


def test_the_gap_between_two_curves_at_equal_reward() -> None:
    first = [(10.0 + i, 1.0 - 0.2 * i) for i in range(len(alpha.TEACHER))]  # quality falls by 5 a unit of reward
    second = [(7.0 + i, 0.8 - 0.2 * i) for i in range(len(alpha.OWN))]
    flat = [number for point in [*first, *second] for number in point]
    assert alpha.gap(*flat) == pytest.approx(4.0)
    apart = [number for point in [*first, *[(1.0, 2.0 + i) for i in range(len(alpha.OWN))]] for number in point]
    assert alpha.gap(*apart) != alpha.gap(*apart)


def test_walk_claims() -> None:
    def value(name: str, metric: str, seed: int) -> float:
        on = {"lambda 0": 0.0, "lambda 0.5": 0.5, "lambda 1": 1.0, walk.LONGER: 0.4}[name]
        if metric == "time/total":
            return 20.0 + 20.0 * on if name != walk.LONGER else 39.0 + 0.1 * seed
        return 0.3 + 0.2 * on + 0.01 * seed * on if metric == "reward" else 1.0 - 0.5 * on

    found = results_of(value, tuple(STUDIES["walk"].conditions), ("reward", "sampled/forward_kl"))
    assert verdicts(STUDIES["walk"], found) == ["shown"] * 6
    off = results_of(
        lambda n, m, s: -value(n, m, s), tuple(STUDIES["walk"].conditions), ("reward", "sampled/forward_kl")
    )
    assert verdicts(STUDIES["walk"], off)[0] == "not shown"


def test_data_efficiency_claims() -> None:
    def value(name: str, metric: str, seed: int) -> float:
        return (0.6 if "on-policy" in name else 0.3) - 0.2 * ("quarter" in name) + 0.001 * seed * len(name)

    found = results_of(value, tuple(STUDIES["data_efficiency"].conditions), ("reward",))
    assert verdicts(STUDIES["data_efficiency"], found) == ["shown", "shown"]


def claims_about(study: Study, value: Callable[[str, str, int], float], part: str) -> list[Claim]:
    """Claims whose text contains `part`."""
    metrics = ("sampled/forward_kl", "sampled/divergence", "sampled/reverse_kl", "self_bleu", "rouge2")
    metrics += ("reward/all_supported", "sampled/rouge2", "sampled/reward")
    found = study.claims(results_of(value, tuple(study.conditions), metrics))
    return [claim for claim in found if part in claim.text]


def test_the_area_under_a_frontier() -> None:
    assert methods.dominated_area([(2.0, 3.0)]) == 6.0
    assert methods.dominated_area([(4.0, 1.0), (2.0, 3.0)]) == 4 * 1 + 2 * 2
    assert methods.dominated_area([(4.0, 1.0), (2.0, 3.0), (1.0, 2.0)]) == 8.0  # the third is dominated
    assert methods.dominated_area([]) == 0.0


def test_on_policy_is_judged_in_seeds_with_room_only() -> None:
    kl = "sampled/forward_kl"

    def verdict(differences: list[float], before: list[float]) -> Claim:
        def run(seed: int, value: float) -> dict[str, Any]:
            return {"student before": {kl: {"mean": before[seed]}}, "student after": {kl: {"mean": value}}, "cost": {}}

        runs = {
            "GKD, forward KL": {seed: run(seed, 0.1 + one) for seed, one in enumerate(differences)},
            "supervised KD, forward KL": {seed: run(seed, 0.1) for seed in range(len(differences))},
        }
        return methods.STUDY.claims(Results(runs, tuple(range(len(differences)))))[0]

    assert verdict([-0.01, -0.02, -0.015], [0.3, 0.4, 0.2]).verdict is Verdict.shown
    assert verdict([-0.01, 0.02, -0.015], [0.3, 0.4, 0.2]).verdict is Verdict.undecided
    without = verdict([-0.01, 0.02, -0.0101], [0.3, 0.1, 0.2])
    assert without.verdict is Verdict.shown and list(without.effects["difference"].by_seed) == [0, 2]
    assert "seed 1: nothing to compare" in without.missing


def test_frontiers_are_compared_by_seed() -> None:
    def value(name: str, metric: str, seed: int) -> float:
        better = 1.0 if name.startswith("RL + GKD") else 0.0
        return 10.0 + 0.1 * seed if "rouge2" in metric else 0.4 + better

    first, second = claims_about(methods.STUDY, value, "frontier")
    for claim in (first, second):
        assert claim.verdict is Verdict.shown
        assert dict(claim.effects["difference"].by_seed) == pytest.approx({seed: 10 + 0.1 * seed for seed in range(5)})


@pytest.mark.parametrize("worse", [None, "translation, GKD", "arithmetic, RL + GKD"])
def test_one_family_decides_a_claim_about_every_family(worse: str | None) -> None:
    def value(name: str, metric: str, seed: int) -> float:
        sign = -1 if name == worse else 1
        return sign * (0.1 + 0.001 * seed) * (1 if metric == "sampled/reward" else -1)

    divergence, reward = STUDIES["families"].claims(
        results_of(value, tuple(STUDIES["families"].conditions), ("sampled/reward", "sampled/divergence"))
    )
    assert list(divergence.effects) == ["summarisation", "translation", "arithmetic", "instructions"]
    assert divergence.verdict is (Verdict.not_shown if worse and "translation" in worse else Verdict.shown)
    assert reward.verdict is (Verdict.not_shown if worse and "arithmetic" in worse else Verdict.shown)


def test_the_tradeoff_is_judged_beside_more_steps_of_sft() -> None:
    def value(name: str, metric: str, seed: int) -> float:
        alpha_of_run = alpha.TRADEOFF.get(name)
        noise = 0.001 * seed
        if alpha_of_run is None:
            return {"sampled/reward": 0.05, "sampled/reverse_kl": 0.5}.get(metric, 40.0) + noise
        return {
            "sampled/reward": 0.5 - 0.2 * alpha_of_run,
            "sampled/divergence": -0.2 * alpha_of_run,
            "sampled/reverse_kl": 0.2,
            "rouge2": 30.0 + alpha_of_run,
        }.get(metric, 0.0) + noise * (1 + alpha_of_run)

    found = claims_about(STUDIES["alpha_tradeoff"], value, "")
    assert [claim.verdict for claim in found] == [Verdict.shown] * 7
    assert list(found[5].effects) == ["alpha = 0", "alpha = 0.25", "alpha = 0.5"]
