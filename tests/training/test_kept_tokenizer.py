"""A tokenizer that was trained for a run stays the run's, whatever data the run is measured, exported or used on."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.runs.directory import RunDirectory
from pdp.runs.record import read_record
from pdp.tasks import build_task
from pdp.tasks.kept_tokenizer import digest_of
from pdp.tasks.own_texts import read_own_texts
from pdp.tasks.text_tokenizer import train_byte_pairs
from pdp.training.export_run import ExportedRun, export

pytestmark = [pytest.mark.language, pytest.mark.slow]

WORDS = ["".join(random.Random(k).choices("abcdefghijklmnop", k=4)) for k in range(120)]
BERT = [
    "model=bert_tiny",
    "model.sizes={hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}",
    *("data=table", "data.train=train.csv", "data.text=[review]", "data.vocabulary=300", "device=cpu"),
]
TABLE = [*BERT, "data.label=stars", "prune=none", "recipe.epochs=6", "recipe.lr=3e-3", "recipe.batch_size=32"]
SCORES = [*BERT, "data.score=points", "prune=none", "recipe.epochs=2", "recipe.batch_size=32"]
GPT2 = [
    "model=gpt2_tiny",
    "model.sizes={n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64}",
    *("data=text", "data.root=text", "data.context=64", "data.vocabulary=320", "prune=none", "device=cpu"),
    *("recipe.epochs=2", "recipe.batch_size=8", "data.validation=0.1"),
]


def rows(count: int, seed: int) -> list[str]:
    """Rows of words; one of the first ten means good, one of the next ten bad, and points are higher with good ones."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        good = draw.random() < 0.5
        words = [draw.choice(WORDS[20:]) for _ in range(4)] + [draw.choice(WORDS[:10] if good else WORDS[10:20])]
        draw.shuffle(words)
        made.append(f"{' '.join(words)},{'good' if good else 'bad'},{3 + 2 * good + draw.random():.3f}")
    return made


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(["review,stars,points", *lines]) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs on a table, its scores and a text, each exported to a folder while its data was as in training."""
    folder = tmp_path_factory.mktemp("vocabularies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(folder / "train.csv", rows(400, 0))
        write(folder / "new.csv", rows(150, 1))
        for name, words in (("text", WORDS[:60]), ("other", WORDS[40:])):
            (folder / name).mkdir()
            draw = random.Random(name)
            lines = [" ".join(draw.choices(words, k=8)) for _ in range(200)]
            (folder / name / "train.txt").write_text("\n".join(lines))
            (folder / name / "test.txt").write_text(" ".join(lines[0].split()[:5]) + "\n")  # one window
        for name, words in (("table", TABLE), ("scores", SCORES), ("language", GPT2)):
            assert main("train", [*words, f"output_dir=out/{name}"]) == 0
            (run,) = Path(f"out/{name}").glob("*/seed0")
            run.rename(name)
            export(ExportedRun(Path(name)), "safetensors", Path(f"{name}_exported"))
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy that a test may change."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("COLUMNS", "160")


def read(path: str) -> tuple[list[str], list[str], list[float]]:
    cells = [line.split(",") for line in Path(path).read_text().splitlines()[1:]]
    texts, stars, points = zip(*cells, strict=True)
    return list(texts), list(stars), [float(one) for one in points]


@torch.no_grad()
def truth(folder: str, table: str, scale: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """Accuracy and loss of an exported folder on a table, by plain transformers; of scores the second alone counts."""
    texts, stars, points = read(table)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained
    logits = model(**tokenizer(folder)(texts, return_tensors="pt", padding=True)).logits
    if logits.shape[1] == 1:
        return 0.0, float(functional.mse_loss(logits[:, 0], (torch.tensor(points) - scale[0]) / scale[1]))
    labels = torch.tensor([model.config.label2id[one] for one in stars])
    return float((logits.argmax(1) == labels).float().mean()), float(functional.cross_entropy(logits, labels))


def measured(capsys, *words: str) -> tuple[float, float]:
    """The metric and the loss that evaluate.py prints."""
    capsys.readouterr()
    assert main("evaluate", list(words)) == 0
    shown = capsys.readouterr().out
    metric = re.search(r"^(?:accuracy|perplexity|pearson) (\S+)$", shown, re.M)[1]
    return float(metric), float(re.search(r"loss\s+│\s+([\d.]+)", shown)[1])


def refused(capsys, program: str, *words: str) -> str:
    capsys.readouterr()
    assert main(program, list(words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def made_old(run: str) -> None:
    """The run as it was recorded before tokenizers were kept."""
    shutil.rmtree(Path(run, "tokenizer"))
    record = json.loads(Path(run, "record.json").read_text())
    del record["reading"]
    Path(run, "record.json").write_text(json.dumps(record))


def test_other_test_data_is_read_with_the_runs_own_words(here, capsys):
    right = truth("table_exported", "new.csv")
    assert right[0] > 0.9
    with pytest.warns(UserWarning, match="the data is not the run's"):
        assert measured(capsys, "run=table", "data.test=new.csv") == pytest.approx(right, abs=2e-5)
    assert measured(capsys, "run=table")[0] == read_record(Path("table")).metric


def test_rows_appended_to_the_training_file_change_no_word(here, capsys):
    right = truth("table_exported", "new.csv")
    write(Path("train.csv"), [*rows(400, 0), *rows(300, 7)])
    with pytest.warns(UserWarning, match="the data is not the run's"):
        assert measured(capsys, "run=table")[0] > 0.9
    export(ExportedRun(Path("table")), "safetensors", Path("again"))
    assert truth("again", "new.csv") == right
    Path("train.csv").unlink()  # and it needs no data at all
    export(ExportedRun(Path("table")), "safetensors", Path("without"))
    assert truth("without", "new.csv") == right


def test_a_run_that_begins_with_another_reads_as_it_did(here, capsys):
    words = ["from=table", "start.mask=free", "method=dense", "recipe.epochs=0", "data.test=new.csv", "output_dir=next"]
    assert main("train", words) == 0
    (run,) = Path("next").glob("*/seed0")
    record, right = read_record(run), truth("table_exported", "new.csv")
    assert (record.metric, record.metrics["loss"]) == pytest.approx(right, abs=2e-5)
    assert record.reading == read_record(Path("table")).reading
    assert "the run's tokenizer of" in record.notes[0]
    shutil.move("table", "moved")  # what it began with is not needed to measure it
    assert measured(capsys, f"run={run}")[0] == record.metric


def test_texts_of_other_classes_get_a_head_of_their_own(here):
    changed = {"good": "fine", "bad": "poor"}
    write(Path("train.csv"), [re.sub("good|bad", lambda one: changed[one[0]], line) for line in rows(100, 1)])
    words = ["from=table", "start.mask=free", "method=dense", "recipe.epochs=1", "recipe.lr=1e-9", "output_dir=next"]
    assert main("train", words) == 0
    (run,) = Path("next").glob("*/seed0")
    notes = read_record(run).notes
    assert "the run was trained for bad, good, and this data has fine, poor: classifier starts random" in notes
    before, after = (load_file(path / "model.safetensors") for path in (Path("table"), run))
    assert not torch.allclose(before["classifier.weight"], after["classifier.weight"], atol=1e-3)
    body = "bert.embeddings.word_embeddings.weight"
    assert torch.allclose(before[body], after[body], atol=1e-3)


def test_another_vocabulary_for_a_runs_weights_is_refused(here, capsys):
    train_byte_pairs(["some other text"] * 9, 300).save_pretrained("named")
    words = ["from=table", "start.mask=free", "method=dense", "recipe.epochs=0", "output_dir=next"]
    line = refused(capsys, "train", *words, "data.tokenizer=named")
    assert "trained with another tokenizer than that of data.tokenizer=named" in line
    assert "give data.tokenizer=table/tokenizer" in line
    line = refused(capsys, "train", *words, "data.vocabulary=350")
    assert "data.vocabulary=350" in line and "drop data.vocabulary" in line


def test_a_teacher_with_other_words_is_refused_unless_the_student_takes_them(here, capsys):
    words = [*BERT, "data.label=stars", "sparsity=0.5", "recipe.epochs=3", "data.test=new.csv", "output_dir=taught"]
    words += ["distill=teacher", "distill.teacher=table"]
    line = refused(capsys, "train", *words)
    assert "would read other tokens than the student" in line and "data.tokenizer=table/tokenizer" in line
    assert main("train", [*words, "data.tokenizer=table/tokenizer"]) == 0
    made_old("table")
    line = refused(capsys, "train", *words)
    assert "would read other tokens than the student" in line
    write(Path("train.csv"), [*rows(400, 0), *rows(300, 7)])
    assert "kept no tokenizer" in refused(capsys, "train", *words)


def test_running_text_is_read_with_the_runs_own_words(here, capsys):
    model = AutoModelForCausalLM.from_pretrained("language_exported").eval()
    ids = AutoTokenizer.from_pretrained("language_exported")(Path("other/test.txt").read_text(), return_tensors="pt")
    assert ids.input_ids.shape[1] <= 64
    with torch.no_grad():
        logits = model(ids.input_ids).logits
    loss = float(functional.cross_entropy(logits[0, :-1], ids.input_ids[0, 1:]))
    with pytest.warns(UserWarning, match="the data is not the run's"):
        assert measured(capsys, "run=language", "data.root=other")[1] == pytest.approx(loss, abs=2e-5)
    words = ["from=language", "start.mask=free", "method=dense", "recipe.epochs=0", "output_dir=next"]
    assert main("train", [*words, "data.root=other"]) == 0
    (run,) = Path("next").glob("*/seed0")
    assert read_record(run).metrics["loss"] == pytest.approx(loss, abs=2e-5)
    made_old("language")
    with pytest.warns(UserWarning, match="the data is not the run's"):
        assert measured(capsys, "run=language", "data.root=other")[1] == pytest.approx(loss, abs=2e-5)
    Path("text/train.txt").write_text(Path("other/train.txt").read_text())
    assert "give data.root with the run's own text" in refused(capsys, "evaluate", "run=language", "data.root=other")


def test_an_older_run_goes_on_with_its_own_text_and_is_refused_without(here, capsys):
    right = truth("table_exported", "new.csv")
    made_old("table")
    assert measured(capsys, "run=table")[0] == read_record(Path("table")).metric
    with pytest.warns(UserWarning, match="the data is not the run's"):
        assert measured(capsys, "run=table", "data.test=new.csv") == pytest.approx(right, abs=2e-5)
    Path("train.csv").rename("moved.csv")
    assert measured(capsys, "run=table", "data.train=moved.csv")[0] == read_record(Path("table")).metric
    line = refused(capsys, "evaluate", "run=table", "data.train=moved.csv", "data.test=new.csv")
    assert "is not at hand (data.train=train.csv does not exist" in line
    write(Path("train.csv"), [*rows(400, 0), *rows(300, 7)])
    line = refused(capsys, "evaluate", "run=table")
    assert line.startswith("evaluate: run=table: it kept no tokenizer, and the text") and "is changed" in line
    words = ["start.mask=free", "method=dense", "recipe.epochs=0", "output_dir=next"]
    assert "from=table: it kept no tokenizer" in refused(capsys, "train", "from=table", *words)
    with pytest.raises(Refusal, match="kept no tokenizer"):
        ExportedRun(Path("table"))


def test_other_scores_are_measured_on_the_scale_that_the_run_learnt(here, capsys):
    own = read_own_texts(compose(SCORES).data)
    assert read_record(Path("scores")).reading["score"] == [own.shift, own.scale]
    write(Path("new.csv"), [re.sub(r"[^,]+$", lambda one: str(9 + 3 * float(one[0])), one) for one in rows(150, 1)])
    right = truth("scores_exported", "new.csv", (own.shift, own.scale))[1]
    with pytest.warns(UserWarning, match="the data is not the run's"):
        assert measured(capsys, "run=scores", "data.test=new.csv")[1] == pytest.approx(right, rel=1e-4)


def opened(config: Config):
    task = build_task(config)
    task.open_data()
    return task


def test_a_run_that_goes_on_takes_what_it_began_with(here):
    begun = Path("begun")
    begun.mkdir()
    first = opened(compose(TABLE))
    (begun / ".tokenizer.4711").mkdir()  # left by a process that was killed
    first.keep(begun, False)
    assert [path.name for path in begun.iterdir()] == ["tokenizer"]
    write(Path("train.csv"), rows(300, 7))
    second = opened(compose(TABLE))
    assert digest_of(second.tokenizer) != digest_of(first.tokenizer)
    second.keep(begun, True)
    assert digest_of(second.tokenizer) == digest_of(first.tokenizer)
    again = opened(compose(TABLE))
    again.keep(begun, False)  # nothing was trained on it yet
    assert digest_of(AutoTokenizer.from_pretrained(begun / "tokenizer")) == digest_of(again.tokenizer)
    RunDirectory(begun).discard_if_nothing_begun()
    assert not begun.exists()
