"""Commands that are started again and again with one log."""

import pytest

from pdp.benchmarks.forked_runs import Start

pytestmark = pytest.mark.kills


def test_each_start_s_output_is_its_own_and_the_log_has_all(tmp_path):
    first = Start(["model=no_such_model"], tmp_path / "log")
    assert first.wait() == 2
    said = first.output
    assert said.startswith("train: model=no_such_model")
    second = Start(["seed=none"], tmp_path / "log")
    assert second.wait() == 2
    assert "seed" in second.output and "no_such_model" not in second.output
    assert second.log.read_text() == said + second.output
