"""The options of each pruning method; needs no torch, so that a command line can be checked in a moment.

The comment at an option, or right above it, is its meaning, and in brackets whose value the default is: method cards,
`docs/configuration.md` and their test read them there.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPERS_TEMPERATURE = 1e-4


@dataclass
class MethodOptions:
    """What every method has: its name."""

    name: str = "???"


@dataclass
class DenseOptions(MethodOptions):
    """No pruning: the baseline every row is compared with."""

    name: str = "dense"


@dataclass
class PdpOptions(MethodOptions):
    """PDP (arXiv 2305.11203): tau of the soft mask, the paper's 1e-4 (as third parties quote it).

    In relative mode tau = kappa * t^2 for each layer, so that the mask does not depend on the scale of the weights.
    With temperature_mode=auto, single weights (random, N:M) have the paper's absolute temperature; channels and blocks
    have a relative one: the mean square of a whole filter hardly differs between channels, and 1e-4 left every mask of
    a ResNet-18 soft.
    """

    name: str = "pdp"
    # tau of the soft mask in absolute mode [the paper's, as third parties quote it]
    temperature: float = PAPERS_TEMPERATURE
    # absolute: temperature holds; relative: kappa does; learned: log tau is trained; auto: the pattern's own [ours]
    temperature_mode: str = "auto"
    # tau / t^2 in relative mode; null: the pattern's own: 0.02, channels 0.002, blocks of n 0.02 / sqrt(n) [ours]
    kappa: float | None = None
    # optimizer steps between two new cuts [the paper's, as a third party quotes it]
    refresh: int = 1
    # true: t is a constant to autograd; false: its two weights get the gradient of t [ours; the paper's not verified]
    detach_cut: bool = True
    anneal: str = "none"  # of the temperature, from soft to hard: none, geometric or linear [ours]
    kappa_end: float | None = None  # kappa where annealing ends, in relative mode [ours]
    temperature_end: float | None = None  # temperature where annealing ends, in absolute mode [ours]
    anneal_from: str = "target"  # target: from when the ramp has ended; or a time [ours]
    anneal_share: float = 0.8  # of the run that is left when annealing begins; then the last value holds [ours]
    temperature_lr: float | None = None  # temperature_mode=learned: the rate of log tau; null: the recipe's [ours]
    temperature_decay: float = 0.0  # temperature_mode=learned: the weight decay of log tau [ours]
    # fixed: each layer keeps its share of the first cut; moving: one cut over all layers, made anew
    # [fixed is the paper's, as a third party quotes it]
    budget: str = "fixed"


@dataclass
class PdpAnnealedOptions(PdpOptions):
    """PDP with a temperature that begins soft, so that every weight keeps a gradient through the ramp, and ends hard.

    The code is PDP's, the values are ours: tau = kappa t^2, kappa annealed geometrically once the target is reached.
    """

    name: str = "pdp_annealed"
    temperature_mode: str = "relative"
    kappa: float | None = 0.3
    anneal: str = "geometric"
    kappa_end: float | None = 9e-5


@dataclass
class GmpOptions(MethodOptions):
    """Gradual magnitude pruning (Zhu and Gupta 2017): cubic, the same share in every layer."""

    name: str = "gmp"
    # least steps between two mask updates; null is whenever the schedule moves [ours; the authors try 2000 to 8000]
    update_every: int | None = None
    # allocation=global: moving (one cut over all layers at each update) or fixed (at the first)
    # [as AC/DC's and GraNet's repositories have it]
    budget: str = "moving"


@dataclass
class OneshotOptions(MethodOptions):
    """Train dense, cut once by magnitude, fine-tune."""

    name: str = "oneshot"


@dataclass
class StrOptions(MethodOptions):
    """STR (Kusupati et al. 2020): start, decay and control of the trained thresholds.

    The authors' start of -3200 is that of their ResNet-50 at 90 % (-12800 for MobileNet-v1 at 89 %).
    """

    name: str = "str"
    initial: float = -3200.0  # s0, where every threshold begins [the authors', of their ResNet-50 at 90 %]
    threshold_decay: float | None = None  # weight decay of s; null: the recipe's for weights [the authors']
    controller: str = "cubic"  # cubic: the total follows the schedule to sparsity; none: the authors' way [ours]


@dataclass
class OptgOptions(MethodOptions):
    """OptG (Zhang et al. 2022); a cut every hundredth of the run, as an epoch is in the authors' 100."""

    name: str = "optg"
    update_every: str = "0.01"  # a time between two cuts [the authors', who cut once an epoch of 100]


