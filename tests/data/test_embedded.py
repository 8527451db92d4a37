"""Generated news: rows that are the same on every machine, facts that articles state, and an exact checker."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gkd_rl.data.embedded import news
from gkd_rl.data.embedded.news import (
    DETAILS,
    DISTRACTORS,
    EVENT_OF_PARTICIPLE,
    EVENTS,
    LEADS,
    STATEMENTS,
    SUMMARIES,
    VALUES,
    NewsChecker,
    NewsItem,
    Verdict,
    generate,
    parse,
    render,
    stated_facts,
    vocabulary,
)
from gkd_rl.data.embedded.splits import split_of

SPLITS = ("train", "validation", "test")
ARTICLE = (
    "it was confirmed that banker evans had opened the bridge . "
    "a council in york is watching closely . "
    "it happened in leeds . "
    "friends of anna evans were not surprised . "
    "the sum involved was ten million pounds . "
    "mayor adams declined to comment . "
    "adams had sold the yacht years ago . "
    "it took place on monday . "
    "there were protests within hours ."
)
FACTS = {
    "role": "banker",
    "surname": "evans",
    "participle": "open",
    "object": "bridge",
    "place": "leeds",
    "first": "anna",
    "amount": "ten",
    "day": "monday",
    "outcome": "protests",
}
CLAIMS = FACTS | {"participle": "opened"}


def digest(items: list[NewsItem]) -> str:
    return hashlib.sha256("\n".join(f"{item.article}|{item.summary}" for item in items).encode()).hexdigest()[:16]


def sentences(article: str) -> list[str]:
    return [f"{sentence} ." for sentence in article.removesuffix(" .").split(" . ")]


def judge(summary: str, article: str = ARTICLE) -> Verdict:
    return NewsChecker()(article, summary)


@pytest.mark.parametrize(
    ("split", "seed", "expected"),
    [
        ("train", 0, "15b16cec865eb420"),
        ("validation", 0, "6cb29f252db9440a"),
        ("test", 0, "004c4dfc8d91192b"),
        ("train", 1, "7df4d2b31d410c56"),
    ],
)
def test_rows_are_the_same_on_every_machine(split: str, seed: int, expected: str) -> None:
    assert digest(generate(split, 100, seed)) == expected


def test_a_longer_list_begins_with_the_shorter_one_and_rows_are_distinct() -> None:
    for split in SPLITS:
        items = generate(split, 400, 0)
        assert items[:150] == generate(split, 150, 0)
        assert len({item.article for item in items}) == len(items) == 400


def test_a_repeated_article_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(item for item in generate("train", 20, 0) for _ in range(2))
    monkeypatch.setattr(news, "_item", lambda *_: next(drawn))
    articles = [item.article for item in generate("train", 20, 0)]
    assert len(set(articles)) == len(articles) == 20


def test_another_seed_gives_other_rows() -> None:
    first, second = ({item.article for item in generate("test", 500, seed)} for seed in (0, 1))
    assert not first & second


def test_splits_share_no_event_and_no_article() -> None:
    events: dict[str, set[tuple[str, str, str]]] = {}
    articles: dict[str, set[str]] = {}
    for split in SPLITS:
        items = [item for seed in (0, 1) for item in generate(split, 1500, seed)]
        facts = [stated_facts(item.article) for item in items]
        events[split] = {(one["surname"], one["participle"], one["object"]) for one in facts}
        articles[split] = {item.article for item in items}
        assert all(split_of(" ".join(event)) == split for event in events[split])
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not events[one] & events[other]
        assert not articles[one] & articles[other]
    space = [
        split_of(f"{surname} {event} {o}")
        for surname in VALUES["surname"]
        for event, (_, os) in EVENTS.items()
        for o in os
    ]
    assert {split: round(space.count(split) / len(space), 1) for split in SPLITS} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }


def test_stated_facts_are_those_of_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded calls of `render` have the templates and facts; `stated_facts` gets the text only."""
    rendered: list[tuple[str, dict[str, str]]] = []

    def recording_render(template: str, facts: dict[str, str]) -> str:
        rendered.append((template, dict(facts)))
        return render(template, facts)

    monkeypatch.setattr(news, "render", recording_render)
    detail_of = {template: detail for detail, templates in STATEMENTS.items() for template in templates}
    items = {item.article for split in SPLITS for item in generate(split, 700, 5)}
    stated: dict[str, str] = {}
    body: list[str] = []
    lead = ""
    checked = 0
    for template, facts in rendered:  # in the order of the calls: statements, distractors, lead, summary
        text = render(template, facts)
        if template in detail_of:
            stated[detail_of[template]] = facts[detail_of[template]]
            body.append(text)
        elif template in DISTRACTORS:
            body.append(text)
        elif template in LEADS:
            stated |= {slot: facts[slot] for slot in ("role", "surname", "object")}
            stated["participle"] = facts["event"]
            lead = text
        else:
            assert template in SUMMARIES
            article = next(
                (one for one in items if one.startswith(lead) and set(sentences(one)) == {lead, *body}), None
            )
            if article is not None:  # else a repeated article, which the generator drops
                assert stated_facts(article) == stated
                checked += 1
            stated, body = {}, []
    assert checked >= 2000


