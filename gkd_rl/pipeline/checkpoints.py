"""Checkpoints of the run's own stage: when one is made, which stay, and how a run goes on from the last whole one.

They lie in `checkpoints/` of the run's folder, one folder for each step, and `before/` with the evaluations that were
made before training, so that a resumed run does not make them anew. The main process reads and writes; the other ranks
receive what it read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gkd_rl.config import CheckpointConfig
from gkd_rl.config.launch import processes
from gkd_rl.config.moved_targets import with_current_metrics
from gkd_rl.errors import CheckpointError
from gkd_rl.evaluation.evaluator import Evaluation
from gkd_rl.evaluation.metrics import corpus_counts
from gkd_rl.outputs.tracking import Tracker
from gkd_rl.training.cost import CostTotals
from gkd_rl.training.processes import gather_objects
from gkd_rl.training.state import (
    Snapshot,
    read_label,
    read_snapshot,
    remove_unfinished,
    restore_trainer,
    restore_weights,
    trainer_state,
    write_snapshot,
)
from gkd_rl.training.trainer import Trainer

log = logging.getLogger(__name__)
FOLDER, BEFORE, STEP = "checkpoints", "before", "step-"
VALUES, PLACES = "values", "by_position"  # of the evaluations in BEFORE
NO_LINES = {"metrics.jsonl": 0, "samples.jsonl": 0}


@dataclass
class Checkpoints:
    """Of one run.

    Attributes:
        run_folder: of the run.
        settings: which stay.
        every: steps from one to the next; 0: none are made.
        trainer: whose state they are.
        cost: what the run's own stage has spent.
        tracker: of the main process, None on other ranks.
        models: hash of the models before training by name: the run goes on from these and no others.
    """

    run_folder: Path
    settings: CheckpointConfig
    every: int
    trainer: Trainer
    cost: CostTotals
    tracker: Tracker | None
    models: dict[str, str]
    _scores: list[float] = field(default_factory=list)  # of the steps since the last regular one
    _made: int = -1  # step of the last one

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run_folder / FOLDER

    def begin(
        self, evaluate: Callable[[], dict[str, Evaluation]], references: list[str], resume: bool
    ) -> tuple[dict[str, Evaluation], int]:
        """Evaluations before training, and the steps that were taken: both from the disk where they are there.

        Args:
            evaluate: makes the evaluations.
            references: of the rows that they are on.
            resume: go on with what the folder holds.

        Raises:
            CheckpointError: the checkpoint there is of a run with other models or another number of processes.
        """
        found = gather_objects(self._newest() if resume and self.tracker is not None else None)[0]
        if found is not None:
            self._refuse_others(found.facts)
        before = gather_objects(self._before() if found is not None and self.tracker is not None else None)[0]
        evaluations = evaluate() if before is None else _evaluations(before, references)
        if found is not None:
            self._restore(found)
            return evaluations, found.facts["step"]
        if resume and self.tracker is not None:
            log.warning("%s holds no checkpoint that can be used: training begins again.", self.run_folder)
            self.tracker.cut(NO_LINES)
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.every:
            if self.tracker is not None:
                write_snapshot(self.folder / BEFORE, _as_snapshot(evaluations), {})
            self.save(0)
        return evaluations, 0

    def after_step(self, step: int, metrics: dict[str, float], last: int) -> None:
        """Make a checkpoint if this step is due for one; `last` is the run's last step."""
        name = self.settings.best
        if name is not None and name in metrics:
            self._scores.append(metrics[name])
        if self.every and (step % self.every == 0 or step == last):
            score = float(np.mean(self._scores)) if self._scores else None
            self._scores = []
            self.save(step, score)

    def save(self, step: int, score: float | None = None) -> None:
        """Make one now; every rank has to. A disk that is full costs a checkpoint, not the run."""
        if step == self._made:
            return
        self._made = step
        if self.trainer.models.output_cache is not None:
            self.trainer.models.output_cache.shards.write()
        state = trainer_state(self.trainer)
        if self.tracker is None:
            return
        facts = {
            "step": step,
            "cost": self.cost.totals,
            "scores": self._scores,
            "lines": self.tracker.sizes(),
            "models": self.models,
            "processes": processes(),
            "arithmetic": _arithmetic(),
        }
        try:
            whole = Snapshot(state.tensors, state.facts | facts)
            write_snapshot(self._path(step), whole, {"step": step, "score": score})
            self._prune()
        except OSError as error:
            log.warning("checkpoint of step %d was not written (%s); the run goes on without it", step, error)

    def write_best(self, write: Callable[[], None]) -> None:
        """Call `write` with the best checkpoint's weights in the student; they stay there."""
        best = self._best() if self.tracker is not None else None
        if best is None:
            return
        try:
            restore_weights(self.trainer, read_snapshot(best))
        except CheckpointError as error:
            log.warning("the best checkpoint is left out: %s", error)
            return
        log.info("best %s: step %d", self.settings.best, read_label(best)["step"])
        write()

    def remove(self) -> None:
        """Of a finished run nothing is left to go on with."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{STEP}{step:08d}"

    def _newest(self) -> Snapshot | None:
        """The last one that is whole."""
        remove_unfinished(self.folder)
        for path in reversed(steps_in(self.run_folder)):
            try:
                found = read_snapshot(path)
                for name, size in found.facts["lines"].items():
                    there = (self.run_folder / name).stat().st_size if (self.run_folder / name).exists() else 0
                    if there < size:
                        raise CheckpointError(
                            f"{self.run_folder / name} has {there} bytes and had {size} at {path.name}"
                        )
            except CheckpointError as error:
                log.warning("passed over %s, the checkpoint before it is used: %s", path.name, error)
                continue
            return found
        return None

    def _before(self) -> Snapshot | None:
        """The evaluations, None where they cannot be read and are made again."""
        try:
            return read_snapshot(self.folder / BEFORE)
        except CheckpointError as error:
            log.warning("the evaluations before training are made again: %s", error)
            return None

    def _refuse_others(self, facts: dict[str, Any]) -> None:
        """Models before training, processes and arithmetic are those that the run began with."""
        other = [name for name in self.models if self.models[name] != facts["models"].get(name)]
        if other:
            raise CheckpointError(
                f"resume={self.run_folder}: the {' and the '.join(other)} before training is not what the run began "
                "with: its checkpoint, the data, or the code of the supervised stage has changed. Bring that back, or "
                "start a new run."
            )
        if facts["processes"] != processes():
            raise CheckpointError(
                f"resume={self.run_folder}: the run began with {facts['processes']} processes and there are "
                f"{processes()}: each has random numbers of its own. Start as many."
            )
        if facts["arithmetic"] != _arithmetic():
            log.warning(
                "the run began with %s and goes on with %s: it may round otherwise", facts["arithmetic"], _arithmetic()
            )

    def _restore(self, found: Snapshot) -> None:
        restore_trainer(self.trainer, found)
        self.cost.totals = with_current_metrics(found.facts["cost"])
        self._scores = list(found.facts["scores"])
        if self.tracker is not None:
            self.tracker.cut(found.facts["lines"])
            log.info("goes on after step %d of %s", found.facts["step"], self.run_folder)
            for path in steps_in(self.run_folder):  # damaged ones, of steps that are taken again
                if path > self._path(found.facts["step"]):
                    shutil.rmtree(path)

    def _prune(self) -> None:
        """Remove all but the last ones and the best."""
        paths = steps_in(self.run_folder)
        kept = {*paths[-self.settings.keep :], self._best()}
        for path in paths:
            if path not in kept:
                shutil.rmtree(path)

    def _best(self) -> Path | None:
        """The one whose score is best, the first of several."""
        scores = {path: score for path, score in self._labels() if score is not None and np.isfinite(score)}
        choose = max if self.settings.best_is == "highest" else min
        return choose(scores, key=scores.__getitem__) if scores else None

    def _labels(self) -> Iterator[tuple[Path, float | None]]:
        for path in steps_in(self.run_folder):
            try:
                score = read_label(path)["score"]
            except CheckpointError:
                continue
            yield path, None if score is None else float(score)


def steps_in(run_folder: Path) -> list[Path]:
    """Folders of a run's checkpoints, the earliest first."""
    return sorted((run_folder / FOLDER).glob(f"{STEP}*"))