@dataclass
class GranetOptions(MethodOptions):
    """GraNet (Liu et al. 2021); the authors' 4000 steps of batch 128 are 0.4 epochs of ImageNet."""

    name: str = "granet"
    initial_density: float = 0.5  # share of the weights in the first random mask [the authors']
    update_every: str = "0.4ep"  # a time between two updates [the authors', 4000 steps of batch 128 on ImageNet]
    prune_rate: float = 0.5  # share of the kept weights exchanged at an update, at first [the authors']
    last_rate: float = 0.005  # and at the end of the run, by a cosine [the authors']


@dataclass
class AcdcOptions(MethodOptions):
    """AC/DC (Peste et al. 2021)."""

    name: str = "acdc"
    reset_momentum: bool = True  # whether momentum begins anew with a dense phase [the authors']


@dataclass
class CsOptions(MethodOptions):
    """Continuous sparsification (Savarese et al. 2020)."""

    name: str = "cs"
    initial: float = 0.0  # s0, where every score begins; lower is sparser [the authors', on CIFAR-10]
    final_temperature: float = 200.0  # beta at the end of a round [the authors']
    penalty: float = 1e-8  # lambda, on the sum of all masks [the authors', on CIFAR-10]
    rounds: int = 1  # of beta from 1 to its end, in a run [ours; the authors train three in a row]
    score_lr: float | None = None  # learning rate of the scores; null: the recipe's [the authors']
    controller: str = "none"  # cubic: the total follows the schedule to sparsity; none: not [none is the authors' way]


@dataclass
class DnwOptions(MethodOptions):
    """DNW (Wortsman et al. 2019)."""

    name: str = "dnw"


@dataclass
class RiglOptions(MethodOptions):
    """RigL (Evci et al. 2020), as its code has it."""

    name: str = "rigl"
    drop_fraction: float = 0.3  # share of the kept weights exchanged at an update [the authors']
    anneal: str = "constant"  # of the drop fraction: constant or cosine [the authors' code's default]
    # a time between two updates [the authors' 100 steps; that their runs have 32,000 is not verified]
    update_every: str = "0.003125"
    # a time, from which the mask stays [the authors' 25,000 steps; that their runs have 32,000 is not verified]
    end: str = "0.78"


@dataclass
class MovementOptions(MethodOptions):
    """Movement pruning (Sanh et al. 2020)."""

    name: str = "movement"
    variant: str = "hard"  # hard (MvP, a share) or soft (SMvP, a threshold and a penalty) [ours; the authors have both]
    score_lr: float | None = 1e-2  # learning rate of the scores; null: the recipe's [the authors']
    threshold: float = 0.1  # soft: of sigmoid(S), at the end of the schedule [the authors']
    penalty: float = 400.0  # soft: lambda at the end of the schedule [the authors']


@dataclass
class PofaOptions(MethodOptions):
    """Prune once for all (Zafrir et al. 2021); the authors' masks change every 1000 of 100,000 steps."""

    name: str = "pofa"
    # prune (a pre-trained model, with a teacher) or finetune (under the zeros it then has) [the authors' two stages]
    stage: str = "prune"
    # a time between two updates; null is whenever the schedule moves [ours; the authors' is 1000 of 100,000 steps]
    update_every: str | None = None


