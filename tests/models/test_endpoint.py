"""A teacher behind a server, on loopback: a small Llama that answers as vLLM does, and all the ways a server fails."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import MakeExamples, MakeModel, MakePrompts, MakeRollout, config_of, configured, essential, models_of
from transformers import PreTrainedTokenizerFast

from gkd_rl.config import EndpointConfig
from gkd_rl.config.choices import DivergenceName
from gkd_rl.config.validation import validate
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.errors import ConfigError, EndpointError, ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.remote_teacher import EndpointTeacher
from gkd_rl.pipeline.build_trainer import build_evaluator, build_trainer
from gkd_rl.pipeline.models import build_endpoint
from gkd_rl.pipeline.results import describe_method
from gkd_rl.types import Projection, Rollout, TopLogProbs
from reward_models.models import judge as openai_server

TOP = 3
VOCABULARY = 8
DIVERGENCES = {
    "forward_kl": TokenDivergence(DivergenceName.forward_kl),
    "reverse_kl": TokenDivergence(DivergenceName.reverse_kl),
    "jsd": TokenDivergence(DivergenceName.jsd, 0.9),
    "tvd": TokenDivergence(DivergenceName.tvd),
}


@dataclass
class Server:
    """vLLM's answer to `prompt_logprobs`; `change` spoils it, `codes` come first, one for each request."""

    model: HiddenStateModel
    words: list[str]
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    codes: list[int] = field(default_factory=list)
    pause: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    @torch.no_grad()
    def answer(self, request: dict[str, Any]) -> Any:
        ids, count = request["prompt"], request["prompt_logprobs"]
        logp_SV = self.model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        listed: list[dict[str, Any] | None] = [None]
        for logp_V, actual in zip(logp_SV[:-1], ids[1:], strict=True):
            order = logp_V.argsort(descending=True).tolist()
            shown = [actual, *(word for word in order[:count] if word != actual)]  # the token itself comes too
            listed.append({
                str(word): {
                    "logprob": float(logp_V[word]), "rank": order.index(word) + 1, "decoded_token": self.words[word]
                }
                for word in shown
            })  # fmt: skip
        return self.change({"choices": [{"index": 0, "text": "x", "prompt_logprobs": listed}]})


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append({"path": self.path, **body})
            server.keys.append(self.headers["Authorization"])
            time.sleep(server.pause)
            code = server.codes.pop(0) if server.codes else 200
            answer = server.answer(body) if code == 200 else {"error": {"message": "no luck"}}
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def teacher_model(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=5, model_type="llama").eval()


@pytest.fixture
def server(teacher_model: HiddenStateModel, few_words: PreTrainedTokenizerFast) -> Iterator[Server]:
    server = Server(teacher_model, [few_words.decode([word]) for word in range(VOCABULARY)])  # pyright: ignore
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]  # a client that gave up
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    yield server
    http.shutdown()
    http.server_close()


@pytest.fixture
def teacher(server: Server) -> EndpointTeacher:
    return EndpointTeacher(server.url, "m", TOP, VOCABULARY, timeout=5.0, parallel=3)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "FIRST_PAUSE", 0.001)


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    prompts = make_prompts([[3, 4, 5, 6, 7], [5], [7, 7, 3]])
    return make_rollout(prompts, [[4, 5, 1], [3, 3, 3, 6, 1], [1], [2, 4, 4], [6, 1], [5, 7, 1]], per_prompt=2)


@pytest.fixture
def student(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=8, model_type="llama")


@pytest.fixture
def llama_codec(few_words: PreTrainedTokenizerFast) -> TextCodec:
    return TextCodec(few_words, 20, 6, torch.device("cpu"), decoder_only=True)


