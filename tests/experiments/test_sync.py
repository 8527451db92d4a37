"""experiments.sync: what is uploaded and what is not, and the message without W&B or an account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_cases import make_run, record_of

from experiments import sync
from gkd_rl.errors import GkdRlError
from gkd_rl.outputs.tracking import Listing


def offline(run: Path, name: str, *, synced: bool = False) -> Path:
    """W&B's folder of a run as it lies there offline."""
    folder = run / "wandb" / f"offline-run-2025-{name}"
    folder.mkdir(parents=True)
    (folder / f"run-{name}.wandb").write_bytes(b"")
    if synced:
        (folder / f"run-{name}.wandb.synced").write_bytes(b"")
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A finished run, one that was uploaded, a crashed one, one that goes on, and one without W&B."""
    folder = tmp_path / "sweep"
    going = record_of(os.getpid(), psutil.Process().create_time())
    written: dict[str, dict[str, Any]] = {
        "a": {"eval": {}},
        "b": {"eval": {}},
        "c": {},
        "d": {"run": going},
        "e": {"eval": {}},
    }
    for name, files in written.items():
        make_run(folder / name, {}, **files)
        if name != "e":
            offline(folder / name, name, synced=name == "b")
    return folder


def fake_wandb(folder: Path, *, status: int = 0, said: str = "") -> tuple[str, ...]:
    """An executable that notes what it is called with."""
    script = (
        f"import json, sys; json.dump(sys.argv[1:], open({str(folder / 'called.json')!r}, 'w')); print('uploading')"
    )
    script += f"; sys.stderr.write({said!r}); sys.exit({status})"
    return (sys.executable, "-c", script)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["sync", *map(str, arguments)])
    sync.main()


def called(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> list[str] | None:
    """What `wandb sync` is called with; None if it is not."""
    command, file = fake_wandb(folder), folder / "called.json"
    upload = sync.upload
    monkeypatch.setattr(sync, "upload", lambda paths, options: upload(paths, options, command))
    main(monkeypatch, *arguments)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def test_what_is_not_there_yet_is_uploaded_once_its_run_has_ended(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = called(monkeypatch, tmp_path, sweep, sweep / "a", "--project", "p", "--entity", "e")
    wanted = [str(sweep / name / "wandb" / f"offline-run-2025-{name}") for name in ("a", "c")]
    assert found == ["--project", "p", "--entity", "e", *wanted]
    out = capsys.readouterr().out
    assert "not yet, the run is not finished: " + str(sweep / "d") in out and "uploading" in out


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_nothing_is_called_when_nothing_is_to_be_uploaded(
    sweep: Path,
    tmp_path: Path,
    arguments: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = sweep if arguments else sweep / "b"
    assert called(monkeypatch, tmp_path, folder, *arguments) is None
    assert ("to upload: " if arguments else "Nothing to upload") in capsys.readouterr().out


def test_without_an_account_it_is_said_what_to_type(sweep: Path, tmp_path: Path) -> None:
    command = fake_wandb(tmp_path, status=1, said="wandb: syncing\nError: No API key configured. Use `wandb login`.\n")
    with pytest.raises(GkdRlError, match=r"\(Error: No API key configured.*run `wandb login` once.*Nothing is lost"):
        sync.upload([sweep], [], command)


@pytest.mark.exhaustive
def test_wandbs_own_command_says_that_there_is_no_account(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {}, eval={})
    offline(run, "a")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NETRC"))}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sync", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**kept, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "run `wandb login` once" in done.stderr and "Traceback" not in done.stderr


def test_without_wandb(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="pip install wandb"):
        main(monkeypatch, sweep)


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="nowhere is no folder"):
        main(monkeypatch, tmp_path / "nowhere")


def test_the_plots_of_a_report_are_a_run_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report"
    with pytest.raises(GkdRlError, match="no PNG or HTML file"):
        sync.write_report(report, Listing("p", None, "report"))
    (report / "plots").mkdir(parents=True)
    (report / "report.html").write_text("<p>ü</p>", encoding="utf-8")
    pixel = "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc0000003010100"
    (report / "plots" / "front.png").write_bytes(bytes.fromhex(pixel + "18dd8db00000000049454e44ae426082"))
    found = called(monkeypatch, tmp_path, report, "--report", report, "--group", "sweep")
    assert found is not None and len(found) == 1 and found[0].startswith(str(report / "wandb_report" / "wandb"))
    media = {path.suffix for path in Path(found[0]).rglob("media/**/*") if path.is_file()}
    assert media == {".png", ".html"}
