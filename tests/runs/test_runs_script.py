"""scripts/runs.py on real folders: what it lists, copies, deletes and refuses."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from record_values import record_values
from stored_runs import make_run

from pdp.runs.directory import RunDirectory
from pdp.runs.keeping import LARGEST_RUN
from pdp.runs.record import Record, write_record
from scripts.runs import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def call(results, capsys):
    """Runs the script on `results`; its exit code, what it printed and what it said on stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["--results", str(results), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def tree(folder):
    """Every file below with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_list_says_what_each_run_is(results, call):
    make_run(results, "aaaaaaaa", metric=0.75, model="mobilenet_v1", pattern="2:4", target_sparsity=0.5)
    make_run(results, "bbbbbbbb", seed="1", finished=False, epochs=3)
    held = RunDirectory(make_run(results, "cccccccc", finished=False, epochs=0))
    held.hold()
    damaged = make_run(results, "dddddddd")
    (damaged / "record.json").write_text('{"model": ')
    bare = results / "runs/x-eeeeeeee/seed0"
    bare.mkdir(parents=True)
    code, out, err = call("list")
    held.release()
    assert (code, err) == (0, "")
    rows = {match[0]: row for row in out.splitlines() if (match := re.search(r"[a-e]{8}-\d", row))}
    assert set(rows) == {"aaaaaaaa-0", "bbbbbbbb-1", "cccccccc-0", "dddddddd-0", "eeeeeeee-0"}
    assert rows["aaaaaaaa-0"].split() == [
        *["aaaaaaaa-0", "mobilenet_v1", "digits", "pdp", "2:4", "50.00", "%", "finished", "4/4", "top1", "75.00", "%"],
        *["2026-01-02", "03:04"],
    ]
    unfinished = ["bbbbbbbb-1", "resnet20", "digits", "pdp", "random", "86.60", "%", "dead", "3/4", "top1"]
    assert rows["bbbbbbbb-1"].split()[:12] == [*unfinished, "25.00", "%"]
    assert "running" in rows["cccccccc-0"] and "0/4" in rows["cccccccc-0"]
    assert "damaged" in rows["dddddddd-0"] and "dead" in rows["eeeeeeee-0"]
    assert "5 runs: 1 damaged, 2 dead, 1 finished, 1 running" in out


def test_runs_of_one_cell_are_told_apart_by_what_was_typed_otherwise(results, call):
    texts = {
        "aaaaaaaa": ("momentum: 0.9", "momentum: 0.9"),
        "bbbbbbbb": ("momentum: 0.9", "momentum: 0.8"),
        "cccccccc": ("epochs: 4", "epochs: 9"),
    }
    for name, (old, new) in texts.items():
        path = make_run(results, name, **{"config_hash": name * 2})
        text = (path / "config.yaml").read_text()
        assert text.count(f" {old}\n") >= 1
        (path / "config.yaml").write_text(text.replace(f" {old}\n", f" {new}\n", 1))
    make_run(results, "dddddddd", model="mobilenet_v1", config_hash="d" * 16)
    lines = {match[0]: line for line in call("list")[1].splitlines() if (match := re.search(r"[a-d]{8}-0", line))}
    assert "recipe.momentum=0.8" in lines["bbbbbbbb-0"] and "recipe.momentum=0.9" in lines["aaaaaaaa-0"]
    assert "recipe.epochs=9" in lines["cccccccc-0"] and "recipe.epochs=4" in lines["bbbbbbbb-0"]
    assert "recipe" not in lines["dddddddd-0"] and "model" not in lines["aaaaaaaa-0"]


@pytest.mark.parametrize("how", ["saved", "stopped", "refused", "interrupted", "failed"])
def test_a_run_is_called_by_how_it_ended(results, call, how):
    path = make_run(results, "aaaaaaaa", finished=False)
    directory = RunDirectory(path)
    directory.note_ending(how, "why")
    assert how in call("list")[1]
    directory.hold()  # it goes on
    assert "running" in call("list")[1] and not directory.ending.exists()
    directory.release()


def test_what_a_refused_start_made_goes_and_what_was_trained_stays(tmp_path):
    fresh, begun = RunDirectory(tmp_path / "a" / "seed0"), RunDirectory(tmp_path / "b" / "seed0")
    for one in (fresh, begun):
        one.hold()
        one.config.write_text("seed: 0\n")
    begun.write_history({"epoch": 0})
    for one in (fresh, begun):
        one.discard_if_nothing_begun()
        one.release()
    assert not (tmp_path / "a").exists() and begun.read_history() == [{"epoch": 0}]


def test_a_history_torn_in_its_last_line_is_read_up_to_it(results, call):
    path = make_run(results, finished=False, epochs=2)
    with (path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "metr')
    assert " 2/4 " in call("list")[1]


def test_five_hundred_runs_are_listed_without_torch(results):
    for number in range(500):
        path = results / f"runs/resnet20-digits-pdp-random-0.866-{number:08x}/seed0"
        path.mkdir(parents=True)
        write_record(Record(**record_values(metric=number / 1000)), path)
    code = "import sys; from scripts.runs import main; main(['--results', sys.argv[1], 'list']); print(*sys.modules)"
    command = [sys.executable, "-c", code, str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, modules = done.stdout.splitlines()
    assert sum(" finished " in one for one in lines) == 500 and "500 runs: 500 finished" in lines
    assert "pdp.runs.store" in modules.split() and not {"torch", "hydra", "pandas"} & set(modules.split())


def test_five_hundred_runs_are_tabled_and_cleaned(results, call):
    for number in range(100):
        for seed in range(5):
            path = results / f"runs/resnet20-digits-pdp-random-0.866-{number:08x}/seed{seed}"
            (path / "checkpoint").mkdir(parents=True)
            (path / "checkpoint" / "step-1.pt").write_bytes(b"x" * 1000)
            values = {
                "metric": number / 1000,
                "seed": seed,
                "config_hash": f"{number:016x}",
                "target_sparsity": number / 100,
            }
            write_record(Record(**record_values(**values)), path)
    code, out, _ = call("table")
    assert code == 0 and sum(line.startswith("resnet20") or " resnet20 " in line for line in out.splitlines()) == 100
    code, out, _ = call("clean", "--yes")
    assert code == 0 and not list((results / "runs").glob("*/seed*/checkpoint/*.pt"))
    assert len(list((results / "runs").glob("*/seed*/record.json"))) == 500


def test_a_run_counts_once_in_the_table(results, call):
    first = make_run(results, metric=0.5, finished_at="2026-01-01T00:00:00Z")
    RunDirectory(first).move_aside()  # as rerun=true does
    make_run(results, metric=0.9)
    second = make_run(results, seed="1", metric=0.7)
    values = json.loads((second / "record.json").read_text()) | {"seed": 1}
    (second / "record.json").write_text(json.dumps(values))
    shutil.copytree(second, second.with_name("seed2"))
    code, out, err = call("table")
    assert (code, err) == (0, "")
    (row,) = [line for line in out.splitlines() if "resnet20" in line]
    cells = [one.strip() for one in row.strip("│").split("│")]
    assert cells[6] == "2" and cells[8] == "80.00 %"
    (second / "record.json").write_text(json.dumps(values | {"metric": 0.1}))
    code, _, err = call("table")
    assert code == 2 and "seed1" in err and "seed2" in err and "different records" in err


def test_keep_copies_what_tables_need(results, call):
    path = make_run(results)
    code, out, _ = call("keep", "0123abcd-0", "--study", "first")
    target = results / "records/first" / path.parent.name / "seed0"
    assert code == 0 and str(target) in out and "left out" not in out
    names = {"record.json", "layers.csv", "history.jsonl", "distributions.npz"}
    assert tree(target) == {name: (path / name).read_bytes() for name in names}
    write_record(Record(**record_values(metric=0.5)), path)
    (path / "distributions.npz").unlink()
    code, out, _ = call("keep", path.parent, "--study", "first")  # by its directory, and over what was there
    assert code == 0 and "distributions.npz is missing" in out
    assert tree(target) == {name: (path / name).read_bytes() for name in names - {"distributions.npz"}}


def test_keep_makes_large_runs_small_and_says_how(results, call):
    large = make_run(results, "aaaaaaaa", distributions=LARGEST_RUN)
    long = make_run(results, "bbbbbbbb", epochs=100, layers=50, distributions=10)
    longest = make_run(results, "cccccccc", epochs=3000)
    for path, words in (
        (large, "distributions.npz left out"),
        (long, "distributions.npz left out; history.jsonl without values by layer"),
        (longest, "history.jsonl without values by layer, every 4 epochs"),
    ):
        code, out, _ = call("keep", path, "--study", "first")
        assert code == 0 and out.strip().endswith(words)
        kept = tree(results / "records/first" / path.parent.name / "seed0")
        assert sum(map(len, kept.values())) <= LARGEST_RUN
        assert kept["record.json"] == (path / "record.json").read_bytes()
        whole = [json.loads(one) for one in (path / "history.jsonl").read_text().splitlines()]
        lines = [json.loads(one) for one in kept["history.jsonl"].splitlines()]
        assert lines[-1]["epoch"] == whole[-1]["epoch"]
        if path == large:
            assert lines == whole
        else:
            assert [{"epoch", "metric", "metrics"}] * len(lines) == [set(one) for one in lines]
            assert all(one["metric"] == whole[one["epoch"]]["metric"] for one in lines)
    assert len(lines) == 750


def test_keep_refuses_what_it_must(results, call):
    unfinished = make_run(results, "aaaaaaaa", finished=False)
    aside = make_run(results, "bbbbbbbb", seed="0.before-20260102-030405")
    huge = make_run(results, "cccccccc", notes=["x" * LARGEST_RUN])
    good = make_run(results, "dddddddd")
    with (results / "runs" / "filler").open("wb") as file:
        file.truncate(30_000_000)  # is not committed, so it does not count
    before = tree(results)
    for path, study, words in (
        (unfinished, "s", "is unfinished"),
        (aside, "s", "moved aside"),
        (huge, "s", "record.json and layers.csv alone"),
        (good, "../s", "is not a name"),
    ):
        code, out, err = call("keep", path, "--study", study)
        assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1
    assert tree(results) == before
    (results / "figures").mkdir()
    with (results / "figures" / "large.png").open("wb") as file:
        file.truncate(39_999_000)
    code, _, err = call("keep", good, "--study", "s")
    assert code == 2 and "has 1,000 left of 40,000,000" in err
    assert not (results / "records").exists()


def test_clean_deletes_checkpoints_of_finished_runs_alone(results, call):
    finished = make_run(results, "aaaaaaaa")
    make_run(results, "bbbbbbbb", finished=False)
    damaged = make_run(results, "dddddddd")
    (damaged / "record.json").write_text("{}")
    before = tree(results)
    code, out, _ = call("clean")
    assert code == 0 and f"{finished}/checkpoint" in out and "--yes does it" in out
    assert "bbbbbbbb" not in out and "dddddddd" not in out
    assert tree(results) == before
    assert call("clean", "--yes")[0] == 0
    gone = {name for name in before if name.startswith(f"{finished.relative_to(results)}/checkpoint/")}
    after = tree(results)
    assert gone and set(after) == set(before) - gone
    assert {name for name in after if after[name] != before[name]} <= {f"{finished.relative_to(results)}/.lock"}
    assert not (finished / "checkpoint").exists()
    assert "nothing to delete" in call("clean", "--yes")[1]


def test_clean_finished_deletes_whole_runs_that_are_kept(results, call):
    kept, changed, other = (make_run(results, digit * 8, metric=0.25) for digit in "abc")
    assert call("keep", kept, changed, "--study", "s")[0] == 0
    write_record(Record(**record_values(metric=0.5)), changed)  # no longer what was kept
    assert "nothing" not in call("clean", "--finished")[1] and kept.is_dir()
    assert call("clean", "--finished", "--yes")[0] == 0
    assert not kept.parent.exists()
    for path in (changed, other):
        assert (path / "model.safetensors").is_file() and not (path / "checkpoint").exists()
    assert len(list((results / "records").rglob("record.json"))) == 2


def test_clean_deletes_unfinished_runs_only_where_asked_and_never_running_ones(results, call):
    stopped = make_run(results, "aaaaaaaa", finished=False)
    other = make_run(results, "bbbbbbbb", finished=False)
    held = RunDirectory(make_run(results, "cccccccc", finished=False))
    held.hold()
    assert "UNFINISHED" in call("clean", "--unfinished")[1] and stopped.is_dir()
    code, out, _ = call("clean", "--unfinished", "--yes", "aaaaaaaa")
    assert code == 0 and not stopped.parent.exists() and other.is_dir()
    code, out, _ = call("clean", "--unfinished", "--yes")
    held.release()
    assert code == 0 and not other.exists() and "cccccccc" not in out
    assert (held.checkpoints / "step-000000040.pt").is_file()


def test_archive_holds_everything_but_checkpoints(results, call, tmp_path):
    paths = [make_run(results, "aaaaaaaa", seed=seed) for seed in ("0", "1")]
    before = tree(results)
    target = tmp_path / "runs.tar"
    code, out, _ = call("archive", "aaaaaaaa", "--to", target)
    assert code == 0 and str(target) in out and tree(results) == before
    with tarfile.open(target) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    for path in paths:
        whole = {name: content for name, content in tree(path).items() if not name.startswith(("checkpoint/", ".lock"))}
        assert tree(tmp_path / "unpacked" / path.parent.name / path.name) == whole
    assert call("archive", "aaaaaaaa", "--to", target)[0] == 2  # never over a file that is there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "nowhere"], "is no folder"),
        (["keep", "0123abce-0", "--study", "s"], "did you mean 0123abcd-0?"),
        (["keep", "nothing-like-it", "--study", "s"], "`list` shows the runs"),
        (["keep", "0123abcd"], "--study"),
        (["archive", "0123abcd", "--to", "x.zip"], "ends in .tar"),
        (["archive", "0123abcd", "--to", "no/such/folder/x.tar"], "there is no folder"),
        (["clean", "--everything"], "--everything"),
        (["clean", "0123abcd-7"], "is no run"),
        ([], "required"),
        (["burn"], "burn"),
    ],
)
def test_bad_input_is_refused_in_one_line(results, call, arguments, words):
    make_run(results)
    before = tree(results)
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1
    assert tree(results) == before


def test_help_says_all():
    command = [sys.executable, "scripts/runs.py"]
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(word in done.stdout for word in ("list", "keep", "clean", "archive", "Exit codes"))
    done = subprocess.run([*command, "clean", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(flag in done.stdout for flag in ("--finished", "--unfinished", "--yes"))