@pytest.mark.parametrize("top_k", [1, TOP, VOCABULARY - 1, VOCABULARY])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("chunk", essential([4, 100], 4))
def test_it_is_the_divergence_to_the_top_k_of_all_logits(
    name: str,
    top_k: int,
    chunk: int,
    teacher: EndpointTeacher,
    teacher_model: HiddenStateModel,
    student: HiddenStateModel,
    rollout: Rollout,
) -> None:
    told = replace(teacher, top_k=top_k)(rollout)
    assert told.ids_BTK.shape == (*rollout.ids_BT.shape, top_k)
    with torch.no_grad():
        known = Projection(teacher_model(rollout), teacher_model.head())
    found = []
    for divergence, one in ((DIVERGENCES[name], told), (replace(DIVERGENCES[name], teacher_top_k=top_k), known)):
        head = FusedHead(divergence, chunk_tokens=chunk, vocabulary=VOCABULARY)
        terms = head(Projection(student(rollout), student.head()), one, rollout.ids_BT, rollout.mask_BT)
        assert terms.divergence_BT is not None
        gradients = torch.autograd.grad(terms.divergence_BT.sum(), list(student.parameters()), allow_unused=True)
        found.append((terms.divergence_BT.detach(), [one for one in gradients if one is not None]))
    assert found[1][0].max() > 1e-3
    # 1 - Σ P_k is known to some 1e-7, which a tail of 1e-4 (one unlikely word) feels in log P
    tail = 10 if top_k == VOCABULARY - 1 else 1
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=tail * 1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=tail * 1e-5 * (1 + float(other.abs().max())))


def test_a_sure_teacher_has_a_finite_tail() -> None:
    ids, student = torch.tensor([[0, 1]]), torch.zeros(1, VOCABULARY)
    for logp in ([0.0, -9999.0], [1e-6, -9999.0]):  # rounding may leave more than 1; -9999 is vLLM's minus infinity
        for divergence in DIVERGENCES.values():
            value = divergence.from_top_log_probs(ids, torch.tensor([logp]), student)
            assert value.isfinite().all()
            assert value > 0


def test_a_temperature_needs_all_logits() -> None:
    with pytest.raises(ValueError, match="temperature"):
        replace(DIVERGENCES["jsd"], temperature=2.0).from_top_log_probs(
            torch.tensor([[0]]), torch.zeros(1, 1), torch.zeros(1, 4)
        )


def test_what_is_asked(teacher: EndpointTeacher, server: Server, rollout: Rollout) -> None:
    teacher(rollout)
    assert len(server.requests) == rollout.n_sequences
    assert {request["path"] for request in server.requests} == {"/v1/completions"}
    assert sorted(request["prompt"] for request in server.requests)[0] == [3, 4, 5, 6, 7, 1, 3, 3, 3, 6, 1]
    assert {(request["model"], request["prompt_logprobs"]) for request in server.requests} == {("m", TOP)}
    replace(teacher, url=f"{server.url}/v1/").listed([3, 4], [5])
    assert server.requests[-1]["path"] == "/v1/completions"


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_stumbles_is_asked_again(code: int, teacher: EndpointTeacher, server: Server) -> None:
    server.codes = [code, code, code]
    assert len(teacher.listed([3, 4], [5, 1])) == 2
    assert len(server.requests) == 4


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "always 500": ({"codes": [500] * 9}, "HTTP 500 .*no luck.*after 4 tries"),
    "not found": ({"codes": [404]}, r"HTTP 404 .*no luck.*teacher.endpoint.model"),
    "redirected": ({"codes": [302]}, "HTTP 302"),
    "silent": ({"pause": 0.5}, "cannot be reached .*timed out.*after 4 tries"),
    "not JSON": ({"change": lambda _: "<html>"}, "not a completion"),
    "no choices": ({"change": lambda _: {"choices": []}}, "not a completion"),
    "a list": ({"change": lambda _: [1]}, "not a completion"),
    "plain OpenAI": ({"change": lambda _: {"choices": [{"text": "x"}]}}, "gives no prompt_logprobs; .*vLLM"),
    "fewer tokens": (
        {"change": lambda one: one["choices"][0]["prompt_logprobs"].pop() and one},
        "log-probabilities of 3 tokens where 4 were sent",
    ),
}


