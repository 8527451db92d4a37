"""Numbers and samples of a run: metrics.jsonl and samples.jsonl always, W&B beside them; the only importer of `wandb`.

The two files are the record: every finished line is on disk when `log_step` returns, so that a killed run keeps it.
W&B is a view. It is imported when a run asks for it, and when it fails the run goes on without it and says so.
In a distributed run the main process creates the tracker, and no other.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from gkd_rl.errors import GkdRlError
from gkd_rl.outputs.json_files import UNSAFE, JsonLines, plain, write_json

__all__ = ["MODES", "Listing", "Tracker", "flatten", "sweep_of", "write_json"]

MODES = ("offline", "online", "disabled")
MAX_TABLE_ROWS = 10_000  # what W&B shows of one table; samples.jsonl keeps all

INIT_SECONDS = 30.0  # that a run waits for W&B's server before it goes on without
FINISH_SECONDS = 600.0  # that it waits for its files to arrive at the end

_logger = logging.getLogger(__name__)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level: {"after": {"rouge2": 1}} -> {"after/rouge2": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


@contextmanager
def _staging_under(folder: Path) -> Iterator[None]:
    """Keep the files of a wandb.Table under `folder`: its staging folder is the one place with no wandb.Settings field.

    A folder that the user chose stays; the variable is gone again after the call.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


@dataclass(frozen=True)
class Listing:
    """Where W&B lists a run, and under which words.

    Attributes:
        project: W&B project.
        group: runs that belong together, e.g. those of one sweep.
        name: of the run.
        job_type: what kind of process it is, e.g. train.
        tags: words to search for.
    """

    project: str
    group: str | None
    name: str
    job_type: str | None = None
    tags: tuple[str, ...] = ()


def sweep_of(run_dir: Path) -> str | None:
    """Name of the sweep's folder that the run lies in, None for a single run; asks Hydra."""
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    return run_dir.resolve().parent.name if is_sweep else None


