"""The rules of the house, checked on the source: floors, import sites, sizes and names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gkd_rl", "reward_models", "experiments")

# A file imports from its own floor or a lower one. Folders end in a slash and hold all their files.
FLOORS = {
    "__init__": 0, "types": 0, "masking": 0, "choices": 0, "config": 0, "setting_words": 0, "errors": 0,
    "json_files": 0, "rollout_config": 0, "setting_fields": 0, "sweep_config": 0, "safety_config": 0,
    "faults": 1, "divergence": 1, "divergence_slopes": 1, "policy_gradient": 1, "schedule": 1, "uncertainty": 1,
    "finding": 1,
    "objective": 2, "fused_head": 2, "fused_loss": 2, "two_readings": 2, "mixing": 2, "credit": 2, "contradictions": 2,
    "validation": 2, "loading_contradictions": 2, "target_contradictions": 2, "teacher_contradictions": 2,
    "live_memory": 2, "memory_plan": 2, "launched": 2, "rollout_contradictions": 2, "sweep_contradictions": 2,
    "stopping": 2, "checkpoint_contradictions": 2,
    "loading": 3, "architecture": 3, "rollout": 3, "prompt_stream": 3, "optim": 3, "value_head": 3, "cost": 3,
    "model_files": 3, "depth_pruning": 3, "chat": 3, "adapter": 3, "quantization": 3, "elsewhere": 3, "endpoint": 3,
    "known_shapes": 3, "ranks": 3, "decoding": 3, "micro_batches": 3, "packing": 3, "stack_cost": 3, "weight_files": 3,
    "kv_cache": 3, "cuts": 3, "metrics": 3, "tasks/": 3, "embedded/": 3, "beam_search": 3, "corpus_metrics": 3,
    "tensor_shards": 3, "static_decoding": 3, "vllm_sampler": 3,
    "data_report": 4, "trainer": 4, "models": 4, "critic": 4, "gradients": 4, "meter": 4, "step_metrics": 4,
    "teacher_samples": 4, "step_profile": 4, "teacher_outputs": 4, "checkpoint": 4, "evaluation": 4, "tracking": 4,
    "environment": 4, "outputs": 4, "model_card": 4, "report_table": 4, "benchmarks/": 4, "teacher_audit": 4,
    "model_memory": 4, "peak_memory": 4, "run_record": 4, "guard": 4, "snapshot": 4, "training_state": 4,
    "post_mortem": 4,
    "build": 5, "build_trainer": 5, "build_adapter": 5, "build_teacher": 5, "build_plan": 5, "build_evaluator": 5,
    "build_sampler": 5, "checkup": 5, "first_look": 5, "pipeline": 5, "prepared": 5, "checkpoints": 5,
    "out_of_memory": 5, "model_checkup": 5, "machine_checkup": 5,
    "sweep_run": 6, "sweep_folder": 6, "sweep_check": 6, "precheck": 6, "run": 6, "merge": 6, "doctor": 6,
    "evaluate": 6, "resumed_run": 6, "hydra_code": 6,
}  # fmt: skip
# trl: its trainers, and its client of vLLM; evaluate: our metrics, and the harness's code_eval in the sandbox
SITES = {"trl": 2, "wandb": 1, "evaluate": 2}
TOP_LEVEL = {"conf", "gkd_rl", "reward_models", "experiments", "tests", "docs", ".ci"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    name = relative(path).removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: import by the full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(module: str) -> int:
    """Floor of a dotted gkd_rl module, e.g. gkd_rl.data.tasks.xsum."""
    parts = module.split(".")[1:] or ["__init__"]
    key = parts[0] if parts[0] in FLOORS else parts[0] + "/"
    assert key in FLOORS, f"{module} has no floor: add '{parts[0]}' to FLOORS in tests/test_house.py"
    return FLOORS[key]


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("path", python_files("gkd_rl"), ids=relative)
def test_a_file_imports_from_its_floor_or_below(path: Path) -> None:
    modules = {module_name(one) for one in python_files("gkd_rl")}
    own = floor_of(module_name(path))
    higher = {name for name in imports(path) if name in modules and name != "gkd_rl" and floor_of(name) > own}
    assert not higher, f"{relative(path)} is on floor {own} and imports {sorted(higher)} from above"


def test_rewards_stand_alone_and_experiments_are_imported_by_nobody() -> None:
    for path in python_files("reward_models"):
        assert {top(name) for name in imports(path)}.isdisjoint({"gkd_rl", "experiments"}), relative(path)
    for path in python_files("gkd_rl"):
        assert "experiments" not in {top(name) for name in imports(path)}, relative(path)


@pytest.mark.parametrize("library", SITES)
def test_few_import_sites(library: str) -> None:
    sites = [relative(path) for path in python_files("gkd_rl", "reward_models") if library in map(top, imports(path))]
    assert len(sites) <= SITES[library], f"{library} is imported by {sites}: keep it to {SITES[library]}"


def test_experiments_read_wandb_in_one_place() -> None:
    """Runs write to it in gkd_rl/outputs/tracking.py; a comparison reads what was uploaded."""
    sites = [relative(path) for path in python_files("experiments") if "wandb" in map(top, imports(path))]
    assert sites == ["experiments/sync.py"]


def test_the_command_line_imports_nothing_slow() -> None:
    slow = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy", *SITES}
    for name in (
        "config",
        "errors",
        "validation",
        "precheck",
        "run",
        "sweep_run",
        "sweep_folder",
        "sweep_check",
        "resumed_run",
    ):
        found = {top(one) for one in imports(ROOT / "gkd_rl" / f"{name}.py")} & slow
        assert not found, f"gkd_rl/{name}.py imports {found}: a wrong setting would be refused late"


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=relative)
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300, f"{relative(path)} has more than 300 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{relative(path)}: {node.name} has {lines} lines, at most 60"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [one.arg for one in arguments if one.arg not in ("self", "cls")]
            assert len(named) <= 7, f"{relative(path)}: {node.name} takes {len(named)} parameters, at most 7"


def test_names_say_what_is_in_them() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    bad = [
        relative(path) for path in python_files(*PACKAGES, "tests") if path.stem in vague or path.parent.name in vague
    ]
    assert not bad


def test_every_module_has_a_docstring() -> None:
    bare = [
        relative(path)
        for path in python_files(*PACKAGES, "tests")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not bare


def test_the_top_level_is_fixed() -> None:
    """Of the folders that hold source; what runs, builds and tools leave behind is ignored by .gitignore."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    found = {path.name for path in ROOT.iterdir() if path.is_dir()} - ignored - {".git", ".github"}
    extra = {name for name in found - TOP_LEVEL if not name.endswith(".egg-info")}
    assert not extra, f"{sorted(extra)}: the top level is fixed, see CONTRIBUTING.md"
