"""Bad input: one clear line that names the value and the override to change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdp.config.check import check
from pdp.config.compose import compose
from pdp.config.data_schema import ImagesDataConfig as Images
from pdp.config.schema import AllocationConfig, Config, ModelConfig, PruneConfig, RecipeConfig, ScheduleConfig
from pdp.errors import Refusal
from pdp.methods.options import PdpOptions
from pdp.schedule.shapes import make_schedule

BASE = ["model=resnet18", "sparsity=0.5"]


@pytest.fixture(autouse=True)
def no_imagenet(monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def refusal(*overrides: str) -> str:
    with pytest.raises(Refusal) as caught:
        compose(overrides)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


REFUSED = [
    # what is missing
    (["sparsity=0.5"], "model must be given resnet18"),
    (["model=resnet18"], "sparsity must be given"),
    (["model=timm", "sparsity=0.5"], "model.name must be given"),
    ([*BASE, "model=null"], "model known: resnet50"),
    # sparsity
    (["model=resnet18", "sparsity=86.6"], "sparsity=86.6 did you mean 0.866?"),
    (["model=resnet18", "sparsity=1.5"], "sparsity=1.5 fraction"),
    (["model=resnet18", "sparsity=1"], "sparsity=1 fraction"),
    (["model=resnet18", "sparsity=-1"], "sparsity=-1 fraction"),
    (["model=resnet18", "sparsity=nan"], "sparsity=nan fraction"),
    (["model=resnet18", "sparsity=inf"], "sparsity=inf fraction"),
    (["model=resnet18", "sparsity=abc"], "sparsity=abc number"),
    (["model=resnet18", "sparsity=[0.5]"], "sparsity=[0.5] number"),
    (["model=resnet18", "sparsity="], "sparsity= number"),
    (["model=resnet18", "sparsity=0.8,0.9"], "sparsity=0.8,0.9 -m"),
    # unknown names, also through + and ++
    (["model=resnet51", "sparsity=0.5"], "model=resnet51 did you mean resnet50"),
    (["model=5", "sparsity=0.5"], "model=5 known: resnet50"),
    (["modle=resnet18", "sparsity=0.5"], "modle did you mean model?"),
    ([*BASE, "method=pdpp"], "method=pdpp did you mean pdp? gmp"),
    ([*BASE, "data=cifar"], "data=cifar did you mean cifar10?"),
    ([*BASE, "experiment=imagenet/resnet50"], "experiment=imagenet/resnet50 imagenet/resnet50_random_90"),
    ([*BASE, "experiment/imagenet=resnet50_random_90"], "experiment=imagenet/"),
    ([*BASE, "recipe.epoch=5"], "recipe.epoch did you mean epochs?"),
    ([*BASE, "+recipe.epoch=5"], "recipe.epoch did you mean epochs?"),
    ([*BASE, "++recipe.epoch=5"], "recipe.epoch did you mean epochs?"),
    ([*BASE, "+sparsty=0.5"], "sparsty did you mean sparsity?"),
    ([*BASE, "++modle=resnet50"], "modle did you mean model?"),
    ([*BASE, "epochs=5"], "epochs did you mean recipe.epochs?"),
    ([*BASE, "optimiser.lr=5"], "optimiser no such key"),
    ([*BASE, "seed.x=5"], "seed.x=5 give seed="),
    ([*BASE, "++data.image.size=5"], "data.image data=digits image_size"),
    ([*BASE, "method=gmp", "method.temperature=1"], "method.temperature method=gmp update_every"),
    ([*BASE, "method=gmp", "++method.temperature=1"], "method.temperature method=gmp update_every"),
    ([*BASE, "model@other=resnet50"], "model@other model=<name>"),
    ([*BASE, "~tracker"], "~tracker ~"),
    ([*BASE, "~seed"], "~seed seed=null"),
    ([*BASE, "model=[resnet18,resnet50]"], "model one name -m"),
    # not an override
    ([*BASE, "nonsense"], "nonsense key=value"),
    ([*BASE, "a b=3"], "a b=3 key=value"),
    ([*BASE, "data.root='open"], "data.root='open quote"),
    ([*BASE, "seed=1\n2"], "control characters"),
    # types
    ([*BASE, "recipe.epochs=x"], "recipe.epochs=x whole number"),
    ([*BASE, "recipe.epochs=1.5"], "recipe.epochs=1.5 whole number"),
    ([*BASE, "recipe.nesterov=maybe"], "recipe.nesterov=maybe true or false"),
    ([*BASE, "recipe=5"], "recipe=5 digits"),
    ([*BASE, "prune.exclude=fc"], "prune.exclude=fc list"),
    ([*BASE, "prune.exclude=['']"], "prune.exclude empty"),
    ([*BASE, "output_dir=${nothing}"], "nothing resolved"),
    # enumerations
    ([*BASE, "recipe.optimizer=sdg"], "recipe.optimizer=sdg did you mean sgd? adamw"),
    ([*BASE, "recipe.lr_schedule=cos"], "recipe.lr_schedule=cos cosine linear constant"),
    ([*BASE, "recipe.precision=fp8"], "recipe.precision=fp8 bf16"),
    ([*BASE, "recipe.augmentation=flip"], "recipe.augmentation=flip pad_crop_flip"),
    ([*BASE, "recipe.lr_unit=batch"], "recipe.lr_unit=batch step"),
    ([*BASE, "device=tpu"], "device=tpu auto cpu cuda"),
    ([*BASE, "data.unreadable=ignore"], "data.unreadable=ignore skip stop"),
    ([*BASE, "schedule.unit=it"], "schedule.unit=it epoch step"),
    ([*BASE, "method.name=gmp"], "method.name=gmp method="),
    ([*BASE, "model.name=alexnet"], "model.name=alexnet model=timm"),
    ([*BASE, "data.name=mnist"], "data.name=mnist fashion_mnist"),
    # ranges
    ([*BASE, "recipe.epochs=0"], "recipe.epochs=0 at least 1"),
    ([*BASE, "recipe.lr=nan"], "recipe.lr=nan above 0"),
    ([*BASE, "recipe.lr=-0.1"], "recipe.lr=-0.1 above 0"),
    ([*BASE, "recipe.momentum=1"], "recipe.momentum=1 below 1"),
    ([*BASE, "recipe.momentum=0"], "recipe.nesterov recipe.momentum"),
    ([*BASE, "recipe.label_smoothing=1.1"], "recipe.label_smoothing=1.1"),
    ([*BASE, "recipe.ema=1"], "recipe.ema=1 between"),
    ([*BASE, "recipe.clip=0"], "recipe.clip=0 above 0"),
    ([*BASE, "recipe.lr_min=1"], "recipe.lr_min=1 recipe.lr=0.05"),
    ([*BASE, "recipe.accumulation=3"], "recipe.batch_size=32 recipe.accumulation"),
    ([*BASE, "data.validation=1"], "data.validation=1 below 1"),
    ([*BASE, "data.workers=-1"], "data.workers=-1"),
    ([*BASE, "data.limit=0"], "data.limit=0 at least 1"),
    ([*BASE, "data.image_size=0"], "data.image_size=0"),
    ([*BASE, "seed=-1"], "seed=-1"),
    ([*BASE, "method.temperature=0"], "method.temperature=0"),
    ([*BASE, "method=gmp", "method.update_every=0"], "method.update_every=0"),
    # combinations
    (["model=resnet18", "prune=none", "method=pdp"], "prune=none method=pdp method=dense"),
    (["model=resnet18", "prune=none", "sparsity=0.5"], "prune=none drop sparsity"),
    (["model=resnet18", "method=dense", "sparsity=0.5"], "method=dense drop sparsity"),
    ([*BASE, "data=imagenet"], "data=imagenet data.root IMAGENET_DIR"),
    ([*BASE, "data=imagenet", "data.root="], "data=imagenet data.root"),
    ([*BASE, "data=image_folder"], "data=image_folder data.root"),
    ([*BASE, "data=digits", "data.root=/x"], "data.root data=digits"),
    ([*BASE, "model.pretrained=/no/such.pt"], "model.pretrained=/no/such.pt no file"),
    (["model=resnet18", "allocation=file"], "allocation.path allocation=file"),
    (["model=resnet18", "allocation=file", "allocation.path=/no/such.csv"], "allocation.path=/no/such.csv exist"),
    (["model=resnet18", "sparsity=0.5", "allocation=file", "allocation.path=/"], "sparsity=0.5 allocation=file"),
    ([*BASE, "allocation.path=/x"], "allocation.path=/x allocation=file"),
    # texts
    (["model=bert_base", "sparsity=0.5", "data=glue"], "data.task mnli wnli"),
    (["model=bert_base", "sparsity=0.5", "data=glue", "data.task=mnly"], "data.task=mnly did you mean mnli?"),
    (["model=resnet18", "sparsity=0.5", "data=glue", "data.task=mnli"], "data=glue resnet18 model=huggingface"),
    (["model=bert_tiny", "sparsity=0.5", "data=digits"], "data=digits images bert_tiny"),
    (["model=gpt2", "sparsity=0.5", "data=glue", "data.task=mnli"], "data=glue gpt2 model=huggingface"),
    (["model=huggingface", "sparsity=0.5"], "model.name must be given"),
    (["model=bert_tiny", "sparsity=0.5", "data.root=/x"], "data.root data=grammar_nli"),
    (["model=bert_tiny", "sparsity=0.5", "data=nli_tsv"], "data=nli_tsv data.root"),
    (
        ["model=gpt2_tiny", "sparsity=0.5", "data=wikitext", "data.name=wikitext-3"],
        "wikitext-3 did you mean wikitext-2",
    ),
    (["model=gpt2_tiny", "sparsity=0.5", "data.stride=128"], "data.stride=128 data.context=128"),
    (["model=gpt2_tiny", "sparsity=0.5", "recipe.label_smoothing=0.1"], "recipe.label_smoothing perplexity"),
    (["model=gpt2_tiny", "sparsity=0.5", "model.pretrained=true"], "model.pretrained=true gpt2_tiny"),
    (
        ["model=gpt2_tiny", "sparsity=0.5", "data=text", "data.root=/", "data.name=wikitext-2"],
        "data.name=wikitext-2 data=wikitext own",
    ),
    (["model=bert_base", "sparsity=0.5", "model.pretrained=/no/such"], "model.pretrained=/no/such config.json"),
    (["model=bert_tiny", "sparsity=0.5", "recipe.augmentation=pad_crop_flip"], "recipe.augmentation images"),
    (["model=bert_tiny", "sparsity=0.5", "recipe.layer_decay=0"], "recipe.layer_decay=0 above 0"),
    ([*BASE, "recipe.gradient_checkpointing=true"], "recipe.gradient_checkpointing transformers"),
    # times and the ramp
    ([*BASE, "schedule.warmup=soon"], "schedule.warmup=soon 16ep"),
    ([*BASE, "schedule.warmup=3"], "schedule.warmup=3 did you mean schedule.warmup=3ep?"),
    ([*BASE, "recipe.lr_warmup=13ep"], "recipe.lr_warmup=13ep recipe.epochs=12"),
    ([*BASE, "schedule.ramp=5ep", "schedule.rate=0.2"], "schedule.ramp schedule.rate not both"),
    ([*BASE, "schedule.rate=0"], "schedule.rate=0 above 0"),
    ([*BASE, "schedule.rate=1.5"], "schedule.rate=1.5 at most 1"),
    ([*BASE, "schedule.warmup=9ep"], "schedule.warmup=9ep schedule.ramp recipe.epochs=12"),
    ([*BASE, "schedule.rate=0.05"], "schedule.warmup schedule.rate (20 epochs) recipe.epochs=12"),
    ([*BASE, "schedule.warmup=auto", "schedule.ramp=8ep"], "schedule.warmup=auto schedule.ramp recipe.epochs"),
    ([*BASE, "schedule=oneshot", "schedule.warmup=12ep"], "schedule.warmup=12ep recipe.epochs"),
    ([*BASE, "data=imagenet", "dry_run=true", "recipe.epochs=50"], "schedule.warmup=16ep schedule.rate recipe.epochs"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=[" ".join(case[0])[-60:] for case in REFUSED])
def test_refused(overrides, words):
    message = refusal(*overrides)
    for word in words.split():
        assert word in message, message


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule.warmup=auto"],
        ["schedule.warmup=auto", "schedule.ramp=7ep"],
        ["schedule.warmup=7ep"],
        ["schedule.rate=0.1"],
        ["schedule.ramp=100000it"],  # steps: judged when the data are known
        ["schedule=oneshot", "schedule.warmup=11ep"],
        ["schedule.unit=step", "schedule.warmup=0.5", "schedule.ramp=0.5"],
        ["sparsity=0"],
        ["recipe.accumulation=4", "recipe.batch_size=64"],
        ["experiment=null", "debug=null"],
    ],
)
def test_accepted(overrides):
    compose([*BASE, *overrides])


def test_an_experiments_sparsity_gives_way_to_what_was_asked(tmp_path):
    name = "experiment=digits/mobilenet_v1_random_866"
    assert compose([name, "prune=none"]).sparsity is None
    assert compose([name, "allocation=file", f"allocation.path={tmp_path}"]).sparsity is None


def test_batch_is_shared_by_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "processes" in refusal(*BASE)


@given(
    epochs=st.integers(1, 120),
    name=st.sampled_from(["linear", "cubic", "oneshot", "constant"]),
    warmup=st.one_of(st.integers(0, 120).map("{}ep".format), st.floats(0, 1).map(lambda value: f"{value:.3f}")),
    ramp=st.none() | st.integers(0, 120).map("{}ep".format) | st.floats(0, 1).map(lambda value: f"{value:.3f}"),
    rate=st.none() | st.floats(0.005, 1),
)
def test_the_fit_of_a_ramp_is_judged_as_the_schedule_is_made(epochs, name, warmup, ramp, rate):
    ramp = ramp if rate is None else None
    recipe = RecipeConfig(name="x", epochs=epochs, batch_size=8, lr=0.1, weight_decay=0.0)
    config = Config(
        model=ModelConfig(name="resnet18", task="images"),
        data=Images(name="digits"),
        recipe=recipe,
        schedule=ScheduleConfig(name=name, warmup=warmup, ramp=ramp, rate=rate),
        allocation=AllocationConfig(name="global"),
        method=PdpOptions(),
        prune=PruneConfig(pattern="random"),
        sparsity=0.5,
    )

    def refused(work) -> bool:
        try:
            work()
        except Refusal:
            return True
        return False

    made = refused(lambda: make_schedule(name, epochs, warmup=warmup, ramp=ramp, rate=rate))
    assert refused(lambda: check(config)) == made