@dataclass
class SrsteOptions(MethodOptions):
    """SR-STE (Zhou et al. 2021)."""

    name: str = "srste"
    decay: float = 2e-4  # lambda_w, of pruned weights [the authors']


@dataclass
class AspOptions(MethodOptions):
    """ASP (NVIDIA apex): give it a trained model (model.pretrained) or dense epochs (schedule=oneshot)."""

    name: str = "asp"
    all_layers: bool = False  # also where outputs do not divide by 8 or inputs not by 16 [the authors']


@dataclass
class LbcOptions(MethodOptions):
    """LBC (Zhang et al. 2022)."""

    name: str = "lbc"


@dataclass
class SfpOptions(MethodOptions):
    """Soft filter pruning (He et al. 2018)."""

    name: str = "sfp"


@dataclass
class SlimmingOptions(MethodOptions):
    """Network slimming (Liu et al. 2017)."""

    name: str = "slimming"
    penalty: float = 1e-4  # lambda, on the sum of |gamma| until the cut [the default of the authors' code]


@dataclass
class ChexOptions(MethodOptions):
    """CHEX (Hou et al. 2022)."""

    name: str = "chex"
    # d_0, the share of channels that may come back at first
    # [the authors' where half of the channels go; 0.3 where 0.7 go]
    regrow: float = 0.2
    update_every: int = 2  # epochs between two updates [the authors']
    end: str = "0.72"  # a time, from which the masks stay [the authors', 180 of 250 epochs]


@dataclass
class HeldOptions(MethodOptions):
    """Training under the zeros that the model has, which stay: fine-tuning of a pruned model."""

    name: str = "held"


@dataclass
class CalibratedOptions(MethodOptions):
    """What the methods share that prune a trained model at one stroke, from what its layers are given."""

    # samples (windows, texts, images) of the training part that layers' inputs are summed over [the authors']
    calibration: int = 128


@dataclass
class WandaOptions(CalibratedOptions):
    """Wanda (Sun et al. 2024)."""

    name: str = "wanda"


@dataclass
class SparsegptOptions(CalibratedOptions):
    """SparseGPT (Frantar and Alistarh 2023)."""

    name: str = "sparsegpt"
    damping: float = 0.01  # of the mean of the Hessian's diagonal, added to it [the authors']
    block: int = 128  # columns whose mask is chosen together [the authors']


OPTIONS: dict[str, type[MethodOptions]] = {
    "dense": DenseOptions,
    "pdp": PdpOptions,
    "pdp_annealed": PdpAnnealedOptions,
    "gmp": GmpOptions,
    "str": StrOptions,
    "optg": OptgOptions,
    "granet": GranetOptions,
    "acdc": AcdcOptions,
    "cs": CsOptions,
    "dnw": DnwOptions,
    "rigl": RiglOptions,
    "movement": MovementOptions,
    "oneshot": OneshotOptions,
    "pofa": PofaOptions,
    "srste": SrsteOptions,
    "asp": AspOptions,
    "lbc": LbcOptions,
    "sfp": SfpOptions,
    "slimming": SlimmingOptions,
    "chex": ChexOptions,
    "held": HeldOptions,
    "wanda": WandaOptions,
    "sparsegpt": SparsegptOptions,
}
# Methods that can prune a trained model as it is, and those that have nothing to train: recipe.epochs=0.
AT_ONE_STROKE = ("oneshot", "wanda", "sparsegpt")
# Methods whose first cut takes the zeros that there are: start.mask=first.
BY_MAGNITUDE = ("pdp", "pdp_annealed", "gmp", "oneshot", "dnw")
UNDER_ADAPTERS = ("held", "wanda", "sparsegpt")  # methods whose mask stays: recipe.adapter=lora
WITHOUT_TRAINING = (*AT_ONE_STROKE, "dense", "held")
