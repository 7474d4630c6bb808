"""The user's own tables of texts: reading files of every type, which rows are left out, what is refused in one line."""

import csv
import gzip
import json

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import SMALL_BERT, opened

from pdp.config.command_line import main
from pdp.errors import Refusal
from pdp.tasks.own_texts import read_own_texts
from pdp.tasks.tables import read_table

ROWS = [(f"{'good' if k % 2 else 'bad'} film {k}", "pos" if k % 2 else "neg") for k in range(30)]
TEXTS = [
    "007",
    "1e3",
    "null",
    "NA",
    "nan",
    "None",
    "true",
    "-inf",
    "1_000",
    "#N/A",
    "0x1F",
    " leading",
    'a "word"',
    "ü, ö",
]


def lines(rows=ROWS, delimiter=",", header=("review", "stars")):
    return "".join(delimiter.join(row) + "\n" for row in (header, *rows))


def read(path, **keys):
    class Data:
        root = validation_file = test = score = label = None
        text = ["review"]

    data = Data()
    vars(data).update({"train": str(path), "label": None if "score" in keys else "stars"} | keys)
    return read_own_texts(data)


def everything(own):
    """All texts with their labels' names, whatever part they fell into."""
    return {
        (text, own.labels[label])
        for part in (own.train, own.test)
        for text, label in zip(part.first, part.labels, strict=True)
    }


GOOD = {
    "plain.csv": lines(),
    "marked.csv": "\ufeff" + lines(),
    "windows.csv": lines().replace("\n", "\r\n"),
    "old_mac.csv": lines().replace("\n", "\r"),
    "semicolons.csv": lines(delimiter=";"),
    "bars.txt": lines(delimiter="|"),
    "tabs.csv": lines(delimiter="\t"),
    "tabs.tsv": lines(delimiter="\t"),
    "sixteen.csv": lines().encode("utf-16"),
    "blank lines.csv": lines().replace("\n", "\n\n"),
    "closed.csv": lines([(*row, "") for row in ROWS]),  # a delimiter at the end of each line
    "other_twice.csv": lines([("1", "2", *row) for row in ROWS], header=("x", "x", "review", "stars")),
    "quoted.csv": lines([(f'"{text}"', f'"{label}"') for text, label in ROWS]),
    "quoted.tsv": lines([(f'"{text}"', label) for text, label in ROWS], "\t"),
    "zeilen.jsonl": "\n".join(json.dumps({"review": text, "stars": label}) for text, label in ROWS),
    "packed.csv.gz": gzip.compress(lines().encode()),
    "liste.json": json.dumps([{"stars": label, "review": text} for text, label in ROWS]),
}


@pytest.mark.parametrize("name", GOOD)
def test_files_of_every_kind_hold_the_same_rows(tmp_path, name):
    content = GOOD[name]
    path = tmp_path / f"Größe {name}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    own = read(path)
    assert own.labels == ("neg", "pos") and everything(own) == set(ROWS)
    assert own.train.left_out == 0 and (len(own.train), len(own.test)) == (24, 6)


def test_parquet_gives_names_and_numbers_as_they_are_meant(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["review", "stars"])
    frame.to_parquet(tmp_path / "a.parquet")
    assert everything(read(tmp_path / "a.parquet")) == set(ROWS)
    frame.assign(stars=pd.Categorical(frame.stars)).to_parquet(tmp_path / "b.parquet")
    assert everything(read(tmp_path / "b.parquet")) == set(ROWS)
    frame.assign(stars=[None if k % 4 == 0 else float(k % 3) for k in range(30)]).to_parquet(tmp_path / "c.parquet")
    own = read(tmp_path / "c.parquet")
    assert own.labels == ("0", "1", "2") and own.train.reasons == {"no label": 8}
    frame.assign(stars=frame.stars == "pos").to_parquet(tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet").labels == ("false", "true")
    named = datasets.Features({"review": datasets.Value("string"), "stars": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"review": [text for text, _ in ROWS], "stars": [int(label == "pos") for _, label in ROWS]}
    datasets.Dataset.from_dict(rows, features=named).to_parquet(tmp_path / "e.parquet")
    assert everything(read(tmp_path / "e.parquet")) == set(ROWS)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), st.sampled_from(["neg", "pos", "no"])
        ),
        min_size=5,
        max_size=12,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