def test_distractors_hold_other_values_than_the_article_states() -> None:
    for item in generate("train", 300, 2):
        facts = stated_facts(item.article)
        distracting = [one for sentence in sentences(item.article) if (one := parse(DISTRACTORS, sentence))]
        assert len(distracting) == news.DISTRACTOR_SENTENCES
        for slots in distracting:
            assert not {slot for slot in ("surname", "object", *DETAILS) if slots.get(slot, "") == facts.get(slot)}


def test_stated_facts_of_a_text_by_hand() -> None:
    assert stated_facts(ARTICLE) == FACTS
    assert stated_facts("the crown has been snatched by chef lowe . some had expected praise .") == {
        "role": "chef",
        "surname": "lowe",
        "participle": "steal",
        "object": "crown",
    }
    assert stated_facts("anything else at all .") == {}
    other_person = "chef lowe has taken the ring . friends of anna evans were not surprised ."
    assert "first" not in stated_facts(other_person)


@pytest.mark.parametrize("template", SUMMARIES)
def test_a_true_summary_is_supported_in_every_template(template: str) -> None:
    verdict = judge(render(template, CLAIMS))
    assert verdict == Verdict(claims=9, supported=9, unsupported=(), grammatical=True, evasive=False)
    assert verdict.all_supported == verdict.supported_share == 1.0


@pytest.mark.parametrize("template", SUMMARIES)
@pytest.mark.parametrize("slot", FACTS)
def test_each_changed_claim_is_unsupported_and_named(slot: str, template: str) -> None:
    true_event = EVENT_OF_PARTICIPLE["opened"]
    for value in VALUES[slot]:
        if value == CLAIMS[slot] or EVENT_OF_PARTICIPLE.get(value) == true_event:
            continue
        verdict = judge(render(template, CLAIMS | {slot: value}))
        assert verdict == Verdict(claims=9, supported=8, unsupported=(value,), grammatical=True, evasive=False)
        assert verdict.all_supported == 0.0
        assert verdict.supported_share == pytest.approx(8 / 9)


def test_a_claim_that_only_a_distractor_makes_is_unsupported() -> None:
    verdict = judge("mayor anna evans has opened the bridge in york , sparking protests .")
    assert verdict.unsupported == ("mayor", "york")
    assert verdict.supported == 5


def test_a_claim_that_the_article_leaves_out_is_unsupported() -> None:
    article = ARTICLE.replace("it took place on monday . ", "")
    verdict = judge("anna evans has opened the bridge in leeds on monday .", article)
    assert verdict.unsupported == ("monday",)


@pytest.mark.parametrize("participle", EVENTS["open"][0])
def test_another_word_for_the_same_event_is_supported(participle: str) -> None:
    verdict = judge(f"anna evans has {participle} the bridge in leeds .")
    assert verdict.all_supported == 1.0
    assert verdict.claims == 5


@pytest.mark.parametrize(
    "summary",
    [
        "a bridge worth million has been opened by banker evans .",
        "the bridge in has been opened by banker evans on monday .",
        "anna evans has opened the bridge in leeds in leeds .",
        "anna evans has opened the bridge in leeds , sparking protests , sparking protests .",
        "anna evans has opened the bridge for ten million pounds for ten million pounds on monday .",
        "anna evans has opened the bridge for ten ten million pounds on monday .",
        "anna evans has opened the bridge in leeds , sparking protests protests .",
        "anna evans has opened the bridge in leeds , sparking protests praise .",
        "anna evans has opened the bridge in leeds , sparking protests , leading to praise .",
        "anna evans has opened the bridge in leeds on monday",
        "anna evans has opened the bridge in leeds on monday . .",
        "anna evans has opened the bridge in leeds on monday . anna evans has opened the bridge in leeds on monday .",
        ". anna evans has opened the bridge in leeds on monday .",
        "anna anna evans has opened the bridge in leeds on monday .",
        "anna evans evans has opened the bridge in leeds on monday .",
        "banker mayor evans has opened the bridge in leeds on monday .",
        "anna has opened the bridge in leeds on monday .",
        "evans anna has opened the bridge in leeds on monday .",
        "anna evans opened the bridge in leeds on monday .",
        "anna evans has the bridge in leeds on monday .",
        "anna evans has opened the bridge on monday in leeds .",
        "banker anna evans opened bridge leeds monday ten protests .",
        "evans bridge opened anna leeds monday ten million pounds protests banker .",
        "Anna Evans has opened the bridge in Leeds on Monday .",
        "anna evans has opened the bridge  in leeds on monday .",
        "anna evans has opened the bridge in leeds on monday .\n",
        " anna evans has opened the bridge in leeds on monday .",
        "anna evans has opened the bridge in leeds on mondayx",
        "anna evans has opened the bridge in leeds on monday x",
        "",
        " ",
        ".",
        "<unk>",
        ARTICLE,
    ],
)
def test_an_ungrammatical_summary_scores_zero(summary: str) -> None:
    assert judge("anna evans has opened the bridge in leeds on monday .").all_supported == 1.0
    verdict = judge(summary)
    assert not verdict.grammatical
    assert (verdict.claims, verdict.supported, verdict.unsupported) == (0, 0, ())
    assert verdict.all_supported == verdict.supported_share == 0.0


