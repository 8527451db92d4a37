"""Rollouts from a vLLM server: trl's client against a server on loopback with vLLM's routes and a small Llama.

NCCL is replaced by a list of tensors, and vLLM by sampling token by token.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import (
    MakeExamples,
    MakeModel,
    MakeStudent,
    codec_of,
    config_of,
    configured,
    essential,
    models_of,
    share_of_a,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl.generation import vllm_client

from gkd_rl.config.validation import validate
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.errors import ConfigError, EndpointError, ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.generation.vllm import VllmSampler, connect
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.pipeline.build_trainer import build_server, build_trainer
from gkd_rl.types import Source
from reward_models.composite import Composite

MAX_TOKENS, PORT = 8, 51216
GREEDY_ON_SERVER = Sampling(top_k=1)
UPDATE = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
KINDS = ("llama", "llama with LoRA")


@dataclass
class FakeVllm:
    """vLLM's routes; `change` alters the answers to completion requests, `info` is the server's configuration."""

    model: HiddenStateModel
    info: dict[str, Any] | None = field(default_factory=lambda: {"weight_transfer_config": {"backend": "nccl"}})
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    code: int = 200
    wire: list[tuple[str, Tensor]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    sent: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def get(self, path: str) -> tuple[int, Any]:
        answers = {
            "/health": {}, "/v1/models": {"data": [{"id": "student"}]}, "/get_world_size": {"world_size": 1},
        }  # fmt: skip
        if path.startswith("/server_info"):
            return (404, {}) if self.info is None else (200, {"vllm_config": self.info})
        return 200, answers[path]

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.requests.append((path, body))
        if path == "/start_weight_update":
            self.sent.clear()
        if path == "/update_weights":
            self.load(body["update_info"])
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/v1/completions":
            return self.code, self.change({"choices": self.generate(body)}) if self.code == 200 else {
                "error": "no luck"
            }
        return 200, {}

    def load(self, update: dict[str, Any]) -> None:
        """All weights of the model are received, with the announced names, shapes and types."""
        assert self.sent.wait(10), "no weights were sent"
        own = dict(self.model.model.named_parameters())
        assert update["names"] == [name for name, _ in self.wire] and set(update["names"]) == set(own)
        with torch.no_grad():
            for (name, tensor), shape, dtype in zip(self.wire, update["shapes"], update["dtype_names"], strict=True):
                assert list(tensor.shape) == shape and dtype == "float32"
                own[name].copy_(tensor)

    @torch.no_grad()
    def generate(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        choices = []
        for prompt in body["prompt"]:
            for number in range(body["n"]):
                generator = torch.Generator().manual_seed(body["seed"] + number)
                ids: list[int] = []
                while len(ids) < body["max_tokens"] and not set(ids) & set(body["stop_token_ids"]):
                    logits = self.model.model(input_ids=torch.tensor([prompt + ids])).logits[:, -1]
                    for token, bias in body.get("logit_bias", {}).items():
                        logits[:, int(token)] += bias
                    sampling = Sampling(body["temperature"], body["top_p"], body["top_k"])
                    ids.append(int(sampling.draw(logits, generator)))
                choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": None})
        return choices

    @property
    def completion_requests(self) -> list[dict[str, Any]]:
        return [body for path, body in self.requests if path == "/v1/completions"]


def handler_of(server: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(*server.get(self.path))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.answer(*server.post(self.path, json.loads(content or b"{}")))

        def answer(self, code: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def server(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeVllm]:
    """A server with other weights, and stand-ins for the parts of vLLM that trl's client uses."""
    server = FakeVllm(make_model(few_words, seed=99, model_type="llama").eval())

    def send(iterator: Iterator[tuple[str, Tensor]], trainer_args: Any) -> None:
        server.wire[:] = [(name, tensor.clone()) for name, tensor in iterator]
        server.sent.set()

    group = SimpleNamespace(group=SimpleNamespace())
    engine = SimpleNamespace(trainer_init=lambda info: group, trainer_send_weights=send)
    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *_: True)
    monkeypatch.setattr(vllm_client, "get_ip", lambda: "127.0.0.1", raising=False)
    monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", engine, raising=False)
    monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", SimpleNamespace, raising=False)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    yield server
    http.shutdown()
    http.server_close()


@pytest.fixture
def codec(few_words: PreTrainedTokenizerFast) -> TextCodec:
    return codec_of("llama", few_words, MAX_TOKENS)


def sampler_of(server: FakeVllm, codec: TextCodec, sampling: Sampling = GREEDY_ON_SERVER) -> VllmSampler:
    """Connected with device "cuda", as on a GPU."""
    return VllmSampler(codec, sampling, connect(server.url + "/v1/", PORT, 0, torch.device("cuda")), server.url)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", essential(KINDS, "llama with LoRA"))
