"""Every configuration key with its type and default; a run's identity covers only what differs from these.

The comment at a key, or right above it, is its meaning, which `docs/configuration.md` and its test read there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pdp.config.prune import PRUNE as PRUNE
from pdp.config.prune import BlockPruneConfig as BlockPruneConfig
from pdp.config.prune import ChannelPruneConfig as ChannelPruneConfig
from pdp.config.prune import NmPruneConfig as NmPruneConfig
from pdp.config.prune import PruneConfig as PruneConfig
from pdp.config.prune import pattern_options as pattern_options
from pdp.methods.options import MethodOptions
from pdp.quantize.options import QuantizeOptions


@dataclass
class ModelConfig:
    """What to train."""

    name: str = MISSING  # of the architecture, as `library` knows it
    task: str = MISSING  # images, text_classification or language_modelling: the tasks/ module of model, data and loss
    # pdp: a name this project knows (pdp.tasks.image_models); timm: any timm model; transformers; import: your own
    library: str = "pdp"
    pretrained: str = "false"  # false, true (the hub's weights), a file, or a folder as the hub has them
    smallest_input: int = 1  # pixels; smaller images are enlarged to it unless data.image_size says otherwise
    arguments: dict[str, Any] = field(default_factory=dict)  # passed to the model's constructor
    architecture: str | None = None  # transformers: its name of the architecture; null: the checkpoint's own
    hub: str | None = None  # transformers: the checkpoint on the Hugging Face hub; null: model.name
    head: str = "checkpoint"  # transformers: of a classifier, the checkpoint's (by the names of its classes) or new
    sizes: dict[str, Any] = field(default_factory=dict)  # transformers: of a random model; a checkpoint has its own


@dataclass
class DataConfig:
    """What every data set has."""

    name: str = MISSING  # the data set
    root: str | None = None  # the folder that holds it
    validation: float = 0.1  # share of train held out by a fixed split; 0: the test set monitors, and tables say so
    workers: int = 0  # loader processes
    limit: int | None = None  # at most so many training and as many test samples
    unasked: bool = False  # set by the command line: nobody named the data, so the default is used and the run says so
    noise_if_absent: bool = False  # debug overlays only: noise of the data's shape where the data is not at hand
    smallest_inputs: bool = False  # debug overlays only: the smallest images, or the shortest texts, that make sense


@dataclass
class ImagesDataConfig(DataConfig):
    """Images with one class each."""

    image_size: int | None = None  # pixels; null is the data's own
    unreadable: str = "stop"  # stop or skip


@dataclass
class TextDataConfig(DataConfig):
    """What every text has."""

    source: str = MISSING  # which reader: see the tasks
    tokenizer: str | None = None  # a folder, a vocabulary file or a hub's name; null: the checkpoint's, else made anew
    vocabulary: int = 30522  # largest vocabulary of a tokenizer that is trained on the training text


@dataclass
class TextClassificationDataConfig(TextDataConfig):
    """Sentences, or pairs of them, with one label each."""

    task: str | None = None  # source=glue: mnli, qqp, qnli, sst2, rte, mrpc, cola, stsb or wnli
    max_length: int = 128  # tokens; longer texts lose their end, of a pair the longer one first
    length_grouping: bool = False  # batches of texts of about the same length, so that little is padded
    train: str | None = None  # source=table, as the next five: a file of rows, under data.root where that is given
    validation_file: str | None = None  # null: a share of the training rows, data.validation
    test: str | None = None  # null: a fifth of the training rows, by a fixed split
    text: Any = None  # the column of the texts, or a list of one or two columns
    label: str | None = None  # the column of the classes, which are called as they are there
    score: str | None = None  # in its place: the column of a score


@dataclass
class LanguageModellingDataConfig(TextDataConfig):
    """Running text, cut into windows."""

    context: int = 1024  # tokens of a window
    # tokens between the starts of two windows that are measured; null: context - 1, of protocol=huggingface context
    stride: int | None = None
    # how lines become a text: lines (one after the other, blank ones left out) or huggingface (as its guide to
    # perplexity has it: all lines, blank ones too, joined by blank lines and tokenized as one text)
    protocol: str = "lines"
    train_files: list[str] = field(default_factory=list)  # source=files: names or glob patterns under data.root
    validation_files: list[str] | None = None  # []: a share of the training windows; null: valid*.*, else a share
    test_files: list[str] = field(default_factory=list)  # source=files: what is measured at the end
    subset: str | None = None  # source=hub, as the next four: the data set's configuration, where it has several
    column: str = "text"  # the column of the texts
    train_split: str = "train"  # its parts by their names, or slices of them such as train[:90%]
    validation_split: str | None = None  # null: validation where there is such a part, else a share of train
    test_split: str = "test"  # what is measured at the end


DATA_SCHEMAS: dict[str, type[DataConfig]] = {
    "images": ImagesDataConfig,
    "text_classification": TextClassificationDataConfig,
    "language_modelling": LanguageModellingDataConfig,
}


def data_label(data: DataConfig) -> str:
    """How records and tables name the data: glue-mnli where one of its tasks was chosen."""
    task = getattr(data, "task", None)
    return f"{data.name}-{task}" if task else data.name


@dataclass
class RecipeConfig:
    """How to train, apart from what."""

    name: str = MISSING  # for records and tables; the values below alone decide
    epochs: int = MISSING  # length of the run
    batch_size: int = MISSING  # global: processes x accumulation x micro-batch
    accumulation: int = 1  # micro-batches per optimizer step
    optimizer: str = "sgd"  # sgd or adamw
    lr: float = MISSING  # peak learning rate
    lr_schedule: str = "cosine"  # cosine, linear, constant or steps
    lr_drops: list[str] = field(default_factory=list)  # lr_schedule=steps: times from which on a tenth of it holds
    lr_unit: str = "step"  # step, or epoch: the rate holds for a whole epoch
    lr_warmup: str = "0"  # a time, over which the rate rises to its peak
    lr_min: float = 0.0  # where the rate ends
    momentum: float = 0.9  # sgd: of the gradient's average
    nesterov: bool = True  # sgd: whether a step looks ahead
    weight_decay: float = MISSING  # on conv, linear and embedding weights only
    layer_decay: float | None = None  # factor on the rate from each block to the one below; null: one rate for all
    label_smoothing: float = 0.0  # probability that is taken from the label and spread over all classes
    augmentation: str = "none"  # of training images: none, pad_crop_flip or random_resized_crop
    clip: float | None = None  # largest gradient norm
    ema: float | None = None  # decay of the averaged weights
    precision: str = "fp32"  # fp32, bf16 or fp16 (autocast)
    sharding: str = "none"  # of a language model over the processes: none, or fsdp (each holds a part); moves no result
    channels_last: bool = False  # memory layout of images and convolution weights
    compile: bool | str = False  # true: torch.compile; graphs: small nets' steps as CUDA graphs, the same numbers
    gradient_checkpointing: bool = False  # blocks computed again in backward: less memory, more time
    evaluate_every: str | None = None  # a time between two measurements; null: at the end of every epoch
    on_nonfinite: str = "stop"  # at a loss that is not finite: stop, or skip the step and count it
    checkpoint_minutes: float = 10.0  # between two checkpoints within an epoch; 0: at the ends of epochs alone
    history_steps: int = 100  # steps between two lines of steps.jsonl, more where there would be too many; 0: none
    soft_every: int = 0  # epochs between two measurements of the soft metric; 0: at the last epoch alone
    adapter: str = "none"  # none, or lora: pairs of low rank alone are trained, under a mask that stays, and merged
    adapter_rank: int = 8  # lora: columns of the one, rows of the other
    adapter_alpha: float = 16.0  # lora: the product counts alpha / rank times
    adapter_targets: list[str] = field(default_factory=list)  # lora: fnmatch patterns of pruned layers; []: all
    recalibrate_bn: int = 0  # batches of new BatchNorm statistics after the mask has become hard; 0: none


@dataclass
class ScheduleConfig:
    """When pruning starts and how the share grows to its target."""

    name: str = MISSING  # linear, cubic, constant, oneshot
    warmup: str = "0.16"  # a time, or auto
    ramp: str | None = None  # a time; null with rate null is 0.4 of the run
    rate: float | None = None  # share of the target per epoch, the other spelling of ramp
    unit: str = "epoch"  # epoch or step
    phases: list[str] = field(default_factory=list)  # alternating: times of change, pruned first; []: AC/DC's own


@dataclass
class AllocationConfig:
    """How the target is shared out over the layers."""

    name: str = MISSING  # global, uniform, erk, file
    path: str | None = None  # allocation=file: a CSV of layer,share or a run's directory
    least_density: float = 0.0  # the least share of its units that each layer keeps, the same for every method
    ends: str = "pruned"  # pruned, dense (the first and the last layer stay dense) or first_dense


@dataclass
class DistillConfig:
    """Whether a teacher helps."""

    name: str = "none"  # none or teacher


@dataclass
class TeacherConfig(DistillConfig):
    """A teacher's logits beside the labels: (1 - weight) * the task's loss + weight * T^2 * KL(teacher || student)."""

    name: str = "teacher"
    teacher: str | None = None  # a run's directory, weights or hub; null: the dense run of the same cell and seed
    temperature: float = 2.0  # T, of both softmaxes
    weight: float | None = None  # null: the method's own (pdp.config.distill)
    hidden: float = 0.0  # weight of the hidden states' mean squared difference; 0: none
    attention: float = 0.0  # likewise of the attentions
    cache: str = "none"  # none, or disk: the teacher's logits are computed once, before training


DISTILL: dict[str, type[DistillConfig]] = {"none": DistillConfig, "teacher": TeacherConfig}


@dataclass
class TrackerConfig:
    """Where curves are sent besides the run's own history."""

    name: str = "none"  # none, wandb or tensorboard


