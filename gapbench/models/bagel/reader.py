"""Texts and pictures as BAGEL reads them, in blocks of one shape whatever a batch holds, so that a
row's companions do not change its rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from PIL import Image
from torch import Tensor

from gapbench.models.autoregressive.answers import distinct
from gapbench.models.autoregressive.blocks import filled
from gapbench.models.bagel.network import Bagel, Context
from gapbench.models.bagel.pictures import Geometry, grid, patches, prepared

BUCKET: Final = 64
"""A text is padded to a multiple of so many tokens, whatever is beside it."""
Row = Sequence[int]
T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """A network that reads up to `block` rows together, always as many; 0: as many as there are.

    `marks` are the ids of the tokens before and after a text, before and after a picture.
    """

    network: Bagel
    sizes: Geometry
    marks: Sequence[int]
    block: int

    @property
    def around(self) -> Tensor:
        """(2,) the marks of a picture."""
        return self.there(self.marks[2:])

    def there(self, numbers: Sequence[object]) -> Tensor:
        """Whole numbers, on the network's device."""
        return torch.tensor(numbers, dtype=torch.long, device=self.network.device)

    def texts(
        self, items: Iterable[T], row: Callable[[T], Row]
    ) -> Iterator[tuple[list[T], list[T]]]:
        """Blocks of items whose rows are padded to one length."""
        return filled(items, lambda item: -(-len(row(item)) // BUCKET), self.block)

    def read(self, context: Context, rows: Sequence[Row]) -> tuple[Tensor, Context]:
        """Hidden states of rows of token ids, padded on the right, and what has read them."""
        width = -(-max(map(len, rows)) // BUCKET) * BUCKET
        ids = self.there([[*row, *[0] * (width - len(row))] for row in rows])
        return self.network.read(context, ids, self.there([len(row) for row in rows]))

    def follow(self, parts: Sequence[Row | Image.Image]) -> tuple[Tensor, Context]:
        """Hidden states (1, T, W) of the last of some texts and pictures in a row, which is a text,
        and what has read and seen them all."""
        context = self.network.blank(1)
        for part in parts:
            if isinstance(part, Image.Image):
                context = self._seen(context, [prepared(part, self.sizes)])
            else:
                states, context = self.read(context, [part])
        return states, context

    def say(self, context: Context, limit: int, first: int | None = None) -> list[list[int]]:
        """What rows say after the token `first`, by default the start mark, greedily decoded: up to
        so many tokens, that one counted."""
        begin, end = self.marks[:2]
        ids = self.there([[begin if first is None else first]] * len(context.place))
        one, said = torch.ones_like(ids[:, 0]), []
        ended = one < 1
        for _ in range(limit - 1):
            states, context = self.network.read(context, ids, one)
            ids = self.network.language_model.lm_head(states).argmax(-1)
            ended = ended | (ids[:, 0] == end)
            if ended.all():
                break
            said.append(ids)
        rows = torch.cat(said, 1).tolist() if said else [[] for _ in one]
        return [row[: row.index(end)] if end in row else row for row in rows]

    def asked(
        self, images: Sequence[Image.Image], places: Sequence[int], rows: Sequence[Row]
    ) -> Iterator[tuple[list[int], Tensor, Context]]:
        """Numbers of rows of a block, and the block's last hidden states and contexts when it has
        seen the images at the rows' places, each of which is seen once, and read the rows."""
        firsts = distinct(images)
        shown = {n: prepared(images[n], self.sizes) for n in dict.fromkeys(firsts)}
        for some, whole in filled(shown, lambda number: shown[number].size, self.block):
            pictures = [shown[number] for number in whole]
            seen = self._seen(self.network.blank(len(pictures)), pictures)
            mine = [row for row, place in enumerate(places) if firsts[place] in some]
            for few, padded in self.texts(mine, rows.__getitem__):
                own = seen.rows(self.there([some.index(firsts[places[row]]) for row in padded]))
                yield few, *self.read(own, [rows[row] for row in padded])

    def _seen(self, context: Context, pictures: list[Image.Image]) -> Context:
        network, patch, side = self.network, self.sizes.vision_patch, self.sizes.vision_side
        pixels = patches(pictures, patch).to(network.device, network.dtype)
        wide, high = (edge // patch for edge in pictures[0].size)
        where = grid(high, wide, side).to(network.device)
        return network.see(context, pixels, where, self.around)
