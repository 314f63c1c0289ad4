"""Networks as people write them: plain torch modules, each with the dims that may grow and an input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_in, self.token_out = nn.Linear(tokens, 10), nn.Linear(10, tokens)
        self.channel_in, self.channel_out = nn.Linear(width, 14), nn.Linear(14, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.token_out(F.gelu(self.token_in(self.token_norm(x).transpose(1, 2))))
        x = x + mixed.transpose(1, 2)
        return x + self.channel_out(F.gelu(self.channel_in(self.channel_norm(x))))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList(MixerBlock(9, 8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class DoubleConv(nn.Module):
    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(inward, outward, 3, padding=1), nn.BatchNorm2d(outward)
        self.second, self.second_norm = nn.Conv2d(outward, outward, 3, padding=1), nn.BatchNorm2d(outward)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(x)))


class UNet(nn.Module):
    """Ronneberger et al. 2015: what goes down is laid beside what comes up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = DoubleConv(3, 6), DoubleConv(6, 10), DoubleConv(12, 6)
        self.raise_, self.head = nn.ConvTranspose2d(10, 6, 2, stride=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        low = self.middle(F.max_pool2d(high, 2))
        return self.head(self.up(torch.cat((high, self.raise_(low)), 1)))


class MBConv(nn.Module):
    """Sandler et al. 2018, with the squeeze and excitation of Hu et al. 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.expand, self.expand_norm = nn.Conv2d(6, 18, 1, bias=False), nn.BatchNorm2d(18)
        self.depth, self.depth_norm = nn.Conv2d(18, 18, 3, padding=1, groups=18), nn.BatchNorm2d(18)
        self.squeeze, self.excite = nn.Conv2d(18, 4, 1), nn.Conv2d(4, 18, 1)
        self.project, self.head = nn.Conv2d(18, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.silu(self.depth_norm(self.depth(F.silu(self.expand_norm(self.expand(x))))))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(y * gate)).mean((2, 3)))


class ConvNext(nn.Module):
    """Liu et al. 2022: channels last between two permutations, a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.inward, self.outward = nn.LayerNorm(6), nn.Linear(6, 20), nn.Linear(20, 6)
        self.scale, self.head = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.scale * self.outward(F.gelu(self.inward(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Vit(nn.Module):
    """As timm writes it: q, k and v in one projection, a class token, positions learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 12, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 12))
        self.positions = nn.Parameter(torch.zeros(1, 10, 12))
        self.norm1, self.qkv, self.proj = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm2, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 22), nn.Linear(22, 12)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class Swin(nn.Module):
    """Liu et al. 2021: attention within windows, with a table of biases by relative place."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.zeros(9, 2))
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + 1
        self.register_buffer("index", apart[..., 0] * 3 + apart[..., 1])
        self.merge, self.head = nn.Linear(32, 14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(b, h // 2, 2, w // 2, 2, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        weights = (q * (c // 2) ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        y = self.proj((weights @ v).transpose(1, 2).reshape(-1, 4, c))
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (1, 1), (1, 2))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(torch.cat(parts, -1)).mean((1, 2)))


class Gru(nn.Module):
    """A gated cell written out, run over time (Cho et al. 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.width = nn.Embedding(20, 5), 6
        self.inward, self.state = nn.Linear(5, 18), nn.Linear(6, 18)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inward(self.embed(ids))
        h = x.new_zeros(x.shape[0], self.width)
        for t in range(4):
            (r, z, n), (hr, hz, hn) = x[:, t].chunk(3, -1), self.state(h).chunk(3, -1)
            z = torch.sigmoid(z + hz)
            h = z * h + (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn)
        return self.head(h)


class Lstm(nn.Module):
    """Hochreiter and Schmidhuber 1997, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.cell, self.head = 6, nn.Linear(5 + 6, 24), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.width)
        for t in range(3):
            i, f, g, o = self.cell(torch.cat((x[:, t], h), -1)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class WaveNet(nn.Module):
    """Van den Oord et al. 2016: dilated causal convolutions, gated, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Conv1d(1, 6, 1)
        self.filters = nn.ModuleList(nn.Conv1d(6, 8, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(6, 8, 2, dilation=2**i) for i in range(3))
        self.back = nn.ModuleList(nn.Conv1d(8, 6, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(8, 10, 1) for _ in range(3))
        self.head = nn.Conv1d(10, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.inward(x), None
        for i, (f, g, back, skip) in enumerate(
            zip(self.filters, self.gates, self.back, self.skip, strict=True)
        ):
            padded = F.pad(x, (2**i, 0))
            y = torch.tanh(f(padded)) * torch.sigmoid(g(padded))
            x = x + back(y)
            total = skip(y) if total is None else total + skip(y)
        return self.head(F.relu(total))


class Recommender(nn.Module):
    """Naumov et al. 2019: embeddings and a dense tower, whose products two by two are read."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 6) for n in (11, 13))
        self.bottom_in, self.bottom_out = nn.Linear(4, 9), nn.Linear(9, 6)
        self.top_in, self.top_out = nn.Linear(3 + 6, 12), nn.Linear(12, 1)
        self.register_buffer("pairs", torch.tensor([[1, 2, 2], [0, 0, 1]]))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = F.relu(self.bottom_out(F.relu(self.bottom_in(dense))))
        rows = torch.stack([x, *(table(ids[:, i]) for i, table in enumerate(self.tables))], 1)
        products = (rows @ rows.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top_out(F.relu(self.top_in(torch.cat((products, x), 1))))


class Generator(nn.Module):
    """Radford et al. 2016, and the shuffled pixels of Shi et al. 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.first = nn.Linear(5, 32), nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.norm, self.act = nn.BatchNorm2d(6), nn.PReLU(6)
        self.second, self.head = nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.inward(z).view(-1, 8, 2, 2)
        x = self.act(self.norm(self.first(x)))
        return torch.tanh(self.head(F.pixel_shuffle(self.second(x), 2)))


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 4, stride=2, padding=1), nn.Conv2d(6, 8, 4, 2, 1)
        self.norm, self.act, self.head = nn.InstanceNorm2d(8, affine=True), nn.PReLU(), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.2)
        return self.head(self.act(self.norm(self.second(x))).mean((2, 3)))


class Diffusion(nn.Module):
    """A step of a diffusion network: the time added to the channels, norms of groups, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.time_in, self.time_out = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(6, 10),
            nn.Linear(10, 12),
        )
        self.norm1, self.conv1 = nn.GroupNorm(2, 8), nn.Conv2d(8, 12, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(3, 12), nn.Conv2d(12, 8, 3, padding=1)
        self.norm3, self.qkv, self.proj = nn.GroupNorm(2, 8), nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(3, device=t.device) / 3)
        time = self.time_out(F.silu(self.time_in(torch.cat((angles.sin(), angles.cos()), -1))))
        x = self.stem(x)
        h = self.conv1(F.silu(self.norm1(x))) + time[:, :, None, None]
        x = x + self.conv2(F.silu(self.norm2(h)))
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm3(x)).reshape(b, 3, c, height * width).unbind(1)
        weights = (torch.einsum("bci,bcj->bij", q, k) * c**-0.5).softmax(-1)
        x = x + self.proj(torch.einsum("bij,bcj->bci", weights, v).reshape(b, c, height, width))
        return self.head(x)


class Encoder(nn.Module):
    """torch's own transformer layer."""

    def __init__(self, pre: bool = True) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 14, 0.0, batch_first=True, norm_first=pre)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.inward(x)))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.memory, self.head = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerDecoderLayer(8, 2, 14, 0.0, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.layer(self.query(x), self.memory(y)))


