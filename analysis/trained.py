"""Networks of the quality frontier that are trained here, since no public weights of them are part of this project: a VGG-16 for CIFAR-10
(Simonyan and Zisserman 2015, configuration D, with batch norm and one linear layer), and of transformers a vision transformer and a
MobileNetV2 for Fashion-MNIST, small enough for a processor. One cycle of the learning rate, crops and mirroring, channels last.

    python analysis/trained.py --network vgg16 --data SHARED/data/cifar10 --out vgg16.safetensors --device cuda
    python analysis/trained.py --network vit --data FOLDER --out vit.safetensors

The last epoch's weights are written, in float32; the test set is looked at once, at the end."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.home import user_path
from ranksearch.tasks import Classification
from ranksearch.tasks.images import cifar10, fashion_mnist
from ranksearch.tasks.task import logits_of

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: maxima over 2 x 2 pixels
PADDING = 4  # pixels that crops move by
FASHION = {"num_channels": 1, "image_size": 28, "num_labels": 10}


def vgg16(classes: int = 10) -> nn.Sequential:
    """An untrained VGG-16 for 32 x 32 images: 13 convolutions without bias, each with batch norm, and a linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def vit() -> nn.Module:
    """An untrained vision transformer for 28 x 28 images (Dosovitskiy et al. 2021): 49 patches, six blocks of width 96."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"patch_size": 4, "hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 288}
    return ViTForImageClassification(ViTConfig(**FASHION, **sizes))


def mobilenet() -> nn.Module:
    """An untrained MobileNetV2 of half the width for 28 x 28 images (Sandler et al. 2018), which end as 4 x 4."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(**FASHION, depth_multiplier=0.5, output_stride=8))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; `--epochs` may say otherwise.

    Args:
        data: of a folder, with so many training images left out.
        learning_rate: its peak; of SGD with Nesterov momentum, or of AdamW where there are no batch norms.
        weight_decay: of weights of convolutions and linear layers.
        narrow: in bfloat16 where it is trained on a processor too; small layers gain nothing there.
    """

    make: Callable[[], nn.Module]
    data: Callable[..., Classification]
    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int = 128
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    narrow: bool = False


RECIPES = {
    "vgg16": Recipe(vgg16, cifar10, 40, 0.1, 5e-4, batch_size=256, narrow=True),
    "vit": Recipe(vit, fashion_mnist, 10, 1e-3, 0.05, optimizer=torch.optim.AdamW),
    "mobilenet": Recipe(mobilenet, fashion_mnist, 8, 0.1, 1e-4),
}


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches, every image mirrored or not and moved by up to ``PADDING`` pixels.

    Args:
        images: normalized, shape (n, 3, side, side), channels last.
    """
    device, side = images.device, images.shape[2]
    padded = F.pad(images, (PADDING,) * 4).contiguous(memory_format=torch.channels_last)
    steps = torch.arange(side, device=device)
    for chosen in torch.randperm(len(images), device=device, generator=generator).split(size):
        if len(chosen) < size:
            return
        top, left = torch.randint(0, 2 * PADDING + 1, (2, size, 1), device=device, generator=generator)
        columns = torch.where(torch.rand(size, 1, device=device, generator=generator) < 0.5, steps, steps.flip(0)) + left
        rows = (steps + top)[:, :, None]
        x = padded.permute(0, 2, 3, 1)[chosen[:, None, None], rows, columns[:, None, :]]  # (size, side, side, 3)
        yield x.permute(0, 3, 1, 2), labels[chosen]


def train(network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, given: argparse.Namespace) -> None:
    """One cycle of the learning rate, in place."""
    generator = torch.Generator(images.device).manual_seed(given.seed)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    momentum: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if recipe.optimizer is torch.optim.SGD else {}
    optimizer = recipe.optimizer(groups, lr=recipe.learning_rate, **momentum)  # pyright: ignore[reportCallIssue]
    steps = given.epochs * (len(images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.25)
    device = images.device.type
    network.train()
    for epoch in range(given.epochs):
        start, last = time.monotonic(), torch.zeros(())
        for x, y in batches(images, labels, recipe.batch_size, generator):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=recipe.narrow or device != "cpu"):
                logits = logits_of(network(x))
                assert logits is not None  # all of these networks answer with some
                loss = F.cross_entropy(logits, y, label_smoothing=given.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            last = loss
        print(f"epoch {epoch + 1}: loss {float(last.detach()):.3f}, {time.monotonic() - start:.1f} s", flush=True)
    network.eval()


def normalized(task: Classification, device: str) -> tuple[Tensor, Tensor]:
    """All training images as the network sees them, and their labels."""
    count = -(-task.sizes()["train"] // task.batch_size)
    pairs = list(task.labelled(count))
    images = torch.cat([x for x, _ in pairs]).to(device).contiguous(memory_format=torch.channels_last)
    return images, torch.cat([y for _, y in pairs]).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(RECIPES), required=True)
    parser.add_argument("--data", type=user_path, required=True, help="folder of CIFAR-10, or of Fashion-MNIST")
    parser.add_argument("--out", type=user_path, required=True, help="safetensors file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, help="default: " + ", ".join(f"{name} {one.epochs}" for name, one in RECIPES.items()))
    parser.add_argument("--smoothing", type=float, default=0.1, help="of labels")
    parser.add_argument("--images", type=int, default=5000, help="training images that nothing sees, as in analysis/frontier.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    recipe = RECIPES[given.network]
    given.epochs = given.epochs or recipe.epochs
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    torch.backends.cudnn.benchmark = True
    task = recipe.data(given.data, validation=given.images)
    network = recipe.make().to(given.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    train(network, *normalized(task, given.device), recipe, given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, given.out)
    found = {split: task.measure(network, split) for split in ("validation", "test")}  # pyright: ignore[reportArgumentType]
    print(", ".join(f"{split} {100 * value['accuracy']:.2f} %" for split, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
