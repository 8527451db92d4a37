"""Configuration -> who writes the rollouts."""

from __future__ import annotations

from gkd_rl.architecture import ENCODER_DECODERS
from gkd_rl.build import Models, load_options
from gkd_rl.choices import RolloutEngine
from gkd_rl.config import Config
from gkd_rl.errors import ModelError
from gkd_rl.model_files import read_config
from gkd_rl.rollout import Sampler, Sampling, TextCodec
from gkd_rl.rollout_config import RolloutConfig
from gkd_rl.static_decoding import StaticDecoding, check_type, compiler_for
from gkd_rl.vllm_sampler import Server, VllmSampler, connect


def check_writer(config: Config) -> None:
    """Refuse a student that cannot write in the way that is asked for; no weights are read.

    Raises:
        ModelError: it cannot.
    """
    rollout, student = config.rollout, config.student
    if student.path is None:
        model_type = (student.architecture or {}).get("model_type", "")
    else:
        model_type = read_config(student.path, student.revision, "student.path", load_options(student)).model_type
    if rollout.engine is RolloutEngine.vllm and model_type in ENCODER_DECODERS:
        raise ModelError(
            f"rollout.engine=vllm with a student of model_type={model_type}: the server writes for decoder-only "
            "students. Set rollout.engine=transformers, or choose another student."
        )
    if rollout.static_cache:
        check_type(model_type)


def build_server(config: Config, codec: TextCodec) -> Server | None:
    """The server that writes rollouts, connected before anything is loaded; None where the student writes them here.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: the student cannot write in this way.
        EndpointError: the server cannot be reached, or takes no weights.
    """
    check_writer(config)
    settings = config.rollout.vllm
    if config.rollout.engine is not RolloutEngine.vllm:
        return None
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
