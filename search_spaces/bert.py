"""Encoders of text: BERT, RoBERTa, DistilBERT, MiniLM of transformers, bare or with a head.

All weights are matrices, for which `svd` is the one type whose factors are plain layers and save time. The table of words
holds a fifth of a BERT-Base and half of a MiniLM; its factors are a narrow table and a matrix, and an output head that is
tied to it is built with it, so it is part of the space. The tables of positions and segments have few rows, all of them
used at full rank; poolers and heads are small, and their error reaches the answer directly: they stay."""

from typing import Annotated

from ranksearch.space import MaxOptions, RoundTo, SpaceSpec, named, where


def space(
    *,
    vocabulary: Annotated[bool, "factorize the table of words too, with the output head tied to it"] = True,
    tables: Annotated[bool, "factorize the tables of positions and segments too"] = False,
    head: Annotated[bool, "factorize poolers, classifiers and the like too"] = False,
    round_to: RoundTo = 8,
    max_options: MaxOptions = None,
) -> SpaceSpec:
    """Attention and MLP of every layer, and the table of words: svd."""
    words = where("*word_embeddings", "*predictions.decoder", "*lm_head.decoder", "*vocab_projector")
    heads = where("*pooler.dense", "*classifier", "*classifier.*", "*predictions.transform.dense", "*lm_head.dense", "*vocab_transform")
    small = where("*position_embeddings", "*token_type_embeddings")
    exclude = [*([] if vocabulary else [words]), *([] if tables else [small]), *([] if head else [heads])]
    return SpaceSpec(named("svd"), exclude=tuple(exclude), round_to=round_to, max_options=max_options)
