"""Every configuration key with its type and default; a run's identity covers only what differs from these.

The comment at a key, or right above it, is its meaning, which `docs/configuration.md` and its test read there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pdp.config.data_schema import DataConfig
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

    name: str = MISSING  # the architecture's name in `library`
    task: str = MISSING  # kind of problem: images, text_classification or language_modelling (a module of pdp/tasks)
    # where the architecture comes from: pdp (this project's own, pdp.tasks.image_models), timm, transformers, or import
    # (your own code)
    library: str = "pdp"
    # false: random weights; true: the pretrained weights of the hub; else a file of weights, or a folder as the hub has
    # it
    pretrained: str = "false"
    # smallest image side in pixels that the model takes; smaller images are enlarged to it, unless data.image_size is
    # given
    smallest_input: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the model's constructor
    # library=transformers: model type, such as bert or gpt2; null: that of the checkpoint
    architecture: str | None = None
    hub: str | None = None  # library=transformers: name of the checkpoint on the Hugging Face hub; null: model.name
    # library=transformers, for a classifier: checkpoint keeps the checkpoint's head and matches its classes by name;
    # new starts with a random head
    head: str = "checkpoint"
    # library=transformers: sizes of a model with random weights, by their names in its configuration; a checkpoint has
    # its own
    sizes: dict[str, Any] = field(default_factory=dict)


@dataclass
class RecipeConfig:
    """How the model is trained: length, optimizer, learning rate, regularization, evaluation, checkpoints."""

    name: str = MISSING  # a name for records and tables; the result depends only on the values below
    epochs: int = MISSING  # number of epochs; 0: prune without training
    batch_size: int = MISSING  # samples per optimizer step over all processes: processes * accumulation * micro-batch
    accumulation: int = 1  # micro-batches per optimizer step
    optimizer: str = "sgd"  # sgd or adamw
    lr: float = MISSING  # peak learning rate
    lr_schedule: str = "cosine"  # shape of the learning rate over the run: cosine, linear, constant or steps
    # lr_schedule=steps: the times at which the rate is divided by ten
    lr_drops: list[str] = field(default_factory=list)
    lr_unit: str = "step"  # when the rate changes: step (at every step) or epoch (only when an epoch begins)
    lr_warmup: str = "0"  # a time during which the rate rises to its peak
    # lr_schedule=cosine and linear: learning rate at the end of the run; steps: the lowest one
    lr_min: float = 0.0
    momentum: float = 0.9  # optimizer=sgd: momentum
    nesterov: bool = True  # optimizer=sgd: whether the momentum is Nesterov's
    weight_decay: float = MISSING  # weight decay of convolution, linear and embedding weights; nothing else decays
    # factor between the learning rates of a block and of the block below it, above 0 and at most 1; null: the same rate
    # for all
    layer_decay: float | None = None
    label_smoothing: float = 0.0  # probability that is taken from the label and spread evenly over all classes
    augmentation: str = "none"  # of training images: none, pad_crop_flip or random_resized_crop
    # largest norm of the gradient of all weights together; larger ones are scaled down; null: no limit
    clip: float | None = None
    # decay per step of a running average of the weights, which is evaluated in place of the weights; null: none
    ema: float | None = None
    precision: str = "fp32"  # fp32, or bf16 or (on a GPU) fp16 with autocast
    sharding: str = "none"  # none, or fsdp: each process holds a part of a language model; results do not depend on it
    channels_last: bool = False  # whether images and convolution weights are stored with channels last in memory
    # true: torch.compile; graphs: steps are replayed from CUDA graphs, which speeds up small nets and changes no
    # number; false: neither
    compile: bool | str = False
    # whether blocks are computed again in the backward pass, which takes less memory and more time
    gradient_checkpointing: bool = False
    evaluate_every: str | None = None  # a time between two evaluations; null: at the end of every epoch
    # stop: ends the run when the loss is not finite; skip: leaves out each step whose loss or gradients are not finite,
    # and counts it
    on_nonfinite: str = "stop"
    # minutes between two checkpoints within an epoch; 0: checkpoints only at the ends of epochs
    checkpoint_minutes: float = 10.0
    # optimizer steps between two lines of steps.jsonl, raised in runs that would write more than 8000 lines; 0: no
    # lines
    history_steps: int = 100
    soft_every: int = 0  # epochs between two evaluations of the soft model; 0: only after the last epoch
    # none, or lora: only low-rank matrices are trained; they are added to the weights under a mask that stays, and
    # merged at the end
    adapter: str = "none"
    adapter_rank: int = 8  # adapter=lora: rank of the matrices
    adapter_alpha: float = 16.0  # adapter=lora: the product of the two matrices is multiplied by alpha / rank
    # adapter=lora: fnmatch patterns of names of pruned linear layers; []: all of them
    adapter_targets: list[str] = field(default_factory=list)
    # number of training batches from which BatchNorm statistics are computed anew once the mask is hard; 0: they stay
    recalibrate_bn: int = 0


@dataclass
class ScheduleConfig:
    """When pruning starts and how the share grows to its target."""

    name: str = MISSING  # linear, cubic, constant, oneshot, sigmoid or alternating
    # name=linear, cubic and oneshot: a time before which nothing is pruned; auto: until five validation metrics in a
    # row were above half of the best possible value
    warmup: str = "0.16"
    # name=linear and cubic: a time from the first pruned share to the target; null with rate null: 0.4 of the run
    ramp: str | None = None
    # name=linear and cubic: share of the target that is added per epoch, above 0 and at most 1; given in place of ramp
    rate: float | None = None
    unit: str = "epoch"  # how often the share changes, where it does: every epoch or every step
    # name=alternating: an odd number of growing times; pruning begins at the first, ends at the second, and so on; []:
    # those of AC/DC's authors
    phases: list[str] = field(default_factory=list)


@dataclass
class AllocationConfig:
    """How the target is divided among the layers."""

    name: str = MISSING  # global, uniform, erk or file
    path: str | None = None  # allocation=file: a CSV file with the columns layer and share, or a run's directory
    least_density: float = 0.0  # least share of its units that each layer keeps, from 0 to 1, whatever the method
    # pruned: every layer is; dense: the first and the last layer stay dense; first_dense: the first layer does
    ends: str = "pruned"


@dataclass
class DistillConfig:
    """Whether the student is also trained on a teacher's outputs."""

    name: str = "none"  # none or teacher


