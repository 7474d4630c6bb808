"""The models that checks go through: torchvision's classifiers and the smallest of each of timm's families."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CLASSES = 10
_SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 384, 448)
# Of each module of timm 1.0.31 the one with the fewest parameters of those whose names promise little; and a few more.
_TIMM = """
beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
convnext_atto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 tinynet_c efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m_enc ghostnet_050 hardcorenas_b
hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2
inception_v3 inception_v4 lcnetv2_small levit_384_s8 lowformer_b0 mambaout_femto maxvit_pico_rw_256
poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_radio_v3 nasnetalarge nest_tiny nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large
pvt_v2_b0 qwen3_vit_306m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2net50_14w_8s resnest14d
ecaresnext26t_32x4d resnetv2_50x1_bit rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1
skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256
swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224 samvit_base_patch16_224
vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
convnext_atto convnextv2_atto mixnet_s dm_nfnet_f0
"""
_ONLY_WHOLE = {"googlenet", "inception_v3"}  # of auxiliary heads


def torchvision_names() -> list[str]:
    """Every classification model of torchvision."""
    import torchvision

    return [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]


def timm_names() -> list[str]:
    """A small model of each of timm's families."""
    return [f"timm/{name}" for name in _TIMM.split()]


def parameters(name: str) -> int:
    """How many the model has, without making it."""
    with torch.device("meta"):
        return sum(one.numel() for one in _made(name).parameters())


def _made(name: str) -> nn.Module:
    library, _, own = name.partition("/")
    if library == "torchvision":
        import torchvision

        more: dict[str, Any] = {"aux_logits": False, "init_weights": False} if own in _ONLY_WHOLE else {}
        return torchvision.models.get_model(own, weights=None, num_classes=CLASSES, **more)
    import timm

    return timm.create_model(own, num_classes=CLASSES)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model with random weights, and two random images of the smallest size that it takes."""
    torch.manual_seed(0)
    model = _made(name).eval()
    channels = getattr(model, "default_cfg", {}).get("input_size", (3,))[0]
    error: Exception | None = None
    for size in _SIZES:
        images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
        try:
            with torch.no_grad():
                model(images)
        except Exception as raised:
            error = raised
            continue
        return model, images
    raise ValueError(f"{name} takes no square image of up to {_SIZES[-1]}: {error}")
