# SPDX-License-Identifier: Apache-2.0
"""The demo model in torch: a Llama decoder small enough to train on one CPU core.

Rotary pairs are adjacent (2i, 2i+1), as GGUF files of architecture "llama" have them, so the export
moves no rows. Input and output share one embedding.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = dict(dim=128, layers=5, heads=4, kv_heads=2, ffn=384, eps=1e-5, rope_base=100000.0, context=2048)


class Product(torch.autograd.Function):
    """x @ w.T with bfloat16 inputs and float32 results, forward and backward."""

    @staticmethod
    def forward(ctx, x, w):
        xb, wb = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(xb, wb)
        return torch.mm(xb, wb.t()).float()

    @staticmethod
    def backward(ctx, g):
        xb, wb = ctx.saved_tensors
        gb = g.bfloat16()
        return torch.mm(gb, wb).float(), torch.mm(gb.t(), xb).float()


def product(x, w, fast):
    return Product.apply(x, w) if fast else F.linear(x, w)


class Attend(torch.autograd.Function):
    """softmax(q k^T + bias) v for one chunk of queries. q [n, r*c, d], k and v [n, l, d]."""

    @staticmethod
    def forward(ctx, q, k, v, bias, shape, fast):
        b, g, r, c, l = shape
        if fast:
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        s = torch.bmm(q, k.transpose(1, 2)).float().view(b, g, r, c, l)
        s += bias
        p = torch.softmax(s, -1).view(b * g, r * c, l)
        if fast:
            p = p.bfloat16()
        o = torch.bmm(p, v)
        ctx.save_for_backward(q, k, v, p)
        ctx.fast = fast
        return o.float()

    @staticmethod
    def backward(ctx, go):
        q, k, v, p = ctx.saved_tensors
        if ctx.fast:
            go = go.bfloat16()
        gp = torch.bmm(go, v.transpose(1, 2))
        gv = torch.bmm(p.transpose(1, 2), go)
        pf, gp = p.float(), gp.float()
        gs = torch._softmax_backward_data(gp, pf, -1, torch.float32)
        if ctx.fast:
            gs = gs.bfloat16()
        return torch.bmm(gs, k).float(), torch.bmm(gs.transpose(1, 2), q).float(), gv.float(), None, None, None


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        r = torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps))
        n = x * r
        ctx.save_for_backward(n, r, w)
        return n * w

    @staticmethod
    def backward(ctx, g):
        n, r, w = ctx.saved_tensors
        gn = g * n
        gw = gn.sum(0)
        m = torch.mv(gn, w).div_(w.shape[0]).unsqueeze(1)
        return torch.addcmul(g * w, n, m, value=-1).mul_(r), gw, None


class Gate(torch.autograd.Function):
    """silu(a) * b"""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        silu = a * s
        ga = (1 - s).mul_(silu).add_(s).mul_(b).mul_(g)
        return ga, silu.mul_(g)


class Loss(torch.autograd.Function):
    """Cross entropy of x @ w.T against `target`, each token weighted; the gradient is made in the same
    pass, some rows at a time, so that the logits stay in cache. Returns (sum of weighted losses,
    losses, which tokens were the most likely ones)."""

    @staticmethod
    def forward(ctx, x, w, target, weight, fast):
        n, rows = x.shape[0], 512
        gx, gw = torch.empty_like(x), torch.zeros_like(w)
        losses, right = torch.empty(n), torch.empty(n, dtype=torch.bool)
        wb = w.bfloat16() if fast else w
        for lo in range(0, n, rows):
            xs, t = x[lo:lo + rows], target[lo:lo + rows, None]
            xs = xs.bfloat16() if fast else xs
            p = torch.mm(xs, wb.t()).float()
            right[lo:lo + rows] = p.argmax(-1) == t[:, 0]
            p = torch.softmax(p, -1)
            losses[lo:lo + rows] = -torch.log(p.gather(1, t)[:, 0] + 1e-30)
            p.scatter_add_(1, t, torch.full_like(t, -1, dtype=p.dtype))
            p *= weight[lo:lo + rows, None]
            p = p.bfloat16() if fast else p
            gx[lo:lo + rows] = torch.mm(p, wb)
            gw += torch.mm(p.t(), xs)
        ctx.save_for_backward(gx, gw)
        ctx.mark_non_differentiable(losses, right)
        return (losses * weight).sum(), losses, right

    @staticmethod
    def backward(ctx, g, *_):
        gx, gw = ctx.saved_tensors
        return gx.mul_(g), gw.mul_(g), None, None, None


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, kv = c["dim"], c["dim"] * c["kv_heads"] // c["heads"]

        def matrix(rows, cols, gain=1.0):
            return nn.Parameter(torch.randn(rows, cols) * gain / math.sqrt(cols))
        self.attn_norm = nn.Parameter(torch.ones(d))
        self.attn_q, self.attn_k, self.attn_v = matrix(d, d), matrix(kv, d), matrix(kv, d)
        self.attn_output = matrix(d, d, 0.02)
        self.ffn_norm = nn.Parameter(torch.ones(d))
        self.ffn_gate, self.ffn_up = matrix(c["ffn"], d), matrix(c["ffn"], d)
        self.ffn_down = matrix(d, c["ffn"], 0.02)


class Model(nn.Module):
    def __init__(self, vocab, config=CONFIG, fast=False):
        super().__init__()
        self.config, self.fast, self.chunk = dict(config), fast, 128
        self.token_embd = nn.Parameter(torch.randn(vocab, config["dim"]) * 0.05)
        self.blk = nn.ModuleList(Block(config) for _ in range(config["layers"]))
        self.output_norm = nn.Parameter(torch.ones(config["dim"]))
        self.look_back()
        half = config["dim"] // config["heads"] // 2
        freq = config["rope_base"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(config["context"] + 64, dtype=torch.float64)[:, None] * freq
        self.turns = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

    def look_back(self):
        """Starts the first two layers as induction heads, which take long to be found and on which all
        looking up is built. Heads of layer 0 look 1, 2, 3 tokens back (rotary positions can say that
        once the embeddings share a constant part) and note what they see. Heads of layer 1 look for
        places where the noted token is the current one, and copy what stands there. Training is free
        to change all of it."""
        c = self.config
        d, hd, r = c["dim"], c["dim"] // c["heads"], c["heads"] // c["kv_heads"]
        turn = c["rope_base"] ** (-torch.arange(hd // 2) * 2.0 / hd)

        def basis(rows):
            q = torch.linalg.qr(torch.randn(d, rows))[0].t()
            q[:, 0] = 0
            return q
        first, second = self.blk[0], self.blk[1]
        with torch.no_grad():
            self.token_embd[:, 0] = 0.5
            size = 0.5 / math.sqrt((0.05 ** 2 * (d - 1) + 0.25) / d)     # of the constant, after the norm
            part = torch.zeros(hd // 2)
            part[:8] = math.sqrt(8.0 * math.sqrt(hd)) / size
            out = basis(d)
            for g in range(c["kv_heads"]):
                rows = slice(g * hd, (g + 1) * hd)
                first.attn_v[rows], second.attn_v[rows] = basis(hd), basis(hd)
                first.attn_k[rows] *= 0.1
                first.attn_k[rows][0::2, 0], first.attn_k[rows][1::2, 0] = part, 0
            for head in range(c["heads"] - 1):
                rows, seen = slice(head * hd, (head + 1) * hd), slice(head // r * hd, (head // r + 1) * hd)
                q = first.attn_q[rows]
                q *= 0.1
                q[0::2, 0], q[1::2, 0] = part * torch.cos((head + 1) * turn), -part * torch.sin((head + 1) * turn)
                first.attn_output[:, rows] = 0.1 * out[rows].t()
            for g in range(c["kv_heads"]):
                rows = slice(g * r * hd, g * r * hd + hd)
                noted = slice(g * hd, (g + 1) * hd)                       # by head g: g + 1 tokens back
                second.attn_k[noted] = out[noted]
                second.attn_q[rows] = 5 * first.attn_v[:hd]
                second.attn_q[rows][:12] *= 0.1                           # fast turns match no content
                second.attn_output[:, rows] = 0.3 * second.attn_v[noted].t()

    def rope(self, x, turns):
        b, t = turns.shape[:2]
        d = self.config["dim"] // self.config["heads"]
        z = torch.view_as_complex(x.reshape(b, t, -1, d // 2, 2))
        return torch.view_as_real(z * turns).reshape(b, t, -1, d)

    def forward(self, ids, document, place=None):
        """ids and document [b, t]: a token sees earlier tokens of the same document only.
        `place` gives positions other than 0, 1, 2... Returns the normalised hidden states [b*t, dim]."""
        c, fast = self.config, self.fast
        b, t = ids.shape
        g, hd = c["kv_heads"], c["dim"] // c["heads"]
        r = c["heads"] // g
        turns = self.turns[torch.arange(t).expand(b, t) if place is None else place][:, :, None]
        spans = []
        for lo in range(0, t, self.chunk):
            hi = min(t, lo + self.chunk)
            hide = document[:, lo:hi, None] != document[:, None, :hi]
            hide |= torch.arange(hi)[None, None, :] > torch.arange(lo, hi)[None, :, None]
            spans.append((lo, hi, torch.zeros(hide.shape).masked_fill_(hide, -1e9).view(b, 1, 1, hi - lo, hi)))
        x = F.embedding(ids, self.token_embd).view(b * t, -1)
        for k in self.blk:
            h = Norm.apply(x, k.attn_norm, c["eps"])
            qkv = product(h, torch.cat((k.attn_q, k.attn_k, k.attn_v)), fast)
            qk, val = qkv.split(((c["heads"] + g) * hd, g * hd), 1)
            q, key = self.rope(qk, turns).split((c["heads"], g), 2)
            q = (q / math.sqrt(hd)).view(b, t, g, r, hd).permute(0, 2, 3, 1, 4)
            key = key.permute(0, 2, 1, 3).reshape(b * g, t, hd)
            val = val.reshape(b, t, g, hd).permute(0, 2, 1, 3).reshape(b * g, t, hd)
            out = []
            for (lo, hi, bias), qs in zip(spans, q.split(self.chunk, 3)):
                n = hi - lo
                o = Attend.apply(qs.reshape(b * g, r * n, hd), key[:, :hi], val[:, :hi], bias,
                                 (b, g, r, n, hi), fast)
                out.append(o.view(b, g, r, n, hd))
            o = torch.cat(out, 3).permute(0, 3, 1, 2, 4).reshape(b * t, c["dim"])
            x = x + product(o, k.attn_output, fast)
            h = Norm.apply(x, k.ffn_norm, c["eps"])
            gu = product(h, torch.cat((k.ffn_gate, k.ffn_up)), fast)
            x = x + product(Gate.apply(*gu.split(c["ffn"], 1)), k.ffn_down, fast)
        return Norm.apply(x, self.output_norm, c["eps"])

    def logits(self, hidden):
        return product(hidden, self.token_embd, self.fast)
