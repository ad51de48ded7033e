"""Every switch against a plain reference, in combinations that no Hugging Face class has."""

import math
import random

import pytest
import torch
from torch import Tensor

from model import build, load_pretrained, save_pretrained
from model.config import ModelConfig
from tests.model.shapes import relative_error, scramble, token_ids


def draw_config(seed: int) -> ModelConfig:
    draw = random.Random(seed)
    causal = draw.random() < 0.5
    norm = draw.choice(["layernorm", "rmsnorm"])
    window = draw.choice([None, 4])
    return ModelConfig(
        family="custom",
        n_layers=2,
        n_heads=4,
        n_kv_heads=draw.choice([1, 2, 4]),
        head_dim=draw.choice([6, 10]),
        d_model=24,
        d_ff=33,
        vocab_size=47,
        max_seq_len=16,
        causal=causal,
        norm=norm,
        norm_place=draw.choice(["pre", "post"]),
        norm_bias=norm == "layernorm" and draw.random() < 0.5,
        embedding_norm=draw.random() < 0.5,
        positions=draw.choice(["learned", "rotary", "none"]),
        rope_theta_local=draw.choice([None, 100.0]),
        sliding_window=window,
        sliding_layers=() if window is None else (draw.choice([0, 1]),),
        qk_norm=draw.random() < 0.5,
        mlp=draw.choice(["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu"]),
        bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
        type_vocab_size=draw.choice([0, 3]),
        tie_embeddings=draw.random() < 0.5,
        logit_softcap=draw.choice([None, 2.0]),
        vocab_multiple=draw.choice([1, 16]),
    )


