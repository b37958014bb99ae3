"""MobileNets (V1 to V3, in the layout of transformers or torchvision).

Nearly all weights and MACs are in 1 x 1 convolutions, for which `svd` is the one type. A depthwise convolution has 9 weights
per channel: two percent of the parameters, and splitting it saves a third of that at the price of one more pass over the
largest maps of the network, so these stay. So does the first convolution; the classifier holds a third of the parameters of
the smaller networks, and is left out unless asked for because its error reaches the answer directly."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, depthwise, named, reads_image, where


def space(
    *,
    head: Annotated[bool, "factorize the classifier too: a third of the parameters of a MobileNetV2"] = False,
    round_to: RoundTo = 1,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Every 1 x 1 convolution: svd."""
    exclude = [depthwise, reads_image, *([] if head else [where("classifier", "classifier.*")])]
    return SpaceSpec(named("svd"), exclude=tuple(exclude), round_to=round_to, max_options=max_options)
