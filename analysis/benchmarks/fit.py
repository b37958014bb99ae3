"""A fit of a large layer without a closed form: today's, which weighs by way of the factors, and whose steps are made in float32 and
preconditioned by the factors' curvature; against products of the weight with the positions that it met; against a number for every
factor's curvature, with twice as many conjugate gradients; against steps in float64; and against the whole moment, too, in the same run.
Prints one line of JSON: seconds of processor time, their ratios, and the error that each leaves relative to that before.

    OMP_NUM_THREADS=1 python analysis/benchmarks/fit.py [--width 512] [--map 2] [--batch 128] [--type tucker2] [--rank 128 128]
        [--sided]"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.networks.descent import Weighing
from ranksearch.networks.reconstruction.moments import LayerMoments
from ranksearch.networks.reconstruction.refit import refit
from ranksearch.networks.reconstruction.regression import goal
from ranksearch.sites import find_sites

RIDGE = 1e-3
OTHERS = "products", "numbers", "float64", "whole"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="channels of the 3 x 3 convolution")
    parser.add_argument("--map", type=int, default=2, help="side of its maps")
    parser.add_argument("--batch", type=int, default=128, help="maps")
    parser.add_argument("--type", default="tucker2", choices=[one.name for one in DECOMPOSITIONS])
    parser.add_argument("--rank", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--sided", action="store_true", help="errors of outputs are weighed, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.Conv2d(given.width, given.width, 3, padding=1, bias=False)
    x = torch.randn(given.batch, given.width, given.map, given.map).relu_()
    [site] = find_sites(nn.Sequential(layer).eval(), x[:1])
    weight = layer.weight.detach().double().reshape(site.shape)
    drawn = torch.randn(1, given.width, 2 * given.width, dtype=torch.float64)
    seen = LayerMoments.none(site, drawn @ drawn.mT / given.width if given.sided else None, x.device)
    seen.add(x, layer(x).detach())
    aim = goal(seen, weight, RIDGE)
    kind = next(one for one in DECOMPOSITIONS if one.name == given.type)
    rank = tuple(given.rank)
    start = [factor.double() for factor in kind.factors(kind.prepare(site, weight), rank)]

    def error(factors: tuple[torch.Tensor, ...]) -> float:
        away = (aim.weight - kind.compose(site, factors)).reshape(site.groups, site.c_out // site.groups, *site.shape[1:])
        return float((away * aim.weighing()(away)).sum())

    def measured(of: str) -> tuple[float, float]:
        at = replace(aim, weighing=lambda: Weighing(aim.metric())) if of == "whole" else aim
        begin = time.process_time()
        with ExitStack() as changed:
            if of == "numbers":
                changed.enter_context(patch.object(type(kind), "axes", lambda self, site: None))
            elif of != "today":
                changed.enter_context(patch("ranksearch.networks.descent.views.SMALL", math.inf))
                if of != "products":
                    changed.enter_context(patch.object(Weighing, "rough", lambda self: self))
            found = refit(kind, site, rank, start, at)
        return time.process_time() - begin, error(found) / error(tuple(start))

    row = {
        "benchmark": "fit",
        "width": given.width,
        "positions": given.batch * given.map**2,
        "type": kind.name,
        "rank": list(rank),
        "sided": given.sided,
    }
    found = {of: measured(of) for of in ("today", *OTHERS)}
    row |= {f"{of}_s": round(seconds, 2) for of, (seconds, _) in found.items()}
    row |= {f"{of}_over_today": round(found[of][0] / found["today"][0], 2) for of in OTHERS}
    row |= {f"{of}_error": round(left, 4) for of, (_, left) in found.items()}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