def test_the_server_generates_the_students_completions(
    kind: str, server: FakeVllm, codec: TextCodec, make_student: MakeStudent, make_examples: MakeExamples
) -> None:
    """Greedy completions of the student's current weights, four times with changed weights."""
    student, sampler = make_student(kind, codec.tokenizer, seed=9), sampler_of(server, codec)
    ends: set[bool] = set()
    for number in range(4):
        prompts = codec.prompts(make_examples(5, number))
        expected = Sampler(codec, GREEDY).sample(student, prompts, 3, None)
        before = {name: one.clone() for name, one in student.named_parameters()}
        found = sampler.sample(student, prompts, 3, seeded(number))
        assert all(torch.equal(one, before[name]) for name, one in student.named_parameters())
        for name in ("ids_BT", "mask_BT", "truncated_B", "prompt_index_B"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert found.texts == expected.texts and found.source is Source.student and found.prompts is prompts
        ends |= set(found.truncated_B.tolist())
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(number))
    assert ends == {True, False}


def test_weights_are_sent_before_every_rollout(
    server: FakeVllm, codec: TextCodec, make_student: MakeStudent, make_examples: MakeExamples
) -> None:
    sampler, student = sampler_of(server, codec), make_student("llama", codec.tokenizer)
    assert [path for path, _ in server.requests] == ["/init_weight_transfer_engine"]
    assert server.requests.pop()[1]["init_info"]["master_port"] == PORT
    for _ in range(2):
        sampler.sample(student, codec.prompts(make_examples(3)), 2, seeded(0))
    assert [path for path, _ in server.requests] == [*UPDATE, *["/v1/completions"] * 3] * 2


def test_requests_have_the_sampling_settings(
    server: FakeVllm, codec: TextCodec, make_student: MakeStudent, make_examples: MakeExamples, make_model: MakeModel
) -> None:
    """Ids of a padded embedding are never sampled."""
    codec.eos_ids = (1, 4)
    student = make_student("llama", codec.tokenizer)
    for model in (student, server.model):
        model.model.resize_token_embeddings(12, mean_resizing=False)
    prompts = codec.prompts(make_examples(6))
    found = sampler_of(server, codec, Sampling(0.7, 0.9, 5)).sample(student, prompts, 4, seeded(0))
    assert int(found.ids_BT.max()) < len(codec.tokenizer) == 8
    common = {
        "n": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": MAX_TOKENS, "min_p": 0.0,
        "repetition_penalty": 1.0, "stop_token_ids": [1, 4], "ignore_eos": True,
        "logit_bias": {"8": -100.0, "9": -100.0, "10": -100.0, "11": -100.0},
    }  # fmt: skip
    for body in server.completion_requests:
        assert {key: body[key] for key in common} == common
    rows = [ids[mask].tolist() for ids, mask in zip(prompts.ids_PS, prompts.mask_PS, strict=True)]
    assert sorted(body["prompt"][0] for body in server.completion_requests) == sorted(rows)


def test_the_generator_decides_the_samples_and_prompts_have_different_seeds(
    server: FakeVllm, codec: TextCodec, make_student: MakeStudent, make_examples: MakeExamples
) -> None:
    student, sampler = make_student("llama", codec.tokenizer, seed=9), sampler_of(server, codec, Sampling())
    prompts = codec.prompts(make_examples(1) * 6)  # the same prompt six times
    one, again, other = (sampler.sample(student, prompts, 2, seeded(seed)).ids_BT.tolist() for seed in (3, 3, 4))
    assert one == again != other
    assert len({tuple(row) for row in one}) > 2  # with one seed all six would be equal
    assert len({body["seed"] for body in server.completion_requests[:6]}) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_token_ids": [3, 3, 3, 3, 3, 3, 3, 3, 3]}, "returned another prompt"),
        ({"token_ids": [3, 9, 1]}, "returned token id 9, but the student has 8 tokens"),
        ({"token_ids": [3, -1, 1]}, "returned token id -1"),
        ({"token_ids": [3, 3]}, r"after 2 of 8 tokens, without one of the end-of-sequence ids \[1\]"),
        ({"token_ids": []}, "after 0 of 8 tokens"),
        ({"token_ids": [3] * 9}, "after 9 of 8 tokens"),
    ],
)
def test_invalid_answers_are_refused(
    change: dict[str, Any],
    message: str,
    server: FakeVllm,
    codec: TextCodec,
    make_student: MakeStudent,
    make_examples: MakeExamples,
) -> None:
    server.change = lambda answer: {"choices": [choice | change for choice in answer["choices"]]}
    with pytest.raises(EndpointError, match=message) as caught:
        sampler_of(server, codec).sample(
            make_student("llama", codec.tokenizer), codec.prompts(make_examples(2)), 2, seeded(0)
        )
    assert str(caught.value).startswith(f"rollout.vllm.url={server.url}: the server ")
    assert "set rollout.engine=transformers" in str(caught.value)