def _arithmetic() -> str:
    """What decides how sums are rounded, as far as it is known."""
    return f"torch {torch.__version__} on {torch.get_num_threads()} threads"


def _as_snapshot(evaluations: dict[str, Evaluation]) -> Snapshot:
    """Numbers as tensors, so that they keep their precision."""
    tensors = {
        f"{name}/{part}/{metric}": torch.from_numpy(values)
        for name, one in evaluations.items()
        for part, arrays in ((VALUES, one.values), (PLACES, one.by_position))
        for metric, values in arrays.items()
    }
    texts = {name: {"completions": one.completions, "corpus": bool(one.corpus)} for name, one in evaluations.items()}
    return Snapshot(tensors, {"evaluations": texts})


def _evaluations(snapshot: Snapshot, references: list[str]) -> dict[str, Evaluation]:
    """The same, back; corpus scores are counted again from the texts."""
    found = {}
    for name, facts in snapshot.facts["evaluations"].items():
        values, places = (_below(f"{name}/{part}/", snapshot) for part in (VALUES, PLACES))
        texts = facts["completions"]
        corpus = corpus_counts(texts, references) if facts["corpus"] else {}
        found[name] = Evaluation(values, texts, corpus, places)
    return found


def _below(prefix: str, snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Arrays whose names begin with a prefix, without it."""
    tensors = snapshot.tensors.items()
    return {name.removeprefix(prefix): tensor.numpy() for name, tensor in tensors if name.startswith(prefix)}
