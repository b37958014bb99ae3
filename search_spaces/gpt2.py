"""GPT-2 of transformers, whose linear layers are `Conv1D` modules; their factors are `nn.Linear`.

All weights are matrices, for which `svd` is the one type whose factors are plain layers and save time. `c_attn` makes queries,
keys and values in one matrix, one site whose parts share the first factor; `ranksearch.sites.attention.split_linear` makes
three of it. The table of positions has few rows, all used at full rank. The table of words is tied to the output head: one
weight, a third of the small GPT-2, that every logit goes through; it stays unless asked for, and then both uses are built."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, named, where


def space(
    *,
    vocabulary: Annotated[bool, "factorize the table of words too, with the output head tied to it"] = False,
    round_to: RoundTo = 8,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Attention and MLP of every block: svd."""
    exclude = [where("*wpe", "*score"), *([] if vocabulary else [where("*wte", "*lm_head")])]
    return SpaceSpec(named("svd"), exclude=tuple(exclude), round_to=round_to, max_options=max_options)