def test_a_failing_server_is_reported(
    server: FakeVllm, codec: TextCodec, make_student: MakeStudent, make_examples: MakeExamples
) -> None:
    student, prompts = make_student("llama", codec.tokenizer), codec.prompts(make_examples(2))
    sampler = sampler_of(server, codec)
    server.code = 400
    with pytest.raises(EndpointError, match=r"the server failed \(Request failed: 400, .*no luck"):
        sampler.sample(student, prompts, 2, seeded(0))
    server.code, server.change = 200, lambda answer: {"choices": answer["choices"][:1]}
    with pytest.raises(EndpointError, match="returned 1 completions where 2 were requested"):
        sampler.sample(student, prompts, 2, seeded(0))


def test_a_server_without_weight_transfer_is_refused_at_once(server: FakeVllm, codec: TextCodec) -> None:
    server.info = {"weight_transfer_config": None}
    with pytest.raises(EndpointError, match="has no weight-transfer engine"):
        sampler_of(server, codec)
    server.info = None
    with pytest.raises(EndpointError, match="does not expose its development endpoints"):
        sampler_of(server, codec)


def test_a_student_without_a_gpu_is_refused_at_once(server: FakeVllm) -> None:
    with pytest.raises(EndpointError, match="needs a CUDA device, got 'cpu'"):
        connect(server.url, PORT, 0, torch.device("cpu"))


def test_an_unreachable_server_is_refused_at_once(server: FakeVllm) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EndpointError, match=f"{url}: the server failed .*can't be reached at {url}"):
        connect(url, PORT, 0, torch.device("cuda"))


def test_the_message_without_vllm_names_the_package_to_install() -> None:
    with pytest.raises(ConfigError, match=r'vLLM is not installed.*pip install "gkd_rl\[vllm\]"'):
        connect("http://127.0.0.1:9", PORT, 0, torch.device("cuda"))


def test_an_encoder_decoder_is_refused_before_a_server_is_contacted() -> None:
    with pytest.raises(ModelError, match=r"rollout\.engine=vllm with a student of model_type=t5"):
        build_server(configured("rollout.engine=vllm").rollout, "t5", torch.device("cpu"))
    assert build_server(configured().rollout, "t5", torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.static_cache=true"], "rollout.static_cache=true with rollout.engine=vllm has no effect"),
        (["lmbda=0", "alpha=1"], "rollout.engine=vllm with lmbda=0 has no rollouts to sample"),
        (["rollout.vllm.url=localhost:8000"], "rollout.vllm.url=localhost:8000 is not the address of a server"),
        (["rollout.vllm.url=http://me:key@host"], "rollout.vllm.url holds a user or a password"),
        (["rollout.vllm.group_port=0"], "rollout.vllm.group_port=0 is out of range"),
    ],
)
def test_conflicting_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(configured("rollout.engine=vllm", *overrides))
    assert len(caught.value.problems) == 1
    validate(configured("rollout.engine=vllm"))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"rollout\.engine=vllm with 2 processes"):
        validate(configured("rollout.engine=vllm"))


def test_a_step_trains_on_the_servers_completions(
    server: FakeVllm, codec: TextCodec, make_student: MakeStudent, make_model: MakeModel, make_examples: MakeExamples
) -> None:
    """With the trainer of `build_trainer`; the second step's weights are those after the first."""
    config = config_of("rollout.engine=vllm", "alpha=0.5", "trainer.learning_rate=0.1", "trainer.warmup_steps=0")
    student = make_student("llama with LoRA", codec.tokenizer)
    teacher = make_model(codec.tokenizer, seed=28, lively=True, model_type="llama", hidden_size=24).eval()
    models = replace(models_of(student, teacher, codec), server=connect(server.url, PORT, 0, torch.device("cuda")))
    stream = PromptStream(make_examples(12), config.trainer.prompts_per_step, 0)
    reward = Composite({"stub": share_of_a}, {"stub": 1.0})
    trainer = build_trainer(config, models, reward, stream, Accelerator(cpu=True))
    assert isinstance(trainer.sampler, VllmSampler)
    sent = []
    for step in range(2):
        record = trainer.step(step)
        assert record.metrics["divergence"] > 0 and record.metrics["policy_gradient"] != 0
        sent.append(dict(server.wire))
    assert any(not torch.equal(sent[0][name], sent[1][name]) for name in sent[0])
    assert len(server.completion_requests) == 2 * config.trainer.prompts_per_step
