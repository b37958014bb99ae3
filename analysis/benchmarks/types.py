"""Which decomposition has the least relative Frobenius error at a budget of parameters, for every site shape.

    python analysis/benchmarks/types.py --weights resnet20_cifar10.safetensors [--resnet50]

Writes a table and a plot under ``docs/``. ResNet-20 has trained weights. There are none of ResNet-50 here: ``--resnet50``
takes random weights with a power-law spectrum and says so; what it shows is cost and time, not how trained layers behave.
`tensor_ring` is left out of layers above ``--ring-limit`` parameters, where it takes minutes each."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.home import user_path
from ranksearch.sites import Site, canonical_weight, find_sites
from ranksearch.tasks.networks import cifar_resnet, load_weights

BUDGETS = (0.1, 0.2, 0.3, 0.5, 0.7)
GRID = np.linspace(0.02, 1.0, 99)  # shares of the dense parameters at which curves are drawn
EXPONENT = 0.5  # of the power law of the synthetic singular values


@dataclass(frozen=True)
class Curve:
    """Least error of one type within every share of ``GRID``; NaN below its cheapest option. Mean over sites."""

    name: str
    storage_only: bool
    error: np.ndarray
    seconds: float


def curves(sites: Sequence[tuple[Site, Tensor]], ring_limit: int) -> list[Curve]:
    """One curve per type that is defined for these sites, which are alike in shape."""
    found = []
    for decomposition in DECOMPOSITIONS:
        if decomposition.name == "dense" or decomposition.undefined(sites[0][0]) is not None:
            continue
        if decomposition.name == "tensor_ring" and sites[0][0].cost.params > ring_limit:
            continue
        began, errors = time.perf_counter(), []
        for site, weight in sites:
            measured = decomposition.errors(decomposition.prepare(site, weight))
            params, _ = decomposition.costs(site, measured.ranks)
            share = params / site.cost.params
            errors.append([measured.frobenius[share <= g].min() if (share <= g).any() else np.nan for g in GRID])
        seconds = (time.perf_counter() - began) / len(sites)
        found.append(Curve(decomposition.name, decomposition.storage_only, np.mean(errors, axis=0), seconds))
    return found


def resnet20(weights: Path, per_shape: int) -> dict[str, list[tuple[Site, Tensor]]]:
    model = load_weights(cifar_resnet(20), weights)
    groups: dict[str, list[tuple[Site, Tensor]]] = {}
    for site in find_sites(model, torch.zeros(1, 3, 32, 32)):
        groups.setdefault(_shape(site), []).append((site, canonical_weight(model.get_submodule(site.name), site)))
    return {shape: _spread(sites, per_shape) for shape, sites in groups.items()}


def resnet50(limit: int) -> dict[str, list[tuple[Site, Tensor]]]:
    """The layer shapes of ResNet-50 up to ``limit`` parameters, smallest first, with synthetic weights."""
    shapes = [(64, 3, 7)]
    for width in (64, 128, 256, 512):
        shapes += [(width, width, 3), (4 * width, width, 1), (width, 4 * width, 1), (width, 2 * width if width > 64 else 64, 1)]
        shapes += [(4 * width, 2 * width if width > 64 else 64, 1)]
    generator = torch.Generator().manual_seed(0)
    groups = {}
    for c_out, c_in, k in dict.fromkeys(shapes):
        site = Site("synthetic", "conv2d", c_out, c_in, (k, k), padding=(k // 2, k // 2), bias=False)
        if site.cost.params <= limit:
            groups[_shape(site)] = [(site, _power_law(site, generator))]
    return groups


def _power_law(site: Site, generator: torch.Generator) -> Tensor:
    """Random directions, singular values i^-EXPONENT in each of the channel modes."""
    weight = torch.randn(site.shape, generator=generator, dtype=torch.float64)
    out, into = (torch.arange(1, n + 1, dtype=torch.float64) ** -EXPONENT for n in site.shape[:2])
    weight = weight * out[:, None, None, None] * into[None, :, None, None]
    bases = [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in site.shape[:2]]
    return torch.einsum("po,oihw,qi->pqhw", bases[0], weight, bases[1])


def _shape(site: Site) -> str:
    return " x ".join(map(str, site.shape)) if site.kernel != (1, 1) else f"{site.shape[0]} x {site.shape[1]}"


def _spread(sites: list, count: int) -> list:
    return [sites[k] for k in sorted(set(np.linspace(0, len(sites) - 1, count).round().astype(int).tolist()))]


def table(measured: dict[str, list[Curve]]) -> str:
    """Markdown: the best type at each budget; the best built of plain layers beside it where they differ."""
    lines = ["| shape | " + " | ".join(f"{b:.0%}" for b in BUDGETS) + " |", "| --- |" + " --- |" * len(BUDGETS)]
    for shape, found in measured.items():
        cells = []
        for budget in BUDGETS:
            k = int(np.searchsorted(GRID, budget + 1e-9) - 1)
            ranked = sorted((float(c.error[k]), c.name, c.storage_only) for c in found if not np.isnan(c.error[k]))
            plain = next((r for r in ranked if not r[2]), None)
            text = f"`{ranked[0][1]}` {ranked[0][0]:.3f}" if ranked else "none"
            if ranked and ranked[0][2]:
                text += f"<br/>plain: `{plain[1]}` {plain[0]:.3f}" if plain else "<br/>plain: none"
            cells.append(text)
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seconds(measured: dict[str, list[Curve]]) -> str:
    """Markdown: seconds to prepare one site and get all errors, per type."""
    names = [d.name for d in DECOMPOSITIONS if d.name != "dense"]
    lines = ["| shape | " + " | ".join(f"`{n}`" for n in names) + " |", "| --- |" + " ---: |" * len(names)]
    for shape, found in measured.items():
        took = {c.name: c.seconds for c in found}
        lines.append(f"| {shape} | " + " | ".join(f"{took[n]:.2f}" if n in took else "" for n in names) + " |")
    return "\n".join(lines)


def plot(measured: dict[str, list[Curve]], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [d.name for d in DECOMPOSITIONS if d.name != "dense"]
    colours = pyplot.get_cmap("tab20" if len(names) > 10 else "tab10")
    columns = min(4, len(measured))
    rows = -(-len(measured) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 3.1 * rows + 0.9), sharex=True, sharey=True, squeeze=False)
    for axis, (shape, found) in zip(axes.flat, measured.items(), strict=False):
        for curve in found:
            style = "--" if curve.storage_only else "-"
            axis.plot(GRID, curve.error, style, color=colours(names.index(curve.name)), label=curve.name, linewidth=1.6)
        axis.set_title(shape, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
    for axis in list(axes.flat)[len(measured) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("relative Frobenius error")
    for column in range(columns):
        shown = [row for row in range(rows) if row * columns + column < len(measured)]
        axes[shown[-1], column].set_xlabel("share of the dense parameters")
        axes[shown[-1], column].tick_params(labelbottom=True)
    labels = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    ordered = [n for n in names if n in labels]
    figure.suptitle(title, fontsize=11)
    figure.legend([labels[n] for n in ordered], ordered, loc="lower center", ncols=min(6, len(ordered)), fontsize=9, frameon=False)
    height = figure.get_figheight()
    figure.tight_layout(rect=(0, 0.35 / height * (1 + (len(ordered) - 1) // 6), 1, 1 - 0.3 / height))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=user_path, required=True, help="safetensors of a trained CIFAR ResNet-20")
    parser.add_argument("--per-shape", type=int, default=2, help="how many sites of each shape are averaged")
    parser.add_argument("--resnet50", action="store_true", help="also the shapes of ResNet-50, synthetic weights")
    parser.add_argument("--limit", type=int, default=10_000_000, help="the largest ResNet-50 layer, in parameters")
    parser.add_argument("--ring-limit", type=int, default=150_000, help="the largest layer that tensor_ring is tried on, in parameters")
    parser.add_argument("--out", type=user_path, default=Path("docs"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = [
        "# Which type at which budget",
        "Each cell has the type with the least relative Frobenius error of the weight, without fine-tuning, and that error, for a shape of "
        "layer (row) within a share of its dense parameters (column). Types that save storage only (`tensor_ring`, `adaptive`: their MACs "
        "are the dense layer's and those of putting the weight together) compete; where one wins, the best of the types made of plain "
        "layers stands below it.",
        f"    python analysis/benchmarks/types.py --weights {args.weights.name} --per-shape {args.per_shape}"
        f"{f' --resnet50 --limit {args.limit}' if args.resnet50 else ''} --ring-limit {args.ring_limit}",
        f"One thread. `tensor_ring` is not tried above {args.ring_limit:,} parameters, "
        "where it takes minutes per layer. Curves of `cp` and `adaptive` that end flat on large layers stop at the largest rank that their "
        "fits are given time for.",
    ]
    runs = [("ResNet-20", "trained on CIFAR-10", "types_resnet20.png", resnet20(args.weights, args.per_shape))]
    if args.resnet50:
        note = f"no trained weights: random, power-law spectra with exponent {EXPONENT} in both channel modes"
        runs.append(("ResNet-50 shapes", note, "types_resnet50_synthetic.png", resnet50(args.limit)))
    for title, note, image, groups in runs:
        measured: dict[str, list[Curve]] = {}
        for shape, sites in groups.items():
            measured[shape] = curves(sites, args.ring_limit)
            print(shape, {c.name: round(c.seconds, 2) for c in measured[shape]}, flush=True)
        plot(measured, args.out / "figures" / image, f"{title} ({note})")
        parts += [f"## {title}", f"{note[0].upper()}{note[1:]}.", table(measured), f"![{title}](figures/{image})"]
        parts += ["Seconds that all ranks of one site take, by shape and type:", seconds(measured)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "types.md").write_text("\n\n".join(parts) + "\n")
    print(f"wrote {args.out / 'types.md'}")


if __name__ == "__main__":
    main()
