"""Options without an effect: refused where they are typed, in one line with what to change; else left alone."""

import re

import pytest

from pdp.config.check_effects import idle, temperature_mode
from pdp.config.command import command_of
from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.errors import Refusal
from pdp.methods.effects import RELATIVE
from pdp.patterns import make_pattern
from pdp.patterns.options import PATTERNS

BASE = ["model=resnet20", "data=digits"]
ADAMW, CONSTANT = ["recipe.optimizer=adamw"], ["schedule=constant"]
SFP, SLIMMING = ["method=sfp", "prune=channel"], ["method=slimming", "prune=channel"]
CHEX, ONESHOT = ["method=chex", "prune=channel"], ["method=oneshot", "prune=channel"]
MOVEMENT = ["method=movement"]
LINEAR = "schedule=linear"

# What is refused: the words around, the word without effect, what else the line names, and words that it is taken with.
REFUSED = [
    (CONSTANT, "schedule.warmup=0.5", "schedule=constant schedule=linear", [LINEAR]),
    (CONSTANT, "schedule.warmup=auto", "schedule=constant", [LINEAR]),
    (CONSTANT, "schedule.ramp=0.3", "schedule=constant", [LINEAR]),
    (CONSTANT, "schedule.rate=0.5", "schedule=constant", [LINEAR]),
    (CONSTANT, "schedule.unit=step", "schedule=constant", [LINEAR]),
    (["schedule=sigmoid"], "schedule.warmup=0.5", "schedule=sigmoid takes the whole run", [LINEAR]),
    (["schedule=alternating"], "schedule.ramp=0.5", "schedule=alternating", [LINEAR]),
    (["schedule=oneshot"], "schedule.ramp=0.3", "schedule=oneshot", [LINEAR]),
    (["schedule=oneshot"], "schedule.rate=0.5", "schedule=oneshot", [LINEAR]),
    (SFP, "schedule.warmup=2ep", "schedule=constant method=sfp schedule=linear", [*SFP, LINEAR]),
    (SLIMMING, "schedule.ramp=0.2", "schedule=oneshot method=slimming", [*SLIMMING, LINEAR]),
    (["method=asp", "prune=nm", f"model.pretrained={__file__}"], "schedule.warmup=0.3", "method=asp schedule=oneshot",
     ["method=asp", "prune=nm", "schedule=oneshot"]),
    ([], "method.kappa=0.1", "prune=random method.temperature_mode=relative", ["method.temperature_mode=relative"]),
    (["prune=channel", "method.temperature_mode=absolute"], "method.kappa=0.1", "method.temperature_mode=relative",
     ["prune=channel", "method.temperature_mode=relative"]),
    (["method.temperature=0.001"], "method.kappa=0.1", "method.temperature=0.001", ["method.temperature_mode=relative"]),
    (["method.anneal=linear", "method.temperature_end=1e-6"], "method.kappa=0.1", "method.kappa_end",
     ["method.anneal=linear", "method.kappa_end=1e-3"]),
    (["method.temperature_mode=learned", "method.kappa=1"], "method.temperature=0.001", "method.kappa",
     ["method.temperature_mode=learned"]),
    ([], "method.anneal_share=0.5", "method.anneal=none", ["method=pdp_annealed"]),
    ([], "method.anneal_from=2ep", "method.anneal=none", ["method=pdp_annealed"]),
    (["allocation=uniform"], "method.budget=moving", "allocation=global", ["allocation=global"]),
    (["prune=nm"], "method.budget=moving", "prune=random", ["prune=random"]),
    (["method=gmp"], "method.budget=fixed", "allocation=uniform", ["method=gmp", "allocation=global"]),
    (["recipe.lr_schedule=constant"], "recipe.lr_min=0.001", "recipe.lr_schedule=cosine", ["recipe.lr_schedule=cosine"]),
    (ADAMW, "recipe.momentum=0.8", "recipe.optimizer=sgd", ["recipe.optimizer=sgd"]),
    (ADAMW, "recipe.nesterov=true", "recipe.optimizer=sgd", ["recipe.optimizer=sgd"]),
    (SLIMMING, "prune.saliency=l1", "method=slimming method=oneshot", ONESHOT),
    (CHEX, "prune.relative_budget=false", "method=chex method=oneshot", ONESHOT),
    ([*MOVEMENT, "prune=block"], "prune.saliency=l2", "method=movement", ["method=oneshot", "prune=block"]),
    (SFP, "prune.relative_budget=false", "allocation=uniform", [*SFP, "allocation=global"]),
    (MOVEMENT, "method.threshold=0.2", "method.variant=soft", [*MOVEMENT, "method.variant=soft"]),
    (MOVEMENT, "method.penalty=100", "method.variant=soft", [*MOVEMENT, "method.variant=soft"]),
    ([*MOVEMENT, "method.variant=soft"], "allocation=global", "method.variant=hard", MOVEMENT),
]  # fmt: skip


