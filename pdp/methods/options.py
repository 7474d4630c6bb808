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
    With temperature_mode=auto, single weights (random, N:M) have the paper's absolute temperature, channels and blocks
    a relative one: the mean square of a whole filter hardly differs between channels, and 1e-4 left every mask of a
    ResNet-18 soft.
    """

    name: str = "pdp"
    # tau of the soft mask, absolute mode [the paper's, as third parties quote it]
    temperature: float = PAPERS_TEMPERATURE
    # absolute: tau is `temperature`; relative: kappa * t^2; learned: log tau is trained; auto: the pattern's own [ours]
    temperature_mode: str = "auto"
    # tau / t^2 in relative mode; null: 0.02, for channels 0.002, for blocks of n weights 0.02 / sqrt(n) [ours]
    kappa: float | None = None
    refresh: int = 1  # optimizer steps between two searches for the cuts [the paper's, as a third party quotes it]
    # true: t is a constant for the gradient; false: the two weights around t get it [ours; the paper's not verified]
    detach_cut: bool = True
    anneal: str = "none"  # how the temperature goes from soft to hard: none, geometric or linear [ours]
    kappa_end: float | None = None  # kappa at the end of annealing, in relative mode [ours]
    temperature_end: float | None = None  # temperature at the end of annealing, in absolute mode [ours]
    anneal_from: str = "target"  # when annealing begins: target (as soon as the ramp has ended) or a time [ours]
    anneal_share: float = 0.8  # share of the rest of the run that annealing takes; after it the last value stays [ours]
    temperature_lr: float | None = None  # temperature_mode=learned: learning rate of log tau; null: the recipe's [ours]
    temperature_decay: float = 0.0  # temperature_mode=learned: weight decay of log tau [ours]
    # fixed: each layer keeps its share of the first global cut; moving: every global cut divides the target anew [fixed
    # is the paper's, as a third party quotes it]
    budget: str = "fixed"

    @property
    def chosen(self) -> str | None:
        """The temperature that the user has chosen, as key=value; None if it is left to the paper or the pattern."""
        if self.temperature != PAPERS_TEMPERATURE:
            return f"temperature={self.temperature:g}"
        return None if self.temperature_end is None else f"temperature_end={self.temperature_end:g}"

    def mode(self, own: str) -> str:
        """absolute, relative or learned; `own` is what auto means for the pattern."""
        if self.temperature_mode != "auto":
            return self.temperature_mode
        # A temperature that the user has chosen is kept: it is not annealed unless they ask for it.
        if self.chosen is not None:
            return "absolute"
        return own if self.kappa_end is None else "relative"


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
    # fewest steps between two mask updates; null: whenever the share changes [ours; the authors try 2000 to 8000]
    update_every: int | None = None
    # allocation=global: moving divides the target among the layers at each update, fixed at the first alone [as AC/DC's
    # and GraNet's repositories have it]
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
    initial: float = -3200.0  # s0, the start value of every threshold [the authors', of their ResNet-50 at 90 %]
    threshold_decay: float | None = None  # weight decay of s; null: the recipe's weight decay [the authors']
    # cubic: a common shift of all s keeps to the schedule; none: no shift, as the authors [ours]
    controller: str = "cubic"


@dataclass
class OptgOptions(MethodOptions):
    """OptG (Zhang et al. 2022); a cut every hundredth of the run, as an epoch is in the authors' 100."""

    name: str = "optg"
    update_every: str = "0.01"  # a time between two mask updates [the authors', once in each of 100 epochs]


@dataclass
class GranetOptions(MethodOptions):
    """GraNet (Liu et al. 2021); the authors' 4000 steps of batch 128 are 0.4 epochs of ImageNet."""

    name: str = "granet"
    initial_density: float = 0.5  # share of the weights that the first, random mask keeps [the authors']
    update_every: str = "0.4ep"  # a time between two mask updates [the authors', 4000 steps of batch 128 on ImageNet]
    prune_rate: float = 0.5  # share of the kept weights that the first update exchanges [the authors']
    last_rate: float = 0.005  # the same share at the end of the run; in between it follows a cosine [the authors']


@dataclass
class AcdcOptions(MethodOptions):
    """AC/DC (Peste et al. 2021)."""

    name: str = "acdc"
    reset_momentum: bool = True  # whether momentum is set to zero when a dense phase begins [the authors']


