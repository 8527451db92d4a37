"""Training of reward models: rows, splits, measures, initial weights, the command line, and the model of the news."""

from __future__ import annotations

import json
import math
import random
import re
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from gkd_rl.data.embedded.claims import BREAKS, claim_rows
from gkd_rl.data.embedded.news import DAYS, OUTCOMES, PLACES, NewsChecker, generate
from gkd_rl.data.embedded.tokenizer import build_tokenizer, pair_tokenizer
from reward_models.composite import Composite
from reward_models.models.checkpoint import Checkpoint
from reward_models.models.classifier import NewClassifier, TrainingSettings, batches, word_loss
from reward_models.models.entailment import Entailment, TrainedEntailment
from reward_models.models.training_rows import (
    auc,
    brier,
    checked,
    expected_calibration_error,
    quality_report,
    read_files,
    split,
)
from reward_models.score import load_reward, reward_files
from reward_models.text.form import LengthPenalty
from reward_models.train import main, settings_of

NEWS: Any = OmegaConf.load(reward_files() / "entailment_news.yaml")
TINY = {**OmegaConf.to_container(NEWS.components.entailment.new.architecture), "num_hidden_layers": 2}  # pyright: ignore
NLI = [
    {"premise": f"document {i // 2}", "hypothesis": f"claim {i}", "label": i % 2}  # two rows of each document
    for i in range(20)
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 7, 40):
        labels = np.array([0.0, 1.0, *rng.integers(0, 2, size - 2)])
        scores = rng.integers(0, 6, size) / 5  # with ties
        pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
        assert auc(labels, scores) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc(np.ones(3), np.arange(3.0)))


def test_calibration_by_hand() -> None:
    labels, probabilities = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.95, 0.91, 0.2, 1.0])
    assert brier(labels, probabilities) == pytest.approx((0.05**2 + 0.91**2 + 0.8**2) / 4)
    # bins [0.9, 1]: three rows, mean 0.95333 against 2/3; [0.2, 0.3): one row, 0.2 against 1
    assert expected_calibration_error(labels, probabilities) == pytest.approx((3 * (2.86 / 3 - 2 / 3) + 0.8) / 4)
    rng = np.random.default_rng(0)
    true = rng.random(20000)
    drawn = (rng.random(20000) < true).astype(float)
    assert expected_calibration_error(drawn, true) < 0.02 < 0.2 < expected_calibration_error(drawn, true**3)


def test_a_report_resamples_documents() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.clip(labels * 0.3 + rng.random(200) * 0.7, 0, 1)
    alone = quality_report(labels.tolist(), scores.tolist(), [str(i) for i in range(200)])
    assert (alone["rows"], alone["documents"], alone["positives"]) == (200, 200, labels.sum())
    assert all(one["low"] <= one["mean"] <= one["high"] for one in alone.values() if isinstance(one, dict))
    # every row five times: resampled rows would count as five times the evidence, resampled documents do not
    again = quality_report(labels.tolist() * 5, scores.tolist() * 5, [str(i) for i in range(200)] * 5)
    assert again["auc"] == pytest.approx(alone["auc"])


def test_held_out_rows_share_no_document() -> None:
    train, held_out = split(NLI, lambda row: row["premise"], 0.3, 0)
    assert len(held_out) == 6 and sorted(map(str, train + held_out)) == sorted(map(str, NLI))
    assert {row["premise"] for row in train}.isdisjoint(row["premise"] for row in held_out)
    assert split(NLI, lambda row: row["premise"], 0.3, 1)[1] != held_out
    for share in (0.0, 0.01, 1.0):
        with pytest.raises(ValueError, match=f"held_out={share} of 10 documents"):
            split(NLI, lambda row: row["premise"], share, 0)


def test_files_are_read_and_checked(tmp_path: Path) -> None:
    columns = ("premise", "hypothesis", "label")
    table = tmp_path / "rows.csv"
    table.write_text('premise,hypothesis,label\n"a, b",c,Entailment\nd,e,neutral\n', encoding="utf-8")
    rows = checked(read_files([write(tmp_path / "rows.jsonl", NLI[:2]), str(table)]), columns)
    assert [row["label"] for row in rows] == [0, 1, 1, 0] and rows[2]["premise"] == "a, b"
    for bad, message in (({"premise": "a"}, "row 1 has no hypothesis, label"), ({**NLI[0], "label": 2}, "label=2")):
        with pytest.raises(ValueError, match=message):
            checked([bad], columns)
    with pytest.raises(ValueError, match="there are no rows"):
        checked([], columns)
    (tmp_path / "bad.jsonl").write_text("{", encoding="utf-8")
    for name in ("bad.jsonl", "none.jsonl", "rows.parquet"):
        with pytest.raises(ValueError, match=f"{name}: "):
            read_files([str(tmp_path / name)])