def test_whatever_a_writer_wrote_is_read_back(tmp_path, rows):
    """Python's, pandas' and JSON's writers against our reading: any text at all, line ends and quotes included."""
    frame = pd.DataFrame([(text, label) for text, label in rows], columns=["review", "stars"])
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_json(tmp_path / "j.jsonl", orient="records", lines=True)
    with (tmp_path / "c.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";", quoting=csv.QUOTE_ALL).writerows([("review", "stars"), *rows])
    wanted = [(text, label) for text, label in rows if text.strip()]
    for name in ("p.csv", "c.csv", "j.jsonl"):
        table = read_table([tmp_path / name], ("review", "stars"), "data.train")
        found = zip(table.columns["review"], table.columns["stars"], strict=True)
        assert [(text, label) for text, label in found if text is not None] == wanted
        assert not table.left_out


def test_texts_stay_texts_and_missing_ones_are_left_out(tmp_path):
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(text, "neg" if k % 2 else "pos") for k, text in enumerate(TEXTS * 3)]
        csv.writer(file).writerows([("review", "stars"), *rows, ("", "pos"), ("  ", "neg"), ("text", "")])
    own = read(tmp_path / "t.csv")
    assert everything(own) == set(rows)
    assert own.train.reasons == {"no text": 2, "no label": 1}
    numbers = ["7", "1e3", "0.10", "true", '"007"', "null", "NaN"]
    (tmp_path / "n.jsonl").write_text(
        "\n".join(f'{{"review": {numbers[k % 7]}, "stars": {k % 2}}}' for k in range(28))
        + '\n{"stars": 1}\n{"review": "x"}'
    )
    own = read(tmp_path / "n.jsonl")
    assert {text for text, _ in everything(own)} == {"7", "1e3", "0.10", "true", "007"}
    assert own.train.reasons == {"no text": 9, "no label": 1}


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_rows_of_another_length_shift_no_label(tmp_path, suffix):
    delimiter = "," if suffix == "csv" else "\t"
    rows = [(text, "pos", label) if k % 2 else (text, label) for k, (text, label) in enumerate(ROWS * 3)]
    rows = [row if k % 3 else ("neg", *row) if k % 2 else row for k, row in enumerate(rows)] + [("lonely",)]
    (tmp_path / f"t.{suffix}").write_text(lines(rows, delimiter))
    table = read_table([tmp_path / f"t.{suffix}"], ("review", "stars"), "data.train")
    kept = list(zip(table.columns["review"], table.columns["stars"], strict=True))
    assert kept == [row for row in rows if len(row) == 2]
    assert table.left_out == {"too many fields": sum(len(row) > 2 for row in rows), "too few fields": 1}


def test_quotes_in_tsv_are_letters_unless_they_hold_tabs(tmp_path):
    (tmp_path / "t.tsv").write_text("review\tstars\n" + "".join(f'"{text}\t{label}\n' for text, label in ROWS))
    assert everything(read(tmp_path / "t.tsv")) == {(f'"{text}', label) for text, label in ROWS}
    (tmp_path / "u.tsv").write_text(
        "review\tstars\n" + "".join(f'"{text}\t\t""x""\nnew"\t{label}\n' for text, label in ROWS)
    )
    assert everything(read(tmp_path / "u.tsv")) == {(f'{text}\t\t"x"\nnew', label) for text, label in ROWS}


def test_classes_are_numbered_as_people_count(tmp_path):
    (tmp_path / "n.csv").write_text(
        lines([(text, ["1", "1.0", "10", "9", "2"][k % 5]) for k, (text, _) in enumerate(ROWS)])
    )
    assert read(tmp_path / "n.csv").labels == ("1", "2", "9", "10")
    (tmp_path / "m.csv").write_text(
        lines([(text, ["10", "9", "good ", "good"][k % 4]) for k, (text, _) in enumerate(ROWS)])
    )
    assert read(tmp_path / "m.csv").labels == ("9", "10", "good")
    (tmp_path / "o.csv").write_text(lines([*ROWS, ("strange", "once")]))
    own = read(tmp_path / "o.csv")
    assert own.labels == ("neg", "once", "pos") and "strange" in own.train.first  # what comes once is learnt


