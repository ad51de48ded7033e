"""What Hugging Face's classes call their tensors, family by family. Imports no torch."""

import re
from typing import NamedTuple


class Names(NamedTuple):
    """One family: where its trunk, its blocks and its heads keep what we keep elsewhere."""

    prefix: str  # of the trunk's tensors
    blocks: str
    trunk: dict[str, str]
    block: dict[str, tuple[str, ...]]  # several: the rows of ours lie in several of theirs
    heads: dict[str, str]  # after the head's name and a dot, where one has a name of its own
    scores: dict[str, str]  # the last matrix of each task head
    head_prefixes: tuple[str, ...]  # of every head's tensors; unused ones are left out when reading
    is_transposed: bool = False  # matrices of the blocks are stored as (in, out)


_GPT2 = Names(
    prefix="transformer.",
    blocks="h",
    trunk={"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
    block={
        "attention_norm": ("ln_1",),
        "attention.qkv": ("attn.c_attn",),
        "attention.output": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "mlp.up": ("mlp.c_fc",),
        "mlp.down": ("mlp.c_proj",),
    },
    heads={"unembedding": "lm_head"},
    scores={"sequence": "score", "token": "classifier", "span": "qa_outputs"},
    head_prefixes=("lm_head.", "score.", "classifier.", "qa_outputs."),
    is_transposed=True,
)
_LLAMA = Names(
    prefix="model.",
    blocks="layers",
    trunk={"token_embedding": "embed_tokens", "final_norm": "norm"},
    block={
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.q_norm": ("self_attn.q_norm",),
        "attention.k_norm": ("self_attn.k_norm",),
        "attention.output": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down": ("mlp.down_proj",),
    },
    heads={"unembedding": "lm_head"},
    scores={"sequence": "score", "token": "score", "span": "qa_outputs"},
    head_prefixes=("lm_head.", "score.", "qa_outputs."),
)
_BERT = Names(
    prefix="bert.",
    blocks="encoder.layer",
    trunk={
        "token_embedding": "embeddings.word_embeddings",
        "position_embedding": "embeddings.position_embeddings",
        "type_embedding": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    },
    block={
        "attention.qkv": (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
        ),
        "attention.output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "mlp.up": ("intermediate.dense",),
        "mlp.down": ("output.dense",),
        "mlp_norm": ("output.LayerNorm",),
    },
    heads={
        "transform.dense": "cls.predictions.transform.dense",
        "transform.norm": "cls.predictions.transform.LayerNorm",
        "output_bias": "cls.predictions.bias",
        "pooler.dense": "bert.pooler.dense",
        "pair_score": "cls.seq_relationship",
    },
    scores={
        **dict.fromkeys(("sequence", "token", "choice"), "classifier"),
        "span": "qa_outputs",
    },
    head_prefixes=("cls.", "classifier.", "qa_outputs.", "bert.pooler."),
)
_ROBERTA = _BERT._replace(
    prefix="roberta.",
    heads={
        "transform.dense": "lm_head.dense",
        "transform.norm": "lm_head.layer_norm",
        "output_bias": "lm_head.bias",
        "pooler.dense": "classifier.dense",
        "choice.pooler.dense": "roberta.pooler.dense",
    },
    scores={
        "sequence": "classifier.out_proj",
        "token": "classifier",
        "span": "qa_outputs",
        "choice": "classifier",
    },
    head_prefixes=("lm_head.", "classifier.", "qa_outputs.", "roberta.pooler."),
)
_MODERNBERT = Names(
    prefix="model.",
    blocks="layers",
    trunk={
        "token_embedding": "embeddings.tok_embeddings",
        "embedding_norm": "embeddings.norm",
        "final_norm": "final_norm",
    },
    block={
        "attention_norm": ("attn_norm",),
        "attention.qkv": ("attn.Wqkv",),
        "attention.output": ("attn.Wo",),
        "mlp_norm": ("mlp_norm",),
        "mlp.gate_up": ("mlp.Wi",),
        "mlp.down": ("mlp.Wo",),
    },
    heads={
        "transform.dense": "head.dense",
        "transform.norm": "head.norm",
        "output_bias": "decoder.bias",
        "unembedding": "decoder",
    },
    scores=dict.fromkeys(("sequence", "token", "span", "choice"), "classifier"),
    head_prefixes=("head.", "decoder.", "classifier."),
)

NAMES: dict[str, Names] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "bert": _BERT,
    "roberta": _ROBERTA,
    "modernbert": _MODERNBERT,
}
CUSTOM_HEADS = ("unembedding.", "transform.", "output_bias", "pooler.", "pair_score.", "score.")

# Where a tied model's file may hold the embedding, or the output's bias, once more.
TIED_COPIES = {
    "gpt2": {"lm_head.weight": "token_embedding"},
    "llama": {"lm_head.weight": "token_embedding"},
    "qwen3": {"lm_head.weight": "token_embedding"},
    "bert": {
        "cls.predictions.decoder.weight": "token_embedding",
        "cls.predictions.decoder.bias": "output_bias",
    },
    "roberta": {
        "lm_head.decoder.weight": "token_embedding",
        "lm_head.decoder.bias": "output_bias",
    },
    "modernbert": {"decoder.weight": "token_embedding"},
    "custom": {"unembedding.weight": "token_embedding"},
}

# Constants that older versions of transformers saved.
_CONSTANTS = re.compile(
    r"\.attn\.(masked_)?bias$|rotary_emb\.(.*_)?inv_freq$|embeddings\.(position|token_type)_ids$"
)


def is_constant(name: str) -> bool:
    """Say whether a stored tensor is no parameter but a constant of an older version."""
    return _CONSTANTS.search(name) is not None


def trunk_prefix(family: str, head: str) -> str:
    """The prefix of a trunk's tensors in the class of this family and head."""
    if family in ("llama", "qwen3") and head == "span":
        return "transformer."  # these two classes alone name their trunk so
    return NAMES[family].prefix


def outer_name(family: str, head: str, module: str, kind: str) -> str:
    """Their name of a tensor of ours outside the blocks; `kind` is weight, bias or nothing."""
    names = NAMES[family]
    if module == "score":
        return f"{names.scores[head]}.{kind}"
    if module.startswith("trunk."):
        return f"{trunk_prefix(family, head)}{names.trunk[module.removeprefix('trunk.')]}.{kind}"
    name = names.heads.get(f"{head}.{module}") or names.heads[module]
    return f"{name}.{kind}" if kind else name


def canonical(name: str, family: str, head: str) -> str:
    """A stored tensor's name as the family's current class of this head would write it.

    Prefixes of the trunk may be missing or another class's; "gamma" and "beta" are the names that
    TensorFlow's BERT gave to weight and bias of its norms.
    """
    if family == "custom":
        return name
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    names = NAMES[family]
    if name.startswith(names.head_prefixes):
        return name
    for prefix in (names.prefix, trunk_prefix(family, head), "transformer."):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    if f"{names.prefix}{name}".startswith(names.head_prefixes):
        return f"{names.prefix}{name}"  # the pooler, which lies inside their trunk
    return f"{trunk_prefix(family, head)}{name}"


def is_of_a_head(name: str, family: str) -> bool:
    """Whether a canonical name belongs to a head, this one or another."""
    return name.startswith(CUSTOM_HEADS if family == "custom" else NAMES[family].head_prefixes)
