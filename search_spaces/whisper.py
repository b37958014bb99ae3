"""Whisper of transformers: an encoder of sound and a decoder of text.

Attention and MLP are matrices, for which `svd` is the one type whose factors are plain layers and save time. Ranks are
multiples of 8 by default: tensor cores run half-precision products of such sizes at full speed. The second convolution has a
kernel of 3 over as many channels as the model is wide, where `svd_in` and `tucker2` compete. The first one reads the
spectrogram, and everything goes through it: it stays. So do the tables of positions, and the table of words with the output
head tied to it, one weight that every logit goes through."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, named, where


def space(
    *,
    vocabulary: Annotated[bool, "factorize the table of words too, with the output head tied to it"] = False,
    encoder: Annotated[bool, "factorize the encoder, which runs once per clip"] = True,
    decoder: Annotated[bool, "factorize the decoder, which runs once per word"] = True,
    round_to: RoundTo = 8,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Attention and MLP of every layer: svd; the second convolution: svd, svd_in or tucker2."""
    words = where("*embed_tokens", "*proj_out")
    halves = [*([] if encoder else [where("*encoder.*")]), *([] if decoder else [where("*decoder.layers.*")])]
    exclude = [where("*encoder.conv1", "*embed_positions"), *([] if vocabulary else [words]), *halves]
    return SpaceSpec(named("svd", "svd_in", "tucker2"), exclude=tuple(exclude), round_to=round_to, max_options=max_options)
