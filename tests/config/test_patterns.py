"""prune=nm, prune=channel and prune=block on the command line: options, refusals, and the names of runs."""

import pytest

from pdp.config.compose import compose
from pdp.config.identity import changed_values, run_directory
from pdp.config.schema import ChannelPruneConfig, NmPruneConfig
from pdp.config.stored import from_yaml, to_yaml
from pdp.errors import Refusal


@pytest.fixture(autouse=True)
def no_imagenet(monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)


def directory(*overrides):
    return run_directory(compose(["model=resnet18", *overrides]), "0" * 16).parent.name


def test_nm_implies_its_sparsity():
    config = compose(["model=resnet18", "prune=nm", "prune.n=1", "prune.m=4"])
    assert isinstance(config.prune, NmPruneConfig) and (config.prune.n, config.prune.m) == (1, 4)
    assert config.sparsity is None
    assert directory("prune=nm", "prune.n=1").startswith("resnet18-digits-pdp-1-4-0.75-")
    assert directory("prune=nm").startswith("resnet18-digits-pdp-2-4-0.5-")


def test_an_agreeing_sparsity_is_the_same_run():
    assert directory("prune=nm", "sparsity=0.5") == directory("prune=nm") == directory("prune=nm", "prune.n=2")
    assert directory("prune=nm", "prune.n=4", "prune.m=8") != directory("prune=nm")


def test_channels_have_options_of_their_own():
    config = compose(["model=resnet18", "prune=channel", "sparsity=0.5", "prune.target=macs"])
    assert isinstance(config.prune, ChannelPruneConfig) and config.prune.target == "macs"
    assert changed_values(config)["prune.target"] == "macs"
    assert directory("prune=channel", "sparsity=0.5").startswith("resnet18-digits-pdp-channel-0.5-")


def test_blocks_of_each_size_are_runs_of_their_own():
    names = [directory("prune=block", "sparsity=0.8", *words) for words in ([], ["prune.block=[4,1]"])]
    assert names[0] == names[1] and names[0].startswith("resnet18-digits-pdp-block-4x1-0.8-")
    wide = directory("prune=block", "sparsity=0.8", "prune.block=[32,32]", "quantize=int8")
    assert wide.startswith("resnet18-digits-pdp-block-32x32-0.8-int8-")


@pytest.mark.parametrize(
    "overrides",
    [
        ["prune=nm", "prune.n=1"],
        ["prune=channel", "sparsity=0.5"],
        ["prune=block", "prune.block=[8,2]", "sparsity=0.5"],
        ["sparsity=0.5"],
    ],
)
def test_a_runs_configuration_is_read_back(overrides):
    config = compose(["model=resnet18", *overrides])
    assert from_yaml(to_yaml(config)) == config
    with_more = to_yaml(config).replace("  detach_cut: true\n", "  detach_cut: true\n  fused: false\n")
    assert "fused" in with_more and from_yaml(with_more) == config  # as runs had it for a while
    with pytest.raises(Refusal, match="fused"):
        from_yaml(with_more.replace("fused: false", "fused: true"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["prune=nm", "sparsity=0.6"], "sparsity=0.6 contradicts prune.n=2 prune.m=4"),
        (["prune=nm", "prune.n=4"], "prune.n=4 prune.m=4"),
        (["prune=nm", "prune.n=0"], "prune.n=0"),
        (["prune=nm", "prune.n=1.5"], "prune.n=1.5 whole number"),
        (["prune=nm", "allocation=uniform"], "allocation prune=nm"),
        (["prune=nm", "prune.target=macs"], "prune.target"),
        (["prune=random", "prune.n=2", "sparsity=0.5"], "prune.n"),
        (["prune.pattern=nm", "sparsity=0.5"], "prune.pattern=nm prune=<name>"),
        (["prune=chanel", "sparsity=0.5"], "prune=chanel channel"),
        (["prune=channel"], "sparsity must be given"),
        (["prune=channel", "sparsity=0.5", "prune.saliency=l1"], "prune.saliency=l1 l2 rms"),
        (["prune=channel", "sparsity=0.5", "allocation=erk"], "allocation=erk"),
        *(
            (["prune=block", "sparsity=0.5", f"prune.block={said}"], f"prune.block={said} prune.block=[4,1]")
            for said in ("[0,1]", "[4]", "[4,1,2]", "[-4,1]", "[]")
        ),
        *(
            (["prune=block", "sparsity=0.5", f"prune.block={said}"], f"prune.block={said} list whole numbers [4,1]")
            for said in ("4x1", "3.5", "[3.5,1]", "[4,a]", "null")
        ),
        (["prune=block"], "sparsity must be given"),
        (["prune=block", "sparsity=0.5", "prune.n=2"], "prune.n block"),
        (["prune=block", "sparsity=0.5", "prune.saliency=l1"], "prune.saliency=l1 l2 rms"),
        (["prune=block", "sparsity=0.5", "method=wanda"], "method=wanda prune=block gmp"),
        (["prune=block", "sparsity=0.5", "method.temperature=1e-3"], "prune=block temperature_mode=absolute"),
        (["sparsity=0.5", "method.temperature_mode=relativ"], "method.temperature_mode=relativ relative"),
        (["sparsity=0.5", "method.kappa=0"], "method.kappa=0"),
        (["sparsity=0.5", "prune=channel", "method.temperature=1e-4"], "method.temperature temperature_mode=absolute"),
        (["sparsity=0.5", "method.temperature_mode=relative", "method.temperature=1e-3"], "method.temperature kappa"),
        (["sparsity=0.5", "recipe.recalibrate_bn=-1"], "recipe.recalibrate_bn=-1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(overrides, words):
    with pytest.raises(Refusal) as caught:
        compose(["model=resnet18", *overrides])
    for word in words.split():
        assert word in str(caught.value), str(caught.value)


def test_a_method_with_an_allocation_of_its_own_works_with_nm():
    assert compose(["model=resnet18", "prune=nm", "method=gmp"]).method.name == "gmp"
