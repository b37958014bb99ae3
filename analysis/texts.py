"""Causal language models of a folder, and texts that they are calibrated with and measured on."""

from __future__ import annotations

import bz2
import html
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def causal(folder: Path) -> tuple[nn.Module, Any]:
    """A model in the layout of transformers, in float32 and without gradients, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def stream(tokenizer: Any, text: Path, count: int) -> Tensor:
    """The tokens that a text begins with, ``count`` of them and more where it has so many."""
    return torch.tensor(tokenizer(read(text)[: 32 * count])["input_ids"])


def read(text: Path) -> str:
    """A text file; of a dump of Wikipedia (.bz2) the articles without their markup."""
    if text.suffix != ".bz2":
        return text.read_bytes().decode("utf-8", errors="replace")
    articles = re.findall(r"<text[^>]*>(?!#REDIRECT)(.*?)</text>", bz2.decompress(text.read_bytes()).decode("utf-8"), flags=re.S | re.I)
    return "\n\n".join(map(_plain, articles))


def _plain(article: str) -> str:
    found = html.unescape(html.unescape(article))
    found = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<math.*?</math>", "", found, flags=re.S)
    for brackets in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*?\|\}", r"\[\[(?:File|Image|Category):[^\[\]]*\]\]"):
        while (shorter := re.sub(brackets, "", found, flags=re.S)) != found:
            found = shorter
    found = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", found)
    found = re.sub(r"\[https?:\S+ ?([^\]]*)\]|'{2,}|<[^>]*>|^[*#:;|!=].*$", r"\1", found, flags=re.M)
    return re.sub(r"\n{2,}", "\n\n", found).strip()
