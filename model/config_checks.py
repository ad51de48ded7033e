"""What a model's keys may not be together. Each problem says the key, the value and the mend."""

from typing import TYPE_CHECKING

from model.families import TRAITS

if TYPE_CHECKING:
    from model.config import ModelConfig

_NARROWEST_FLEX = 16  # of what tensor cores multiply; torch's compiler refuses less


def problems_of_shape(config: "ModelConfig") -> list[str]:
    """Numbers that do not fit together, whatever the family."""
    return [*_heads(config), *_layers(config), *_parametrisation(config), *_labels(config)]


def problems_of_family(config: "ModelConfig") -> list[str]:
    """Switches that the family's Hugging Face class does not have."""
    family, traits = config.family, TRAITS[config.family]
    problems = []
    for key, values in traits.allowed.items():
        got = getattr(config, key)
        if got not in values:
            expected = " or ".join(map(repr, values))
            problems.append(
                f"{key}: got {got!r}, expected {expected} because the Hugging Face class of"
                f" family={family!r} has no other; leave {key} out or write family='custom'"
            )
    if not traits.head_dim_is_free and family != "custom" and config.d_model % config.n_heads == 0:
        own = {"n_kv_heads": config.n_heads, "head_dim": config.d_model // config.n_heads}
        problems += [
            f"{key}: got {getattr(config, key)}, expected {value} because the Hugging Face class of"
            f" family={family!r} derives it; leave {key} out, or write family='llama' or 'custom'"
            for key, value in own.items()
            if getattr(config, key) != value
        ]
    if family == "roberta" and config.pad_token_id is None:
        problems.append("pad_token_id: missing, and roberta counts its positions from it; write 1")
    if family == "qwen3" and config.mlp_bias:
        problems.append("mlp_bias: got True, expected False because qwen3 has none; leave it out")
    return problems


def problem_of_flex(config: "ModelConfig") -> str | None:
    """Why FlexAttention cannot train this model, whatever the machine."""
    if config.dropout:
        return f"it drops no attention weights, and model.dropout is {config.dropout:g}"
    if config.head_dim < _NARROWEST_FLEX:
        return (
            f"it takes heads of at least {_NARROWEST_FLEX}, and model.head_dim is {config.head_dim}"
        )
    return None


def _heads(config: "ModelConfig") -> list[str]:
    problems = []
    if config.d_model % config.n_heads:
        # Llama's class demands this even when head_dim is given.
        problems.append(
            f"n_heads: got {config.n_heads}, expected a divisor of d_model={config.d_model};"
            f" use {_nearest_divisor(config.d_model, config.n_heads)}"
        )
    if config.n_heads % config.n_kv_heads:
        problems.append(
            f"n_kv_heads: got {config.n_kv_heads}, expected a divisor of n_heads="
            f"{config.n_heads}; use {_nearest_divisor(config.n_heads, config.n_kv_heads)}"
        )
    if config.positions == "rotary" and config.head_dim % 2:
        problems.append(
            f"head_dim: got {config.head_dim}, expected an even number because rotary positions"
            f" turn pairs; set head_dim={config.head_dim + 1} or change n_heads"
        )
    return problems


def _layers(config: "ModelConfig") -> list[str]:
    problems = []
    window, layers = config.sliding_window, config.sliding_layers
    if layers and window is None:
        problems.append("sliding_layers: got layers and no sliding_window; give the window")
    if list(layers) != sorted(set(layers)) or (layers and not 0 <= layers[0] <= layers[-1]):
        problems.append(f"sliding_layers: got {layers}, expected rising numbers")
    elif layers and layers[-1] >= config.n_layers:
        problems.append(
            f"sliding_layers: got layer {layers[-1]}, expected at most {config.n_layers - 1}"
        )
    if window is not None and window % 2 and not config.causal:
        problems.append(
            f"sliding_window: got {window}, expected an even number: half on each side; use"
            f" {window + 1}"
        )
    if config.norm == "rmsnorm" and config.norm_bias:
        problems.append("norm_bias: got True, expected False because rmsnorm has none")
    if config.rope_scaling is not None and config.positions != "rotary":
        problems.append(f"rope_scaling: got a scaling, but positions={config.positions!r}")
    return problems


def _parametrisation(config: "ModelConfig") -> list[str]:
    if config.mup_base_width is not None and config.tie_embeddings:
        # The output matrix needs an initial scale and a learning rate of its own (Yang et al. 2022,
        # table 3); a multiplier in its place would not survive as a Hugging Face checkpoint.
        return ["tie_embeddings: got True, expected False with mup_base_width; write false"]
    return []


def _labels(config: "ModelConfig") -> list[str]:
    if config.problem_type == "single_label_classification" and config.num_labels < 2:
        return [
            f"num_labels: got {config.num_labels}, expected 2 or more with problem_type="
            f"{config.problem_type!r}; write problem_type='regression' for a number"
        ]
    ids = config.id2label
    if ids is not None and sorted(ids) != list(range(config.num_labels)):
        return [
            f"id2label: got keys {sorted(ids)[:8]}, expected 0 … {config.num_labels - 1} because"
            f" num_labels={config.num_labels}; name every class or leave id2label out"
        ]
    return []


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))
