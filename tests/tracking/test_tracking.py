"""Trackers in real processes: what they wrote is read back; wrong keys and failing networks lose nothing."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from record_values import record_values

from pdp.config.compose import compose
from pdp.config.identity import config_hash
from pdp.config.schema import TensorboardConfig, TrackerConfig, WandbConfig
from pdp.config.stored import from_yaml, to_yaml
from pdp.errors import Refusal
from pdp.runs.record import Record
from pdp.tracking.making import make_tracker
from pdp.tracking.tracker import Tracker, flat

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
BASE = ["model=resnet20", "sparsity=0.866", "seed=3"]
KEY = "0123456789abcdef0123456789abcdef01234567"  # of the right form, nobody's


def line(epoch):
    return {
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "loss": 2.5 / (epoch + 1),
        "lr": 0.1,
        "metric": 0.5 + epoch / 10,
        "metrics": {"top1": 0.5 + epoch / 10, "loss": 1.25},
        "metric_soft": None,
        "sparsity": 0.25 * epoch,
        "phase": "ramp",
        "layer_shares": {"layer1.0.conv1": 0.25 * epoch, "fc": 0.125 * epoch},
        "revived": 0.0625,
        "layer_revived": {"layer1.0.conv1": 0.0625, "fc": 0.0},
        "step_ms": 12.5,
        "mask_ms": 0.5,
        "seconds": 3.5 * (epoch + 1),
    }


LINES = [line(epoch) for epoch in range(4)]


def directory_of(folder, seed=3):
    return folder / "resnet20-digits-pdp-random-0.866-0123abcd" / f"seed{seed}"


def track(folder, overrides, environment=None, **job):
    """Tracks one run in a process of its own; the report and the run's directory."""
    (report,) = track_all(folder, [{"overrides": overrides, **job}], environment)
    return report, directory_of(folder)