def test_rows_of_a_document_are_adjacent() -> None:
    steps = batches(NLI, TrainingSettings(steps=15, batch_size=4, learning_rate=1.0))
    assert [len(step) for step in steps] == [4] * 15
    rows = [row for step in steps for row in step]
    assert all(a["premise"] == b["premise"] for a, b in zip(rows[::2], rows[1::2], strict=True))
    assert all(rows[i : i + 20] != NLI and sorted(map(str, rows[i : i + 20])) == sorted(map(str, NLI)) for i in (0, 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "reward=: takes entailment or scalar"),
        (["reward=rouge"], "reward=rouge: takes"),
        (["reward=scalar", "lr=1", "training.lr=1", "out=x"], "lr, training.lr: unknown. .* training.learning_rate"),
        (["reward=scalar"], "out: set it"),
        (["reward=scalar", "out=x"], "files and rows: set one of them"),
        (["reward=scalar", "out=x", "files=[a.txt]"], "files=a.txt: takes .jsonl or .csv"),
    ],
)
def test_the_command_line_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert re.search(message, shown) and shown.count("\n") == 1


def test_settings_are_merged_over_the_file() -> None:
    arguments = ["reward=entailment", "out=x", "rows._target_=a.b", "rows.size=3", "training.steps=7", "files=null"]
    reward, config = settings_of(arguments)
    assert (reward, config.rows, config.training.steps) == ("entailment", {"_target_": "a.b", "size": 3}, 7)
    for name, wrong in (("steps", 0), ("learning_rate", 0), ("weight_decay", -1)):
        with pytest.raises(ValueError, match=rf"training\.{name}={wrong}"):
            TrainingSettings(**{"steps": 1, "batch_size": 1, "learning_rate": 1.0, name: wrong})


def test_labels_agree_with_the_checker() -> None:
    checker = NewsChecker()
    rows = [row for seed in range(3) for row in claim_rows("train", 150, 3, seed)]
    for row in rows:
        verdict = checker(row["premise"], row["hypothesis"])
        assert row["label"] == int(verdict.grammatical and verdict.supported == verdict.claims), row
        assert (row["kind"] == "supported") == bool(row["label"])
        marked = [word for word, false in zip(row["hypothesis"].split(), row["unsupported"], strict=True) if false]
        assert len(marked) == 1 if row["kind"] in BREAKS else set(marked) == set(verdict.unsupported)
        if row["kind"] in BREAKS:
            assert not verdict.grammatical
        elif row["kind"] not in ("supported", "several"):
            assert verdict.claims - verdict.supported == 1
    counts = defaultdict(int)
    for row in rows:
        counts[row["kind"]] += 1
    assert len(counts) == 16 and min(counts.values()) > 10
    assert claim_rows("train", 150, 3, 0) == rows[:900]
    assert {row["premise"] for row in rows}.isdisjoint(row["premise"] for row in claim_rows("test", 150, 1, 0))


def test_a_broken_claim_marks_its_first_wrong_word() -> None:
    words = ["mayor", "evans", "has", "opened", "the", "new", "bridge", "in", "leeds", "."]
    other = ["the", "new", "bridge", "has", "been", "opened", "in", "leeds", "."]
    faults = {kind: [make(random.Random(seed), words, other) for seed in range(40)] for kind, make in BREAKS.items()}
    for made, at in faults["cut"]:
        assert made == words[: at + 1] and made != words
    for made, at in faults["dropped"]:
        left = len(words) - len(made)
        assert 1 <= left < len(words) and made == words[:at] + words[at + left :]
    for made, at in faults["repeated"]:
        assert made[:at] == words[:at] and made[at:] != words[at:] and len(made) > len(words)
    for made, at in faults["misplaced"]:
        assert made[at] in set(words) - {words[at]} and [*made[:at], words[at], *made[at + 1 :]] == words
    for made, at in faults["joined"]:
        assert made[:at] == words[:at] and made[at:] == other[len(other) - len(made) + at :]
    assert {len(made) for made, _ in faults["cut"]} >= {1, len(words) - 1}