class Plain:
    """The same model in float64, written as the papers' formulas, one head and token at a time."""

    def __init__(self, config: ModelConfig, state: dict[str, Tensor]) -> None:
        self.c = config
        self.w = {name: tensor.double() for name, tensor in state.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.weight" not in self.w:
            return x
        if self.c.norm == "rmsnorm" or name.endswith(("q_norm", "k_norm")):
            y = x / (x.pow(2).mean(-1, keepdim=True) + self.c.norm_eps).sqrt()
        else:
            centred = x - x.mean(-1, keepdim=True)
            y = centred / (centred.pow(2).mean(-1, keepdim=True) + self.c.norm_eps).sqrt()
        y = y * self.w[f"{name}.weight"]
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def turn(self, x: Tensor, position: int, theta: float) -> Tensor:
        half = x.shape[-1] // 2
        out = x.clone()
        for i in range(half):
            angle = position * theta ** (-2 * i / x.shape[-1])
            a, b = x[..., i], x[..., i + half]
            out[..., i] = a * math.cos(angle) - b * math.sin(angle)
            out[..., i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def sees(self, query: int, key: int, layer: int) -> bool:
        c, window = self.c, self.c.sliding_window
        if c.causal and key > query:
            return False
        if layer not in c.sliding_layers:
            return True
        return query - key < window if c.causal else abs(query - key) <= window // 2

    def attention(self, layer: int, x: Tensor) -> Tensor:
        c, stem = self.c, f"trunk.blocks.{layer}.attention"
        qkv = self.linear(f"{stem}.qkv", x)
        q, k, v = qkv.split([n * c.head_dim for n in (c.n_heads, c.n_kv_heads, c.n_kv_heads)], -1)
        is_local = layer in c.sliding_layers
        theta = (c.rope_theta_local if is_local else None) or c.rope_theta
        heads = []
        for head in range(c.n_heads):
            shared = head // (c.n_heads // c.n_kv_heads)
            at = slice(head * c.head_dim, (head + 1) * c.head_dim)
            at_kv = slice(shared * c.head_dim, (shared + 1) * c.head_dim)
            qs, ks, vs = q[:, at], k[:, at_kv], v[:, at_kv]
            if c.qk_norm:
                qs, ks = self.norm(f"{stem}.q_norm", qs), self.norm(f"{stem}.k_norm", ks)
            if c.positions == "rotary":
                qs = torch.stack([self.turn(t, i, theta) for i, t in enumerate(qs)])
                ks = torch.stack([self.turn(t, i, theta) for i, t in enumerate(ks)])
            scores = qs @ ks.T / math.sqrt(c.head_dim)
            for i in range(len(x)):
                for j in range(len(x)):
                    if not self.sees(i, j, layer):
                        scores[i, j] = -math.inf
            heads.append(scores.softmax(-1) @ vs)
        return self.linear(f"{stem}.output", torch.cat(heads, -1))

    def activation(self, x: Tensor) -> Tensor:
        phi = (1 + torch.erf(x / math.sqrt(2))) / 2
        cubic = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return {
            "gelu": x * phi,
            "geglu": x * phi,
            "gelu_tanh": x / 2 * (1 + torch.tanh(cubic)),
            "relu": x.clamp(min=0),
            "relu2": x.clamp(min=0) ** 2,
            "swiglu": x / (1 + torch.exp(-x)),
        }[self.c.mlp]

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        stem = f"trunk.blocks.{layer}.mlp"
        if self.c.mlp in ("swiglu", "geglu"):
            gate, up = self.linear(f"{stem}.gate_up", x).split(self.c.d_ff, -1)
            return self.linear(f"{stem}.down", self.activation(gate) * up)
        return self.linear(f"{stem}.down", self.activation(self.linear(f"{stem}.up", x)))

    def __call__(self, ids: Tensor, types: Tensor) -> Tensor:
        c, w = self.c, self.w
        x = w["trunk.token_embedding.weight"][ids]
        if c.positions == "learned":
            x = x + w["trunk.position_embedding.weight"][: len(ids)]
        if c.type_vocab_size:
            x = x + w["trunk.type_embedding.weight"][types]
        x = self.norm("trunk.embedding_norm", x)
        for layer in range(c.n_layers):
            stem = f"trunk.blocks.{layer}"
            if c.norm_place == "pre":
                x = x + self.attention(layer, self.norm(f"{stem}.attention_norm", x))
                x = x + self.mlp(layer, self.norm(f"{stem}.mlp_norm", x))
            else:
                x = self.norm(f"{stem}.attention_norm", x + self.attention(layer, x))
                x = self.norm(f"{stem}.mlp_norm", x + self.mlp(layer, x))
        x = self.norm("trunk.final_norm", x)
        if not c.causal:
            x = self.linear("transform.dense", x)
            x = self.norm("transform.norm", x * (1 + torch.erf(x / math.sqrt(2))) / 2)
        output = "trunk.token_embedding" if c.tie_embeddings else "unembedding"
        logits = x @ w[f"{output}.weight"].T
        logits = (logits + w["output_bias"] if "output_bias" in w else logits)[:, : c.vocab_size]
        cap = c.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("seed", range(40))
def test_switches_equal_the_formulas(seed):
    config = draw_config(seed)
    net = scramble(build(config).eval())
    ids = token_ids(config, 1, 9)
    types = torch.randint(0, max(config.type_vocab_size, 1), ids.shape)
    expected = Plain(config, net.state_dict())(ids[0], types[0])
    assert relative_error(net(ids, token_type_ids=types).logits[0], expected) <= 1e-5


def test_the_draws_cover_every_switch():
    configs = [draw_config(seed) for seed in range(40)]
    for key, count in {"mlp": 6, "positions": 3, "norm": 2, "norm_place": 2, "causal": 2}.items():
        assert len({getattr(c, key) for c in configs}) == count, key
    for key in ("qk_norm", "bias", "norm_bias", "embedding_norm", "tie_embeddings"):
        assert len({getattr(c, key) for c in configs}) == 2, key
    assert {bool(c.sliding_layers) for c in configs} == {False, True}


@pytest.mark.parametrize("seed", range(6))
def test_a_custom_model_is_saved_and_opened_here(seed, tmp_path):
    config = draw_config(seed)
    net = scramble(build(config).eval())
    with torch.no_grad():
        net.trunk.token_embedding.weight[config.vocab_size :] = 0
    save_pretrained(net, tmp_path / "m")
    again = load_pretrained(tmp_path / "m", config.lm_head, vocab_multiple=config.vocab_multiple)
    ids = token_ids(config, 2, 9)
    assert torch.equal(again(ids).logits, net(ids).logits)
