"""The studies: what they run, how they read finished runs, and what they call a claim that shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import alpha_tradeoff, families, methods
from experiments.study.plan import Job, Run, changes, levels, read_runs, report, run_jobs
from gkd_rl.config import Config
from gkd_rl.config.validation import validate
from gkd_rl.run import find_config_dir


def run_of(method: str, seed: int, before: dict[str, float], after: dict[str, float], **cost: float) -> Run:
    """A finished run with these means."""

    def entries(values: dict[str, float]) -> dict[str, Any]:
        return {name: {"mean": value, "low": value, "high": value, "n": 5} for name, value in values.items()}

    results = {
        "settings": {"seed": str(seed)},
        "cost": {"time/total": 2.0, **cost},
        "teacher": entries(before),
        "student before": entries(before),
        "student after": entries(after),
    }
    return Run(method, seed, results)


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_every_method_of_the_study_is_a_valid_command(method: str) -> None:
    (job,) = methods.jobs_of([method], [3], ["task.seed=7"])
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(job.overrides)))
    assert isinstance(config, Config)
    validate(config)
    assert config.seed == 3
    assert config.task["seed"] == 7
    sequences = config.trainer.prompts_per_step * config.rollout.per_prompt
    assert (sequences, config.trainer.steps) == (64, 200), "methods are compared at equal steps and sequences"


def test_methods_have_folders_of_their_own_and_are_told_apart_by_them() -> None:
    assert len({methods.slug(name) for name in methods.METHODS}) == len(methods.METHODS)
    for name in methods.METHODS:
        assert methods.method_of({}, Path("study") / methods.slug(name) / "seed_1") == name
    jobs = methods.jobs_of(list(methods.METHODS), [0, 1, 2], [])
    assert len({job.folder for job in jobs}) == len(jobs) == 3 * len(methods.METHODS)
    assert [job.folder for job in jobs[:2]] == ["more_SFT/seed_0", "self_distillation/seed_2"]


def test_the_area_under_a_frontier() -> None:
    assert methods.dominated_area([(2.0, 3.0)]) == 6.0
    assert methods.dominated_area([(4.0, 1.0), (2.0, 3.0)]) == 4 * 1 + 2 * 2
    assert methods.dominated_area([(4.0, 1.0), (2.0, 3.0), (1.0, 2.0)]) == 8.0  # the third is dominated
    assert methods.dominated_area([]) == 0.0


def test_a_claim_shows_only_if_it_holds_in_every_seed_with_room() -> None:
    kl = "sampled/forward_kl"

    def summary(differences: list[float], room: list[float]) -> dict[str, Any]:
        runs = []
        for seed, (difference, before) in enumerate(zip(differences, room, strict=True)):
            runs += [
                run_of("GKD, forward KL", seed, {kl: before}, {kl: 0.1 + difference}),
                run_of("supervised KD, forward KL", seed, {kl: before}, {kl: 0.1}),
            ]
        return methods.summarise(runs)

    def verdict(found: dict[str, Any]) -> str:
        (line,) = [
            one
            for one in methods.markdown(found).splitlines()
            if one.startswith("| on-policy < supervised in forward KL")
        ]
        return line

    assert "| 2 of 2 | shows |" in verdict(summary([-0.01, -0.02], [0.3, 0.4]))
    assert "| 1 of 2 | does not show in every seed |" in verdict(summary([-0.01, 0.02], [0.3, 0.4]))
    assert "| 1 of 1 | shows |" in verdict(summary([-0.01, 0.02], [0.3, 0.1]))  # the second has no room


def test_frontiers_are_compared_by_seed() -> None:
    runs = [
        run_of(f"{name}, alpha {alpha}", seed, {}, {"rouge2": quality, "reward/all_supported": reward})
        for name, better in (("RL + GKD", 1.0), ("RLEF*", 0.0))
        for seed in (0, 1)
        for alpha, quality, reward in ((0.25, 10.0, 0.4 + better), (0.5, 20.0, 0.2))
    ]
    (claim,) = [entry for name, entry in methods.summarise(runs)["claims"].items() if name.startswith("frontier")]
    assert claim["holds"] == 2
    assert claim["by_seed"] == pytest.approx({0: -10.0, 1: -10.0})


def test_costs_add_up_over_phases() -> None:
    run = run_of("RL, PPO", 0, {}, {}, **{"flops/student": 3.0, "flops/survey": 4.0, "tokens/student_trained": 5.0})
    assert methods.cost_of(run, "flops/total") == 7.0
    assert methods.cost_of(run, "tokens/student_trained") == 5.0
    assert methods.cost_of(run, "tokens/teacher_scored") == 0.0


def test_levels_and_paired_changes() -> None:
    runs = [run_of("m", seed, {"rouge2": 10.0 * seed}, {"rouge2": 10.0 * seed + seed}) for seed in (1, 2)]
    assert levels(runs, "student after", ["rouge2", "absent"])["rouge2"]["mean"] == pytest.approx(16.5)
    table = changes(runs, {run.seed: run for run in runs}, "student before", ["rouge2", "absent"])
    assert table.keys() == {"rouge2"}
    assert table["rouge2"]["by_seed"] == {1: 1.0, 2: 2.0}


def finish(folder: Path, seed: int, config: dict[str, Any]) -> None:
    """Write what a finished run leaves."""
    folder.mkdir(parents=True)
    run = run_of("", seed, {"rouge2": 1.0, "self_bleu": 2.0}, {"rouge2": 2.0, "self_bleu": 3.0})
    (folder / "eval.json").write_text(json.dumps(run.results), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, **config}), encoding="utf-8")


def test_the_alpha_study_reads_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        for name, config in (
            ("half", {"alpha": 0.5, "divergence": {"name": "jsd"}}),
            ("control", {"alpha": 1.0, "divergence": {"name": "cross_entropy"}}),
        ):
            finish(tmp_path / name / str(seed), seed, config)
    (tmp_path / "unfinished").mkdir()
    runs = read_runs([tmp_path], alpha_tradeoff.method_of)
    assert [(run.method, run.seed) for run in runs] == [
        *[("alpha = 0.5", 0), ("alpha = 0.5", 1)],
        *[("more SFT", 0), ("more SFT", 1)],
    ]
    summary = alpha_tradeoff.summarise(runs)
    report(summary, alpha_tradeoff.markdown(summary), tmp_path / "out" / "result.json")
    assert "| alpha = 0.5 | 1.0 [1.0, 1.0] (2/2) |" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "result.json").read_text())["levels"]["more SFT"]["rouge2"]["mean"] == 2.0
    assert "more SFT" in (tmp_path / "out" / "result.md").read_text()
    with pytest.raises(SystemExit, match="No finished run"):
        read_runs([tmp_path / "unfinished"], alpha_tradeoff.method_of)


def test_finished_jobs_are_kept_and_failed_ones_named(tmp_path: Path) -> None:
    finish(tmp_path / "done", 0, {})
    failed = run_jobs([Job("done", ("alpha=nonsense",)), Job("bad", ("alpha=2",))], tmp_path, workers=2)
    assert failed == ["bad"]
    assert "alpha takes a number >= 0 and <= 1" in (tmp_path / "bad" / "run.log").read_text(encoding="utf-8")


def test_every_run_of_the_families_is_a_valid_command() -> None:
    jobs = families.jobs_of(list(families.FAMILIES), [3], ["trainer.steps=7"])
    assert len({job.folder for job in jobs}) == len(jobs) == 12
    for job in jobs:
        with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
            config = OmegaConf.to_object(compose("config", list(job.overrides)))
        assert isinstance(config, Config)
        validate(config)
        assert (config.seed, config.trainer.steps, config.name) == (3, 7, job.folder.split("/")[0])
        assert config.trainer.prompts_per_step * config.rollout.per_prompt == config.scale.sequences_per_step


def test_the_table_of_the_families_pairs_a_seed_with_itself() -> None:
    before, after = {"rouge2": 10.0, "reward": 0.5, "bleu": 1.0}, {"rouge2": 12.0, "reward": 0.25, "bleu": 1.0}
    runs = [run_of("xsum_gkd", seed, before, {**after, "reward": 0.25 * seed}) for seed in (1, 3)]
    runs.append(run_of("gsm8k_rl", 1, {"reward": 0.0}, {"reward": 1.0}))
    summary = families.summarise(runs)
    assert summary["xsum"]["change"]["gkd"]["reward"]["by_seed"] == {1: -0.25, 3: 0.25}
    lines = families.markdown(summary).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| summarisation: ROUGE-2",
        "| summarisation: reward",
        "| arithmetic: reward",
    ]
    assert lines[2].split(" | ")[4].startswith("2.0") and lines[2].split(" | ")[4].endswith("(2/2)")
    assert "(1/2)" in lines[3] and lines[4].endswith("| - | - | 1.0 (n=1) (1/1) |")