@dataclass
class TeacherConfig(DistillConfig):
    """A teacher's logits beside the labels: (1 - weight) * the task's loss + weight * T^2 * KL(teacher || student)."""

    name: str = "teacher"
    # a run's directory, a file of weights, or hub; null: the dense run of the same model, data and seed
    teacher: str | None = None
    temperature: float = 2.0  # T, by which the logits of teacher and student are divided before their softmax
    # weight of the teacher's term, from 0 to 1; null: the method's own (pdp.config.distill)
    weight: float | None = None
    hidden: float = 0.0  # weight of the mean squared difference of hidden states; 0: no such term
    attention: float = 0.0  # weight of the mean squared difference of attentions; 0: no such term
    cache: str = "none"  # none, or disk: the teacher's logits are computed once, before training, and kept in files


DISTILL: dict[str, type[DistillConfig]] = {"none": DistillConfig, "teacher": TeacherConfig}


@dataclass
class TrackerConfig:
    """Where metrics are logged, besides the run's own history.jsonl."""

    name: str = "none"  # none, wandb or tensorboard


@dataclass
class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    name: str = "wandb"
    # online: needs an API key; offline: writes files for `wandb sync`; auto: online if there is a key, else offline
    mode: str = "auto"
    project: str | None = None  # name of the project; null: WANDB_PROJECT, or pdp if that is not set
    entity: str | None = None  # user or team; null: WANDB_ENTITY, or the owner of the key if that is not set
    timeout: float = 30.0  # longest time in seconds that the start and the end of a run wait for the network
    # whether the hard model, layers.csv and the other results of a finished run are uploaded too
    artifacts: bool = True


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
    """A finished run whose weights this one starts from."""

    run: str | None = None  # directory of that run, results/runs/<run>/seed<k>; in short from=
    # what is taken over besides the weights: hold, the zeros, which stay (method=held); free, nothing; first, the zeros
    # as the method's first mask
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
    # share of the prunable units to prune, such as 0.866: of weights, of channels, or with prune.target=macs of
    # multiply-adds; prune=nm and prune=none determine it themselves
    sparsity: float | None = None
    seed: int = 0  # seed of all random numbers
    resume: bool = True  # true: continue an unfinished run of this configuration; false: refuse
    rerun: bool = False  # move an existing run of the same configuration aside and start again
    dry_run: bool = False  # show model, budget, multiply-adds and schedule without training
    output_dir: str = "results/runs"  # folder in which runs are stored
    device: str = "auto"  # auto (CUDA if there is one), cpu or cuda
    # experiment files: where their values come from, a sentence or a dict of them
    provenance: Any = None