def track_all(folder, jobs, environment=None):
    """Runs the worker, with a home of its own; its reports."""
    jobs = [
        {"directory": str(directory_of(folder)), "lines": LINES} | job | {"overrides": [*BASE, *job["overrides"]]}
        for job in jobs
    ]
    home = folder / "home"
    for path in (home, *(Path(job["directory"]) for job in jobs)):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WANDB_") and name not in ("NETRC", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    }
    done = subprocess.run(
        [sys.executable, str(TESTS / "tracking_worker.py"), str(folder / "jobs.json")],
        cwd=TESTS.parent,
        env=clean | {"HOME": str(home), "PYTHONPATH": str(TESTS.parent)} | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    (reports,) = done.stdout.splitlines()
    return json.loads(reports)


def offline_folders(directory):
    return sorted((directory / "wandb").glob("*run-*"))


@functools.cache
def inspect(folder, *flags):
    """What W&B's own reader finds in an offline run."""
    (file,) = folder.glob("run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *flags, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout


def records_of(folder, kind):
    """The records of one kind in an offline run."""
    return [record[kind] for text in inspect(folder).splitlines() if (record := json.loads(text))["type"] == kind]


def history_of(folder):
    """The values of each line that was logged, without those that W&B adds."""
    items = [record["item"] for record in records_of(folder, "history")]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


NO_KEY = "no key is configured"


def test_without_a_key_all_that_was_logged_lies_in_the_runs_directory(tmp_path):
    record = record_values(seed=3)
    report, directory = track(tmp_path, ["tracker=wandb"], record=record)
    (said,) = report["said"]
    assert NO_KEY in said and f"wandb sync {directory}/wandb/offline-run-*" in said
    assert report["state"]["id"].startswith("0123abcd-0-")
    (folder,) = offline_folders(directory)
    assert folder.name.startswith("offline-run-") and folder.name.endswith(report["state"]["id"])
    assert history_of(folder) == [flat(one) for one in LINES]
    (run,) = records_of(folder, "run")
    assert run["tags"] == ["resnet20", "digits", "pdp", "random", "sparsity 0.866", "seed 3"]
    assert run["run_group"] == directory.parent.name and run["project"] == "pdp"
    assert run["config"]["update"]["recipe"]["epochs"] == 12
    metrics = {one.get("name") or one["glob_name"]: one.get("step_metric") for one in records_of(folder, "metric")}
    assert metrics == {"epoch": None, "*": "epoch"}
    summary = json.loads(inspect(folder, "--summary"))["summary"]
    assert {key: summary.get(key) for key in record} == record
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_a_resumed_run_keeps_its_id_and_the_next_run_of_a_sweep_has_its_own(tmp_path):
    directory, other = directory_of(tmp_path), directory_of(tmp_path, seed=4)
    first, second = track_all(
        tmp_path,
        [
            {"overrides": ["tracker=wandb"], "lines": LINES[:2]},
            {"overrides": ["tracker=wandb", "seed=4"], "directory": str(other)},
        ],
    )
    assert first["state"] != second["state"]  # a run that starts over is another one too: its id has a new tail
    resumed, _ = track(tmp_path, ["tracker=wandb"], lines=LINES[2:], state=first["state"], step=20)
    assert resumed["state"] == first["state"]
    folders = offline_folders(directory)
    assert len(folders) == 2 and all(folder.name.endswith(first["state"]["id"]) for folder in folders)
    assert [one for folder in folders for one in history_of(folder)] == [flat(one) for one in LINES]
    (folder,) = offline_folders(other)
    assert history_of(folder) == [flat(one) for one in LINES]


def test_other_trackers_keep_the_id_for_the_one_it_is_of(tmp_path):
    for kind in ("none", "tensorboard"):
        with make_tracker(compose([*BASE, f"tracker={kind}"]), tmp_path, "0123abcd-0", print) as tracker:
            tracker.load_state_dict({"id": "0123abcd-0-aaaaaa"})
            tracker.start(20)
        assert tracker.state_dict() == {"id": "0123abcd-0-aaaaaa"}


def test_a_key_without_a_network_falls_back_to_offline(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # never listens: refuses every connection
        environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{closed.getsockname()[1]}", "WANDB_API_KEY": KEY}
        report, directory = track(tmp_path, ["tracker=wandb", "tracker.timeout=2"], environment)
    (said,) = report["said"]
    assert "the network failed" in said and "offline" in said and KEY not in said
    (folder,) = offline_folders(directory)
    assert history_of(folder) == [flat(one) for one in LINES]


def test_a_server_that_never_answers_does_not_hang_the_run(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)  # takes connections and never reads them
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "netrc").write_text(f"machine {address}\n  login user\n  password {KEY}\n")
        environment = {"WANDB_BASE_URL": f"http://{address}", "NETRC": str(tmp_path / "netrc")}
        report, directory = track(tmp_path, ["tracker=wandb", "tracker.timeout=2"], environment)
    (said,) = report["said"]
    assert "the network failed" in said
    (folder,) = offline_folders(directory)
    assert history_of(folder) == [flat(one) for one in LINES]


def test_offline_asks_no_network_though_there_is_a_key(tmp_path):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        listening.setblocking(False)
        environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{listening.getsockname()[1]}", "WANDB_API_KEY": KEY}
        report, directory = track(tmp_path, ["tracker=wandb", "tracker.mode=offline"], environment)
        with pytest.raises(BlockingIOError):  # nobody called
            listening.accept()
    assert len(report["said"]) == 1 and len(offline_folders(directory)) == 1


def test_online_without_a_key_is_refused(tmp_path):
    report, directory = track(tmp_path, ["tracker=wandb", "tracker.mode=online"])
    assert "WANDB_API_KEY" in report["refused"] and not list(directory.iterdir())


def test_a_key_that_cannot_be_one_falls_back_to_offline(tmp_path):
    report, directory = track(tmp_path, ["tracker=wandb"], {"WANDB_API_KEY": "short"})
    assert "the key cannot be used" in report["said"][0] and "short" not in " ".join(report["said"])
    assert [folder.name.startswith("offline-run-") for folder in offline_folders(directory)] == [True]


def test_a_service_that_dies_ends_the_tracking_and_not_the_run(tmp_path):
    report, directory = track(tmp_path, ["tracker=wandb"], kill_service_before=2, record=record_values())
    assert len(report["said"]) == 2 and "history.jsonl has every line" in report["said"][1]


def scalars(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def test_tensorboard_holds_every_number_at_its_step(tmp_path):
    config = compose([*BASE, "tracker=tensorboard"])
    with make_tracker(config, tmp_path, "0123abcd-0", print) as tracker:
        tracker.start()
        for one in LINES:
            tracker.log(one)
        tracker.finish(Record(**record_values()))
    found, events = scalars(tmp_path)
    numbers = {key for key, value in flat(LINES[0]).items() if not isinstance(value, str)}
    assert set(found) == numbers and "density/layer1.0.conv1" in numbers and "revived" in numbers
    for key, values in found.items():
        assert values == [(one["step"], pytest.approx(flat(one)[key], rel=1e-6)) for one in LINES]
    assert '"metric": 0.9375' in events.Tensors("record/text_summary")[0].tensor_proto.string_val[0].decode()


def test_tensorboard_of_a_resumed_run_has_each_step_once(tmp_path):
    config = compose([*BASE, "tracker=tensorboard"])
    for start, lines in ((0, LINES[:3]), (20, LINES[2:])):  # killed after a line that no checkpoint covers
        with make_tracker(config, tmp_path, "0123abcd-0", print) as tracker:
            tracker.start(start)
            for one in lines:
                tracker.log(one)
    assert scalars(tmp_path)[0]["loss"] == [(one["step"], pytest.approx(one["loss"])) for one in LINES]


def test_a_tracker_that_cannot_write_says_so_once(tmp_path):
    said = []
    (tmp_path / "tensorboard").write_text("in the way")
    with make_tracker(compose([*BASE, "tracker=tensorboard"]), tmp_path, "0123abcd-0", said.append) as tracker:
        tracker.start()
        tracker.log(LINES[0])
        tracker.finish(Record(**record_values()))
    assert len(said) == 1 and said[0].startswith("TensorBoard: start failed")


def test_other_processes_send_nothing(tmp_path):
    for kind in ("wandb", "tensorboard"):
        config = compose([*BASE, f"tracker={kind}"])
        with make_tracker(config, tmp_path, "0123abcd-0", print, is_main=False) as tracker:
            tracker.start()
            tracker.log(LINES[0])
            tracker.finish(Record(**record_values()))
    assert type(tracker) is Tracker and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_what_is_not_installed_is_refused_with_the_command_to_install_it(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)  # how Python says that a module cannot be imported
    with pytest.raises(Refusal, match=f"pip install {kind}"):
        compose([*BASE, f"tracker={kind}"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tracker=wandb", "tracker.mode=onlin"], "did you mean online"),
        (["tracker=wandb", "tracker.timeout=0"], "tracker.timeout"),
        (["tracker=tensorboard", "tracker.mode=offline"], "tracker=tensorboard has no such key"),
        (["tracker.name=wandb"], "give tracker=<name>"),
        (["tracker=wandbb"], "did you mean wandb"),
    ],
)
def test_options_that_do_not_fit_are_refused(overrides, words):
    with pytest.raises(Refusal, match=words):
        compose([*BASE, *overrides])


def test_trackers_come_back_from_a_runs_configuration_and_do_not_move_its_hash():
    plain = compose(BASE)
    for overrides, kind in (
        (["tracker=wandb", "tracker.project=mine"], WandbConfig),
        (["tracker=tensorboard"], TensorboardConfig),
        (["tracker=none"], TrackerConfig),
    ):
        config = compose([*BASE, *overrides])
        assert type(config.tracker) is kind and from_yaml(to_yaml(config)) == config
        assert config_hash(config, "0" * 16) == config_hash(plain, "0" * 16)
