"""Configuration -> who writes the rollouts."""

from __future__ import annotations

from gkd_rl.build import Models
from gkd_rl.choices import RolloutEngine
from gkd_rl.errors import ModelError
from gkd_rl.rollout import Sampler, Sampling, TextCodec
from gkd_rl.rollout_config import RolloutConfig
from gkd_rl.static_decoding import StaticDecoding, compiler_for
from gkd_rl.vllm_sampler import Server, VllmSampler, connect


def build_server(rollout: RolloutConfig, codec: TextCodec) -> Server | None:
    """The server that writes rollouts, connected before anything is loaded; None where the student writes them here.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: the student is an encoder-decoder.
        EndpointError: the server cannot be reached, or takes no weights.
    """
    if rollout.engine is not RolloutEngine.vllm:
        return None
    if not codec.decoder_only:
        raise ModelError(
            "rollout.engine=vllm with an encoder-decoder student: vLLM serves models that continue a prompt. "
            "Set rollout.engine=transformers, or take a decoder-only student."
        )
    settings = rollout.vllm
    return connect(settings.url, settings.group_port, settings.wait, codec.device)


def build_sampler(rollout: RolloutConfig, models: Models) -> Sampler:
    """What takes the run's completions from the student."""
    codec, sampling = models.codec, Sampling(rollout.temperature, rollout.top_p, rollout.top_k)
    if models.server is not None:
        return VllmSampler(codec, sampling, models.server, rollout.vllm.url)
    if not rollout.static_cache:
        return Sampler(codec, sampling)
    limits = codec.max_prompt_tokens, codec.max_completion_tokens
    return Sampler(codec, sampling, StaticDecoding(*limits, compiler_for(codec.device)))
