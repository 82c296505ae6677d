"""Which torch functions mean what: the vocabulary of the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal

from torch.nn import functional as F

from gainstage.theory import Activation, lookup

Kind = Literal[
    "layer",
    "normalization",
    "activation",
    "softmax",
    "dropout",
    "pool",
    "add",
    "multiply",
    "join",
    "reshape",
    "pointwise",
    "attention",
    "unknown",
]

CONVOLUTIONS = {f"conv{n}d" for n in (1, 2, 3)}
TRANSPOSED = {f"conv_transpose{n}d" for n in (1, 2, 3)}
LAYERS = {"linear", *CONVOLUTIONS, *TRANSPOSED}
NORMALIZATIONS = {
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "normalize",
    "local_response_norm",
}
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
SOFTMAXES = {"softmax", "log_softmax", "softmin"}
ADDITIONS = {"add", "iadd", "radd", "sub", "isub", "rsub"}
PRODUCTS = {"mul", "imul", "rmul", "div", "truediv", "idiv", "itruediv", "neg"}
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack"}
RESHAPES = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "movedim",
    "swapaxes", "contiguous", "getitem", "chunk", "split", "unbind", "narrow", "select", "expand", "repeat", "tile",
    "flip", "roll", "to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "clone",
    "detach", "pad", "view_as", "reshape_as", "expand_as", "ravel", "broadcast_to", "pixel_shuffle",
    "pixel_unshuffle",
}  # fmt: skip
ACTIVATIONS = {
    "relu": "relu", "sigmoid": "logistic", "tanh": "tanh", "leaky_relu": "leaky_relu", "rrelu": "rrelu", "prelu": "prelu",
    "elu": "elu", "selu": "selu", "celu": "celu", "gelu": "gelu", "silu": "silu", "mish": "mish", "softplus": "softplus",
    "relu6": "relu6", "hardtanh": "hardtanh", "hardswish": "hardswish", "hardsigmoid": "hardsigmoid", "softsign": "softsign",
}  # fmt: skip
POINTWISE = {
    "abs", "absolute", "acos", "arccos", "asin", "arcsin", "asinh", "atan", "arctan", "ceil", "clamp", "clamp_max", "clamp_min",
    "clip", "cos", "cosh", "eq", "erf", "erfc", "erfinv", "exp", "exp2", "expit", "expm1", "floor", "frac", "ge", "greater",
    "gt", "hardshrink", "heaviside", "le", "lerp", "less", "log", "log10", "log1p", "log2", "logaddexp", "logical_and",
    "logical_not", "logical_or", "log_sigmoid", "lt", "masked_fill", "maximum", "minimum", "ne", "positive", "pow",
    "reciprocal", "rpow", "rdiv", "rtruediv", "round", "rsqrt", "sgn", "sign", "sin", "sinc", "sinh", "softshrink", "sqrt",
    "square", "tan", "tanhshrink", "threshold", "trunc", "where", "xlogy", "addcmul", "addcdiv",
}  # fmt: skip
COMPARISONS = {
    "eq", "ge", "greater", "gt", "le", "less", "logical_and", "logical_not", "logical_or", "lt", "ne",
}  # fmt: skip
ATTENTIONS = {"scaled_dot_product_attention"}
RECTIFIERS = ("relu", "relu6")  # exactly zero on one side: a unit can die

# bookkeeping that carries no signal: asked of a tensor, or made from nothing
SILENT = {
    "get", "set", "size", "dim", "ndimension", "numel", "nelement", "len", "stride", "is_floating_point",
    "is_complex", "item", "tolist", "requires_grad_", "register_hook", "is_contiguous", "element_size", "data_ptr",
    "storage_offset", "is_same_size", "bool", "zeros", "ones", "empty", "full", "arange", "linspace", "eye",
    "tensor", "as_tensor", "rand", "randn", "randint", "randperm", "zeros_like", "ones_like", "empty_like",
    "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "new_tensor", "new_full",
    "bernoulli", "manual_seed", "repr", "str", "format", "get_device", "hash", "index", "int",
}  # fmt: skip
RANDOM = {"rand", "randn", "rand_like", "randn_like", "randint", "bernoulli"}  # differ from sample to sample


def name_of(function: Callable[..., Any]) -> str:
    """The bare name of a torch function: relu_ and __iadd__ are relu and iadd, torch.special.expit is expit."""
    return getattr(function, "__name__", type(function).__name__).strip("_").removeprefix("special_")


def is_silent(name: str) -> bool:
    """True for functions that only ask about a tensor or make one that carries no signal."""
    return name in SILENT


_VOCABULARY: tuple[tuple[Kind, Iterable[str]], ...] = (
    ("layer", LAYERS),
    ("normalization", NORMALIZATIONS),
    ("activation", ACTIVATIONS),
    ("softmax", SOFTMAXES),
    ("dropout", DROPOUTS),
    ("add", ADDITIONS),
    ("multiply", PRODUCTS),
    ("join", JOINS),
    ("reshape", RESHAPES),
    ("pointwise", POINTWISE),
    ("attention", ATTENTIONS),
)
_KINDS: dict[str, Kind] = {name: kind for kind, names in _VOCABULARY for name in names}
POOLINGS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "lp_pool")


def kind_of(name: str) -> Kind:
    """What an operation does to the signal; "unknown" where Gainstage does not know."""
    if name == "mean" or name.startswith(POOLINGS):
        return "pool"
    return _KINDS.get(name, "unknown")


def is_elementwise(kind: Kind) -> bool:
    """True for operations that take each number by itself, so that they can be put together to functions of one."""
    return kind in ("activation", "pointwise", "add", "multiply")


def activation_of(name: str, settings: Mapping[str, Any]) -> Activation | None:
    """The theory of a traced activation with the settings it was called with; None where they cannot be told."""
    plain = {key: value for key, value in settings.items() if isinstance(value, (int, float, str))}
    return _activation(ACTIVATIONS[name], tuple(sorted(plain.items())))


@lru_cache(maxsize=512)
def _activation(name: str, settings: tuple[tuple[str, Any], ...]) -> Activation | None:
    known, given = lookup(name), dict(settings)
    slope = given.get("negative_slope", given.get("slope", 0.01))
    if name == "leaky_relu":
        return Activation("leaky_relu", partial(F.leaky_relu, negative_slope=slope), "relu")
    if name == "prelu":
        return Activation("prelu", partial(F.leaky_relu, negative_slope=given.get("slope", 0.25)), "relu")
    if name == "rrelu":
        slope = (given.get("lower", 1 / 8) + given.get("upper", 1 / 3)) / 2
        return Activation("rrelu", partial(F.leaky_relu, negative_slope=slope), "relu")
    relevant = {key: value for key, value in given.items() if key in _SHAPE_SETTINGS.get(name, ())}
    if not relevant:
        return known
    return Activation(name, partial(known.function, **relevant), known.family)


_SHAPE_SETTINGS = {
    "elu": ("alpha",),
    "celu": ("alpha",),
    "gelu": ("approximate",),
    "softplus": ("beta", "threshold"),
    "hardtanh": ("min_val", "max_val"),
}

# positional arguments behind the input, by the name that torch's signature gives them
POSITIONAL = {
    "leaky_relu": ("negative_slope",),
    "elu": ("alpha",),
    "celu": ("alpha",),
    "rrelu": ("lower", "upper"),
    "hardtanh": ("min_val", "max_val"),
    "softplus": ("beta", "threshold"),
    "dropout": ("p", "training"),
    "alpha_dropout": ("p", "training"),
    "conv1d": ("weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv2d": ("weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv3d": ("weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose1d": ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "conv_transpose2d": ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "conv_transpose3d": ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("weight", "bias"),
    "prelu": ("weight",),
    "batch_norm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("num_groups", "weight", "bias", "eps"),
    "rms_norm": ("normalized_shape", "weight", "eps"),
    "instance_norm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "mean": ("dim", "keepdim"),
    **dict.fromkeys(
        (f"max_pool{n}d" for n in (1, 2, 3)), ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    ),
    **dict.fromkeys((f"avg_pool{n}d" for n in (1, 2, 3)), ("kernel_size", "stride", "padding")),
    **dict.fromkeys((f"dropout{n}d" for n in (1, 2, 3)), ("p", "training")),
    "feature_alpha_dropout": ("p", "training"),
    "scaled_dot_product_attention": ("key", "value", "attn_mask", "dropout_p", "is_causal", "scale"),
    "pad": ("pad", "mode", "value"),
    "softmax": ("dim",),
}


def arguments_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments behind the first, by name."""
    return {**dict(zip(POSITIONAL.get(name, ()), args[1:], strict=False)), **kwargs}
