"""Tiny configs for any transformers class, made by reading the fields of its default config.

Sizes are small and differ where their meaning differs, so that no two dims can be taken for each other.
"""

from __future__ import annotations

import re
from typing import Any

LAYERS = 2
SIZES: tuple[tuple[str, int], ...] = (  # the first pattern that matches a whole field name decides
    (r"vocab_size|n_vocab|vocab_size_per_layer_input|padded_vocab_size|text_vocab_size", 97),
    (r"type_vocab_size|num_labels", 2),
    (r"(max_|n_|.*_max_)?position(_embedding)?s?|max_position_embeddings|n_ctx|max_seq_len|seq_length", 64),
    (r"max_sequence_length|max_(source|target)_positions|n_positions|model_max_length|context_length", 64),
    (r"original_max_position_embeddings", 32),
    (r"num_(hidden_|encoder_|decoder_|self_attention_)?layers?|n_layers?|(en|de)coder_layers|depth", LAYERS),
    (r"num_hidden_groups|num_nextn_predict_layers|num_mem_blocks", 1),
    (r".*(num_)?(key_value|kv)_heads|n_head_kv|multi_query_group_num|num_query_groups|n_kv_heads?", 2),
    (r".*linear_num_key_heads|.*num_(k|key)_heads", 2),
    (r".*linear_num_value_heads|.*num_(v|value)_heads", 4),
    (r".*num_heads|.*attention_heads|n_heads?|num_head|lightning_n_heads?|mamba_n_heads|n_mamba_heads", 4),
    (r".*qk_rope_head_dim|rotary_dim|.*rope_head_dim", 8),
    (r".*qk_nope_head_dim", 12),
    (r".*qk_head_dim", 20),
    (r".*(v|value)_head_dim", 10),
    (r"(swa_|global_|.*_)?head_dim|d_kv|attention_head_size|attention_key_size|kv_channels|head_size", 16),
    (r".*q_lora_rank", 18),
    (r".*kv_lora_rank", 22),
    (r".*lora_rank.*|.*low_rank.*", 6),
    (r"num_experts_per_tok(en)?|moe_top_?k|top_k_experts|experts_per_token|moe_k|num_selected_experts", 2),
    (r"(moe_)?n_group|topk_group|num_expert_groups?|n_groups?|num_limited_groups?", 1),
    (r"n_shared_experts|num_shared_experts?|moe_num_shared_experts", 1),
    (r".*num_(local_|routed_)?experts|n_routed_experts|.*num_experts|n_experts|moe_num_experts", 4),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|decoder_start_layer", 1),
    (r".*shared_expert.*intermediate_size|intermediate_size_mlp|.*shared.*intermediate.*", 28),
    (r"moe_intermediate_size|expert_(intermediate|ffn_hidden)_size|expert_dim|moe_.*intermediate.*", 20),
    (r".*intermediate_size|.*ffn_dim|d_ff|n_inner|ffn_hidden_size|.*intermediate_dim|ff_dim|inner_dim", 88),
    (r"lru_width|attention_hidden_size|word_embed_proj_dim|embedding_size|d_embed|hidden_dim", 64),
    (r"hidden_size_per_layer_input", 16),
    (r"(.*_)?hidden_size|d_model|n_embd|dim|embed_dim|model_dim|emb_dim", 64),
    (r"ssm_state_size|mamba_d_state|state_size|d_state|state_dim", 6),
    (r"mamba_d_head|mamba_head_dim|ssm_head_dim|mamba_headdim", 32),
    (r"mamba_d_ssm|d_inner|mamba_intermediate_size", 128),
    (r"(mamba_)?(time_step_rank|dt_rank)", 5),
    (r"(mamba_)?chunk_size|mamba_chunk_size", 8),
    (r"sliding_window|attention_window|local_window|window_size|attention_window_size|cache_size", 4),
    (r"image_size|img_size", 32),
    (r"num_patches", 16),
    (r"patch_size", 8),
    (r"relative_attention_num_buckets", 8),
    (r"num_mel_bins", 16),
    (r"num_queries|num_query_tokens", 5),
    (r"encoder_hidden_dim|projection_size|reassemble_hidden_size|pooler_output_size", 64),
    (r"fusion_hidden_size|bottleneck_features|projector_out_channels", 20),
    (r"head_hidden_size|auxiliary_channels", 12),
    (r"neck_out_channels", 24),
    (r"upsample_groups", 4),
    (r"num_filters", 4),
    (r"mm_tokens_per_image", 4),
)

