"""Decoders of text with the layers of Llama (Llama, Mistral, Qwen, Gemma ... of transformers).

All weights are matrices, for which `svd` is the one type whose factors are plain layers and save time. Ranks are multiples
of 8 by default: tensor cores run half-precision products of such sizes at full speed. The table of words and the output
head, one weight where they are tied, stay: every
logit goes through them. `max_options` bounds the ladders of matrices with thousands of ranks."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, named, where


def space(
    *,
    vocabulary: Annotated[bool, "factorize the table of words and the output head too, tied or not"] = False,
    key_value: Annotated[bool, "factorize the projections to keys and values; few weights with grouped queries"] = True,
    round_to: RoundTo = 8,
    max_options: MaxOptions = 64,
) -> SpaceSpec:
    """Attention and MLP of every layer: svd."""
    words, narrow = where("*embed_tokens", "*lm_head"), where("*.k_proj", "*.v_proj")
    exclude = [*([] if vocabulary else [words]), *([] if key_value else [narrow])]
    return SpaceSpec(named("svd"), exclude=tuple(exclude), round_to=round_to, max_options=max_options)