def test_false_values_are_often_those_of_a_distractor() -> None:
    values = {"place": PLACES, "day": DAYS, "outcome": OUTCOMES}
    found = [
        any(word in values[row["kind"]] and word in row["premise"].split() for word, false in marked if false)
        for row in claim_rows("train", 400, 2, 0)
        if row["kind"] in values and (marked := list(zip(row["hypothesis"].split(), row["unsupported"], strict=True)))
    ]
    assert len(found) > 100 and 0.2 < sum(found) / len(found) < 0.6  # half of those whose distractor is in the article


def test_initial_attention_is_to_the_same_word_in_the_other_segment() -> None:
    model, tokenizer = NewClassifier(TINY, pair_tokenizer, same_word=16.0).build(0)
    premise, hypothesis = "mayor evans has opened the bridge .", "bridge evans leeds"
    batch = tokenizer(premise, hypothesis, return_tensors="pt")
    base: Any = model.deberta  # pyright: ignore[reportAttributeAccessIssue]
    hidden = base.embeddings(batch["input_ids"], token_type_ids=batch["token_type_ids"])[0]
    attention = base.encoder.layer[0].attention.self
    weights = (attention.query_proj(hidden) @ attention.key_proj(hidden).T / 48**0.5).softmax(-1)
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    at = {word: i for i, word in enumerate(words) if i > 8}
    assert words == ["</s>", *premise.split(), "</s>", *hypothesis.split(), "</s>"]
    for word in ("bridge", "evans"):
        assert weights[at[word]].argmax() == words.index(word) and weights[at[word], words.index(word)] > 0.8
    assert weights[at["leeds"]].argmax() == at["leeds"]  # a word that the premise does not have attends to itself
    last = base.encoder.layer[-1].attention.self
    attended = (last.query_proj(hidden) @ last.key_proj(hidden).T / 48**0.5).softmax(-1)[0]
    assert attended[9:].sum() > attended[:9].sum()
    with pytest.raises(ValueError, match="same_word"):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        NewClassifier({"model_type": "bert", **sizes}, pair_tokenizer, same_word=16.0).build(0)
    with pytest.raises(ValueError, match="returns no segments"):
        NewClassifier(TINY, build_tokenizer, same_word=16.0).build(0)


def test_the_loss_on_words_is_that_of_the_hypothesis_alone() -> None:
    tokenizer = pair_tokenizer()
    rows = [
        {"premise": "leeds york", "hypothesis": "york bath", "unsupported": [0, 1]},
        {"premise": "leeds", "hypothesis": "leeds", "unsupported": [0]},
        {"premise": "leeds", "hypothesis": "bath bath", "unsupported": None},
    ]
    encoded = tokenizer([row["premise"] for row in rows], [row["hypothesis"] for row in rows], padding=True)
    logits = torch.arange(3.0 * len(encoded["input_ids"][0])).reshape(3, -1) / 10 - 0.7
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]]
    assert words[0] == ["</s>", "leeds", "york", "</s>", "york", "bath", "</s>"]
    targets = [(logits[0, 4], 0.0), (logits[0, 5], 1.0), (logits[1, words[1].index("</s>", 1) + 1], 0.0)]
    by_hand = [-(3 * y * torch.sigmoid(x).log() + (1 - y) * torch.sigmoid(-x).log()) for x, y in targets]
    assert float(word_loss(logits, encoded, rows)) == pytest.approx(float(sum(by_hand)) / 3, abs=1e-6)


def test_training_an_entailment_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "nli"
    file = write(tmp_path / "rows.jsonl", claim_rows("train", 60, 1, 0))
    new = {"_target_": "reward_models.models.classifier.NewClassifier", "architecture": TINY, "same_word": 16.0}
    new["tokenizer"] = {"_target_": "gkd_rl.data.embedded.tokenizer.pair_tokenizer", "_partial_": True}
    settings = ["training.steps=3", "training.learning_rate=1e-3", "training.batch_size=8", "held_out=0.2"]
    command = ["reward=entailment", f"files=[{file}]", f"out={out}", f"new={json.dumps(new)}", *settings]
    assert main(command) == 0
    found = json.loads(out.with_name("nli.json").read_text())
    assert (found["rows"], found["documents"], found["positives"]) == (24, 12, 12)
    assert "auc  " in capsys.readouterr().out
    scores = Entailment(Checkpoint(str(out)))(["a bridge ."], ["the bridge ."])
    assert 0 < scores[0] < 1


