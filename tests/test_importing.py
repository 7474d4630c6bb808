"""Starts without the garbage collector: what it does afterwards, and what stays hidden only while it is asked for."""

import gc
import sys
import weakref

import pytest

from pdp.importing import hidden, set_apart, uncollected


class Node:
    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def as_before():
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    yield
    assert gc.isenabled() == enabled and gc.get_freeze_count() == frozen


@pytest.mark.parametrize("work", [uncollected, set_apart])
def test_what_becomes_garbage_inside_is_collected_afterwards(work):
    with work():
        node = Node()
        gone = weakref.ref(node)
        del node
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("work", [uncollected, set_apart])
def test_what_was_there_and_becomes_garbage_later_is_collected(work):
    node = Node()
    gone = weakref.ref(node)
    with work():
        pass
    del node
    gc.collect()
    assert gone() is None


def test_nothing_is_collected_inside_and_nothing_at_once_afterwards():
    runs = []
    gc.collect()
    gc.callbacks.append(lambda phase, info: runs.append(info["generation"]))
    try:
        with uncollected():
            many = [[] for _ in range(100_000)]
        inside = len(runs)
        more = [[] for _ in range(10)]
    finally:
        gc.callbacks.pop()
    assert inside == 0 and not runs and len(many) == 100_000 and len(more) == 10


def test_set_apart_collects_what_is_made_inside():
    with set_apart():
        node = Node()
        gone = weakref.ref(node)
        del node
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("work", [uncollected, set_apart])
def test_an_error_inside_passes_and_leaves_the_collector_as_it_was(work):
    with pytest.raises(ValueError, match="inside"), work():
        raise ValueError("inside")
    with work(), work():
        pass


@pytest.mark.parametrize("work", [uncollected, set_apart])
def test_a_collector_that_is_off_or_objects_that_are_frozen_stay_so(work):
    gc.disable()
    try:
        with work():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with work():
            pass
        assert gc.get_freeze_count() > count / 2 > 0  # some may have been let go by another thread
    finally:
        gc.unfreeze()


def test_a_hidden_module_cannot_be_imported_until_it_is_no_longer_hidden():
    with hidden("antigravity", "json"):
        with pytest.raises(ImportError):
            import antigravity  # noqa: F401
        import json  # imported before

        assert json.loads("1") == 1
    assert "antigravity" not in sys.modules and "json" in sys.modules
    with pytest.raises(KeyError), hidden("colorsys"):
        raise KeyError
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)
