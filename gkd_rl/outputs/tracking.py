"""Tracking of a run's metrics and samples: metrics.jsonl and samples.jsonl always, W&B optionally.

The two files are complete: every line is on disk when `log_step` returns, so that a killed run keeps it. W&B shows the
same numbers. It is imported if a run uses it, here only; if it fails, the run continues without it after a warning.
In a distributed run only the main process creates a tracker.
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

from gkd_rl.config.choices import WandbMode
from gkd_rl.errors import GkdRlError
from gkd_rl.outputs.json_files import UNSAFE, JsonLines, plain

MAX_TABLE_ROWS = 10_000  # limit of a W&B table; samples.jsonl has all rows
INIT_SECONDS = 30.0  # wait for W&B's server, then the run continues without it
FINISH_SECONDS = 600.0  # wait for the upload at the end of the run

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """Names under which W&B lists a run.

    Attributes:
        project: W&B project.
        group: of runs that belong together, e.g. those of one sweep.
        name: of the run.
        job_type: kind of process, e.g. train.
        tags: for searches.
    """

    project: str
    group: str | None
    name: str
    job_type: str | None = None
    tags: tuple[str, ...] = ()


def sweep_of(run_dir: Path) -> str | None:
    """Name of the sweep's folder that holds the run, None for a single run, by Hydra's mode."""
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    return run_dir.resolve().parent.name if is_sweep else None


class Tracker:
    """Writes metrics and samples of a run. A context manager: its end closes the files and the W&B run.

    A resumed run appends. If a step occurs twice in metrics.jsonl, the last line counts.

    Args:
        run_dir: folder of the run, created if absent; W&B writes to `run_dir`/wandb.
        wandb_mode: offline (no account, no prompt, no network), online or disabled.
        listing: where W&B lists the run.
        config: settings shown in W&B; nested mappings allowed.

    Raises:
        GkdRlError: if the mode is unknown, the package wandb is absent, or online has no account to upload to.
    """

    def __init__(self, run_dir: Path, wandb_mode: str, listing: Listing, config: Mapping[str, Any]) -> None:
        modes = [mode.value for mode in WandbMode]
        if wandb_mode not in modes:
            raise GkdRlError(f"tracking.wandb={wandb_mode} is not a mode: tracking.wandb takes {', '.join(modes)}.")
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
        """The W&B run, or None if W&B failed; raises an error for what the user can correct."""
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
        # Offline excludes everything that uses the network: hardware probes call a cloud's metadata server.
        # Revision and versions are in environment.json; code and paths of the machine are private and not uploaded.
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
            run.define_metric("*", step_metric="step")  # W&B's own step cannot decrease, as it does in a resumed run
            if not offline:
                _logger.info("W&B run: %s", run.url)  # W&B's own message is switched off with its other output
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
        """Continue without W&B."""
        self._failure = f"{type(error).__name__}: {error}"
        self._run = None
        _logger.warning(
            "W&B failed (%s); the run continues and writes %s.", self._failure, self.run_dir / "metrics.jsonl"
        )

    def _with_wandb(self, action: Callable[[Any], object]) -> None:
        """Call W&B if there is a W&B run; after a failure it is not called again."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            import wandb

            run = self._run
            self._give_up(error)
            # W&B keeps what it has received. The teardown prevents a dead service from being used by the next run, and
            # from raising an error at the exit of this process.
            for close in (lambda: run.finish(exit_code=1), wandb.teardown):
                try:
                    close()
                except Exception:
                    _logger.debug("W&B could not be closed either.", exc_info=True)

    def log_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one line {"step": step, ...} to metrics.jsonl, keys sorted, without None; NaN is "nan".

        Raises:
            GkdRlError: if a metric is called step.
        """
        if "step" in metrics:
            raise GkdRlError(
                f"metric step={metrics['step']}: 'step' is reserved for the number of the step; rename the metric."
            )
        present = {key: metrics[key] for key in sorted(metrics) if metrics[key] is not None}
        self._metrics.append([{"step": step, **present}])
        self._with_wandb(lambda run: run.log({"step": step, **present}))

    def log_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line {"step": step, ...} per row to samples.jsonl; W&B receives all as one table at the end."""
        records = [{"step": step, **row} for row in rows]
        self._samples.append(records)
        if self._run is not None:
            self._table += records[: MAX_TABLE_ROWS - len(self._table)]

    def sizes(self) -> dict[str, int]:
        """Bytes of the two files by name, after they have been synchronised to disk."""
        return {"metrics.jsonl": self._metrics.size(), "samples.jsonl": self._samples.size()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Truncate the files to earlier `sizes()`, from which a resumed run appends."""
        self._metrics.cut(sizes["metrics.jsonl"])
        self._samples.cut(sizes["samples.jsonl"])

    def summary(self, values: Mapping[str, Any]) -> None:
        """Nested final numbers as W&B's summary, with keys joined by "/"; eval.json has them too."""
        flat = {key: plain(value) for key, value in flatten(values).items()}
        self._with_wandb(lambda run: run.summary.update(flat))

    def log_plots(self, files: Iterable[Path]) -> None:
        """PNG files as images and HTML files as pages of the W&B run, each under its file's name."""
        wandb: Any = sys.modules.get("wandb")
        kinds = {".png": lambda path: wandb.Image(str(path)), ".html": lambda path: wandb.Html(path.read_text("utf-8"))}
        with _staging_under(self.run_dir / "wandb"):
            self._with_wandb(lambda run: run.log({path.stem: kinds[path.suffix](path) for path in files}))

    def _log_table(self, run: Any) -> None:
        """All samples as one wandb.Table; control characters are replaced."""
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
            self._with_wandb(self._log_table)
            self._table = []
        self._with_wandb(lambda run: run.finish(exit_code=exit_code))
        self._run = None
        self._metrics.close()
        self._samples.close()
        if self._failure is not None:
            _logger.warning("W&B has only a part of this run (%s); all of it is in %s.", self._failure, self.run_dir)
            self._failure = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(exit_code=0 if kind is None else 1)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings in one level: {"after": {"rouge2": 1}} -> {"after/rouge2": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


@contextmanager
def _staging_under(folder: Path) -> Iterator[None]:
    """Within the block, files of a wandb.Table are staged under `folder`, for which wandb.Settings has no field.

    A folder that the user has set is kept; otherwise the variable is removed after the block.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
