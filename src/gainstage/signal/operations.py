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
    "matmul",
    "reduce",
    "transform",
    "scatter",
    "loss",
    "unknown",
]
"""What an operation does to the signal. matmul: products of two signals. reduce: many numbers become one.
transform: a map of whole vectors without weights, such as a Fourier transform or a change of resolution. scatter: numbers
picked by what they are, moved, or written among others. loss: computed inside the forward
pass. Of these theory predicts nothing."""

CONVOLUTIONS = {f"conv{n}d" for n in (1, 2, 3)}
TRANSPOSED = {f"conv_transpose{n}d" for n in (1, 2, 3)}
DENSE = {"linear", *CONVOLUTIONS, *TRANSPOSED}
LOOKUPS = {"embedding", "embedding_bag"}  # layers that read rows of their weight
LAYERS = {"bilinear", "deform_conv2d", *DENSE, *LOOKUPS}
COMPOSED = {"multi_head_attention_forward"}  # written in Python: the trace looks inside
RECURRENT = {f"{name}{cell}" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")}
NORMALIZATIONS = {
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "normalize",
    "local_response_norm",
}
DROPOUTS = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout",
    "native_dropout",
}  # fmt: skip
SOFTMAXES = {"softmax", "log_softmax", "softmin", "gumbel_softmax"}
ADDITIONS = {"add", "iadd", "radd", "sub", "isub", "rsub", "subtract"}
PRODUCTS = {
    "mul",
    "imul",
    "rmul",
    "div",
    "truediv",
    "idiv",
    "itruediv",
    "neg",
    "multiply",
    "divide",
    "true_divide",
    "negative",
}
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack"}
RESHAPES = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "movedim",
    "swapaxes", "contiguous", "getitem", "chunk", "split", "unbind", "narrow", "select", "expand", "repeat", "tile",
    "flip", "roll", "to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "clone",
    "detach", "pad", "view_as", "reshape_as", "expand_as", "ravel", "broadcast_to", "pixel_shuffle",
    "pixel_unshuffle", "tensor_split", "hsplit", "vsplit", "dsplit", "split_with_sizes", "unsafe_chunk", "unsafe_split",
    "moveaxis", "swapdims", "adjoint", "fliplr", "flipud", "rot90", "atleast_1d", "atleast_2d", "atleast_3d",
    "channel_shuffle", "repeat_interleave", "index_select", "broadcast_tensors", "alias", "expand_copy", "rename",
    "refine_names", "align_to", "unsqueeze_copy", "view_copy", "squeeze_copy", "pin_memory",
}  # fmt: skip
ACTIVATIONS = {
    "relu": "relu", "sigmoid": "logistic", "tanh": "tanh", "leaky_relu": "leaky_relu", "rrelu": "rrelu", "prelu": "prelu",
    "elu": "elu", "selu": "selu", "celu": "celu", "gelu": "gelu", "silu": "silu", "mish": "mish", "softplus": "softplus",
    "relu6": "relu6", "hardtanh": "hardtanh", "hardswish": "hardswish", "hardsigmoid": "hardsigmoid", "softsign": "softsign",
}  # fmt: skip
COMPARISONS = {
    "eq", "ge", "greater", "greater_equal", "gt", "le", "less", "less_equal", "logical_and", "logical_not", "logical_or",
    "logical_xor", "lt", "ne", "not_equal", "and", "or", "xor", "invert", "bitwise_and", "bitwise_or", "bitwise_xor",
    "bitwise_not", "iand", "ior", "isnan", "isinf", "isfinite", "isclose", "signbit",
}  # fmt: skip
POINTWISE = {
    "abs", "absolute", "acos", "acosh", "addcdiv", "addcmul", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2",
    "arctanh", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "clamp", "clamp_max", "clamp_min", "clip", "copysign", "cos",
    "cosh", "deg2rad", "digamma", "entr", "erf", "erfc", "erfcx", "erfinv", "exp", "exp2", "expit", "expm1", "float_power",
    "floor", "floor_divide", "floordiv", "fmax", "fmin", "fmod", "frac", "glu", "hardshrink", "heaviside", "hypot", "i0",
    "ldexp", "lerp", "lgamma", "log", "log10", "log1p", "log2", "log_ndtr", "log_sigmoid", "logaddexp", "logaddexp2", "logit",
    "masked_fill", "maximum", "minimum", "mod", "nan_to_num", "ndtr", "ndtri", "polygamma", "positive", "pow", "rad2deg",
    "rdiv", "reciprocal", "remainder", "round", "rpow", "rsqrt", "rtruediv", "sgn", "sign", "sin", "sinc", "sinh",
    "softshrink", "sqrt", "square", "tan", "tanhshrink", "threshold", "trunc", "where", "xlogy",
    *COMPARISONS,
}  # fmt: skip
ATTENTIONS = {"scaled_dot_product_attention", "flex_attention"}
SUMS_OF_PRODUCTS = {"addmm", "addmv", "addbmm", "baddbmm"}  # the first argument is what is added
MATRIX_PRODUCTS = {
    "matmul", "rmatmul", "imatmul", "mm", "bmm", "mv", "einsum", "tensordot", "grouped_mm", "linalg_matmul", "inner", "dot",
    "vdot", "outer", "ger", "addr", "kron", "chain_matmul", "linalg_multi_dot", "linalg_vecdot", "cross", "linalg_cross",
    *SUMS_OF_PRODUCTS,
}  # fmt: skip
REDUCTIONS = {
    "sum", "nansum", "nanmean", "prod", "amax", "amin", "aminmax", "max", "min", "std", "var", "std_mean", "var_mean", "median",
    "nanmedian", "mode", "quantile", "nanquantile", "logsumexp", "norm", "linalg_norm", "linalg_vector_norm",
    "linalg_matrix_norm", "all", "any", "cdist", "pdist", "pairwise_distance", "cosine_similarity", "dist", "trace", "det",
    "linalg_det", "slogdet", "linalg_slogdet", "logdet", "histc", "segment_reduce", "cov", "corrcoef", "trapezoid", "trapz",
    "sum_to_size", "linalg_svdvals", "linalg_eigvals", "linalg_eigvalsh",
}  # fmt: skip
TRANSFORMS = {
    "interpolate", "grid_sample", "affine_grid", "fold", "unfold", "stft", "istft", "cumsum", "cumprod", "cummax", "cummin",
    "logcumsumexp", "diff", "gradient", "real", "imag", "angle", "conj", "resolve_conj", "view_as_complex", "view_as_real",
    "complex", "polar", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "triu", "tril", "diag", "diag_embed",
    "inverse", "cholesky", "svd", "matrix_exp", "matrix_power", "pinverse", "max_unpool1d", "max_unpool2d", "max_unpool3d",
    "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant",
}  # fmt: skip
SCATTERS = {
    "gather", "take", "take_along_dim", "masked_select", "sort", "msort", "topk", "kthvalue", "unique", "diagonal", "scatter",
    "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_put", "index_reduce", "masked_scatter",
    "put", "setitem", "copy", "select_scatter", "slice_scatter", "diagonal_scatter", "as_strided", "fill", "zero",
    "fill_diagonal", "pack_padded_sequence", "pad_packed_sequence", "meshgrid", "block_diag", "cartesian_prod",
    "combinations", "to_dense", "to_sparse", "values", "nested_tensor_from_mask", "to_padded_tensor",
}  # fmt: skip
LOSSES = {"cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "linear_cross_entropy"}
RECTIFIERS = ("relu", "relu6")  # exactly zero on one side: a unit can die

# bookkeeping that carries no signal: asked of a tensor, or made from nothing
SILENT = {
    "get", "set", "size", "dim", "ndimension", "numel", "nelement", "len", "stride", "is_floating_point",
    "is_complex", "item", "tolist", "requires_grad_", "register_hook", "is_contiguous", "element_size", "data_ptr",
    "storage_offset", "is_same_size", "bool", "zeros", "ones", "empty", "full", "arange", "linspace", "eye",
    "tensor", "as_tensor", "rand", "randn", "randint", "randperm", "zeros_like", "ones_like", "empty_like",
    "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "new_tensor", "new_full",
    "bernoulli", "manual_seed", "repr", "str", "format", "get_device", "hash", "index", "int",
    "all_gather_copy_in",  # weights that are put together where they are sharded
}  # fmt: skip
RANDOM = {"rand", "randn", "rand_like", "randn_like", "randint", "bernoulli"}  # differ from sample to sample


def name_of(function: Callable[..., Any]) -> str:
    """The bare name of a torch function: relu_ and __iadd__ are relu and iadd, torch.special.expit is expit."""
    return getattr(function, "__name__", type(function).__name__).strip("_").removeprefix("special_")


def is_silent(name: str) -> bool:
    """True for functions that only ask about a tensor or make one that carries no signal."""
    return name in SILENT


_VOCABULARY: tuple[tuple[Kind, Iterable[str]], ...] = (
    ("layer", LAYERS | RECURRENT),
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
    ("matmul", MATRIX_PRODUCTS),
    ("reduce", REDUCTIONS),
    ("transform", TRANSFORMS),
    ("scatter", SCATTERS),
    ("loss", LOSSES),
)
_KINDS: dict[str, Kind] = {name: kind for kind, names in _VOCABULARY for name in names}
POOLINGS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "lp_pool", "fractional_max_pool")


def kind_of(name: str) -> Kind:
    """What an operation does to the signal; "unknown" where Gainstage does not know."""
    if name == "mean" or name.startswith(POOLINGS):
        return "pool"
    if name.startswith(("fft_", "linalg_", "upsample")):
        return _KINDS.get(name, "transform")
    return "loss" if name.endswith("_loss") else _KINDS.get(name, "unknown")


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
    "bilinear": ("input2", "weight", "bias"),
    "embedding": ("weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    "embedding_bag": ("weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode"),
    "deform_conv2d": ("weight", "offset", "mask", "bias"),
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