class Tracker:
    """Writes what a run measures. Use it as a context manager; leaving it closes the files and the W&B run.

    A resumed run appends: where a step occurs twice in metrics.jsonl, the last line is the one that counts.

    Args:
        run_dir: folder of the run, created if absent; W&B writes to `run_dir`/wandb.
        wandb_mode: offline (no account, no prompt, no network), online or disabled.
        listing: where W&B lists the run.
        config: settings shown in W&B; nested mappings allowed.

    Raises:
        GkdRlError: if the mode is unknown, the package wandb is absent, or online has no account to upload to.
    """

    def __init__(self, run_dir: Path, wandb_mode: str, listing: Listing, config: Mapping[str, Any]) -> None:
        if wandb_mode not in MODES:
            raise GkdRlError(f"tracking.wandb={wandb_mode} is not a mode: tracking.wandb takes {', '.join(MODES)}.")
        self.run_dir = Path(run_dir).resolve()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._mode = wandb_mode
        self._run: Any = None
        self._failure: str | None = None
        self._table: list[dict[str, Any]] = []
        if wandb_mode != "disabled":
            self._run = self._start({**asdict(listing), "config": plain(config)})
        self._metrics = JsonLines(self.run_dir / "metrics.jsonl")
        self._samples = JsonLines(self.run_dir / "samples.jsonl")

    def _start(self, options: dict[str, Any]) -> Any:
        """The W&B run, or None if W&B broke; what the user has to decide is an error."""
        other = "type tracking.wandb=disabled (metrics.jsonl is written either way)"
        try:
            import wandb
            from wandb.errors import AuthenticationError, UsageError
        except ImportError as error:
            raise GkdRlError(
                f"tracking.wandb={self._mode} needs the package wandb, which cannot be imported ({error}): "
                f"pip install wandb, or {other}."
            ) from error
        mode = cast(Literal["offline", "online"], self._mode)
        offline = mode == "offline"
        # Offline leaves out all that asks the network: hardware probes call the address of a cloud's metadata server.
        # Revision and versions are in environment.json; code and paths of this machine are nobody else's business.
        settings = wandb.Settings(
            mode=mode,
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_machine_info=offline,
            x_disable_stats=offline,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            reinit="create_new",
        )
        try:
            wandb.setup(settings=settings)
            run = wandb.init(dir=str(self.run_dir), mode=mode, settings=settings, **options)
            run.define_metric("*", step_metric="step")  # W&B's own step refuses to go back, which a resumed run does
            if not offline:
                _logger.info("W&B run: %s", run.url)  # its own announcement is off with the rest of its output
            return run
        except (UsageError, AuthenticationError) as error:
            raise GkdRlError(
                f"tracking.wandb={self._mode} was refused by W&B ({error}): run `wandb login` once, type "
                f"tracking.wandb=offline and upload later with `python -m experiments.sync`, or {other}."
            ) from error
        except Exception as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        """Go on without W&B; a run is worth more than its view."""
        self._failure = f"{type(error).__name__}: {error}"
        self._run = None
        _logger.warning("W&B failed (%s); the run goes on with %s.", self._failure, self.run_dir / "metrics.jsonl")

    def _view(self, action: Callable[[Any], object]) -> None:
        """Call W&B if there is a run; its first failure is its last."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            import wandb

            run = self._run
            self._give_up(error)
            # What arrived before is kept; a dead service is neither told at this process's exit nor given the next run.
            for close in (lambda: run.finish(exit_code=1), wandb.teardown):
                try:
                    close()
                except Exception:
                    _logger.debug("W&B could not be closed either.", exc_info=True)

    def log_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one line {"step": step, ...} to metrics.jsonl, keys sorted; None is left out, NaN is "nan".

        Raises:
            GkdRlError: if a metric is called step.
        """
        if "step" in metrics:
            raise GkdRlError(
                f"metric step={metrics['step']}: 'step' is the line's own key; give the metric another name."
            )
        present = {key: metrics[key] for key in sorted(metrics) if metrics[key] is not None}
        self._metrics.append([{"step": step, **present}])
        self._view(lambda run: run.log({"step": step, **present}))

    def log_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line {"step": step, ...} per row to samples.jsonl; W&B gets them as one table at the end."""
        records = [{"step": step, **row} for row in rows]
        self._samples.append(records)
        if self._run is not None:
            self._table += records[: MAX_TABLE_ROWS - len(self._table)]

    def sizes(self) -> dict[str, int]:
        """Bytes of the two files, by name; they outlive a power cut when this returns."""
        return {"metrics.jsonl": self._metrics.size(), "samples.jsonl": self._samples.size()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Go back to earlier `sizes()`: the run goes on from there."""
        self._metrics.cut(sizes["metrics.jsonl"])
        self._samples.cut(sizes["samples.jsonl"])

    def summary(self, values: Mapping[str, Any]) -> None:
        """Nested final numbers as W&B's summary, with keys joined by "/"; they have their own file, so no line here."""
        flat = {key: plain(value) for key, value in flatten(values).items()}
        self._view(lambda run: run.summary.update(flat))

    def log_plots(self, files: Iterable[Path]) -> None:
        """PNG files as images and HTML files as pages of the W&B run, each by its file's name; they are no record."""
        wandb: Any = sys.modules.get("wandb")
        kinds = {".png": lambda path: wandb.Image(str(path)), ".html": lambda path: wandb.Html(path.read_text("utf-8"))}
        with _staging_under(self.run_dir / "wandb"):
            self._view(lambda run: run.log({path.stem: kinds[path.suffix](path) for path in files}))

    def _log_table(self, run: Any) -> None:
        """All samples as one wandb.Table; characters that a page cannot show are replaced."""
        wandb = sys.modules["wandb"]
        columns = list(dict.fromkeys(key for row in self._table for key in row))
        table = wandb.Table(columns=columns, allow_mixed_types=True)
        for row in self._table:
            table.add_data(*(self._cell(row.get(column)) for column in columns))
        with _staging_under(self.run_dir / "wandb"):
            run.log({"samples": table})

    @staticmethod
    def _cell(value: Any) -> Any:
        """One value of the table: a number, a text, or the JSON of a list or mapping."""
        value = plain(value)
        if isinstance(value, (list, dict)):
            value = json.dumps(value, ensure_ascii=False)
        return UNSAFE.sub("\ufffd", value) if isinstance(value, str) else value

    def close(self, exit_code: int = 0) -> None:
        """Close the files and the W&B run; a second call does nothing."""
        if self._table:
            self._view(self._log_table)
            self._table = []
        self._view(lambda run: run.finish(exit_code=exit_code))
        self._run = None
        self._metrics.close()
        self._samples.close()
        if self._failure is not None:
            _logger.warning("W&B holds only a part of this run (%s); all of it is in %s.", self._failure, self.run_dir)
            self._failure = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(exit_code=0 if kind is None else 1)
