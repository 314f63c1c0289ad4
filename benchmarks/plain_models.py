"""Architectures that are no transformers classes, as `timm` and `torchvision` publish them: built small, with
every parameter and statistic at random.

One of each family. Depths, widths and pictures are as small as the family's own code takes them: what the ops
mean does not depend on them.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

TINY: dict[str, Any] = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
TIMM: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": TINY,
    "botnet26t_256": {"img_size": 64},
    "halonet26t": {"img_size": 256},
    "lambda_resnet26t": {"img_size": 64},
    "repvgg_a0": {},
    "mobileone_s0": {},
    "gcresnext26ts": {},
    "cait_xxs24_224": {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "depth_token_only": 1},
    "coat_lite_tiny": {"img_size": 64},
    "convit_tiny": {"img_size": 32, "embed_dim": 48, "depth": 3, "num_heads": 4, "local_up_to_layer": 2},
    "convmixer_768_32": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "convnextv2_atto": {"depths": (1, 1, 1, 1)},
    "crossvit_tiny_240": {},
    "cspresnet50": {},
    "cs3darknet_focus_s": {},
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 192), "num_heads": (3, 6, 12, 24)},
    "deit_tiny_distilled_patch16_224": TINY,
    "densenet121": {"block_config": (2, 3, 2), "growth_rate": 8},
    "dla34": {},
    "dpn48b": {},
    "edgenext_xx_small": {"depths": (1, 1, 2, 1)},
    "efficientformer_l1": {"img_size": 224},
    "efficientformerv2_s0": {"img_size": 64},
    "efficientnet_b0": {},
    "efficientnet_cc_b0_4e": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {"img_size": 64},
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "fasternet_t0": {"depths": (1, 1, 2, 1)},
    "fastvit_t8": {"layers": (1, 1, 1, 1)},
    "focalnet_tiny_srf": {},
    "gcvit_xxtiny": {"img_size": 64},
    "ghostnet_050": {},
    "ghostnetv2_100": {},
    "hardcorenas_a": {},
    "hgnetv2_b0": {},
    "hiera_tiny_224": {"img_size": 64, "embed_dim": 24, "stages": (1, 1, 2, 1)},
    "hrnet_w18_small": {},
    "inception_next_atto": {"depths": (1, 1, 2, 1)},
    "lcnet_050": {},
    "levit_128s": {"img_size": 128},
    "mambaout_femto": {"depths": (1, 1, 1, 1)},
    "maxvit_rmlp_pico_rw_256": {"img_size": 64},
    "coatnet_pico_rw_224": {"img_size": 64},
    "caformer_s18": {},
    "poolformer_s12": {},
    "mixer_s32_224": {"img_size": 64},
    "gmlp_ti16_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mvitv2_tiny": {"img_size": 64},
    "nest_tiny": {"img_size": 64},
    "nextvit_small": {},
    "nf_resnet26": {},
    "eca_nfnet_l0": {},
    "pit_ti_224": {"img_size": 64},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "rdnet_tiny": {},
    "regnetx_002": {},
    "regnety_002": {},
    "repghostnet_050": {},
    "repvit_m0_9": {},
    "res2net50_14w_8s": {},
    "resnest14d": {},
    "resnet18": {},
    "resnet26d": {},
    "resnetv2_50d_gn": {},
    "resnetv2_50x1_bit": {},
    "rexnet_100": {},
    "selecsls42": {},
    "legacy_seresnet18": {},
    "sequencer2d_s": {"img_size": 64, "layers": (1, 1, 1, 1)},
    "shvit_s1": {},
    "skresnet18": {},
    "starnet_s050": {},
    "swiftformer_xs": {"layers": (1, 1, 2, 1)},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6)},
    "swinv2_tiny_window8_256": {"img_size": 64, "depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6)},
    "swinv2_cr_tiny_224": {"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6)},
    "tiny_vit_5m_224": {"depths": (1, 1, 2, 1)},
    "tnt_s_patch16_224": {"img_size": 32, "depth": 2},
    "tresnet_m": {},
    "twins_pcpvt_small": {"img_size": 64, "depths": (1, 1, 2, 1)},
    "twins_svt_small": {"img_size": 64, "depths": (1, 1, 2, 1)},
    "vgg11_bn": {"mlp_ratio": 1 / 16},
    "visformer_tiny": {"img_size": 64, "depth": (2, 1, 1)},
    "vit_tiny_patch16_224": TINY,
    "vit_relpos_small_patch16_224": TINY,
    "samvit_base_patch16": {**TINY, "img_size": 64, "global_attn_indexes": (1,)},
    "volo_d1_224": {"img_size": 64},
    "ese_vovnet19b_slim": {},
    "xception41": {},
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2},
}
PICTURES = {"crossvit_tiny_240": 240, "maxvit_t": 224, "vit_h_14": 56} | dict.fromkeys(
    ("inception_v3", "efficientnet_cc_b0_4e", "efficientnet_b4", "efficientnet_b5"), 128
)
"""The side of the pictures, where it is not 64 or what `img_size` says."""

LARGEST = 31e6
"""Parameters that a model of torchvision may have: its larger ones are of the same classes."""


def ready() -> None:
    """Import torchvision. A build of it for another torch than the one here has no compiled ops, and would
    not even be imported; no classifier uses them, so their names are enough."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        KEPT.append(library)
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


KEPT: list[torch.library.Library] = []  # a library's ops go with it


def names(collection: str) -> list[str]:
    """The models of a collection, `timm` or `torchvision`."""
    if collection == "timm":
        return list(TIMM)
    ready()
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def build(collection: str, name: str) -> tuple[nn.Module, tuple[Tensor, ...]] | None:
    """A model in float64 with everything at random, and its inputs; None for one larger than LARGEST."""
    ready()
    side = PICTURES.get(name, TIMM.get(name, {}).get("img_size", 64) if collection == "timm" else 64)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if collection == "timm":
            import timm

            module = timm.create_model(name, pretrained=False, num_classes=10, **TIMM[name])
        else:
            import torchvision

            sized = {"image_size": side} if name.startswith("vit_") else {}
            sized |= {"input_size": (side, side)} if name.startswith("maxvit") else {}
            sized |= {"aux_logits": False, "init_weights": False} if name.startswith("inception") else {}
            module = torchvision.models.get_model(name, num_classes=10, **sized)
    if sum(p.numel() for p in module.parameters()) > LARGEST:
        return None
    return randomised(module.double(), pictures(side, 0, 8)), pictures(side, 1)


def pictures(side: int, seed: int, batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64),)


def randomised(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """`module` with every parameter drawn anew, and running statistics near those of random inputs: far
    from them a deep network forgets its input. Without such statistics weights keep a signal's size through
    rectifiers; with them they must not, or what stands between two of them grows and is ill-conditioned."""
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in module.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    kept = 1 if norms else 2
    with torch.no_grad():
        for at, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            gain = parameter.ndim == 1 and not at.endswith("bias")
            scale = 0.2 if parameter.ndim < 2 else (kept / parameter[0].numel()) ** 0.5
            parameter.copy_(scale * values + (1.0 if gain else 0.0))
        for norm in norms:
            norm.momentum = 1.0
        module.train()
        module(*inputs)
        for norm in norms:
            deviation = norm.running_var.sqrt()
            drawn = torch.randn(deviation.shape, generator=generator, dtype=deviation.dtype)
            norm.running_mean += 0.2 * deviation * drawn
            norm.running_var *= torch.empty_like(deviation).uniform_(0.7, 1.4, generator=generator)
    return module.eval()
