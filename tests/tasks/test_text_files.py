"""Running text from files: which files belong to which part, and patterns that match nothing."""

import pytest

from pdp.config.compose import compose
from pdp.config.stored import from_yaml, to_yaml
from pdp.errors import Refusal
from pdp.tasks.corpora import read_files


@pytest.fixture
def folder(tmp_path):
    for name in ("train.txt", "train.part2", "test.txt"):
        (tmp_path / name).write_text(f"the text of {name}\n", encoding="utf-8")
    return tmp_path


def test_without_a_pattern_valid_files_are_taken_where_there_are_any(folder):
    assert read_files(str(folder), ["train.*"], None, ["test.*"]).validation is None
    (folder / "valid.txt").write_text("held out\n")
    assert read_files(str(folder), ["train.*"], None, ["test.*"]).validation == ["held out\n"]
    assert read_files(str(folder), ["train.*"], [], ["test.*"]).validation is None


@pytest.mark.parametrize("key", ["train_files", "validation_files", "test_files"])
@pytest.mark.parametrize("pattern", ["absent.txt", "none*", "valid*.*", "sub/*.txt"])
def test_a_pattern_that_matches_nothing_is_refused(folder, key, pattern):
    patterns = {"train_files": ["train.txt"], "validation_files": ["train.part2"], "test_files": ["test.txt"]}
    read_files(str(folder), *patterns.values())
    patterns[key] = [*patterns[key], pattern]  # beside one that matches
    with pytest.raises(Refusal, match=f"data.{key}: .* matches no file in data.root") as caught:
        read_files(str(folder), *patterns.values())
    assert pattern in str(caught.value)


@pytest.mark.parametrize("other", ["validation", "test"])
def test_no_file_trains_and_is_held_out(folder, other):
    patterns = {"validation": ["train.part2"], "test": ["test.txt"]} | {other: ["train.txt"]}
    with pytest.raises(Refusal, match=f"train.txt is in data.train_files and in data.{other}_files"):
        read_files(str(folder), ["train.txt"], patterns["validation"], patterns["test"])


def test_runs_of_before_had_the_pattern_in_their_configuration(folder):
    config = compose(["model=gpt2_tiny", "prune=none", "data=text", f"data.root={folder}"])
    assert config.data.validation_files is None
    text = to_yaml(config).replace("validation_files: null", "validation_files:\n  - valid*.*")
    assert "valid*.*" in text and from_yaml(text).data.validation_files is None
