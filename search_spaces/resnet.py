"""ResNets for large images (ResNet-18 to ResNet-152, in the layout of torchvision or transformers).

Half of the MACs of a ResNet-50 are in 1 x 1 convolutions, for which `svd` is the one type; the 3 x 3 ones have up to 512
channels, where `spatial` and `tucker2` have the least error and `cp` takes a minute per layer to fit (docs/types.md). The
7 x 7 convolution of the image is 0.04 % of the parameters, and everything goes through it."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, mixture, reads_image, where


def space(
    *,
    stem: Annotated[bool, "factorize the 7 x 7 convolution of the image too"] = False,
    head: Annotated[bool, "factorize the classifier too: 8 % of the parameters of a ResNet-50"] = False,
    cp: Annotated[bool, "cp among the types; minutes of profile for layers of 256 channels and more"] = False,
    round_to: RoundTo = 8,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Every convolution behind the first, shortcuts included: svd, svd_in, spatial in both orders or tucker2."""
    exclude = [*([] if stem else [reads_image]), *([] if head else [where("fc", "classifier.*")])]
    return mixture(cp=cp, round_to=round_to, max_options=max_options).replace(exclude=tuple(exclude))
