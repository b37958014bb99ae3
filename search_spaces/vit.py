"""Vision transformers (ViT, DeiT, in the layout of transformers or timm).

All weights are matrices, for which `svd` is the one type whose factors are plain layers and save time. Ranks are multiples
of 8 by default: tensor cores run half-precision products of such sizes at full speed. The convolution that cuts the image
into patches and the classifier hold under two percent of a ViT-Base and stay. timm's fused `qkv` is one site, whose queries, keys
and values share the first factor; `ranksearch.sites.attention.split_linear` makes three of it, and `unpack_attention` is
needed for torchvision's packed attention."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, named, reads_image, where


def space(
    *,
    patches: Annotated[bool, "factorize the convolution that cuts the image into patches too"] = False,
    head: Annotated[bool, "factorize the classifier too"] = False,
    round_to: RoundTo = 8,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Attention and MLP of every block: svd."""
    exclude = [*([] if patches else [reads_image]), *([] if head else [where("*classifier", "head", "heads.*")])]
    return SpaceSpec(named("svd"), exclude=tuple(exclude), round_to=round_to, max_options=max_options)