class Vae(nn.Module):
    """Kingma and Welling 2014, the noise an input."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.mean, self.spread = nn.Linear(9, 12), nn.Linear(12, 4), nn.Linear(12, 4)
        self.outward, self.head = nn.Linear(4, 10), nn.Linear(10, 9)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        h = F.softplus(self.inward(x))
        mean, spread = self.mean(h), self.spread(h)
        z = torch.addcmul(mean, noise, torch.exp(0.5 * spread))
        return self.head(torch.tanh(self.outward(z))), mean


class Graph(nn.Module):
    """Kipf and Welling 2017."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Bilinear(6, 6, 3)

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        links = links / links.sum(-1, keepdim=True)
        x = links @ self.second(F.elu(links @ self.first(x)))
        return self.head(x[:, 0], x[:, 1])


class Latents(nn.Module):
    """Jaegle et al. 2021: learnt latents look at the input."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.inward = nn.Parameter(torch.zeros(4, 6)), nn.Linear(5, 10)
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(10, 8), nn.Linear(10, 12)
        self.out, self.head = nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.mish(self.inward(x))
        q = self.q(self.latents).expand(x.shape[0], -1, -1)
        attended = F.scaled_dot_product_attention(q, self.k(x), self.v(x))
        return self.head((self.latents + self.out(attended)).amax(1))


class Folded(nn.Module):
    """Heads laid beside the batch, by sizes that are reckoned as it runs; torch's own recurrent cell."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.qkv, self.along = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(4, 4)
        self.cell, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        b, n, c = x.shape
        x = x + self.along(x.mT.reshape(b * c, n)).tanh().reshape(b, c, n).mT
        q, k, v = (t.reshape(b, n, 2, c // 2).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k, v = (t.reshape(b * 2, n, c // 2) for t in (q, k, v))
        x = torch.bmm(torch.softmax(torch.bmm(q, k.mT) * (c // 2) ** -0.5, -1), v)
        x = x.reshape(b, 2, n, c // 2).transpose(1, 2).reshape(b * n, c)
        return self.head(self.cell(x.reshape(b, n, c))[0])


class Reckoned(nn.Module):
    """A tensor made in a size that holds the batch and the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        return self.outward((x.reshape(-1) + x.new_ones(x.shape[0] * x.shape[1])).reshape(x.shape))


class Experts(nn.Module):
    """Soft routing, all experts in one product."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.router = nn.Linear(5, 6), nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.zeros(3, 6, 8)), nn.Parameter(torch.zeros(3, 8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        each = torch.einsum("bef,efd->bed", F.relu(torch.einsum("bd,edf->bef", x, self.up)), self.down)
        return self.head(x + torch.einsum("be,bed->bd", self.router(x).softmax(-1), each))


class Memory(nn.Module):
    """The nearest of a table of values is read."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.keys = nn.Linear(5, 6), nn.Parameter(torch.zeros(7, 6))
        self.values, self.head = nn.Embedding(7, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        nearest = (self.query(x) @ self.keys.T).argmax(-1)
        return self.head(self.values(nearest))


class Warp(nn.Module):
    """Jaderberg et al. 2015: what is read of the picture is decided by the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.where, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        theta = torch.tanh(self.where(x.mean((2, 3)))).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 1, 6, 6], align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))


class HeadsInBatch(nn.Module):
    """Heads and examples on one axis, whose size is reckoned as the model runs (Li et al. 2022); a bias
    that is made once and repeated for every example (El-Nouby et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.place, self.head = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        b, n, _ = x.shape
        where = torch.linspace(-1, 1, 3 * n, dtype=x.dtype).view(1, n, 3)
        x = x + self.place(where).repeat(b, 1, 1)
        qkv = self.qkv(x).view(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * 2, n, -1).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(out.view(b, 2, n, -1).transpose(1, 2).reshape(b, n, -1)))


class StandardisedConv(nn.Conv2d):
    """Qiao et al. 2019; with a gain, as Brock et al. 2021 have it."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__(given, made, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(made))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, len(self.gain), -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain * 0.3, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = StandardisedConv(3, 6), StandardisedConv(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.body(F.gelu(self.stem(x)))).mean((2, 3)))


class Halved(nn.Module):
    """Pieces of one size that go different ways, one of them past a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.gate = nn.Linear(5, 12), nn.Linear(4, 4)
        self.second, self.third = nn.Linear(4, 7), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.inward(x).split(4, -1)
        return self.second(a * torch.sigmoid(self.gate(b))) + self.third(c)


class OnePerExample(nn.Module):
    """Yang et al. 2019: each example is convolved by a mix of kernels of its own, all in one op."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 2), nn.Linear(4, 3)
        self.kernels = nn.Parameter(torch.zeros(2, 4 * 6 * 9))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        b, c, h, w = x.shape
        mixed = (torch.sigmoid(self.route(x.mean((2, 3)))) @ self.kernels).view(b * 4, c, 3, 3)
        x = F.conv2d(x.reshape(1, b * c, h, w), mixed, padding=1, groups=b)
        return self.head(F.gelu(x.view(b, 4, h, w)).mean((2, 3)))


@dataclass(frozen=True)
class Exhibit:
    """A module, its inputs, and by parameter and axis the dims that can grow."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    dims: tuple[tuple[str, int], ...]
    refused: Mapping[tuple[str, int], str] = field(default_factory=dict)


def _pictures(channels: int, size: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, channels, size, size),)


def _rows(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, *shape),)


ZOO: Mapping[str, Exhibit] = {
    "mixer": Exhibit(
        Mixer,
        _pictures(3, 12),
        (("patches.weight", 0), ("blocks.0.token_in.weight", 0), ("blocks.1.channel_in.weight", 0)),
        {("blocks.0.token_in.weight", 1): "S304"},
    ),
    "unet": Exhibit(
        UNet,
        _pictures(3, 8),
        (
            ("down.first.weight", 0),
            ("down.second.weight", 0),
            ("middle.second.weight", 0),
            ("raise_.weight", 1),
        ),
    ),
    "mbconv": Exhibit(
        MBConv, _pictures(3, 8), (("stem.weight", 0), ("expand.weight", 0), ("squeeze.weight", 0))
    ),
    "convnext": Exhibit(ConvNext, _pictures(3, 12), (("stem.weight", 0), ("inward.weight", 0))),
    "vit": Exhibit(Vit, _pictures(3, 12), (("patches.weight", 0), ("up.weight", 0))),
    "swin": Exhibit(Swin, _pictures(3, 8), (("patches.weight", 0), ("merge.weight", 0))),
    "gru": Exhibit(Gru, lambda: (torch.randint(20, (2, 4)),), (("embed.weight", 1), ("head.weight", 1))),
    "lstm": Exhibit(Lstm, _rows(3, 5), (("head.weight", 1),)),
    "wavenet": Exhibit(
        WaveNet, _rows(1, 12), (("inward.weight", 0), ("filters.1.weight", 0), ("head.weight", 1))
    ),
    "recommender": Exhibit(
        Recommender,
        lambda: (torch.randn(2, 4), torch.randint(11, (2, 2))),
        (("bottom_in.weight", 0), ("bottom_out.weight", 0), ("top_in.weight", 0)),
    ),
    "generator": Exhibit(Generator, _rows(5), (("first.weight", 0), ("first.weight", 1), ("head.weight", 1))),
    "discriminator": Exhibit(Discriminator, _pictures(3, 8), (("first.weight", 0), ("second.weight", 0))),
    "diffusion": Exhibit(
        Diffusion,
        lambda: (torch.randn(2, 3, 4, 4), torch.rand(2)),
        (("time_in.weight", 0), ("stem.weight", 0), ("conv1.weight", 0)),
    ),
    "encoder": Exhibit(Encoder, _rows(4, 5), (("inward.weight", 0), ("layer.linear1.weight", 0))),
    "encoder_post": Exhibit(
        lambda: Encoder(pre=False), _rows(4, 5), (("inward.weight", 0), ("layer.linear1.weight", 0))
    ),
    "decoder": Exhibit(
        Decoder,
        lambda: (torch.randn(2, 4, 5), torch.randn(2, 3, 4)),
        (("query.weight", 0), ("memory.weight", 0), ("layer.linear1.weight", 0)),
    ),
    "vae": Exhibit(
        Vae, lambda: (torch.randn(2, 9), torch.randn(2, 4)), (("inward.weight", 0), ("outward.weight", 0))
    ),
    "graph": Exhibit(
        Graph,
        lambda: (torch.randn(2, 4, 5), torch.rand(2, 4, 4)),
        (("first.weight", 0), ("second.weight", 0)),
    ),
    "latents": Exhibit(
        Latents,
        _rows(7, 5),
        (("latents", 1), ("inward.weight", 0), ("q.weight", 0), ("v.weight", 0)),
    ),
    "folded": Exhibit(Folded, _rows(4, 5), (("inward.weight", 0), ("head.weight", 1))),
    "heads in the batch": Exhibit(HeadsInBatch, _rows(4, 5), (("inward.weight", 0), ("out.weight", 1))),
    "standardised": Exhibit(Standardised, _pictures(3, 6), (("stem.weight", 0), ("body.weight", 0))),
    "halved": Exhibit(Halved, _rows(5), (("gate.weight", 0), ("third.weight", 1), ("inward.weight", 0))),
    "one per example": Exhibit(OnePerExample, _pictures(3, 6), (), {("stem.weight", 0): "S302"}),
    "reckoned": Exhibit(Reckoned, _rows(5), (), {("inward.weight", 0): "S325"}),
    "experts": Exhibit(Experts, _rows(5), (("inward.weight", 0), ("up", 2)), {("router.weight", 0): "S303"}),
    "memory": Exhibit(Memory, _rows(5), (("keys", 1), ("head.weight", 1)), {("keys", 0): "S306"}),
    "warp": Exhibit(Warp, _pictures(3, 6), (("stem.weight", 0),)),
}