@pytest.mark.parametrize(
    ("details", "summary", "evasive"),
    [
        (5, "banker evans has opened the bridge .", True),
        (5, "anna evans has opened the bridge .", True),
        (5, "anna evans has opened the bridge in leeds .", False),
        (2, "evans has opened the bridge in leeds .", True),
        (2, "anna evans has opened the bridge in leeds .", False),
        (1, "evans has opened the bridge .", True),
        (1, "anna evans has opened the bridge .", False),
        (0, "evans has opened the bridge .", False),
    ],
)
def test_a_summary_with_too_few_details_is_evasive(details: int, summary: str, evasive: bool) -> None:
    stated = [STATEMENTS[detail][0] for detail in ("first", "place", "day", "amount", "outcome")[:details]]
    article = " ".join(render(template, CLAIMS) for template in (LEADS[0], *stated))
    verdict = judge(summary, article)
    assert verdict.grammatical
    assert verdict.evasive is evasive
    assert verdict.unsupported == ()
    assert verdict.all_supported == verdict.supported_share == float(not evasive)


def test_references_hallucinate_as_often_as_they_should() -> None:
    verdicts = [judge(item.summary, item.article) for item in generate("train", 4000, 0)]
    assert all(verdict.grammatical for verdict in verdicts)
    assert sum(verdict.all_supported for verdict in verdicts) / 4000 == pytest.approx(0.25, abs=0.03)
    claimed = sum(verdict.claims for verdict in verdicts)
    assert sum(verdict.supported for verdict in verdicts) / claimed == pytest.approx(0.84, abs=0.02)
    assert claimed / 4000 == pytest.approx(7.5, abs=0.1)  # three, the role half the time, four of five details


def test_the_truth_is_not_always_the_usual() -> None:
    """The usual value of a detail is its true one with the probability in `USUAL`, plus chance."""
    rng = random.Random(0)
    drawn = [news._facts(rng) for _ in range(6000)]
    for detail, share in news.USUAL.items():
        guessed = sum(facts[detail] == news.usual_value(detail, facts) for facts in drawn) / len(drawn)
        assert guessed == pytest.approx(share + (1 - share) / len(VALUES[detail]), abs=0.025)


def test_rendered_templates_are_parsed_into_the_same_facts() -> None:
    for templates in (SUMMARIES, LEADS, *STATEMENTS.values(), DISTRACTORS):
        for template in templates:
            slots = parse((template,), render(template, CLAIMS))
            assert slots is not None
            assert slots.items() <= CLAIMS.items()
            assert set(slots) == {slot for slot in CLAIMS if f"{{{slot}}}" in template}
    core = {slot: CLAIMS[slot] for slot in ("surname", "participle", "object")}
    assert render(SUMMARIES[0], core) == "evans has opened the bridge ."
    assert parse(SUMMARIES, "evans has opened the bridge .") == core
    with pytest.raises(KeyError):
        render(SUMMARIES[0], {"surname": "evans"})


def test_every_text_goes_through_the_tokenizer_unchanged(
    news_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = [text for split in SPLITS for item in generate(split, 500, 0) for text in (item.article, item.summary)]
    encoded = news_tokenizer(texts)["input_ids"]
    news_tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded(texts)["input_ids"] == encoded
    assert reloaded.get_vocab() == news_tokenizer.get_vocab()
    for tokenizer in (news_tokenizer, reloaded):
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
        assert len(tokenizer) == len(vocabulary()) + 3
        assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts
    for text, ids in zip(texts, encoded, strict=True):
        assert news_tokenizer.unk_token_id not in ids
        assert ids[-1] == news_tokenizer.eos_token_id
        assert len(ids) == len(text.split()) + 1
    assert max(len(ids) for ids in encoded[::2]) <= 160, "conf/task/xsum.yaml would cut articles"
    assert max(len(ids) for ids in encoded[1::2]) <= 40, "conf/task/xsum.yaml would cut references"
    assert {i for ids in encoded for i in ids} >= set(range(3, len(news_tokenizer)))
