"""Entailment and scalar rewards from local folders: labels, answers, long documents, batches, refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from gkd_rl.data.embedded.tokenizer import build_tokenizer
from reward_models.models.checkpoint import Checkpoint, in_batches
from reward_models.models.entailment import Entailment, sentence_windows, truncated
from reward_models.models.scalar import ScalarReward

DOCUMENTS = ["mayor evans has opened the bridge . it happened in leeds .", "the yacht has been sold by chef cole ."]
CLAIMS = ["evans has opened the bridge in leeds .", "the yacht was sold by cole for two million pounds ."]
NLI = {0: "CONTRADICTION", 1: "Entailment", 2: "neutral"}


def saved(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_bert(labels: dict[int, str], length: int = 64) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    vocabulary, start = len(build_tokenizer()), 0.5
    config = BertConfig(
        vocab_size=vocabulary, id2label=labels, max_position_embeddings=length, initializer_range=start, **sizes
    )
    return AutoModelForSequenceClassification.from_config(config)


def answering_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["premise:", "hypothesis:", "0", "1"])
    return tokenizer


def tiny_t5(vocabulary: int) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    sizes["decoder_start_token_id"] = 0
    return AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=vocabulary, **sizes))


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    return saved(tmp_path / "nli", tiny_bert(NLI), build_tokenizer())


def test_a_classifier_gives_the_probability_of_its_label(classifier: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = build_tokenizer()
    expected = [
        model(**tokenizer(document, claim, return_tensors="pt")).logits.softmax(-1)[0, 1].item()
        for document, claim in zip(DOCUMENTS, CLAIMS, strict=True)
    ]
    reward = Entailment(Checkpoint(classifier))
    assert reward(["unused"] * 2, CLAIMS, document=DOCUMENTS) == pytest.approx(expected, abs=1e-5)
    assert reward(DOCUMENTS, CLAIMS) == pytest.approx(expected, abs=1e-5)  # the prompt is the document
    assert reward(DOCUMENTS[::-1], CLAIMS) != pytest.approx(expected, abs=1e-3)
    neutral = Entailment(Checkpoint(classifier), entailment_label="Neutral")
    assert neutral(DOCUMENTS, CLAIMS) != pytest.approx(expected, abs=1e-3)


def test_log_probabilities_have_a_floor(classifier: str) -> None:
    probabilities = Entailment(Checkpoint(classifier))(DOCUMENTS, CLAIMS)
    logs = torch.tensor(probabilities).log().tolist()
    assert Entailment(Checkpoint(classifier), measure="log_probability")(DOCUMENTS, CLAIMS) == pytest.approx(logs)
    floor = (logs[0] + logs[1]) / 2
    floored = Entailment(Checkpoint(classifier), measure="log_probability", floor=floor)(DOCUMENTS, CLAIMS)
    assert sorted(floored) == pytest.approx([floor, max(logs)])


def test_an_encoder_decoder_answers_one_or_zero(tmp_path: Path) -> None:
    tokenizer = answering_tokenizer()
    model = tiny_t5(len(tokenizer)).eval()
    one, zero = (int(tokenizer.convert_tokens_to_ids(word)) for word in ("1", "0"))  # pyright: ignore
    expected = []
    for document, claim in zip(DOCUMENTS, CLAIMS, strict=True):
        ids = tokenizer(f"premise: {document} hypothesis: {claim}", return_tensors="pt")["input_ids"]
        logits = model(ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0]
        expected.append(torch.sigmoid(logits[one] - logits[zero]).item())
    reward = Entailment(Checkpoint(saved(tmp_path / "true", model, tokenizer)))  # its kind is found
    assert reward(["unused"] * 2, CLAIMS, document=DOCUMENTS) == pytest.approx(expected, abs=1e-5)


def test_batches_do_not_change_scores(classifier: str) -> None:
    documents = [" ".join(DOCUMENTS[: 1 + i % 2]) for i in range(7)]
    claims = [CLAIMS[i % 2] for i in range(7)]
    scores = [Entailment(Checkpoint(classifier), batch_size=size)(documents, claims) for size in (1, 3, 32)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert len(set(scores[0])) > 1
    seen: list[list[int]] = []
    in_batches([3, 1, 2], 2, lambda rows: seen.append(rows) or torch.zeros(len(rows)))
    assert seen == [[1, 2], [0]]
    assert Entailment(Checkpoint(classifier))([], []) == []


LONG = " ".join(f"it happened in {place} ." for place in ("york", "bath", "leeds", "dover", "truro", "wells"))


def test_windows_hold_whole_sentences_as_long_as_fit() -> None:
    def offsets(text: str) -> list[tuple[int, int]]:
        return build_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    for room, expected in ((30, 1), (29, 2), (14, 3), (5, 6), (3, 6)):
        found = sentence_windows(LONG, room, offsets)
        assert len(found) == expected and " ".join(found) == LONG
        assert all(one.endswith(" .") and (len(one.split()) <= room or room < 5) for one in found)
    assert truncated(LONG, 7, offsets) == "it happened in york . it happened"
    assert truncated(LONG, 30, offsets) == LONG


def test_a_long_document_is_the_best_of_its_windows(classifier: str, caplog: pytest.LogCaptureFixture) -> None:
    claim = "the yacht was sold ."  # 5 words, 3 marks: 12 tokens are left of 20
    small = Checkpoint(classifier, max_tokens=20)
    parts = [" ".join(LONG.split()[start : start + 10]) for start in (0, 10, 20)]
    reward, alone = Entailment(small, split_premise="sentences"), Entailment(small)
    scores = alone(parts, [claim] * 3)
    assert len(set(scores)) == 3
    assert reward([LONG, parts[1]], [claim] * 2) == pytest.approx([max(scores), scores[1]], abs=1e-6)
    assert reward.truncated_premises == 0 and not caplog.records
    with caplog.at_level(logging.WARNING):
        first = alone([LONG, LONG], [claim] * 2)
    assert first == pytest.approx(alone([" ".join(LONG.split()[:12])] * 2, [claim] * 2), abs=1e-6)
    assert alone.truncated_premises == 2 and len(caplog.records) == 1 and "was truncated" in caplog.text
    with pytest.raises(ValueError, match="leaves no room for a premise in 20 tokens"):
        alone([LONG], [LONG])


def test_what_cannot_be_loaded_is_refused_in_one_sentence(tmp_path: Path, classifier: str) -> None:
    for path in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(ValueError, match="there is no folder"):
            Checkpoint(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        Checkpoint(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="entailment_label=entailment: the model's labels are"):
        labels = {0: "yes", 1: "no"}
        Entailment(Checkpoint(saved(tmp_path / "labels", tiny_bert(labels), build_tokenizer())))(DOCUMENTS, CLAIMS)
    with pytest.raises(ValueError, match="it is not a trained reward model"):
        headless = tiny_bert(NLI).bert
        Entailment(Checkpoint(saved(tmp_path / "headless", headless, build_tokenizer())))(DOCUMENTS, CLAIMS)
    wrong: list[dict[str, Any]] = [
        {"kind": "bert"},
        {"measure": "logit"},
        {"split_premise": "words"},
        {"floor": 0},
        {"batch_size": 0},
    ]
    for settings in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
            Entailment(Checkpoint(classifier), **settings)
    with pytest.raises(ValueError, match="dtype=int8"):
        Checkpoint(classifier, dtype="int8")


@pytest.mark.parametrize("form", ["pair", "text", "chat"])
def test_a_scalar_reward_is_the_models_output(form: Any, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}</s>"
    model = tiny_bert({0: "reward"}).eval()
    prompts, texts = ["bridge in leeds "] * 3, ["evans .", "cole has sold the yacht .", "evans ."]
    inputs = {
        "pair": lambda p, t: tokenizer(p, t, return_tensors="pt"),
        "text": lambda p, t: tokenizer(f"{p}{t}</s>", return_tensors="pt"),
        "chat": lambda p, t: tokenizer(f"user {p} assistant {t} </s>", add_special_tokens=False, return_tensors="pt"),
    }[form]
    expected = [model(**inputs(p, t)).logits.item() for p, t in zip(prompts, texts, strict=True)]
    reward = ScalarReward(Checkpoint(saved(tmp_path / "rm", model, tokenizer)), form, batch_size=2)
    assert reward(prompts, texts, reference=["unused"] * 3) == pytest.approx(expected, abs=1e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


def test_scalar_refusals(tmp_path: Path, classifier: str) -> None:
    with pytest.raises(ValueError, match="has 3 labels, one is needed"):
        ScalarReward(Checkpoint(classifier))(["a"], ["b"])
    with pytest.raises(ValueError, match="has no chat template"):
        ScalarReward(Checkpoint(classifier), "chat")(["a"], ["b"])
    with pytest.raises(ValueError, match="format=prose"):
        ScalarReward(Checkpoint(classifier), "prose")  # pyright: ignore[reportArgumentType]
    folder = saved(tmp_path / "rm", tiny_bert({0: "reward"}), build_tokenizer())
    with pytest.raises(ValueError, match="the reward model takes 8"):
        ScalarReward(Checkpoint(folder, max_tokens=8))([LONG], ["b"])