def test_training_a_scalar_model_through_trl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, base, out = build_tokenizer(), tmp_path / "base", tmp_path / "rm"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    places = ("leeds", "york", "bath", "derby", "oxford", "london", "dover", "truro", "wells", "ripon")
    rows = [{"prompt": f"{place} : ", "chosen": "praise .", "rejected": "delays ."} for place in places]
    settings = ["training.steps=40", "training.learning_rate=1e-2", "training.warmup_steps=0", "held_out=0.3"]
    where = [f"files=[{write(tmp_path / 'rows.jsonl', rows)}]", f"checkpoint.path={base}", "checkpoint.device=cpu"]
    assert main(["reward=scalar", f"out={out}", *where, *settings]) == 0
    found = json.loads((tmp_path / "rm.json").read_text())
    assert found["rows"] == 6 and found["accuracy"]["mean"] == 1.0
    assert "accuracy" in capsys.readouterr().out


def embedded(folder: Path, **training: int) -> TrainedEntailment:
    """The first component of the embedded reward, with the settings of its YAML file except those of the training."""
    node = OmegaConf.merge(NEWS.components.entailment, {"cache_dir": str(folder), "training": training})
    return instantiate(node, _convert_="all")


def test_the_embedded_model_is_trained_once_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkd_rl.data.embedded.claims.generate", lambda split, size, seed: generate(split, 8, seed))
    trained: list[Path] = []
    train = TrainedEntailment._train
    monkeypatch.setattr(TrainedEntailment, "_train", lambda self, rows, at: (trained.append(at), train(self, rows, at)))
    rewards = [embedded(tmp_path, steps=2) for _ in range(2)]
    assert not list(tmp_path.iterdir())  # nothing happens before the first call
    threads = [threading.Thread(target=reward.folder) for reward in rewards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    scores = rewards[0](["unused"], ["the bridge ."], document=["a bridge ."])
    assert 0 < scores[0] < 1 and scores == rewards[1](["a bridge ."], ["the bridge ."])
    assert embedded(tmp_path, steps=2, seed=1).folder() != trained[0] and len(trained) == 2
    with pytest.raises(ValueError, match="measure=logit"):
        TrainedEntailment(list, rewards[0].new, rewards[0].training, str(tmp_path), "logit")


def test_untrained_components_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkd_rl.data.embedded.claims.generate", lambda split, size, seed: generate(split, 8, seed))
    model = embedded(tmp_path, steps=2)
    reward = Composite({"model": model, "length": LengthPenalty(9)}, {"model": 1.0, "length": 1.0})
    assert reward.untrained() == ["model"]
    assert not list(tmp_path.iterdir())  # the query trains nothing
    model.folder()
    assert reward.untrained() == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_embedded_model_is_trained_where_gradients_are_off(
    mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reward of a run is that of the teacher's evaluation."""
    monkeypatch.setattr("gkd_rl.data.embedded.claims.generate", lambda split, size, seed: generate(split, 8, seed))
    with mode():
        scores = embedded(tmp_path, steps=2)(["unused"], ["the bridge ."], document=["a bridge ."])
    assert 0 < scores[0] < 1


def test_the_cache_is_the_runs_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKD_RL_CACHE", "/somewhere")
    assert load_reward("entailment_news").components["entailment"].reward.cache_dir == Path("/somewhere")  # pyright: ignore
    run = OmegaConf.create({"cache_dir": "/run", "reward": NEWS})
    assert run.reward.components.entailment.cache_dir == "/run"


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [0])
def test_the_embedded_model_separates_supported_from_false_claims(seed: int, tmp_path: Path) -> None:
    """With the settings of the reward, on articles of the test split."""
    reward = embedded(tmp_path, seed=seed)
    rows = claim_rows("test", 400, 2, 0)
    scores = reward([row["premise"] for row in rows], [row["hypothesis"] for row in rows])
    by_kind: dict[str, list[float]] = defaultdict(list)
    for row, score in zip(rows, scores, strict=True):
        by_kind[row["kind"]].append(score)
    right = by_kind.pop("supported")

    def against(wrong: list[float]) -> float:
        return auc(np.array([1.0] * len(right) + [0.0] * len(wrong)), np.array(right + wrong))

    assert against([one for wrong in by_kind.values() for one in wrong]) >= 0.95
    swapped = ("surname", "first", "place", "day", "amount", "outcome", "object")
    assert {kind: against(by_kind[kind]) for kind in swapped if against(by_kind[kind]) < 0.95} == {}


def test_pairs_have_segments() -> None:
    tokenizer: PreTrainedTokenizerFast = pair_tokenizer()
    pair = tokenizer("the bridge", "leeds .")
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == ["</s>", "the", "bridge", "</s>", "leeds", ".", "</s>"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer.convert_ids_to_tokens(tokenizer("the bridge")["input_ids"]) == ["the", "bridge", "</s>"]
