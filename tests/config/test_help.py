"""The pages of --help: every group, choice and key has one, and anything else is refused."""

import dataclasses

import pytest

from pdp.config import schema
from pdp.config.groups import GROUPS, choices
from pdp.config.help import help_text
from pdp.config.keys import of_choice
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS

CHOICES = [f"{group}={choice}" for group in GROUPS if group != "experiment" for choice in choices(group)]


@pytest.mark.parametrize("word", [*GROUPS, *CHOICES])
def test_every_group_and_choice_has_a_page(word):
    text = help_text("train", [word])
    group, _, choice = word.partition("=")
    assert text.endswith("\n") and word in text
    for one in of_choice(group, choice) if choice else ():
        if one.name != "name":
            assert f"  {group}.{one.name}=" in text and " ".join(one.text.split()[:4]) in " ".join(text.split())


def test_a_page_says_what_a_choice_sets_and_a_key_its_default():
    assert "recipe.lr=0.256" in help_text("train", ["recipe=imagenet"])
    assert "schedule=cubic" in help_text("train", ["method=str"])
    options = OPTIONS["str"]()
    assert f"method.initial={options.initial:g}" in help_text("train", ["method.initial"])
    assert "dry_run=false" in help_text("train", ["dry_run"]) and "start.mask=" in help_text("train", ["start.mask"])


def test_every_key_of_the_schema_is_known():
    nodes = {"model": schema.ModelConfig, "recipe": schema.RecipeConfig, "schedule": schema.ScheduleConfig}
    for group, options in nodes.items():
        for field in dataclasses.fields(options):
            assert f"{group}.{field.name}=" in help_text("train", [f"{group}.{field.name}"])


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("recpie", "recipe"),
        ("method=srt", "str"),
        ("recipe.learning", "recipe"),
        ("data=", "what on"),
        ("=x", "neither"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is_near(word, words):
    try:
        text = help_text("train", [word])
    except Refusal as refusal:
        text = str(refusal)
        assert "\n" not in text
    assert words in text
