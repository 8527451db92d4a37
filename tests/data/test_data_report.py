"""The report on the data: lengths before truncation, the warning, and the entry of eval.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chat_tokenizers import tokenizer_of
from conftest import MakeExamples
from test_tasks import files_task, write
from transformers import PreTrainedTokenizerFast

from gkd_rl.data.task import MEASURED_ROWS, data_facts, truncation_report
from gkd_rl.generation.codec import ChatTemplate, TextCodec
from gkd_rl.outputs.json_files import write_json
from gkd_rl.types import Example

CPU = torch.device("cpu")


def codecs(few_words: PreTrainedTokenizerFast, prompt: int, completion: int) -> list[TextCodec]:
    """An encoder-decoder's, decoder-only ones' whose tokenizers add an end or a start, a chat's."""
    starts = tokenizer_of()
    chat = ChatTemplate(starts, "student.chat")
    return [
        TextCodec(few_words, prompt, completion, CPU),
        TextCodec(few_words, prompt, completion, CPU, decoder_only=True),
        TextCodec(starts, prompt, completion, CPU, decoder_only=True),
        TextCodec(starts, prompt, completion, CPU, decoder_only=True, chat=chat),
    ]


@pytest.mark.parametrize("kind", range(4))
def test_lengths_are_measured_before_truncation(
    kind: int, few_words: PreTrainedTokenizerFast, make_examples: MakeExamples
) -> None:
    examples = make_examples(40)
    whole, cut = codecs(few_words, 99, 99)[kind], codecs(few_words, 8, 3)[kind]
    prompts = whole.prompts(examples).mask_PS.sum(dim=1).tolist()
    references = whole.references(examples).mask_BT.sum(dim=1).tolist()
    assert cut.lengths(examples) == whole.lengths(examples) == (prompts, references)
    report = truncation_report(cut, examples)
    assert report.rows == 40 and report.prompts.longest == max(prompts) and report.references.longest == max(references)
    shorter = cut.prompts(examples).mask_PS.sum(dim=1).tolist(), cut.references(examples).mask_BT.sum(dim=1).tolist()
    assert report.prompts.cut == sum(a != b for a, b in zip(prompts, shorter[0], strict=True))
    assert report.references.cut == sum(a != b for a, b in zip(references, shorter[1], strict=True)) > 0
    assert truncation_report(whole, examples).advice() == "Nothing is truncated"


def test_the_entry_of_eval_json(
    few_words: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"document": "a b c d", "summary": "a"},
        {"document": "", "summary": "a"},
        {"document": "a", "summary": "b"},
    ]
    task = files_task(write(tmp_path / "rows.jsonl", rows))
    splits = {name: task.examples(name) for name in ("train", "test")}
    caplog.clear()
    codec = TextCodec(few_words, 3, 4, CPU)
    write_json(tmp_path / "eval.json", data_facts(task, codec, splits))
    facts = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert facts["rows"]["train"]["reasons"] == {"column 'document' is empty": {"rows": 1, "first": [2]}}
    lengths = {"rows": 2, "prompts": {"limit": 3, "longest": 5, "cut": 1}}
    assert facts["lengths"]["test"] == lengths | {"references": {"limit": 4, "longest": 2, "cut": 0}}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and messages[0].startswith(
        "train: of 2 rows 1 prompts are longer than 3 tokens (longest 5), and 0"
    )
    assert messages[0].endswith("they are truncated at their end. Nothing is truncated with task.max_prompt_tokens=5.")
    caplog.clear()
    data_facts(task, TextCodec(few_words, 5, 4, CPU), splits)
    assert not caplog.records


def test_only_the_first_rows_of_a_large_split_are_measured(few_words: PreTrainedTokenizerFast) -> None:
    rows = [Example("a", "b", {})] * (MEASURED_ROWS + 5)
    assert truncation_report(TextCodec(few_words, 5, 5, CPU), rows).rows == MEASURED_ROWS