@dataclass
class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    name: str = "wandb"
    mode: str = "auto"  # auto: online where a key is configured; online: there must be one; offline: for wandb sync
    project: str | None = None  # null is WANDB_PROJECT, else pdp
    entity: str | None = None  # user or team; null is WANDB_ENTITY, else the key's own
    timeout: float = 30.0  # seconds that the start, and the end, may wait for the network
    artifacts: bool = True  # send the hard model, layers.csv and the other results of a finished run too


@dataclass
class TensorboardConfig(TrackerConfig):
    """TensorBoard's event files, in the run's directory."""

    name: str = "tensorboard"


TRACKERS: dict[str, type[TrackerConfig]] = {
    "none": TrackerConfig,
    "wandb": WandbConfig,
    "tensorboard": TensorboardConfig,
}


@dataclass
class StartConfig:
    """A finished run that this one goes on from."""

    run: str | None = None  # its directory, results/runs/<run>/seed<k>; `from=` is the short way to give it
    # hold: its zeros stay (method=held); free: its weights alone; first: its zeros are the first mask of the method
    mask: str = "hold"


@dataclass
class Config:
    """One run."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    method: MethodOptions = MISSING
    prune: PruneConfig = MISSING
    quantize: QuantizeOptions = field(default_factory=QuantizeOptions)
    distill: DistillConfig = field(default_factory=DistillConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    start: StartConfig = field(default_factory=StartConfig)
    sparsity: float | None = None  # fraction of the prunable weights to prune, such as 0.866; implied by nm and none
    seed: int = 0  # of everything random
    resume: bool = True  # go on with an unfinished run of the same configuration; false refuses one
    rerun: bool = False  # move such a run aside and start over
    dry_run: bool = False  # show model, budget, MACs and schedule; train nothing
    output_dir: str = "results/runs"  # where runs are kept
    device: str = "auto"  # auto, cpu or cuda
    provenance: Any = None  # experiment files: where their values come from, a sentence or several by what they are of
