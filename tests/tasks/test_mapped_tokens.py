"""Windows drawn at random from a large file of tokens leave little of it in the process's memory."""

import numpy as np
import psutil

from pdp.tasks.mapped_tokens import MappedTokens


def test_random_windows_of_a_file_in_the_cache_stay_within_bounds(tmp_path):
    path, size = tmp_path / "tokens.bin", 2**29
    with path.open("wb") as file:
        file.truncate(size)  # zeros that take no room on the disk
    with path.open("rb") as file:  # so that the system has all of it: it then maps what lies around a page as well
        while file.read(2**24):
            pass
    tokens = MappedTokens(path, "uint16", size // 2, 0, size, "key")
    process, draw = psutil.Process(), np.random.default_rng(0)
    before, most = process.memory_info().shared, 0
    for number, start in enumerate(draw.integers(0, len(tokens) - 513, 12_000)):
        assert not tokens[int(start) : int(start) + 513].any()
        if number % 100 == 0:
            most = max(most, process.memory_info().shared - before)
    assert most < 2**27