LAST_STAGE: dict[str, Any] = {"out_features": None, "out_indices": None}  # as the class sets them itself
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [1, 1, 1, 1],
    "out_features": STAGES[1:],
}
HGNET: dict[str, Any] = {
    "model_type": "hgnet_v2",
    "embedding_size": 16,
    "hidden_sizes": [24, 28, 32, 40],
    "depths": [1, 1, 1, 1],
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 24, 28, 32],
    "stage_mid_channels": [8, 12, 14, 18],
    "stage_out_channels": [24, 28, 32, 40],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "out_features": STAGES[1:],
}
ANCHORED: dict[str, Any] = {  # detectors that choose among the positions of three stages
    "backbone_config": {**RESNET, "model_type": "rt_detr_resnet"},
    "encoder_in_channels": [24, 32, 40],
    "decoder_in_channels": [64, 64, 64],
}
DOCUMENT: dict[str, Any] = {
    "backbone_config": HGNET,
    "encoder_in_channels": [28, 32, 40],
    "decoder_in_channels": [64, 64, 64],
}
LCNET: dict[str, Any] = {
    "model_type": "pp_lcnet_v4",
    "stem_channels": [3, 8, 16],
    "block_configs": [
        [[3, 16, 16, 1, True]],
        *([[3, m, n, 2, False]] for m, n in ((16, 16), (16, 24), (24, 32))),
    ],
    "out_features": STAGES,
}
RATIOS = (("longratio", 7), ("midratio", 5), ("shortratio", 3))
WITHIN: dict[str, Any] = {  # convolutions of several shapes side by side: kernel, stride, padding
    "reduce_channel": [1, 1, 0],
    "return_channel": [1, 1, 0],
    **{f"vertical_long_to_small_conv_{ratio}": [(n, 1), 1, (n // 2, 0)] for ratio, n in RATIOS},
    **{f"horizontal_small_to_long_conv_{ratio}": [(1, n), 1, (0, n // 2)] for ratio, n in RATIOS},
    **{f"symmetric_conv_long_{ratio}": [n, 1, n // 2] for ratio, n in RATIOS},
}
WRITTEN: dict[str, Any] = {  # detectors of lines of text
    "intraclass_block_config": WITHIN,
    "scale_factor_list": [1, 2, 4, 8],
    "kernel_list": [3, 2, 2],
}
TURNED: dict[str, Any] = {  # by three positions: each turns a part of half a head
    "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
}
INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": 16, "budget": 4, "compress_ratio": 2}
SPLIT: dict[str, Any] = {"rope_parameters": TURNED["text_config.rope_parameters"]}
FUSED: dict[str, Any] = {"neck_hidden_sizes": [16, 24, 32, 40]}  # four stages of a backbone, each its width
SWIN: dict[str, Any] = {"num_layers": 2, "image_size": 32, "patch_size": 4, "window_size": 4}

SERIES: dict[str, Any] = {"prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2, 3]} | {
    "num_time_features": 2,
    "feature_size": 7,
}
SEGMENT: dict[str, Any] = {
    "vision_config.output_channels": 64,
    "vision_config.num_pos_feats": 32,
    "vision_config.mlp_dim": 88,
    "vision_config.global_attn_indexes": [1],
    "vision_config.window_size": 2,
    "prompt_encoder_config.image_embedding_size": 4,
    "mask_decoder_config.mlp_dim": 88,
    "mask_decoder_config.iou_head_hidden_dim": 28,
}
HIERA: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 1,
    "image_size": [64, 64],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [4, 4, 4, 2],
    "window_positional_embedding_background_size": [4, 4],
    "global_attention_blocks": [3],
}
PYRAMID: dict[str, Any] = {
    "backbone_channel_list": [128, 64, 32, 16],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 64,
}

PIECES: dict[str, Any] = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
SEGMENTING: dict[str, Any] = {
    "vision_config.sam_config.global_attn_indexes": [0, 1],
    "vision_config.sam_config.downsample_channels": [48, 64],
}
NOTED: dict[str, Any] = {
    "per_layer_config": {
        1: {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 18,
            "kv_lora_rank": 22,
            "head_dim": 20,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8,
            "v_head_dim": 10,
        }
    }
}
EYE: dict[str, Any] = {  # a vision transformer of timm
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_core_tiny_patch16_384",
    "model_args": {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4}
    | {"ref_feat_shape": [4, 4]},
}
LABELLED: dict[str, Any] = {**EYE, "do_pooling": True, "num_classes": 24, "initializer_range": 0.02} | {
    "label_names": [f"{n}" for n in range(24)]
}
EDGE: dict[str, Any] = {  # what its config's defaults mean, whose name of the architecture is misspelled
    "backbone_config": {"model_type": "timm_wrapper", "architecture": "repvit_m1"}
    | {"model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}}
    | {"num_classes": 2, "label_names": ["0", "1"]},
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 64,
}
WITHOUT_WORDS_BY_LAYER = {f"{part}_size_per_layer_input": 0 for part in ("hidden", "vocab")}
ASSISTANT: dict[str, Any] = {  # every layer looks at keys and values of another model
    "text_config.num_kv_shared_layers": LAYERS,
    "text_config.layer_types": ["sliding_attention", "full_attention"],
}
VOCABULARY = {"<image>": 4, "<|extra_200|>": 7}

TWEAKS: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "xlnet": {"d_head": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "codegen": {"n_head": 8, "rotary_dim": 4},
    "diffllama": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {"hybrid_layer_ids": [1], "attention_hidden_size": 128, "attention_head_dim": 32},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "sliding_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dots3_note_text": NOTED,
    "dots3_note": {
        **{f"text_config.{field}": value for field, value in NOTED.items()},
        "text_config.index_topk": 4,
        "text_config.index_n_heads": 2,
        **{f"vision_config.adapter_{end}_dim": 64 for end in ("in", "out")},
        "audio_config.adapter_input_size": 64,
        "audio_config.adapter_out_dim": 64,
    },
    "esm": {"vocab_size": 97, "mask_token_id": 3, "pad_token_id": 0, "position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4},
    "mpnet": {"relative_attention_num_buckets": 32},
    "udop": {"relative_attention_num_buckets": 32},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32, "embedding_size": 40},
    "ReformerForMaskedLM": {"is_decoder": False, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 8]},
    "neomme": {"embedding_rank": 40},
    "funnel": {"block_sizes": [1, 2], "block_repeats": [1, 1]},
    "t5": {"decoder_start_token_id": 0},
    "longt5": {"decoder_start_token_id": 0},
    "encoder-decoder": {"decoder_start_token_id": 1, "pad_token_id": 0},
    "switch_transformers": {
        "decoder_start_token_id": 0,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "xlstm": {"embedding_dim": 64, "num_blocks": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "dots1": {
        "head_dim": 16,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 88, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 10, "intermediate_size": [88, 88]},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 8]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "gemma4_unified_assistant": ASSISTANT,
    "gemma4_assistant": {**ASSISTANT, "text_config.vocab_size_per_layer_input": 0},
    "beit": {"image_size": 32, **LAST_STAGE},
    "dinov2": {"image_size": 32, "mlp_ratio": 2, **LAST_STAGE},
    "dinov2_with_registers": {"image_size": 32, "mlp_ratio": 2, **LAST_STAGE},
    "data2vec-vision": {"image_size": 32, "out_indices": [0, 1, 0, 1]},
    "bit": {"image_size": 32, "embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2]}
    | {"num_groups": 4, **LAST_STAGE},
    "resnet": {"image_size": 32, "embedding_size": 16, "hidden_sizes": [24, 40], "depths": [1, 2]}
    | LAST_STAGE,
    "regnet": {"image_size": 32, "embedding_size": 16, "hidden_sizes": [24, 40], "depths": [1, 2]}
    | {"groups_width": 8},
    "BeitForSemanticSegmentation": {"image_size": 32, "num_hidden_layers": 4, "out_features": STAGES},
    "Data2VecVisionForSemanticSegmentation": {"image_size": 32, "num_hidden_layers": 4}
    | {"out_indices": [0, 1, 2, 3]},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], **FUSED},
    "tipsv2_dpt": FUSED,
    "depth_anything": {"patch_size": 8, **FUSED},
    "prompt_depth_anything": {"patch_size": 8, **FUSED},
    "zoedepth": {
        "num_relative_features": 8,
        "bottleneck_features": 64,
        "bin_embedding_dim": 24,
        "num_attractors": [4, 2, 2, 1],
    }
    | {"bin_configurations": [{"n_bins": 6, "min_depth": 0.001, "max_depth": 10.0}], **FUSED},
    "chmv2": {"post_process_channels": [16, 24, 32, 40], "number_output_channels": 6, "patch_size": 8},
    "glpn": {"hidden_sizes": [16, 24], "depths": [1, 2], "num_encoder_blocks": 2, "decoder_hidden_size": 20}
    | {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    | {"num_attention_heads": [2, 3], "mlp_ratios": [2, 3]},
    "detr": {"backbone_config": {**RESNET, "out_features": STAGES[3:]}},
    "table-transformer": {"backbone_config": {**RESNET, "out_features": STAGES[3:]}},
    "conditional_detr": {"backbone_config": {**RESNET, "out_features": STAGES[3:]}},
    "dab-detr": {"backbone_config": {**RESNET, "out_features": STAGES[3:]}},
    "deformable_detr": {"backbone_config": RESNET, "disable_custom_kernels": True},
    "rt_detr": ANCHORED,
    "rt_detr_v2": ANCHORED,
    "d_fine": {"backbone_config": HGNET, "encoder_in_channels": [28, 32, 40], "lqe_hidden_dim": 10}
    | {"decoder_in_channels": [64, 64, 64], "head_dim": 16, "max_num_bins": 6},
    "deimv2": {"backbone_config": HGNET, "encoder_in_channels": [28, 32, 40]}
    | {"decoder_in_channels": [64, 64, 64]},
    "pp_doclayout_v2": {
        **DOCUMENT,
        "class_thresholds": [0.5] * 4,
        "class_order": [0, 2, 1, 3],
        "id2label": {n: f"{n}" for n in range(4)},
    },
    "pp_doclayout_v3": {**DOCUMENT, "backbone_config": {**HGNET, "out_features": STAGES}, "x4_feat_dim": 24},
    "pp_doclayout_v4": DOCUMENT,
    "pp_ocrv5_mobile_det": {"neck_out_channels": 32},
    "pp_ocrv5_server_det": {"backbone_config": {**HGNET, "out_features": STAGES}, **WRITTEN},
    "pp_ocrv6_medium_det": {"backbone_config": LCNET, **WRITTEN},
    "pp_ocrv6_small_det": {"backbone_config": LCNET, "layer_list_out_channels": [16, 16, 24, 32]}
    | {"neck_out_channels": 64},
    "lw_detr": {
        "backbone_config.num_windows": 4,
        "backbone_config.num_windows_side": 2,
        "backbone_config.window_block_indices": [0],
        "projector_scale_factors": [2.0, 0.5],
        "projector_in_channels": [64, 64],
        "num_feature_levels": 2,
        "group_detr": 2,
    },
    **{key: {"num_blocks": 1} for key in ("eomt", "eomt_dinov3")},
    "lw_detr_vit": {"num_windows": 4, "num_windows_side": 2, "window_block_indices": [0], **LAST_STAGE},
    "sapiens2": {
        "head_config": {"upsample_out_channels": [24, 20], "conv_out_channels": [12]},
        "num_key_value_heads_per_layer": [4, 2],
        **LAST_STAGE,
    },
    "depth_pro": {
        "patch_size": 16,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [20, 24],
        "scaled_images_feature_dims": [28, 32, 36],
        **{
            f"{part}_model_config": {"model_type": "dinov2", "image_size": 16, "patch_size": 8}
            | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
            for part in ("image", "patch", "fov")
        },
    },
    "llava_next": PIECES,
    "llava_next_video": PIECES,
    "llava_onevision": PIECES,
    "dinat": {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "dilations": [[1], [1, 2]]}
    | {"image_size": 32, "kernel_size": 3, **LAST_STAGE},
    **{
        key: {"hidden_sizes": [16, 24], "depths": [1, 2], "num_stages": 2, "patch_size": 4}
        | {"stage_names": ["stem", "stage1", "stage2"], **LAST_STAGE}
        for key in ("convnext", "convnextv2")
    },
    "cvt": {"embed_dim": [16, 24, 32], "depth": [1, 2, 3], "num_heads": [1, 3, 4], "image_size": 64},
    "donut-swin": {"embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "hidden_size": 48} | SWIN,
    "swin": {"embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "hidden_size": 48}
    | {"stage_names": ["stem", "stage1", "stage2"], **SWIN, **LAST_STAGE},
    "swinv2": {"embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "hidden_size": 48}
    | {"pretrained_window_sizes": [0, 0], **SWIN, **LAST_STAGE},
    "efficientnet": {
        "image_size": 32,
        "width_coefficient": 0.5,
        "depth_coefficient": 1.0,
        "in_channels": [32, 48],
        "out_channels": [48, 80],
        "kernel_sizes": [3, 5],
        "strides": [1, 2],
        "num_block_repeats": [1, 2],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
        "hidden_dim": 640,
        "num_hidden_layers": 3,
    },
    "focalnet": {"embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "image_size": 32}
    | {"focal_levels": [2, 1], "focal_windows": [3, 3], "patch_size": 4, **LAST_STAGE},
    "hgnet_v2": {
        "image_size": 32,
        "embedding_size": 16,
        "hidden_sizes": [24, 40],
        "depths": [1, 2],
        "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 24],
        "stage_mid_channels": [8, 12],
        "stage_out_channels": [24, 40],
        "stage_num_blocks": [1, 2],
        "stage_downsample": [False, True],
        "stage_downsample_strides": [2, 2],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 5],
        "stage_numb_of_layers": [2, 2],
        **LAST_STAGE,
    },
    "hiera": {
        "embed_dim": 16,
        "image_size": [32, 32],
        "depths": [1, 2],
        "num_heads": [2, 4],
        "num_query_pool": 1,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, False],
        "hidden_size": 32,
        "stage_names": ["stem", "stage1", "stage2"],
        "decoder_hidden_size": 24,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
        **LAST_STAGE,
    },
    "flava": {"return_loss": False},
    "levit": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
    }
    | {"key_dim": [8, 8, 8], "depths": [1, 1, 1]}
    | {"down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]]},
    "mobilenet_v1": {"image_size": 32, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.5, "finegrained_output": False},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 12, 16, 24, 32, 40],
    },
    "mobilevitv2": {
        "image_size": 64,
        "patch_size": 2,
        "base_attn_unit_dims": [16, 24, 32],
        "width_multiplier": 0.25,
    },
    "poolformer": {"image_size": 32, "hidden_sizes": [16, 24], "depths": [1, 2], "num_encoder_blocks": 2}
    | {"patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
    "pp_lcnet": {
        "image_size": 32,
        "stem_channels": 8,
        "class_expand": 48,
        "depths": [1, 1, 1, 1, 1],
        "block_configs": [[[3, 8, 16, 1, False]], *([[3, 16, 16, 2, n > 1]] for n in range(4))],
        **LAST_STAGE,
    },
    "pvt": {"image_size": 32, "hidden_sizes": [16, 24], "depths": [1, 2], "num_encoder_blocks": 2}
    | {"sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2], "strides": [4, 2]}
    | {"num_attention_heads": [2, 3], "mlp_ratios": [2, 3]},
    "pvt_v2": {"image_size": [32, 32], "hidden_sizes": [16, 24], "depths": [1, 2], "num_encoder_blocks": 2}
    | {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    | {"num_attention_heads": [2, 3], "mlp_ratios": [2, 3], **LAST_STAGE},
    "segformer": {"image_size": 32, "hidden_sizes": [16, 24], "depths": [1, 2], "num_encoder_blocks": 2}
    | {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "decoder_hidden_size": 20}
    | {"num_attention_heads": [2, 3], "mlp_ratios": [2, 3]},
    "swiftformer": {"image_size": 64, "embed_dims": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "mlp_ratio": 2},
    "textnet": {
        "image_size": [64, 64],
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 12, 16, 24],
        "depths": [1, 1, 1, 1],
        "conv_layer_kernel_sizes": [[[3, 3]], [[1, 3]], [[3, 3]], [[3, 1]]],
        "conv_layer_strides": [[1], [2], [2], [2]],
        **LAST_STAGE,
    },
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4, "head_dim": 16},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 16},
    "granite_speech": {"window_size": 15, "projector_config.encoder_hidden_size": 64},
    "granite_speech_plus": {"window_size": 15, "projector_config.encoder_hidden_size": 64},
    "granite_speech5_ctc": {"encoder_config.context_size": 16, "encoder_config.num_key_value_heads": 4},
    "qwen2_vl": TURNED,
    "qwen2_5_vl": {**TURNED, "vision_config.window_size": 32, "vision_config.fullatt_block_indexes": [1]},
    "qwen3_vl": TURNED,
    **dict.fromkeys(("glm4v", "glm46v", "glm_ocr", "paddleocr_vl"), TURNED),
    "glm4v_moe": {
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        | {"partial_rotary_factor": 0.5}
    },
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
    },
    "muse_glimmer": {"vision_config.hidden_size": 64, "out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256},
    "inkling2_text": {"unpadded_vocab_size": 91},
    "inkling2": {"text_config.unpadded_vocab_size": 91},
    "inkling2_loop": {"text_config.unpadded_vocab_size": 91},
    "chameleon": {
        "vq_config.num_embeddings": 8,
        "vocabulary_map": VOCABULARY | {f"IMGIMG{c}Z": 50 + n for n, c in enumerate("ABCDEFGH")},
    },
    "emu3": {"vocabulary_map": VOCABULARY | {f"<|visual token {n:06d}|>": 50 + n for n in range(8)}}
    | {
        "vq_config.codebook_size": 8,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1, 1, 2],
    },
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", "sparse"]}
    | {"text_config.num_experts_per_tok": 2, **SEGMENTING},
    "unlimited_ocr": SEGMENTING,
    "deepseek_vl_hybrid": {"high_res_vision_config.global_attn_indexes": [0, 1]},
    "aria": {"projector_patch_to_query_dict": {"16": 5}},
    "vipllava": {"vision_feature_layers": [-2, 1]},
    "Llama4ForConditionalGeneration": {
        "vision_config.intermediate_size": 256,
        "vision_config.projector_input_dim": 48,
    }
    | {"vision_config.projector_output_dim": 48, "vision_config.vision_output_dim": 48},
    "cohere_compass": {
        "text_config.layer_types": ["sliding_attention", "sliding_attention"],
        "text_config.rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        },
    },
    "diffusion_gemma": {"text_config.num_experts": 4, "text_config.top_k_experts": 2}
    | {"text_config.moe_intermediate_size": 20},
    "hunyuan_vl": {"text_config.head_dim": 16, **TURNED},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 3, **TURNED},
    "mllama": {
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.num_global_layers": 1,
        "vision_config.vision_output_dim": 192,
        "text_config.cross_attention_layers": [1],
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 3},
    "granite4_vision": PIECES | {"deepstack_layer_map": [[0, 0], [1, 1]], "downsample_rate": "1/2"},
    "janus": {"vision_config.projection_dim": 64},
    "pp_formulanet": {"vision_config.post_conv_in_channels": 24, "vision_config.output_channels": 24}
    | {"vision_config.post_conv_mid_channels": 28, "vision_config.post_conv_out_channels": 20}
    | {"vision_config.mlp_dim": 88},
    "mistral4": {"rope_parameters.partial_rotary_factor": 1.0},
    "glm5_next": {"text_config.qk_rope_head_dim": 0},
    "step3p7": {"text_config.sliding_window": 4},
    "mistral_large4": {"text_config.kv_source_layers": [0, 1]},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "apertus1p5": {
        "audio_config.codebook_dim": 64,
        "audio_config.codebook_size": 8,
        "vision_config.codebook_size": 8,
        "vision_config.base_channels": 32,
        "vision_config.embed_dim": 24,
        "image_token_offset": 50,
        "audio_token_offset": 58,
    },
    "florence2": {"vision_config.projection_dim": 64},
    "shieldgemma2": {"yes_token_index": 7, "no_token_index": 8},
    "paligemma": {"projection_dim": 64, "vision_config.projection_dim": 64},
    "colpali": {"vlm_config.projection_dim": 64, "vlm_config.vision_config.projection_dim": 64},
    "colqwen2": {f"vlm_config.{field}": value for field, value in TURNED.items()},
    "perceiver": {"num_latents": 12, "d_latents": 64, "d_model": 48, "num_self_attends_per_block": 2},
    "blip-2": {"qformer_config.use_qformer_text_input": True},
    "wav2vec2-bert": {"vocab_size": 97, "feature_projection_input_dim": 24},
    "wav2vec2-conformer": {"vocab_size": 97},
    # Its file counts attention and mlp apart: three layers, the middle one twice. Its gains are stored times
    # initializer_range, and squared when read: at random, by the default they would be in the thousands.
    "dory": {"num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2}
    | {"initializer_range": 1.0}
    | {"layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"]},
    "inkling2_loop_text": {
        "unpadded_vocab_size": 91,
        "num_hidden_layers": 3,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "loop_num_passes": 2,
        "loop_gate_rank": 6,
    },
    "deepseek_v4": {"o_groups": 2},
    "blt": {"decoder_config.hidden_size_global": 64, "encoder_hash_byte_group_vocab": 50},
    **{key: {} for key in ("emu3_text_model", "mllama_text_model")},  # a part by itself: not as the whole
    "Qwen4ExpForConditionalGeneration": {
        "text_config.layer_types": ["linear_attention", "indexed_attention"],
        **{f"text_config.indexer_{name}": size for name, size in INDEXER.items()},
        "text_config.rope_parameters": {**TURNED["text_config.rope_parameters"], "mrope_section": [3, 3, 2]},
        "text_config.ngram_vocab_size_base": 50,
        "text_config.ple_embed_dim": 32,
        "text_config.split_ngram_parts": 2,
        "text_config.make_ngram_vocab_size_divisible_by": 2,
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "linear_attention"],
        "ngram_vocab_size_base": 50,
        "ple_embed_dim": 32,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 2,
    },
    **dict.fromkeys((f"{name}_text" for name in ("glm4v", "glm_image", "glm_ocr")), SPLIT),
    **dict.fromkeys((f"{name}_text" for name in ("qwen2_vl", "qwen2_5_vl")), SPLIT),
    "glm4v_moe_text": {
        "rope_parameters": {**SPLIT["rope_parameters"], "mrope_section": [1, 1, 2]}
        | {"partial_rotary_factor": 0.5}
    },
    "hunyuan_vl_text": {"head_dim": 16, **SPLIT},
    "mistral_large4_text": {"kv_source_layers": [0, 1]},
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "pocket_tts": {"flow_head_config.condition_dim": 64},
    "gradium_phonon_tts": {"flow_head_config.condition_dim": 64, "num_key_value_heads": 4},  # as its files
    "granite_speech5_encoder": {"context_size": 16, "num_key_value_heads": 4},
    "patchtst": {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8},
    "patchtsmixer": {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8}
    | {"num_patches": 4},
    "time_series_transformer": SERIES,
    # The class adds its mask of positions to numbers by channels: they are as many as a head has.
    "autoformer": {**SERIES, "context_length": 16, "label_length": 12},
    "informer": {**SERIES, "distil": False},  # halved sequences meet a mask of whole ones
    "encodec": {"codebook_dim": 64},
    "nemotron3_diarization_audio": {"num_key_value_heads": 4},
    "nemo_speechlm": {  # files hold queries, keys and values as one, in thirds
        "audio_config.asr_config.num_key_value_heads": 4,
        "audio_config.diarization_config.audio_config.num_key_value_heads": 4,
        "word_timestamp_config.num_key_value_heads": 4,
    },
    "nemotron3_5_transcribe_asr_audio": {"num_key_value_heads": 4},
    "nemotron3_5_transcribe_word_timestamp": {"num_key_value_heads": 4},
    "nemotron3_diarization": {"audio_config.num_key_value_heads": 4},
    "nemotron3_5_transcribe_audio": {
        "asr_config.num_key_value_heads": 4,
        "diarization_config.audio_config.num_key_value_heads": 4,
    },
    "seggpt": {"image_size": [32, 16], "pretrain_image_size": 16, "mlp_dim": 88, "merge_index": 0}
    | {"intermediate_hidden_state_indices": [0, 1]},
    "fun_asr_nano_encoder": {"num_timestamp_prediction_layers": 1},
    "qwen3_asr_encoder": {"n_window_infer": 200},  # its windows are of 100 steps, whatever the config says
    **{key: {"insert_layer_id": 0} for key in ("minicpm_ocr_vision", "minicpmv4_7_vision")},
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8, "num_frames": 2}
    | {"backbone_config": {**RESNET, "out_features": STAGES[3:]}},
    "efficientloftr": {"stage_num_blocks": [1, 1, 1, 1], "out_features": [16, 24, 32, 64]}
    | {"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 128}
    | {"stage_in_channels": [1, 16, 24, 32], "stage_block_stride": [[2], [1], [2], [2]]}
    | {"stage_block_in_channels": [[1], [16], [24], [32]], "fine_fusion_dims": [64, 32, 24]}
    | {"stage_block_out_channels": [[16], [24], [32], [64]]},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    **{key: {"quantization_dim": 128, "num_key_value_heads": 4} for key in ("neucodec", "xcodec2")},
    "xclip": {"projection_dim": 64},
    "xcodec": {"codebook_dim": 128},
    "higgs_audio_v2_tokenizer": {  # 25 steps a second, as its files have, of both models
        "acoustic_model_config.downsampling_ratios": [8, 5, 4, 2, 3],
        "acoustic_model_config.upsampling_ratios": [8, 5, 4, 2, 3],
        "acoustic_model_config.encoder_hidden_size": 4,
    },
    "glm_image": TURNED,
    "clvp": {
        f"{part}_config.{field}": value
        for part in ("text", "speech")
        for field, value in (("num_attention_heads", 2), ("projection_dim", 64))
    },
    **{key: {"codebook_dim": 64} for key in ("wavtokenizer", "wavtokenizer_encoder")},
    "sam": SEGMENT,
    "sam_hq": {**SEGMENT, "mask_decoder_config.vit_dim": 64},
    "sam2_hiera_det_model": HIERA,
    "sam2_vision_model": {"backbone_config": {"model_type": "sam2_hiera_det_model", **HIERA}, **PYRAMID},
    "sam2": {
        "vision_config.backbone_config": {"model_type": "sam2_hiera_det_model", **HIERA},
        **{f"vision_config.{name}": value for name, value in PYRAMID.items()},
        "prompt_encoder_config.image_size": 64,
        "prompt_encoder_config.patch_size": 16,
        "mask_decoder_config.mlp_dim": 88,
        "mask_decoder_config.iou_head_hidden_dim": 28,
    },
    "edgetam_vision_model": EDGE,
    "edgetam": {
        **{f"vision_config.{name}": value for name, value in EDGE.items()},
        "prompt_encoder_config.image_size": 64,
        "prompt_encoder_config.patch_size": 16,
        "mask_decoder_config.mlp_dim": 88,
        "mask_decoder_config.iou_head_hidden_dim": 28,
    },
    "pe_video_encoder": {"vision_config": LABELLED},
    "pe_video": {"video_config.vision_config": LABELLED},
    "pe_audio_video_encoder": {"video_config.vision_config": LABELLED},
    "pe_audio_video": {"audio_video_config.video_config.vision_config": LABELLED},
    "pi0": {"vlm_config.projection_dim": 64, "vlm_config.vision_config.projection_dim": 64},
    "perception_lm": {"vision_config": {**EYE, "do_pooling": False}},
    "gemma3n": {
        "text_config.num_kv_shared_layers": 0,
        "text_config.laurel_rank": 10,
        "text_config.intermediate_size": [88, 88],
        "vision_config.architecture": "test_resnet",
        "vision_config.hidden_size": 96,
        "vision_soft_tokens_per_image": 4,
    },
    "sam3_tracker": {
        "vision_config.backbone_config.global_attn_indexes": [1],
        "vision_config.backbone_config.pretrain_image_size": 32,
        "vision_config.backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "mask_decoder_config.mlp_dim": 88,
        "mask_decoder_config.iou_head_hidden_dim": 28,
    },
    "timm_backbone": {"backbone": "test_resnet"},
    "uvdoc": {
        "backbone_config": {
            "model_type": "uvdoc_backbone",
            "resnet_head": [[3, 8], [8, 8]],
            "resnet_configs": [[[8, 8, 1, False]], [[8, 12, 1, True]], [[12, 16, 1, True]]],
            "stage_configs": [[[16, 1]], [[16, 2]]],
            "out_features": ["stage1", "stage2"],
        },
        "bridge_connector": [16, 20],
        "out_point_positions2D": [[20, 8], [8, 2]],
    },
    "bros": {"dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 16},
    "lilt": {"hidden_size": 96},
    "decision_transformer": {"n_head": 4, "n_inner": 88},
    "swin2sr": {"embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "image_size": 8, "patch_size": 1}
    | {"window_size": 4, "num_layers": 2},
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12, "input_size": 32},
    "maskformer-swin": {"embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "hidden_size": 48}
    | SWIN
    | LAST_STAGE,
    "maskformer": {"backbone_config": {**RESNET, "out_features": STAGES}},
    "mask2former": {"backbone_config": {**RESNET, "out_features": STAGES}, "feature_size": 64}
    | {"mask_feature_size": 64, "encoder_feedforward_dim": 88, "dim_feedforward": 88},
    "oneformer": {"backbone_config": {**RESNET, "out_features": STAGES}, "conv_dim": 64, "mask_dim": 64}
    | {"encoder_feedforward_dim": 88, "dim_feedforward": 88},
    "omdet-turbo": {
        "backbone_config": {**SWIN, "model_type": "swin", "embed_dim": 24, "image_size": 64}
        | {"depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4], "patch_size": 2}
        | {"num_layers": 4, "out_features": STAGES[1:]},
        "apply_layernorm_after_vision_backbone": False,  # which is for channels that come last
        "encoder_in_channels": [48, 96, 192],
        "vision_features_channels": [64, 64, 64],
        "text_config.hidden_size": 48,
        "text_projection_in_dim": 48,
        "text_projection_out_dim": 48,
        "class_embed_dim": 48,
        "task_encoder_hidden_dim": 88,
        "decoder_hidden_dim": 64,
        "disable_custom_kernels": True,
    },
    "grounding-dino": {"backbone_config": RESNET, "disable_custom_kernels": True},
    "mm-grounding-dino": {"backbone_config": RESNET, "disable_custom_kernels": True},
    "clap": {
        "audio_config.spec_size": 64,
        "audio_config.window_size": 4,
        "audio_config.depths": [1, 1],
        "audio_config.num_attention_heads": [2, 4],
        "audio_config.patch_embeds_hidden_size": 24,
        "audio_config.hidden_size": 48,
        "audio_config.patch_size": 4,
        "audio_config.patch_stride": [4, 4],
    },
    **{  # of samples too short for what is read of five steps at once
        f"{name}ForXVector": {"tdnn_kernel": [3, 1, 1, 1, 1], "tdnn_dilation": [1] * 5}
        for name in ("Data2VecAudio", "UniSpeechSat", "Wav2Vec2", "Wav2Vec2Conformer", "WavLM")
    },
    **{key: {"projection_dim": 64} for key in ("owlvit", "owlv2")},  # read as the words' hidden size
    "mllama_vision_model": {
        "intermediate_layers_indices": [0, 1],
        "num_global_layers": 1,
        "vision_output_dim": 192,
    },
    "llama4_vision_model": {"pixel_shuffle_ratio": 0.5, "intermediate_size": 256},
    "DetrForSegmentation": {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
}
"""What the fields of a few types do not say: values that their classes need, or their defaults leave out."""

BASES: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text"} | WITHOUT_WORDS_BY_LAYER},
}
"""What is given for a config to read defaults from, where the class refuses its own."""


def shrink(values: dict[str, Any], layers: int | None = None) -> dict[str, Any]:
    """The fields of a config with every size made tiny; nested configs too."""
    counts = [values.get(k) for k in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")]
    before = layers or next((n for n in counts if _whole(n)), None)
    small = {name: _shrunk(name, value, before) for name, value in values.items() if not name.startswith("_")}
    if "qk_rope_head_dim" in small and "head_dim" in small:  # a head's stated size is that of its rotary part
        small["head_dim"] = small["qk_rope_head_dim"]
    if isinstance(values.get("stage_names"), list) and "num_hidden_layers" in small:
        wanted = len(values.get("out_features") or [1])  # one layer for each stage that is read
        small["num_hidden_layers"] = max(LAYERS, wanted)
        small["out_features"] = [f"stage{small['num_hidden_layers'] - i}" for i in reversed(range(wanted))]
        for name in ("out_indices", "stage_names"):
            small.pop(name, None)
    if "kv_lora_rank" in small and "num_key_value_heads" in small:  # a latent's keys: one for each head
        small["num_key_value_heads"] = small["num_attention_heads"]
    if "window_size" in small and "spatial_merge_size" in small:  # windows of whole squares of patches
        small["window_size"] = 2 * small["patch_size"] * small["spatial_merge_size"]
    rope = small.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("mrope_section"):
        rope = {**rope, "mrope_section": _sections(small, rope)}
        small["rope_parameters"] = rope
    return small


def _sections(small: dict[str, Any], rope: dict[str, Any]) -> list[int]:
    """Half of a rotary head, turned by several positions: each turns a part."""
    head = small.get("qk_rope_head_dim") or small.get("head_dim")
    head = head or small["hidden_size"] // small["num_attention_heads"]
    half, parts = int(head * rope.get("partial_rotary_factor", 1)) // 2, len(rope["mrope_section"])
    return [half // parts + (n >= parts - half % parts) for n in range(parts)]


def _shrunk(name: str, value: Any, layers: int | None) -> Any:
    if isinstance(value, dict) and name == "per_layer_config":
        return {}
    if isinstance(value, dict) and (name.endswith("config") or "model_type" in value):
        return shrink(value)
    if isinstance(value, list) and layers and len(value) == layers and layers > LAYERS:
        return _spread(value)
    if name.endswith("_token_id") or name.endswith("_token_ids") or name.endswith("token_index"):
        return _token(name, value)
    if not _whole(value) or (value <= 1 and not name.endswith(("_size", "_dim"))):
        return value
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), value)


def _spread(value: list[Any]) -> list[Any]:
    """Two layers that show what kinds there are."""
    other = next((v for v in reversed(value) if v != value[0]), value[-1])
    return [value[0], other]


def _token(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [min(v, 3) for v in value if isinstance(v, int)]
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "image_token_id": 4}
    known |= {"image_token_index": 4, "video_token_id": 5, "video_token_index": 5, "audio_token_id": 6}
    if value is None and name.startswith(("image", "video")):  # named by checkpoints alone
        return known.get(name)
    if isinstance(value, int) and value > 3:
        return known.get(name, 3)
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def tiny_config(config_class: Any, changes: dict[str, Any] | None = None) -> Any:
    """A tiny config of a class; `changes` go over what was read from its defaults."""
    values = shrink(config_class(**BASES.get(config_class.model_type, {})).to_dict())
    for field, value in (changes or {}).items():
        place, *parents = field.split(".")[::-1]
        inner = values
        for parent in reversed(parents):
            inner = inner[parent]
        inner[place] = value
    values.pop("transformers_version", None)
    return config_class.from_dict(values)
