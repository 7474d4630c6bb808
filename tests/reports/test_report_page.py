"""The report: one file that needs no network, with the tables' numbers, the figures and the prose as text."""

import html.parser
import re

import pytest
from test_report_statistics import keep

from scripts import report


class Page(html.parser.HTMLParser):
    """Which tags a page holds, its identifiers, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched, self.names = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.names.append(value)
            if key in ("src", "srcset", "data", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append((tag, key, value))
            if tag == "link" or (key == "href" and tag != "a" and not (value or "").startswith("#")):
                self.fetched.append((tag, key, value))


@pytest.fixture
def results(tmp_path):
    for seed in range(2):
        keep(tmp_path, "s", "1", seed, metric=0.9 + 0.01 * seed)
        keep(tmp_path, "s", "2", seed, method="gmp", metric=0.8)
        keep(tmp_path, "s", "3", seed, model="<b>x</b>")
        keep(tmp_path, "s", "4", seed, model="<b>x</b>", method="gmp", macs_sparse=123_456)
    (tmp_path / "README.md").write_text(
        "# What was found\n\nA *word* & <script>alert(1)</script> [costs](tables/training_cost.md) [all](tables/)\n"
        "\n![It](figures/accuracy_sparsity-s-resnet20-digits-random.svg)\n"
    )
    return tmp_path


def test_the_page_holds_everything_and_fetches_nothing(results, capsys):
    assert report.main(["--results", str(results)]) == 0
    assert "results" in (text := (results / "report.html").read_text()) and "report.html" in capsys.readouterr().out
    page = Page(text)
    assert not page.fetched and "script" not in page.tags and "b" not in page.tags
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert len(page.names) == len(set(page.names))  # figures share no names, so none clips another
    for link in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text):
        assert next(filter(None, link)) in page.names
    assert page.tags.count("svg") == page.tags.count("figure") >= 2
    assert "90.50 ± 6.35 %" in text and "What was found" in text and "&lt;script&gt;" in text
    assert "<em>word</em>" in text and "weight distributions: not drawn" in text
    assert 'name="viewport"' in text
    # The page opens with the figure that the text has first, drawn and not fetched.
    assert 0 < text.index("<svg") < text.index("Contents") and "<img" not in text
    # A table that stands on the page is linked there, whatever lies beside it.
    assert '<a href="#training_cost">costs</a>' in text and '<a href="tables/">all</a>' in text


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(Exception, match="holds no records/"):
        report.main(["--results", str(tmp_path)])
