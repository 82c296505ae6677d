"""Tiny random configurations of Hugging Face transformers' architectures, each with the loss that it computes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entries import Entry, images, tokens
from tests.zoo.shim import import_torchvision

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
FEWER_KEYS = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
PAIR = {
    "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
T5 = {
    "vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8, "num_labels": 3,
}  # fmt: skip
STAGED = {"num_labels": 3}
MAMBA = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}
SOUND = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16, 16),
    "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "num_labels": 3, "mask_time_prob": 0.0, "layerdrop": 0.0, "classifier_proj_size": 16,
}  # fmt: skip

Batches = Callable[[], Iterable[tuple[Any, Any]]]


# ---------------------------------------------------------------- what goes in
def _text(**more: Any) -> Batches:
    """Two texts, the second of them padded."""

    def batches() -> Iterable[tuple[Any, Tensor]]:
        words, mask = tokens(2, 12, 60), torch.ones(2, 12, dtype=torch.long)
        words[1, 9:], mask[1, 9:] = 0, 0
        labels = more.get("labels", words)
        return [({"input_ids": words, "attention_mask": mask, **more, "labels": labels}, labels)]

    return batches


def _unmasked() -> Iterable[tuple[Any, Tensor]]:
    words = tokens(2, 12, 60)
    return [({"input_ids": words, "labels": words}, words)]


def _pictures(size: int = 32, **more: Any) -> Batches:
    labels = torch.tensor([0, 2])
    return lambda: [({"pixel_values": images(2, 3, size, size), **more, "labels": labels}, labels)]


def _sound() -> Iterable[tuple[Any, Tensor]]:
    labels = torch.tensor([0, 2])
    return [({"input_values": images(2, 800), "labels": labels}, labels)]


def _spectrum() -> Iterable[tuple[Any, Tensor]]:
    labels = tokens(2, 6, 60)
    return [({"input_features": images(2, 8, 64), "labels": labels}, labels)]


def _spectrogram() -> Iterable[tuple[Any, Tensor]]:
    labels = torch.tensor([0, 2])
    return [({"input_values": images(2, 32, 16), "labels": labels}, labels)]


def _captioned() -> Iterable[tuple[Any, Tensor]]:
    words = tokens(2, 7, 60)
    words[:, -1] = 1
    return [
        (
            {
                "input_ids": words,
                "pixel_values": images(2, 3, 32, 32),
                "attention_mask": torch.ones_like(words),
                "return_loss": True,
            },
            words,
        )
    ]


CLASS = _text(labels=torch.tensor([0, 1]))
NEXT = _text()

# architecture, class of the network, its settings, its batches
ARCHITECTURES: tuple[tuple[str, str, Mapping[str, Any], Batches], ...] = (
    # encoders
    ("bert", "BertForSequenceClassification", SMALL, CLASS),
    ("roberta", "RobertaForMaskedLM", SMALL, NEXT),
    ("distilbert", "DistilBertForSequenceClassification",
     {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "pad_token_id": 0}, CLASS),
    ("albert", "AlbertForSequenceClassification", SMALL | {"embedding_size": 16}, CLASS),
    ("electra", "ElectraForSequenceClassification", SMALL | {"embedding_size": 16}, CLASS),
    ("deberta-v2", "DebertaV2ForSequenceClassification",
     SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, CLASS),
    ("mpnet", "MPNetForSequenceClassification", SMALL, CLASS),
    ("modernbert", "ModernBertForSequenceClassification", SMALL | {"cls_token_id": 1, "sep_token_id": 1}, CLASS),
    ("funnel", "FunnelForSequenceClassification",
     {"vocab_size": 60, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48}, CLASS),
    ("fnet", "FNetForMaskedLM", SMALL, _unmasked),
    ("longformer", "LongformerForSequenceClassification", SMALL | {"attention_window": 4}, CLASS),
    ("xlnet", "XLNetForSequenceClassification",
     {"vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, CLASS),
    # decoders
    ("gpt2", "GPT2LMHeadModel",
     {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1}, NEXT),
    ("gpt-neox", "GPTNeoXForCausalLM", SMALL, NEXT),
    ("opt", "OPTForCausalLM", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}, NEXT),
    ("bloom", "BloomForCausalLM", {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}, NEXT),
    ("llama", "LlamaForCausalLM", FEWER_KEYS, NEXT),
    ("mistral", "MistralForCausalLM", FEWER_KEYS | {"sliding_window": 4}, NEXT),
    ("qwen2", "Qwen2ForCausalLM", FEWER_KEYS, NEXT),
    ("qwen3", "Qwen3ForCausalLM", FEWER_KEYS, NEXT),
    ("gemma2", "Gemma2ForCausalLM", FEWER_KEYS, NEXT),
    ("phi", "PhiForCausalLM", SMALL, NEXT),
    ("falcon", "FalconForCausalLM", SMALL, NEXT),
    ("stablelm", "StableLmForCausalLM", FEWER_KEYS, NEXT),
    # encoder and decoder
    ("t5", "T5ForConditionalGeneration", T5, NEXT),
    ("bart", "BartForConditionalGeneration", PAIR, NEXT),
    ("pegasus", "PegasusForConditionalGeneration", PAIR, NEXT),
    ("marian", "MarianMTModel", PAIR, NEXT),
    ("m2m-100", "M2M100ForConditionalGeneration", PAIR, NEXT),
    # mixtures of experts
    ("mixtral", "MixtralForCausalLM", FEWER_KEYS | {"num_local_experts": 4, "num_experts_per_tok": 2}, NEXT),
    ("qwen2-moe", "Qwen2MoeForCausalLM",
     FEWER_KEYS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                   "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}, NEXT),
    ("switch-transformers", "SwitchTransformersForConditionalGeneration",
     T5 | {"num_experts": 4, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}, NEXT),
    ("deepseek-v3", "DeepseekV3ForCausalLM",
     SMALL | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
              "moe_intermediate_size": 16, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
              "qk_nope_head_dim": 8, "first_k_dense_replace": 1}, NEXT),
    ("gpt-oss", "GptOssForCausalLM", FEWER_KEYS | {"num_local_experts": 4, "num_experts_per_tok": 2}, NEXT),
    # state spaces and other recurrences
    ("mamba", "MambaForCausalLM", MAMBA, NEXT),
    ("mamba2", "Mamba2ForCausalLM", MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4}, NEXT),
    ("rwkv", "RwkvForCausalLM", {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 16},
     _unmasked),
    ("recurrent-gemma", "RecurrentGemmaForCausalLM",
     SMALL | {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3}, NEXT),
    # vision
    ("vit", "ViTForImageClassification", IMAGE, _pictures()),
    ("deit", "DeiTForImageClassification", IMAGE, _pictures()),
    ("beit", "BeitForImageClassification", IMAGE, _pictures()),
    ("dinov2", "Dinov2ForImageClassification", IMAGE, _pictures()),
    ("swin", "SwinForImageClassification",
     {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4} | STAGED,
     _pictures()),
    ("convnext", "ConvNextForImageClassification",
     {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1]} | STAGED, _pictures()),
    ("segformer", "SegformerForImageClassification",
     {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [3, 3],
      "strides": [4, 2], "num_attention_heads": [2, 2], "mlp_ratios": [2, 2]} | STAGED, _pictures()),
    ("mobilevit", "MobileViTForImageClassification",
     {"image_size": 32, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
      "num_attention_heads": 2} | STAGED, _pictures()),
    ("clip", "CLIPModel",
     {"text_config": SMALL | {"projection_dim": 16, "max_position_embeddings": 16},
      "vision_config": {**IMAGE, "projection_dim": 16}, "projection_dim": 16}, _captioned),
    # audio
    ("wav2vec2", "Wav2Vec2ForSequenceClassification", SOUND, _sound),
    ("hubert", "HubertForSequenceClassification", SOUND, _sound),
    ("whisper", "WhisperForConditionalGeneration",
     PAIR | {"num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 16}, _spectrum),
    ("audio-spectrogram-transformer", "ASTForAudioClassification",
     {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8,
      "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16} | STAGED, _spectrogram),
)  # fmt: skip
SAMPLE = ("bert", "llama", "t5", "mixtral", "mamba", "swin", "wav2vec2")


def entries() -> list[Entry]:
    """One entry for each architecture."""
    return [Entry(name, _builder(cls, settings), batches, None) for name, cls, settings, batches in ARCHITECTURES]


def entry(name: str) -> Entry:
    """The entry of one architecture."""
    return next(found for found in entries() if found.name == name)


def _builder(network: str, settings: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with suppress(ImportError):  # transformers loads it where it is installed, and fails where that fails
            import_torchvision()
        import transformers

        cls = getattr(transformers, network)
        return cls(cls.config_class(**settings)).train()

    return build