def test_scores_are_learnt_standardised_and_said(tmp_path):
    values = [f"{k},5" if k % 2 else str(k) for k in range(30)]
    (tmp_path / "s.csv").write_text(
        lines([(text, one) for (text, _), one in zip(ROWS, values, strict=True)] + [("x", "high"), ("y", "inf")], ";")
    )
    own = read(tmp_path / "s.csv", score="stars")
    assert own.labels == () and own.train.reasons == {"no score": 2}
    scores = {
        text: label * own.scale + own.shift
        for part in (own.train, own.test)
        for text, label in zip(part.first, part.labels, strict=True)
    }
    assert scores == pytest.approx(
        {text: float(one.replace(",", ".")) for (text, _), one in zip(ROWS, values, strict=True)}
    )
    assert abs(own.train.labels.mean()) < 1e-9 and own.train.labels.std() == pytest.approx(1)
    assert "scores are learnt as (score - " in own.notes[-1]


def test_the_contents_are_the_run_and_the_paths_are_not(tmp_path):
    def fingerprint(*words):
        return opened("data=table", "data.label=stars", "data.text=review", *words).data_fingerprint

    (tmp_path / "a.csv").write_text(lines())
    (tmp_path / "b.tsv").write_text(lines(delimiter="\t"))
    (tmp_path / "c.csv").write_text(lines().replace("good film 1\n", "fine film 1\n"))
    (tmp_path / "d.csv").write_text(lines().replace(",pos", ",yes"))
    first = fingerprint(f"data.train={tmp_path}/a.csv")
    assert first == fingerprint(f"data.root={tmp_path}", "data.train=b.tsv")
    assert first != fingerprint(f"data.train={tmp_path}/d.csv")
    (tmp_path / "c.csv").write_text(lines().replace("good film 1,", "fine movie 1,"))
    assert first != fingerprint(f"data.train={tmp_path}/c.csv")


def test_further_files_and_pairs_and_limits(tmp_path):
    rows = [(text, f"{text} again", label) for text, label in ROWS]
    header = ("Satz 1", "Satz ü", "y")
    for name, part in (("train", rows), ("dev", rows[:8]), ("test", rows[8:14] * 3 + [rows[1]] * 9)):
        (tmp_path / f"{name}.csv").write_text(lines(part, header=header))
    words = [
        "data=table",
        f"data.root={tmp_path}",
        "data.train=train.csv",
        "data.test=test.csv",
        "data.text=[Satz 1,Satz ü]",
        "data.label=y",
    ]
    task = opened(*words, "data.validation_file=dev.csv")
    assert task.sizes() == {"train": 30, "validation": 8, "test": 27} and not task.test_is_validation
    assert next(iter(task.evaluation_loader("test", 4, 0)))["token_type_ids"].any()
    limited = opened(*words, "data.limit=12")
    drawn = np.concatenate([batch["label"] for batch in limited.evaluation_loader("test", 50, 0)])
    train = np.concatenate([batch["label"] for batch in limited.train_loader(12, 0, "none", 0)])
    assert np.bincount(train).tolist() == [6, 6] and len(drawn) == 12 and drawn.sum() != 6  # 18 of 27 are positive
    assert "as many of each class" in limited.data_note


