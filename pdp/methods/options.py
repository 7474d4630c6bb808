"""The options of each pruning method; needs no torch, so that a command line can be checked in a moment."""

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

    Relative mode: tau = kappa * t^2 for each layer, so that the mask does not depend on the scale of the weights. Left
    at auto, single weights (random, N:M) have the paper's absolute temperature. Channels have a relative one: the
    mean square of a whole filter hardly differs between channels, and 1e-4 left every mask of a ResNet-18 soft.
    """

    name: str = "pdp"
    temperature: float = PAPERS_TEMPERATURE
    temperature_mode: str = (
        "auto"  # absolute: temperature holds; relative: kappa does; learned; auto: the pattern's own
    )
    kappa: float | None = None  # null: the pattern's own, 0.02 for single weights, 0.002 for channels
    refresh: int = 1  # optimizer steps between two new cuts
    detach_cut: bool = True  # t a constant to autograd, as in the paper; false: its two weights get the gradient of t
    anneal: str = "none"  # of the temperature, from soft to hard: none, geometric or linear
    kappa_end: float | None = None  # kappa where annealing ends, in relative mode
    temperature_end: float | None = None  # temperature where annealing ends, in absolute mode
    anneal_from: str = "target"  # target: from when the ramp has ended; or a time
    anneal_share: float = 0.8  # of the run that is left when annealing begins; after it the last value holds
    temperature_lr: float | None = None  # temperature_mode=learned: the rate of log tau; null: the recipe's
    temperature_decay: float = 0.0  # temperature_mode=learned: the weight decay of log tau
    budget: str = "fixed"  # fixed (each layer's share at the first cut) or moving (one cut over all layers anew)


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
    update_every: int | None = None  # least steps between two mask updates; null is whenever the schedule moves
    budget: str = "moving"  # allocation=global: moving (one cut over all layers at each update) or fixed (at the first)


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
    initial: float = -3200.0  # s0
    threshold_decay: float | None = None  # null: the recipe's weight decay, as the authors have it
    controller: str = "cubic"  # cubic: the total follows the schedule to sparsity; none: the authors' way


@dataclass
class OptgOptions(MethodOptions):
    """OptG (Zhang et al. 2022); a cut every hundredth of the run, as an epoch is in the authors' 100."""

    name: str = "optg"
    update_every: str = "0.01"  # a time


@dataclass
class GranetOptions(MethodOptions):
    """GraNet (Liu et al. 2021); the authors' 4000 steps of batch 128 are 0.4 epochs of ImageNet."""

    name: str = "granet"
    initial_density: float = 0.5
    update_every: str = "0.4ep"  # a time
    prune_rate: float = 0.5  # share of the kept weights exchanged at an update, at first
    last_rate: float = 0.005  # and at the end of the run, by a cosine


@dataclass
class AcdcOptions(MethodOptions):
    """AC/DC (Peste et al. 2021)."""

    name: str = "acdc"
    reset_momentum: bool = True  # at the start of a dense phase


@dataclass
class CsOptions(MethodOptions):
    """Continuous sparsification (Savarese et al. 2020)."""

    name: str = "cs"
    initial: float = 0.0  # s0; lower is sparser
    final_temperature: float = 200.0  # beta at the end of a round
    penalty: float = 1e-8  # lambda, on the sum of all masks
    rounds: int = 1  # the authors train three in a row
    score_lr: float | None = None  # null: the recipe's
    controller: str = "none"  # cubic: the total follows the schedule to sparsity; none: the authors' way


@dataclass
class DnwOptions(MethodOptions):
    """DNW (Wortsman et al. 2019)."""

    name: str = "dnw"


@dataclass
class RiglOptions(MethodOptions):
    """RigL (Evci et al. 2020), as its code has it."""

    name: str = "rigl"
    drop_fraction: float = 0.3
    anneal: str = "constant"  # of the drop fraction: constant (the code's default) or cosine
    update_every: str = "0.003125"  # a time: the authors' 100 of 32,000 steps
    end: str = "0.78"  # a time: 25,000 of 32,000 steps


@dataclass
class MovementOptions(MethodOptions):
    """Movement pruning (Sanh et al. 2020)."""

    name: str = "movement"
    variant: str = "hard"  # hard (MvP, a share) or soft (SMvP, a threshold and a penalty)
    score_lr: float | None = 1e-2  # null: the recipe's
    threshold: float = 0.1  # soft: at the end of the schedule
    penalty: float = 400.0  # soft: lambda at the end of the schedule


@dataclass
class PofaOptions(MethodOptions):
    """Prune once for all (Zafrir et al. 2021); the authors' masks change every 1000 of 100,000 steps."""

    name: str = "pofa"
    stage: str = "prune"  # prune (a pre-trained model, with a teacher) or finetune (under the zeros it then has)
    update_every: str | None = None  # a time; null is whenever the schedule moves


@dataclass
class SrsteOptions(MethodOptions):
    """SR-STE (Zhou et al. 2021)."""

    name: str = "srste"
    decay: float = 2e-4  # lambda_w, of pruned weights


@dataclass
class AspOptions(MethodOptions):
    """ASP (NVIDIA apex): give it a trained model (model.pretrained) or dense epochs (schedule=oneshot)."""

    name: str = "asp"
    all_layers: bool = False  # also where the outputs do not divide by 8 or the inputs not by 16


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
    penalty: float = 1e-4  # lambda, on the sum of |gamma| until the cut


@dataclass
class ChexOptions(MethodOptions):
    """CHEX (Hou et al. 2022)."""

    name: str = "chex"
    regrow: float = 0.2  # d_0: the authors' 0.2 for half of the channels, 0.3 for 0.7 of them
    update_every: int = 2  # epochs
    end: str = "0.72"  # a time: 180 of 250 epochs


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
}
