"""What W&B receives of real runs, read back with its own reader; its dashboards and the requests for them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from wandb_server import WandbServer

from pdp.config.compose import compose
from pdp.errors import Refusal
from pdp.runs.directory import RunDirectory
from pdp.tracking import wandb_offline, wandb_views
from pdp.tracking.tracker import flat
from pdp.tracking.wandb_tracker import WandbTracker
from scripts import sweep_table, wandb_dashboard, wandb_sync

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the right form, nobody's
ROOT = Path(__file__).resolve().parents[2]
RUN = ["model=resnet20", "sparsity=0.8", "debug=smoke", "recipe.epochs=6", "device=cpu"]
# Trains, stops as if asked to after two epochs, and goes on, all in one process.
RESUMED = """
import os, signal, sys
from pdp.config.command_line import main
from pdp.runs.directory import RunDirectory
write = RunDirectory.write_history
def stopping(self, line):
    write(self, line)
    if line["epoch"] == 1 and not os.environ.get("STOPPED"):
        os.environ["STOPPED"] = "1"
        os.kill(os.getpid(), signal.SIGUSR1)
RunDirectory.write_history = stopping
assert main("train", sys.argv[1:]) == 75
sys.exit(main("train", sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was tracked offline in two parts."""
    folder = tmp_path_factory.mktemp("tracked")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    home = folder / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RESUMED, *RUN, "tracker=wandb", f"output_dir={folder}/runs"],
        cwd=ROOT,
        env=clean | {"HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    # matplotlib keeps its list of fonts there; W&B and the run leave nothing.
    assert not [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in path.parts]
    (path,) = (folder / "runs").glob("*/seed0")
    return path


def inspect_text(folder, *flags):
    """What W&B's own reader says of an offline folder."""
    (file,) = folder.glob("run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *flags, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def inspect(folder):
    """The records in an offline folder."""
    return [json.loads(line) for line in inspect_text(folder).splitlines()]


def test_an_offline_run_in_two_parts_read_back_is_its_history_record_and_files(run):
    folders = wandb_offline.find_folders([run])
    assert len(folders) == 2 and folders[0].name < folders[1].name
    records = [inspect(folder) for folder in folders]
    rows = [one["history"]["item"] for part in records for one in part if one["type"] == "history"]
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    history = RunDirectory(run).read_history()
    assert [row["epoch"] for row in rows] == list(range(6))
    assert rows == [flat(line) for line in history]
    record = json.loads((run / "record.json").read_text())
    summary = json.loads(inspect_text(folders[1], "--summary"))["summary"]
    assert {key: summary.get(key) for key in record if record[key] is not None} == {
        key: value for key, value in record.items() if value is not None
    }
    text = json.dumps(records[1])
    for name in ("model", "result"):
        assert f"{name}-{run.parent.name}-seed0" in text
    for file in ("model.safetensors", "layers.csv", "record.json", "history.jsonl"):
        assert file in text and file not in json.dumps(records[0])
    # By reference: no second copy of the weights.
    assert len([path for path in run.rglob("*") if path.suffix == ".safetensors"]) == 1


def test_what_is_sent_is_each_part_once_in_its_order_and_nothing_of_a_run_that_goes_on(run, capsys):
    folders = wandb_offline.find_folders([run])
    assert wandb_offline.unsent([run.parents[1], run]) == (folders, [], [])
    assert wandb_sync.main([str(run), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[:2] == [f"would be sent: {folder}" for folder in folders] and "2 to send" in told
    (file,) = folders[0].glob("run-*.wandb")
    mark = file.with_name(file.name + ".synced")
    mark.touch()
    try:
        assert wandb_offline.unsent([run]) == (folders[1:], folders[:1], [])
        holder = RunDirectory(run)
        holder.hold()
        assert wandb_offline.unsent([run]) == ([], folders[:1], folders[1:])
        holder.release()
    finally:
        mark.unlink()
    with pytest.raises(Refusal, match="is no folder"):
        wandb_sync.main([str(run / "none")])


def test_a_run_in_two_parts_is_one_run_on_the_server_with_each_line_once(run, tmp_path):
    copy = tmp_path / run.parent.name / run.name
    shutil.copytree(run, copy)
    server = WandbServer()
    environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
    for told in ("2 sent now, 0 sent before", "0 sent now, 2 sent before"):
        done = subprocess.run(
            [sys.executable, "scripts/wandb_sync.py", str(copy)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0 and told in done.stdout, done.stderr
        ((name, lines),) = server.lines.items()
        assert name.startswith(json.loads((run / "record.json").read_text())["run_id"])
        assert [(number, line["epoch"]) for number, line in sorted(lines.items())] == [(one, one) for one in range(6)]
        assert server.groups == {name: run.parent.name}


def test_a_torn_file_is_sent_up_to_its_last_whole_record_and_stands_in_no_ones_way(run, tmp_path):
    copies = [tmp_path / run.parent.name / f"seed{number}" for number in range(2)]
    for copy in copies:
        shutil.copytree(run, copy)
    first, last = wandb_offline.find_folders([copies[0]])
    (file,) = last.glob("run-*.wandb")
    whole = file.stat().st_size
    assert wandb_offline.whole_bytes(file) == whole
    file.write_bytes(file.read_bytes()[:-200])  # as a kill may leave it
    assert 0 < wandb_offline.whole_bytes(file) < whole - 200
    started = last.with_name(f"{last.name}-started")  # killed before its first record: a head and no more
    started.mkdir()
    (started / "run-started.wandb").write_bytes(file.read_bytes()[:7])
    assert wandb_offline.find_folders([copies[0]]) == [first, last]
    server = WandbServer()
    environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
    for told in ("4 sent now, 0 sent before", "0 sent now, 4 sent before"):
        command = [sys.executable, "scripts/wandb_sync.py", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and told in done.stdout, done.stderr
        (lines,) = server.lines.values()
        assert [lines[number]["epoch"] for number in sorted(lines)][:6] == list(range(6))


def test_the_id_of_a_run_killed_before_its_first_checkpoint_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    ids = []
    for _ in range(2):
        config = compose(["model=resnet20", "sparsity=0.8", "tracker=wandb", "tracker.mode=offline"])
        tracker = WandbTracker(config, tmp_path / "run", "0123abcd-0", lambda line: None)
        tracker._start(0)
        assert tracker._run.config["cell"]["method"] == "pdp"
        ids.append(tracker.id)
        tracker._run.finish()
    assert ids[0] == ids[1] and ids[0].startswith("0123abcd-0-")


def test_a_server_that_is_not_there_is_told_in_a_line_and_the_run_stays_to_be_sent(run, tmp_path):
    copy = tmp_path / run.parent.name / run.name
    shutil.copytree(run, copy)
    environment = os.environ | {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "scripts/wandb_sync.py", str(copy)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3 and done.stderr.startswith("wandb_sync: W&B did not take 1 run, the first ")
    assert len(done.stderr.splitlines()) == 1 and len(wandb_offline.unsent([copy])[0]) == 2


def test_the_tables_go_to_wandb_too(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert sweep_table.main([str(run.parents[1]), "--to", str(tmp_path / "tables"), "--wandb"]) == 0
    assert "the tables were sent offline" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "tables" / "runs.csv")) == 1
    text, end = "", time.monotonic() + 60
    while "table.md" not in text and time.monotonic() < end:  # W&B's service writes a moment after it said so
        time.sleep(0.2)
        text = "".join(json.dumps(inspect(folder)) for folder in wandb_offline.find_folders([tmp_path / "tables"]))
    assert "tables-runs" in text and "cells.csv" in text and "table.md" in text


def panels_of(node):
    """Every panel's configuration in a specification."""
    if isinstance(node, dict):
        if "viewType" in node:
            yield node
        for value in node.values():
            yield from panels_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from panels_of(value)


def test_the_dashboards_are_written_down_without_a_server_and_name_what_is_sent(run, tmp_path, capsys):
    target = tmp_path / "views.json"
    assert wandb_dashboard.main(["--offline", str(target), "--project", "mine", "--entity", "us"]) == 0
    views = json.loads(target.read_text())
    asked = {"sparsity", "macs_sparse", "metric", "train_seconds", "step_ms_median", "share/.*"}
    record = json.loads((run / "record.json").read_text())
    sent = {*record, *(key for line in RunDirectory(run).read_history() for key in flat(line))}
    for part in ("workspace", "report"):
        panels = list(panels_of(views[part]))
        text = json.dumps(panels)
        assert len(panels) >= 14 and all(key in text for key in asked)
        assert "cell.value.method" in json.dumps(views[part])  # how W&B writes config.cell.method
    named = {
        key for some in wandb_views.panels(wandb_views._library()[0]).values() for panel in some for key in _keys(panel)
    }
    assert named and named <= sent


def _keys(panel):
    """The metrics that a panel names, but for patterns."""
    for value in (getattr(panel, name, None) for name in ("x", "y", "metrics")):
        for one in value if isinstance(value, list) else [value]:
            name = getattr(one, "name", one)
            if isinstance(name, str):
                yield name


def test_a_dashboard_without_an_entity_is_refused(monkeypatch):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(Refusal, match="--entity must be given"):
        wandb_dashboard.main(["--project", "mine"])