def words_of(*overrides: str) -> list[str]:
    return [*BASE, *overrides] if "prune=nm" in overrides else [*BASE, "sparsity=0.5", *overrides]


@pytest.mark.parametrize(("around", "word", "named", "changed"), REFUSED, ids=lambda one: str(one)[:30])
def test_what_has_no_effect_is_refused_in_one_line(around, word, named, changed):
    with pytest.raises(Refusal) as caught:
        compose(words_of(*around, word))
    message = str(caught.value)
    assert message.startswith(f"{word} has no effect with ") and "\n" not in message and len(message) < 250
    assert all(one in message for one in named.split())
    assert re.search(r": drop it|: give |: add |: drop one", message)
    compose(words_of(*around))
    compose(words_of(*changed, word))


@pytest.mark.parametrize(
    "overrides",
    [
        [*CONSTANT, "schedule.warmup=0", "schedule.ramp=0"],
        [*SFP, "schedule.ramp=null", "schedule.rate=null", "schedule.unit=epoch"],
        [*MOVEMENT, *CONSTANT, "schedule.unit=step", "allocation=global"],
        ["schedule=sigmoid", "schedule.unit=step"],
        [*SLIMMING, "schedule.warmup=0.3", "prune.saliency=rms", "prune.relative_budget=true"],
        ["prune=channel", "method.kappa=0.1"],
        ["method.temperature_mode=learned", "method.kappa=0.1"],
        ["method.kappa=null", "method.budget=fixed", "allocation=uniform"],
        [*ADAMW, "recipe.momentum=0", "recipe.nesterov=false"],
        ["recipe.lr_schedule=constant", "recipe.lr_min=0"],
        ["recipe.lr_schedule=steps", "recipe.lr_drops=[3ep]", "recipe.lr_min=0.001"],
        ["debug=smoke", *SFP],
        ["data=imagenet", "data.root=x", "dry_run=true", "method=optg"],  # the recipe's rate is nobody's word
    ],
    ids=lambda one: " ".join(one)[:40],
)
def test_what_has_an_effect_or_means_nothing_is_accepted(overrides):
    compose(words_of(*overrides))


def test_a_budget_of_a_file_is_rounded_nowhere():
    words = [*BASE, "prune=channel", "allocation=file", "allocation.path=str_resnet50_9023"]
    with pytest.raises(
        Refusal, match=r"prune\.round_to=8 has no effect with allocation=file, whose budgets say how many"
    ):
        compose([*words, "prune.round_to=8"])
    compose([*words, "prune.round_to=1"])


def test_the_command_refuses_with_exit_code_2(capsys):
    assert main("train", words_of(*SFP, "schedule.warmup=0.5")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_absolute_temperature_has_no_end_of_kappa():
    words = ["method.anneal=geometric", "method.temperature=0.001"]
    with pytest.raises(Refusal, match=r"method\.kappa_end=0\.0001 has no effect with method\.temperature=0\.001"):
        compose(words_of(*words, "method.kappa_end=1e-4"))
    compose(words_of(*words, "method.temperature_end=1e-6"))


def test_the_command_of_a_configuration_types_nothing_without_effect():
    config = compose(words_of("debug=smoke", *SFP))
    assert "schedule.warmup" in dict(idle(config)) and "schedule.warmup" not in command_of(config)


def test_the_mode_of_the_temperature_is_the_patterns():
    for name in PATTERNS:
        mode = make_pattern(name).temperature_mode
        assert (name in RELATIVE) == (mode == "relative")
        assert temperature_mode(compose(words_of(f"prune={name}"))) == mode
