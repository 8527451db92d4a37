"""Low-rank adapters of the student through peft: LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024).

Only the adapter is trained. The student's own weights are the initial student: with the adapter off, they serve a
second view, not by a second copy. For generation the adapter is merged into the weights, and a copy of them comes back
bit for bit (peft's own unmerging subtracts, which rounds).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from gkd_rl.errors import ModelError
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import ADAPTER_FILE, BASE, UNREADABLE, first_line
from gkd_rl.models.decoding import DecodingState
from gkd_rl.types import PromptBatch, Rollout


class AdaptedModel(HiddenStateModel):
    """A model of frozen weights with a trained adapter inside its linear layers.

    Attributes:
        base_path: folder or Hub id that holds exactly the frozen weights; None where nothing does.
    """

    def __init__(self, model: PreTrainedModel, settings: LoraConfig, seed: int, base_path: str | None = None) -> None:
        """Put a fresh adapter into `model`.

        Args:
            model: is changed in place.
            settings: of the adapter; `target_modules` names linear layers.
            seed: of the adapter's first weights. The model's outputs are at first what they were.
            base_path: see the class.

        Raises:
            ModelError: no layer has such a name, or the output head does.
        """
        _check_targets(model, settings)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft's
            peft_model = get_peft_model(model, settings)
        super().__init__(model)
        self._peft = [peft_model]  # in a list: its parameters are those of `model`
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self.base_path = base_path

    @property
    def adapter(self) -> PeftModel:
        """The model as peft sees it."""
        return self._peft[0]  # pyright: ignore[reportReturnType]

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Adapter merged into the weights where they lie, as CUDA graphs know addresses; copies are put back after."""
        parameters = [cast("nn.Parameter", layer.get_base_layer().weight) for layer in self._layers]
        weights = [parameter.data for parameter in parameters]
        copies = [weight.clone() for weight in weights]
        try:
            for layer, parameter, weight in zip(self._layers, parameters, weights, strict=True):
                layer.merge()
                if parameter.data_ptr() != weight.data_ptr():  # DoRA makes a matrix of its own
                    weight.copy_(parameter.data)
                    parameter.data = weight
            yield
        finally:
            for layer, parameter, weight, saved in zip(self._layers, parameters, weights, copies, strict=True):
                if layer.merged:
                    layer.unmerge()  # for peft's records
                parameter.data = weight.copy_(saved)

    def merged_bytes(self) -> int:
        """Bytes of the copies that `generating` makes."""
        weights = [cast("nn.Parameter", layer.get_base_layer().weight) for layer in self._layers]
        return sum(weight.numel() * weight.element_size() for weight in weights)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Without the adapter, in evaluation mode."""
        training = self.training
        self.eval()
        self._switch(off=True)
        try:
            yield
        finally:
            self._switch(off=False)
            self.train(training)

    def _switch(self, *, off: bool) -> None:
        for layer in self._layers:
            layer._disable_adapters = off  # peft's own switch also turns requires_grad, in the middle of a step

    def merge(self) -> PreTrainedModel:
        """The model with its adapter merged for good, as transformers made it; this object is of no use afterwards."""
        merged: PreTrainedModel = self.adapter.merge_and_unload()  # pyright: ignore
        return merged.requires_grad_(True)

    def base_weights(self) -> dict[str, Tensor]:
        """The frozen weights under the names that they have without an adapter."""
        return {
            name.replace(".base_layer.", "."): value
            for name, value in self.model.state_dict().items()
            if ".lora_" not in name
        }

    def save(self, folder: Path, final: Path) -> None:
        """Write the adapter; beside it the frozen weights, unless `base_path` holds them.

        Args:
            folder: to write to.
            final: where `folder` will lie, which is what the adapter names as its base.
        """
        (settings,) = self.adapter.peft_config.values()
        settings.base_model_name_or_path = self.base_path or str(final.absolute() / BASE)
        self.adapter.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # peft's own card
        if self.base_path is None:
            self.model.save_pretrained(folder / BASE, state_dict=self.base_weights())


class InitialView(HiddenStateModel):
    """The student before training: its weights with the adapter off. Holds no weights of its own."""

    def __init__(self, adapted: AdaptedModel) -> None:
        nn.Module.__init__(self)
        self._adapted = [adapted]  # in a list: its parameters are not this model's
        self.architecture = adapted.architecture
        self.codec = adapted.codec

    @property
    def model(self) -> PreTrainedModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The student's."""
        return self._adapted[0].model

    @torch.no_grad()
    def forward(self, rollout: Rollout) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D), without gradient."""
        with self._adapted[0].off():
            return super().forward(rollout)

    def start(
        self, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]] | None = None
    ) -> DecodingState:
        """Refused: a view only runs forward passes."""
        raise ModelError("the initial student is a view of the student and generates no completions.")


def load_merged(base: PreTrainedModel, folder: Path, key: str) -> PreTrainedModel:
    """A base model with the adapter of `folder` merged into it.

    Raises:
        ModelError: the adapter does not fit.
    """
    try:
        return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()  # pyright: ignore
    except UNREADABLE as error:
        raise ModelError(
            f"{key}={folder}: the adapter does not fit its base ({first_line(error)}): write the model that it was "
            f"trained on into base_model_name_or_path of {folder / ADAPTER_FILE}, or set {key} to another folder."
        ) from error


def _check_targets(model: PreTrainedModel, settings: LoraConfig) -> None:
    """Refuse names that no linear layer ends in, and the output head, whose weight the loss reads directly."""
    targets = settings.target_modules
    if not isinstance(targets, (list, set)):
        return
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    allowed = sorted({name.rpartition(".")[2] for name, module in linear.items() if module is not head})
    for target in sorted(targets):
        found = [module for name, module in linear.items() if name == target or name.endswith("." + target)]
        if not found or head in found:
            why = "is the output head" if found else "is no linear layer of the student"
            raise ModelError(
                f"adapter.targets={sorted(targets)}: {target} {why}; "
                f"take names of {', '.join(allowed)}, or adapter.targets=null for all of them."
            )
