"""More networks as people write them, each for ops that the others do not use."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from zoo import Exhibit


class Cells(nn.Module):
    """torch's own gated cells, run by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.GRUCell(5, 8), nn.LSTMCell(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 8)
        pair = (x.new_zeros(x.shape[0], 7),) * 2
        for t in range(2):
            h = self.first(x[:, t], h)
            pair = self.second(h, pair)
        return self.head(pair[0])


class Attentive(nn.Module):
    """Woo et al. 2018: channels by their mean and largest, places by those of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.place = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)
        self.squeeze, self.excite, self.head = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = [F.adaptive_avg_pool2d(x, 1).flatten(1), F.adaptive_max_pool2d(x, 1).flatten(1)]
        gate = torch.sigmoid(sum(self.excite(F.relu(self.squeeze(p))) for p in pooled))
        x = x * gate[:, :, None, None]
        seen = (x.mean(1, keepdim=True), x.max(1, keepdim=True)[0], x.min(dim=1, keepdim=True).values)
        return self.head((x * torch.sigmoid(self.place(torch.cat(seen, 1)))).mean((2, 3)))


class Bags(nn.Module):
    """Joulin et al. 2016: a text is the mean of its words; the sum of its weighted ones; the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.sum = nn.EmbeddingBag(11, 6, mode="mean"), nn.EmbeddingBag(11, 5, mode="sum")
        self.most, self.head = nn.EmbeddingBag(11, 4, mode="max", padding_idx=0), nn.Linear(15, 3)

    def forward(self, ids: Tensor, row: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        weighed = self.sum(row, starts, per_sample_weights=weights)
        return self.head(torch.cat((self.mean(ids), weighed, self.most(ids)), -1).tanh())


class Fourier(nn.Module):
    """Li et al. 2021 and Rao et al. 2021: products of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.mix = nn.Linear(3, 6), nn.Parameter(torch.zeros(6, 8, 3, 2))
        self.filter, self.skip = nn.Parameter(torch.zeros(5, 8, 2)), nn.Conv1d(6, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x).transpose(1, 2)
        low = torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :3], torch.view_as_complex(self.mix))
        x = F.gelu(torch.fft.irfft(F.pad(low, (0, 2)), n=8) + self.skip(x)).transpose(1, 2)
        filtered = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        mixed = torch.fft.fft(torch.fft.ifft(x, dim=1).abs(), dim=1).real  # Lee-Thorp et al. 2021
        return self.head(torch.fft.irfft(filtered, n=8, dim=1, norm="ortho") + mixed)


class Planes(nn.Module):
    """Statistics over channels and places, with a gain for each and without; root mean squares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.LayerNorm((6, 4, 4))
        self.body, self.bare = nn.Conv2d(6, 8, 1), nn.LayerNorm((8, 4, 4), elementwise_affine=False)
        self.mean, self.head = nn.RMSNorm((4, 8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bare(self.body(F.gelu(self.norm(self.stem(x)))))
        return self.head(self.mean(x.amax(-1).mT))


class Radial(nn.Module):
    """Broomhead and Lowe 1988: how far from each of some centres."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.centres, self.widths = (
            nn.Linear(5, 6),
            nn.Parameter(torch.zeros(7, 6)),
            nn.Parameter(torch.zeros(7)),
        )
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        apart = torch.cdist(self.inward(x), self.centres)
        return self.head(torch.exp(-((apart * self.widths.exp()) ** 2)))


class Quantised(nn.Module):
    """van den Oord et al. 2017: the nearest row of a code book, by an op of torch's for many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.book = nn.Parameter(torch.zeros(40, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        apart = torch.cdist(x, self.book)
        near = torch.exp(apart.min() - apart.amin(-1, keepdim=True)) * x.max()
        return self.head(x + self.book[apart.argmin(-1)]) * near


class Grouped(nn.Module):
    """Ainslie et al. 2023: some heads of queries read one of keys and values, which torch repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.query, self.out = nn.Linear(5, 6), nn.Linear(6, 16), nn.Linear(16, 6)
        self.key, self.value, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        query, key, value = (
            layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        read = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.head(x + self.out(read.transpose(1, 2).flatten(2)))


class Masked(nn.Module):
    """Vaswani et al. 2017, its mask of queries and keys alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.out, self.head = nn.Linear(5, 6), nn.Linear(8, 6), nn.Linear(6, 2)
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.register_buffer("mask", torch.tril(torch.ones(3, 3, dtype=torch.bool)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        read = nn.functional.scaled_dot_product_attention(
            *(f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.query, self.key, self.value)),
            attn_mask=self.mask,
        )
        return self.head(x + self.out(read.transpose(1, 2).flatten(2)))


class Chosen(nn.Module):
    """Shazeer et al. 2017: each expert reads the tokens that are sent to it, however many."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            out.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return self.head((x + out).view(shape))


class Edges(nn.Module):
    """Messages along edges: weighed by a softmax over what arrives, the mean and the largest of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.score, self.message = nn.Linear(5, 8), nn.Linear(16, 1), nn.Linear(8, 6)
        self.skip, self.head = nn.Linear(8, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x, (source, target) = self.inward(x), edges
        score = F.leaky_relu(self.score(torch.cat((x[source], x[target]), -1)), 0.2)
        most = score.new_full((7, 1), -1e9).scatter_reduce(0, target[:, None], score, "amax")
        weight = torch.exp(score - most[target])
        total = weight.new_zeros(7, 1).scatter_add(0, target[:, None], weight)
        sent = self.message(x)[source]
        along = target[:, None].expand(-1, sent.shape[1])
        mean = torch.zeros_like(sent[:7]).scatter_reduce(0, along, sent, "mean", include_self=False)
        summed = self.skip(x).index_add(0, target, sent * weight / total[target])
        return self.head(torch.cat((mean, summed), -1).relu())


class Bounded(nn.Module):
    """Miyato et al. 2018: a weight by its largest singular value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = spectral_norm(nn.Conv2d(3, 8, 3)), spectral_norm(nn.Linear(8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.leaky_relu(self.second(F.relu(self.first(x)).mean((2, 3))), 0.1))


class Remembered(nn.Module):
    """Badrinarayanan et al. 2017: what was largest goes back to where it was."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.up, self.head = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(F.relu(self.down(x)), 2, return_indices=True)
        x = F.max_unpool2d(F.gelu(self.middle(x)), places, 2)
        return self.head(F.gelu(self.up(x)))


class Solids(nn.Module):
    """Balakrishnan et al. 2019: a solid is read where a field of shifts says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.field, self.head = nn.Conv3d(2, 6, 3, padding=1), nn.Linear(6, 12), nn.Conv3d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x), 0.2)
        theta = torch.tanh(self.field(x.mean((2, 3, 4)))).view(-1, 3, 4)
        grid = F.affine_grid(theta, [x.shape[0], 1, 3, 4, 4], align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))


class Vectors(nn.Module):
    """Channels of vectors in space: crossed, multiplied up, and by their bins; what each has with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(6, 5)), nn.Parameter(torch.zeros(6, 5))
        self.bins, self.head = nn.Embedding(4, 6), nn.Linear(6, 3)
        self.register_buffer("edges", torch.tensor([-0.5, 0.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.einsum("bnv,on->bov", x, self.a), torch.einsum("bnv,on->bov", x, self.b)
        crossed = torch.linalg.cross(a.sinh(), b, dim=-1)
        binned = self.bins(torch.bucketize(x[:, 0, 0], self.edges))
        alone = torch.diagonal(self.head(a.mT), dim1=1, dim2=2).sum(-1)
        return self.head(crossed.prod(-1) + binned + crossed.prod(2, keepdim=True)[..., 0]) + alone[:, None]


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2], [1, 2, 3, 4, 5, 6, 0, 3, 3]])


class Involved(nn.Module):
    """Li et al. 2021: a kernel for each place, here of what stands there and around it; of two streams one is
    a sum over channels, and larger by as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)
        self.kernel, self.head = nn.Conv2d(10, 9, 1), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat((self.body(x).tanh(), x.sum(1, keepdim=True).expand(-1, 4, -1, -1)), 1)
        around = F.unfold(x, 3, padding=1).unflatten(1, (10, 9))
        mixed = (around * self.kernel(x).flatten(2)[:, None]).sum(2) + around[:, :, 4] - around[:, :, 0]
        return self.head(mixed.mean(-1))


ZOO: Mapping[str, Exhibit] = {
    "involved": Exhibit(
        Involved, lambda: (torch.randn(2, 3, 5, 5),), (("stem.weight", 0), ("body.weight", 0))
    ),
    "cells": Exhibit(
        Cells, lambda: (torch.randn(2, 2, 5),), (("first.weight_hh", 1), ("second.weight_hh", 1))
    ),
    "attentive": Exhibit(
        Attentive, lambda: (torch.randn(2, 3, 6, 6),), (("stem.weight", 0), ("squeeze.weight", 0))
    ),
    "bags": Exhibit(
        Bags,
        lambda: (
            torch.randint(11, (2, 4)),
            torch.tensor([1, 4, 2, 8, 5, 7]),
            torch.tensor([0, 2]),
            torch.rand(6),
        ),
        (("mean.weight", 1), ("sum.weight", 1), ("most.weight", 1)),
        {("mean.weight", 0): "S307"},
    ),
    "fourier": Exhibit(
        Fourier, lambda: (torch.randn(2, 8, 3),), (("inward.weight", 0), ("mix", 1)), {("mix", 2): "S306"}
    ),
    "planes": Exhibit(Planes, lambda: (torch.randn(2, 3, 4, 4),), (("stem.weight", 0), ("body.weight", 0))),
    "radial": Exhibit(Radial, lambda: (torch.randn(4, 5),), (("centres", 0), ("centres", 1))),
    "quantised": Exhibit(Quantised, lambda: (torch.randn(3, 30, 5),), (("inward.weight", 0),)),
    "grouped": Exhibit(
        Grouped,
        lambda: (torch.randn(2, 3, 5),),
        (("inward.weight", 0), ("key.weight", 0), ("value.weight", 0)),
    ),
    "masked": Exhibit(
        Masked,
        lambda: (torch.randn(2, 3, 5),),
        (("inward.weight", 0), ("key.weight", 0), ("value.weight", 0)),
    ),
    "chosen": Exhibit(
        Chosen,
        lambda: (torch.randn(2, 4, 6),),
        (("inward.weight", 0), ("experts.1.0.weight", 0)),
        {("router.weight", 0): "S303"},
    ),
    "edges": Exhibit(
        Edges, lambda: (torch.randn(7, 5), EDGES), (("inward.weight", 0), ("message.weight", 0))
    ),
    "remembered": Exhibit(
        Remembered,
        lambda: (torch.randn(2, 3, 6, 6),),
        (("down.weight", 0), ("up.weight", 0)),
        {("down.weight", 2): "S304"},
    ),
    "solids": Exhibit(Solids, lambda: (torch.randn(2, 2, 3, 4, 4),), (("stem.weight", 0),)),
    "vectors": Exhibit(Vectors, lambda: (torch.randn(3, 5, 3),), (("a", 0),), {("bins.weight", 0): "S307"}),
    "bounded": Exhibit(Bounded, lambda: (torch.randn(2, 3, 5, 5),), (("first.bias", 0), ("second.bias", 0))),
}