def spoilt(word: str, **facts: Any) -> Callable[[dict[str, Any]], Any]:
    """The last token's words, one of them changed."""

    def change(answer: dict[str, Any]) -> Any:
        words = answer["choices"][0]["prompt_logprobs"][-1]
        first = next(iter(words))
        words[word or first] = words.pop(first) | facts
        return answer

    return change


FAILURES |= {
    "a word that the student lacks": ({"change": spoilt("99", logprob=0.0)}, "names id 99, and the student has 8"),
    "a word that is no id": ({"change": spoilt("token")}, "without an id"),
    "not a number": ({"change": spoilt("", logprob=float("nan"))}, "gives nan as a log-probability"),
    "no log-probability": ({"change": spoilt("", logprob=None)}, "without an id or a logprob"),
    "more than everything": ({"change": spoilt("", logprob=0.009)}, "exceed 1 together"),
    "one word": (
        {"change": lambda one: {"choices": [{"prompt_logprobs": [None, *[{"3": {"logprob": -1.0}}] * 3]}]}},
        "set teacher.endpoint.top_k=1",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_server_that_cannot_teach_gets_one_message(
    failure: str, teacher: EndpointTeacher, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, says = FAILURES[failure]
    for name, value in changes.items():
        setattr(server, name, value)
    with pytest.raises(EndpointError, match=says) as caught:
        replace(teacher, timeout=0.1 if server.pause else 5.0).listed([3, 4], [5, 1])
    assert str(caught.value).startswith(f"teacher.endpoint.url={server.url}: the server ")


def test_a_closed_port_gets_one_message(teacher: EndpointTeacher, rollout: Rollout) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match=rf"teacher.endpoint.url=http://127.0.0.1:{port}: .*cannot be reached"):
        replace(teacher, url=f"http://127.0.0.1:{port}")(rollout)


def settings_of(server: Server, **changes: Any) -> EndpointConfig:
    base = {"url": server.url, "model": "m", "top_k": TOP, "api_key_variable": None, "timeout": 5.0, "parallel": 2}
    return EndpointConfig(**(base | changes))


def test_the_key_is_sent_and_never_shown(
    server: Server,
    llama_codec: TextCodec,
    make_examples: MakeExamples,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    settings, example = settings_of(server, api_key_variable="TEST_TEACHER_KEY"), make_examples(1)[0]
    for absent in ("", "two\nlines"):
        monkeypatch.setenv("TEST_TEACHER_KEY", absent)
        with pytest.raises(ConfigError, match=r"TEST_TEACHER_KEY=KEY, or set") as refused:
            build_endpoint(settings, llama_codec, example)
        assert "lines" not in str(refused.value)
    monkeypatch.setenv("TEST_TEACHER_KEY", "sesame\n")
    teacher = build_endpoint(settings, llama_codec, example)
    assert set(server.keys) == {"Bearer sesame"}
    server.codes = [401]
    with pytest.raises(EndpointError) as caught:
        teacher.listed([3], [4])
    assert "sesame" not in f"{teacher!r} {caught.value} {caplog.text}"


def test_it_is_asked_before_anything_is_loaded(
    server: Server, llama_codec: TextCodec, codec: TextCodec, make_examples: MakeExamples
) -> None:
    example = make_examples(1)[0]
    build_endpoint(settings_of(server), llama_codec, example)
    with pytest.raises(ModelError, match="decoder-only student"):
        build_endpoint(settings_of(server), codec, example)
    server.words = [f"other{word}" for word in range(VOCABULARY)]
    with pytest.raises(EndpointError, match=r"another tokenizer than the student: id \d is 'other\d' there and"):
        build_endpoint(settings_of(server), llama_codec, example)


def test_it_teaches_and_is_measured_against(
    teacher: EndpointTeacher,
    server: Server,
    student: HiddenStateModel,
    llama_codec: TextCodec,
    make_examples: MakeExamples,
) -> None:
    """A step and an evaluation; it has no column of its own."""
    config = config_of("teacher=endpoint", "teacher.endpoint.model=m", "alpha=1", "trainer.diagnose_every=1")
    models = replace(models_of(student, None, llama_codec), endpoint=teacher)

    examples = make_examples(12)
    trainer = build_trainer(config, models, None, PromptStream(examples, 4, 0), Accelerator(cpu=True))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    trainer.step(0)  # the learning rate warms up from 0
    server.requests.clear()
    record = trainer.step(1)
    assert record.metrics["divergence"] > 0
    assert record.metrics["kl_to_teacher"] > 0
    assert record.metrics["tokens/teacher_scored"] == record.metrics["tokens/student_trained"]
    assert "flops/teacher" not in record.metrics
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
    assert len(server.requests) == record.rollout.n_sequences
    values = build_evaluator(config, models, None, examples[:4]).evaluate(student, "student").values
    assert (values["sampled/divergence"] > 0).all()
    assert "20 likeliest tokens" in describe_method(config)["imitates"]


def test_at_alpha_0_it_is_not_asked(
    teacher: EndpointTeacher, server: Server, student: HiddenStateModel, llama_codec: TextCodec, rollout: Rollout
) -> None:
    config = config_of("teacher=endpoint", "teacher.endpoint.model=m", "alpha=0.5")

    models = replace(models_of(student, None, llama_codec), endpoint=teacher)
    models = build_trainer(config, models, None, PromptStream([], 4, 0), Accelerator(cpu=True)).models
    rows = torch.arange(2)
    assert models.teacher_forward(rollout, rows, rollout.rows(rows), 0.0) is None
    assert not server.requests
    assert isinstance(models.teacher_forward(rollout, rows, rollout.rows(rows), 0.5), TopLogProbs)


BASE = ["teacher=endpoint", "teacher.endpoint.model=m"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["teacher.path=somewhere"], "set teacher.path=null"),
        (["teacher.gguf_file=x.gguf"], "set teacher.gguf_file=null"),
        (["teacher.quantization=int8"], "set teacher.quantization=none"),
        (["teacher.device=cpu"], "set teacher.device=null"),
        (["teacher.offload=true"], "set teacher.offload=false"),
        (["teacher.initial_student=true"], "set teacher.endpoint=null"),
        (["teacher.chat=true"], "set teacher.chat=false"),
        (["student.chat=true", "teacher.chat=false"], "set teacher.chat=true"),
        (["divergence.temperature=2"], "set divergence.temperature=1"),
        (["divergence.teacher_top_k=5"], "set divergence.teacher_top_k=null"),
        (["divergence=cross_entropy", "alpha=1", "lmbda=0"], "set teacher=none"),
        (["fixed_data=teacher_samples", "lmbda=0.5"], "set fixed_data=references"),
        (["teacher.endpoint.url=localhost:8000"], "not the address of a server"),
        (["teacher.endpoint.url=file:///etc/passwd"], "not the address of a server"),
        (["teacher.endpoint.url=http://"], "not the address of a server"),
        (["teacher.endpoint.url=http://host:x"], "not the address of a server"),
        (["teacher.endpoint.top_k=0"], "teacher.endpoint.top_k=0 is out of range"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(configured(*BASE, *overrides))
    assert any(says.lower() in problem.lower() for problem in caught.value.problems)


def test_a_key_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="api_key_variable") as caught:
        validate(configured(*BASE, "teacher.endpoint.url=https://me:sesame@host"))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides", [[], ["alpha=0"], ["divergence=reverse_kl", "teacher.prompts=shuffled"], ["student.chat=true"]]
)
def test_what_goes_together_is_taken(overrides: list[str]) -> None:
    validate(configured(*BASE, *overrides))
