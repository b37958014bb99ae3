"""ResNets for small images: 16, 32 and 64 channels of 3 x 3 kernels (`ranksearch.tasks.networks.cifar_resnet`).

The layers are small, so every type is prepared in seconds, `cp` included, which has the least error at nearly every budget
(docs/types.md). The first convolution and the classifier hold 0.5 % of the parameters and 1 % of the MACs, and everything
goes through them: they stay as they are unless asked for."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, mixture, reads_image, where


def space(
    *,
    stem: Annotated[bool, "factorize the first convolution too"] = False,
    head: Annotated[bool, "factorize the classifier too"] = False,
    cp: Annotated[bool, "cp among the types: the least error, and most of the time of the profile"] = True,
    round_to: RoundTo = 1,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Every 3 x 3 convolution: svd, svd_in, spatial in both orders, tucker2 or cp."""
    exclude = [*([] if stem else [reads_image]), *([] if head else [where("linear", "fc")])]
    return mixture(cp=cp, round_to=round_to, max_options=max_options).replace(exclude=tuple(exclude))
