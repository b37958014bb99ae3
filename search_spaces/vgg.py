"""VGG networks (`features` and `classifier` as in torchvision, or with one linear layer as their versions for CIFAR).

The 3 x 3 convolutions have up to 512 channels, where `spatial` and `tucker2` have the least error and `cp` takes a minute
per layer to fit (docs/types.md). The large linear layers of the ImageNet networks hold nine tenths of the parameters:
they are part of the space, only the last one, which gives the classes, is not."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, mixture, reads_image, where


def space(
    *,
    stem: Annotated[bool, "factorize the first convolution too"] = False,
    head: Annotated[bool, "factorize the last linear layer too"] = False,
    cp: Annotated[bool, "cp among the types; minutes of profile for layers of 256 channels and more"] = False,
    round_to: RoundTo = 1,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Every convolution behind the first: svd, svd_in, spatial in both orders or tucker2; linear layers: svd."""
    exclude = [*([] if stem else [reads_image]), *([] if head else [where("classifier", "classifier.6")])]
    return mixture(cp=cp, round_to=round_to, max_options=max_options).replace(exclude=tuple(exclude))
