"""Teacher samples: generated once, identical after interruptions, never read from a damaged file."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import MakeExamples, MakeModel
from transformers import PreTrainedTokenizerFast

from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.training.teacher_data import generate_teacher_samples
from gkd_rl.types import Example, PromptBatch, Rollout
from reward_models.guard import entry_lock

END = 1
CHUNK = 4
Generate = Callable[..., list[list[int]]]


class Interrupted(RuntimeError):
    """Interrupts a job."""


class CountingSampler(Sampler):
    """Records the size of every batch, and may raise before one of them."""

    def __init__(self, codec: TextCodec, sampling: Sampling, fails_at: int | None = None) -> None:
        super().__init__(codec, sampling)
        self.sizes: list[int] = []
        self.fails_at = fails_at

    def sample(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Rollout:
        if len(self.sizes) == self.fails_at:
            raise Interrupted
        self.sizes.append(len(prompts.examples))
        return super().sample(model, prompts, per_prompt, generator)


@pytest.fixture
def codec(few_words: PreTrainedTokenizerFast) -> TextCodec:
    return TextCodec(few_words, 20, 8, torch.device("cpu"))


@pytest.fixture
def teacher(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=4, lively=True)


@pytest.fixture
def examples(make_examples: MakeExamples) -> list[Example]:
    return make_examples(10)


@pytest.fixture
def generate(teacher: HiddenStateModel, examples: list[Example]) -> Generate:
    def generate(
        folder: Path, sampler: Sampler, seed: int = 0, after_chunk: Callable[[int], None] | None = None
    ) -> list[list[int]]:
        return generate_teacher_samples(folder, teacher, sampler, examples, seed, CHUNK, after_chunk)

    return generate


@pytest.fixture
def sampler(codec: TextCodec) -> CountingSampler:
    return CountingSampler(codec, Sampling())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_call_reads_the_stored_samples(generate: Generate, sampler: CountingSampler, tmp_path: Path) -> None:
    first = generate(tmp_path / "a" / "b", sampler)
    assert sampler.sizes == [4, 4, 2]
    assert len(first) == 10
    assert sorted(files(tmp_path / "a" / "b")) == ["00000.json", "00001.json", "00002.json"]
    assert json.loads((tmp_path / "a" / "b" / "00001.json").read_text(encoding="utf-8")) == first[4:8]
    assert generate(tmp_path / "a" / "b", sampler) == first
    assert sampler.sizes == [4, 4, 2], "finished chunks were sampled again"
    assert generate(tmp_path / "other", sampler) == first


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_an_interrupted_job_continues(
    fails_at: int, generate: Generate, codec: TextCodec, sampler: CountingSampler, tmp_path: Path
) -> None:
    whole = generate(tmp_path / "whole", sampler)
    with pytest.raises(Interrupted):
        generate(tmp_path / "interrupted", CountingSampler(codec, Sampling(), fails_at))
    rest = CountingSampler(codec, Sampling())
    assert generate(tmp_path / "interrupted", rest) == whole
    assert rest.sizes == [4, 4, 2][fails_at:]
    assert files(tmp_path / "interrupted") == files(tmp_path / "whole")


def test_a_finished_chunk_is_kept(generate: Generate, sampler: CountingSampler, tmp_path: Path) -> None:
    def fail(done: int) -> None:
        assert done == CHUNK
        raise Interrupted

    with pytest.raises(Interrupted):
        generate(tmp_path, sampler, after_chunk=fail)
    generate(tmp_path, sampler)
    assert sampler.sizes == [4, 4, 2]


def test_progress_counts_stored_and_sampled_rows(generate: Generate, sampler: CountingSampler, tmp_path: Path) -> None:
    done: list[int] = []
    generate(tmp_path, sampler, after_chunk=done.append)
    (tmp_path / "00001.json").unlink()
    generate(tmp_path, sampler, after_chunk=done.append)
    assert done == [4, 8, 10, 4, 8, 10]


@pytest.mark.parametrize(
    "damage",
    ["", "[[3, 1], [4", "\xff", "{}", "3", "[[3, 1]]", "[[3], [3], [3], []]", '[[3], [3], [3], ["a"]]',
     "[[3], [3], [3], [true]]", "[[3], [3], [3], 3]", "[[3], [3], [3], [-1]]"],
)  # fmt: skip
def test_a_damaged_chunk_is_generated_again(
    damage: str, generate: Generate, sampler: CountingSampler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, before = generate(tmp_path, sampler), files(tmp_path)
    (tmp_path / "00001.json").write_bytes(damage.encode("latin-1"))
    assert not caplog.records
    assert generate(tmp_path, sampler) == first
    assert files(tmp_path) == before
    assert sampler.sizes == [4, 4, 2, 4]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "00001.json" in caplog.text


def test_samples_of_another_run_are_waited_for(
    generate: Generate, sampler: CountingSampler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = generate(tmp_path / "other run", sampler)
    sampler.sizes.clear()
    with ThreadPoolExecutor() as pool, caplog.at_level(logging.INFO):
        with entry_lock(tmp_path / "shared"):
            waiting = pool.submit(generate, tmp_path / "shared", sampler)
            while "Waiting for" not in caplog.text and not waiting.done():
                time.sleep(0.01)
            shutil.copytree(tmp_path / "other run", tmp_path / "shared")
        assert waiting.result(timeout=20) == samples
    assert sampler.sizes == []


def test_seeds_and_chunks_have_different_random_numbers(
    teacher: HiddenStateModel, codec: TextCodec, make_examples: MakeExamples, tmp_path: Path
) -> None:
    examples = make_examples(1) * 12
    sampler = Sampler(codec, Sampling())
    first, second = (
        generate_teacher_samples(tmp_path / str(seed), teacher, sampler, examples, seed, CHUNK) for seed in (0, 1)
    )
    assert first != second
    assert first[:4] != first[4:8] != first[8:]


def test_the_global_random_state_has_no_effect(generate: Generate, sampler: CountingSampler, tmp_path: Path) -> None:
    first = generate(tmp_path / "a", sampler)
    state = torch.get_rng_state()
    torch.manual_seed(123)
    assert generate(tmp_path / "b", sampler) == first
    torch.set_rng_state(state)


def test_greedy_samples_are_the_greedy_output(
    generate: Generate, teacher: HiddenStateModel, codec: TextCodec, examples: list[Example], tmp_path: Path
) -> None:
    greedy = Sampler(codec, GREEDY)
    rollout = greedy.sample(teacher, codec.prompts(examples), 1, None)
    expected = [ids[mask].tolist() for ids, mask in zip(rollout.ids_BT, rollout.mask_BT, strict=True)]
    assert generate(tmp_path, greedy) == expected


def test_finished_rows_end_once_and_truncated_rows_are_whole(
    teacher: HiddenStateModel, codec: TextCodec, make_examples: MakeExamples, tmp_path: Path
) -> None:
    rows = generate_teacher_samples(tmp_path, teacher, Sampler(codec, Sampling()), make_examples(60), 0)
    finished = [row for row in rows if END in row]
    assert 10 < len(finished) < 60
    assert len({len(row) for row in finished}) > 2
    assert all(row.index(END) == len(row) - 1 for row in finished)
    assert all(len(row) == codec.max_completion_tokens for row in rows if END not in row)


def test_no_examples_make_no_files(teacher: HiddenStateModel, sampler: CountingSampler, tmp_path: Path) -> None:
    assert generate_teacher_samples(tmp_path / "none", teacher, sampler, [], 0) == []
    assert not (tmp_path / "none").exists()


def test_the_mode_of_the_teacher_is_restored(
    generate: Generate, teacher: HiddenStateModel, sampler: CountingSampler, tmp_path: Path
) -> None:
    for training in (True, False):
        teacher.train(training)
        generate(tmp_path / str(training), sampler)
        assert teacher.training is training