COLUMNS = ["data.text=[review]", "data.label=stars"]
BAD = {
    "absent": (None, [], "does not exist data.train"),
    "a folder": ("FOLDER", [], "is a folder data.train"),
    "empty.csv": ("", [], "is empty data.train"),
    "blank.csv": ("\n \n", [], "is empty data.train"),
    "header.csv": ("review,stars\n", [], "no row below its header"),
    "latin.csv": (lines().replace("film", "fühlm").encode("latin-1"), [], "line 2 is not UTF-8"),
    "binary.csv": (bytes(range(256)), [], "not UTF-8"),
    "columns.csv": (lines().replace("review", "reviw"), [], "no column review did you mean reviw data.text"),
    "no_label.csv": (lines().replace("stars", "stern"), [], "no column stars data.label"),
    "headless.csv": ("".join(lines().splitlines(True)[1:]), [], "no column review data.text"),
    "twice.csv": (lines([(*row, "x") for row in ROWS], header=("review", "stars", "review")), [], "several columns review"),
    "open.csv": (lines() + '"never closed,pos\nmore,neg\n', [], "a quote is not closed data.train"),
    "after.csv": (lines() + '"He" said,pos\n', [], "line 32"),
    "one_class.csv": (lines([(text, "pos") for text, _ in ROWS]), [], "pos in every row data.label"),
    "ids.csv": (lines([(text, f"id{k}") for k, (text, _) in enumerate(ROWS)]), [], "30 different values data.label"),
    "floats.csv": (lines([(text, f"{k * 1.37}") for k, (text, _) in enumerate(ROWS)]), [], "data.score=stars"),
    "unlabelled.csv": (lines([(text, "") for text, _ in ROWS]), [], "no row with a text and a label"),
    "textless.csv": (lines([("", label) for _, label in ROWS]), [], "no row with a text"),
    "one_row.csv": (lines(ROWS[:1]), [], "data.label"),
    "packed.csv.gz": (b"no gzip", [], "cannot be read data.train"),
    "sheet.xlsx": (b"PK\3\4", [], "unknown kind .csv"),
    "no_ending": (lines(), [], "unknown kind .csv"),
    "bad.jsonl": ('{"review": "a", "stars": "b"}\n{oops\n', [], "line 2 is no JSON"),
    "list.jsonl": ("3\n4\n", [], "line 1 is no record"),
    "deep.jsonl": ("[" * 100_000, [], "cannot be read data.train"),
    "nested.jsonl": ("\n".join(json.dumps({"review": {"t": t}, "stars": s}) for t, s in ROWS), [], "holds lists"),
    "bad.parquet": (b"PAR1 and nothing else", [], "cannot be read data.train"),
    "words.csv": (lines(), ["data.label=null", "data.score=stars"], "holds no number data.score"),
    "constant.csv": (lines([(text, "3") for text, _ in ROWS]), ["data.label=null", "data.score=stars"], "in every row"),
    "both.csv": (lines(), ["data.score=stars"], "only one of data.label=stars and data.score=stars"),
    "neither.csv": (lines(), ["data.label=null"], "data.label data.score give one of them"),
    "three.csv": (lines(), ["data.text=[a,b,c]"], "data.text=[a,b,c]"),
    "same.csv": (lines(), ["data.text=[stars]"], "data.text=[stars] different columns"),
    "test.csv": (lines(), ["data.test=test.csv"], "the same file data.test"),
    "unseen.csv": (lines(), ["data.test=meh.csv"], "labels that data.train lacks meh (1 rows)"),
    "blind.csv": (lines(), ["data.test=blind.jsonl"], "no column stars drop data.test"),
    "smooth.csv": (lines(), ["data.label=null", "data.score=stars", "recipe.label_smoothing=0.1"], "recipe.label_smoothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_in_one_line_with_exit_code_2(tmp_path, monkeypatch, capfd, name):
    content, words, said = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meh.csv").write_text(lines([("x", "meh")]))
    (tmp_path / "blind.jsonl").write_text('{"review": "x"}')
    before = {path.name for path in tmp_path.iterdir()}
    if content == "FOLDER":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    typed = {word.partition("=")[0]: word for word in [*COLUMNS, f"data.train={name}", *words]}
    assert main("train", ["model=bert_tiny", SMALL_BERT, "data=table", "sparsity=0.5", *typed.values()]) == 2
    (message,) = capfd.readouterr().err.strip().splitlines()
    assert message.startswith("train: ") and all(word in message for word in said.split()), message
    assert {path.name for path in tmp_path.iterdir()} <= before | {name}  # nothing half-written


def test_columns_of_other_data_are_refused():
    with pytest.raises(Refusal, match="data.train=x.csv is for data=table"):
        opened("data.train=x.csv")
    with pytest.raises(Refusal, match="data.task=mnli is for data=glue"):
        opened("data=table", "data.task=mnli", "data.train=x.csv", *COLUMNS)
