"""The factors of a layer as tensors whose axes have letters, the same for an axis that several share: a network of them that can be
contracted in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ranksearch.errors import InvalidArgument

WEIGHT = "goihw"  # letters of a weight's axes: groups, C_out / groups, C_in / groups, kh, kw
PARTS = "t"  # and of the parts that its input channels are cut into, i being those of one of them


class Axes:
    """What the axes of every factor are. Parts of the input channels count as groups do.

    Args:
        words: of every factor, see `Decomposition.axes`.
        factors: whose shapes count.
        shape: of the weight: (groups, c_out / groups, c_in / groups, kh, kw).

    Attributes:
        letters: of every factor's axes but groups and parts.
        parts: into how many the input channels are cut.
        shape: of the weight.
        sizes: of the weight's axes, by letter, parts counted as groups.

    Raises:
        InvalidArgument: the factors are not joined into a tree by the axes that they share.
    """

    def __init__(self, words: Sequence[str], factors: Sequence[Tensor], shape: Sequence[int]) -> None:
        every = [text.split() for text in words]
        self._words = [tuple(word for word in one if word not in (WEIGHT[0], PARTS)) for one in every]
        self.letters = ["".join(one) for one in self._words]
        shared = "".join(self.letters).translate(str.maketrans("", "", WEIGHT))
        if len(shared) != len(words) + len(set(shared)) - 1 or any(shared.count(letter) == 1 for letter in shared):
            raise InvalidArgument(f"axes={tuple(words)!r}: axes that are none of the weight's must join the factors into a tree")
        self.parts = next((f.shape[one.index(PARTS)] for one, f in zip(every, factors, strict=True) if PARTS in one), 1)
        self.shape = tuple(shape)
        groups, outputs, inputs, *kernel = shape
        sizes = groups * self.parts, outputs, inputs // self.parts, *kernel
        self.sizes: Mapping[str, int] = dict(zip(WEIGHT, sizes, strict=True))

    def views(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """The factors with an axis per letter, groups first."""
        return [factor.reshape(self.sizes["g"], *self._extents(k, factor)) for k, factor in enumerate(factors)]

    def beside(self, factors: Sequence[Tensor], matrix: Tensor) -> list[Tensor]:
        """Factors of the weight that theirs becomes by a matrix in front, shape (groups, c_out / groups, c_out / groups)."""
        k = next((k for k, letters in enumerate(self.letters) if "o" in letters), 0)
        view, every = self.views(factors)[k], matrix.repeat_interleave(self.parts, dim=0)
        if "o" in self.letters[k]:
            view = along(view, every.mT, 1 + self.letters[k].index("o"))
        else:  # of one output
            view = view * every.reshape(-1, *[1] * (view.ndim - 1))
        return [*factors[:k], view.reshape(factors[k].shape), *factors[k + 1 :]]

    def _extents(self, k: int, factor: Tensor) -> list[int]:
        words, found = self._words[k], []
        for word, size in zip(words, factor.shape[factor.ndim - len(words) :], strict=True):
            found += [self.sizes[letter] for letter in word] if len(word) > 1 else [size]
        return found


def along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """A tensor (groups, a, b, ...) times a matrix (groups, n, n) behind one of its axes."""
    moved = tensor.movedim(axis, -1)
    return (moved.flatten(1, -2) @ matrix if moved.ndim > 2 else (moved[:, None] @ matrix)[:, 0]).reshape(moved.shape).movedim(-1, axis)