@dataclass
class CsOptions(MethodOptions):
    """Continuous sparsification (Savarese et al. 2020)."""

    name: str = "cs"
    initial: float = 0.0  # s0, the start value of every score; lower is sparser [the authors', on CIFAR-10]
    final_temperature: float = 200.0  # beta, the factor inside the sigmoid, at the end of a round [the authors']
    penalty: float = 1e-8  # lambda, the weight of the sum of all masks in the loss [the authors', on CIFAR-10]
    rounds: int = 1  # number of rounds; in each, beta grows from 1 to its end [ours; the authors train three in a row]
    score_lr: float | None = None  # learning rate of the scores; null: the recipe's [the authors']
    # cubic: a common shift of all scores keeps to the schedule; none: no shift [none is the authors' way]
    controller: str = "none"


@dataclass
class DnwOptions(MethodOptions):
    """DNW (Wortsman et al. 2019)."""

    name: str = "dnw"


@dataclass
class RiglOptions(MethodOptions):
    """RigL (Evci et al. 2020), as its code has it."""

    name: str = "rigl"
    drop_fraction: float = 0.3  # share of the kept weights that an update exchanges [the authors']
    anneal: str = "constant"  # how that share changes over the run: constant or cosine [the authors' code's default]
    # a time between two mask updates [the authors' 100 steps; that their runs have 32,000 is not verified]
    update_every: str = "0.003125"
    # a time after which the mask stays [the authors' 25,000 steps; that their runs have 32,000 is not verified]
    end: str = "0.78"


@dataclass
class MovementOptions(MethodOptions):
    """Movement pruning (Sanh et al. 2020)."""

    name: str = "movement"
    # hard: prunes a share (MvP); soft: by a threshold, with a penalty (SMvP) [ours; the authors have both]
    variant: str = "hard"
    score_lr: float | None = 1e-2  # learning rate of the scores; null: the recipe's [the authors']
    threshold: float = 0.1  # variant=soft: threshold on sigmoid(S) at the end of the schedule [the authors']
    penalty: float = 400.0  # variant=soft: lambda, the weight of the penalty, at the end of the schedule [the authors']


@dataclass
class PofaOptions(MethodOptions):
    """Prune once for all (Zafrir et al. 2021); the authors' masks change every 1000 of 100,000 steps."""

    name: str = "pofa"
    # prune: a pretrained model, with a teacher; finetune: a pruned model, whose zeros stay [the authors' two stages]
    stage: str = "prune"
    # a time between two mask updates; null: whenever the share changes [ours; the authors' is 1000 of 100,000 steps]
    update_every: str | None = None


@dataclass
class SrsteOptions(MethodOptions):
    """SR-STE (Zhou et al. 2021)."""

    name: str = "srste"
    decay: float = 2e-4  # lambda_w, the additional weight decay of pruned weights [the authors']


@dataclass
class AspOptions(MethodOptions):
    """ASP (NVIDIA apex): give it a trained model (model.pretrained) or dense epochs (schedule=oneshot)."""

    name: str = "asp"
    all_layers: bool = False  # also layers with outputs not divisible by 8 or inputs not by 16 [the authors']


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
    penalty: float = 1e-4  # lambda, weight of the sum of |gamma| until the cut [the default of the authors' code]


@dataclass
class ChexOptions(MethodOptions):
    """CHEX (Hou et al. 2022)."""

    name: str = "chex"
    # d_0, share of the channels that may come back at first [the authors', where half go; 0.3 where 0.7 go]
    regrow: float = 0.2
    update_every: int = 2  # epochs from one update of the masks to the next [the authors']
    end: str = "0.72"  # a time after which the masks no longer change [the authors', 180 of 250 epochs]


@dataclass
class HeldOptions(MethodOptions):
    """Training under the zeros that the model has, which stay: fine-tuning of a pruned model."""

    name: str = "held"


@dataclass
class CalibratedOptions(MethodOptions):
    """What the methods share that prune a trained model at one stroke, from what its layers are given."""

    calibration: int = 128  # number of training samples that the inputs' statistics are taken from [the authors']


@dataclass
class WandaOptions(CalibratedOptions):
    """Wanda (Sun et al. 2024)."""

    name: str = "wanda"


@dataclass
class SparsegptOptions(CalibratedOptions):
    """SparseGPT (Frantar and Alistarh 2023)."""

    name: str = "sparsegpt"
    damping: float = 0.01  # added to the Hessian's diagonal, as a fraction of the diagonal's mean [the authors']
    block: int = 128  # number of columns whose mask is chosen together [the authors']


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
