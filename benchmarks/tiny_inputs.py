"""Inputs of one's own for classes whose inputs surgeon does not make up: what a user gives with `--inputs`.

By model type, or by class where others of its type need none: a function of the config that gives the tensors
of one batch, by the names of the class's forward pass. BATCH examples; sizes as the documentation has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

BATCH, STEPS = 3, 6
Inputs = dict[str, Tensor]


def given(model_type: str, name: str, config: Any) -> Inputs | None:
    """The inputs for a class of a model type; None where surgeon makes them up."""
    make = GIVEN.get(name) or GIVEN.get(model_type)
    if make is None:
        return None
    torch.manual_seed(3)
    return make(config)


def series(config: Any) -> Inputs:
    """What was measured: batch × steps × channels."""
    return {"past_values": torch.randn(BATCH, config.context_length, config.num_input_channels)}


def forecast(config: Any) -> Inputs:
    """Series of one number each, and of which frequency."""
    length = config.context_length
    return {
        "past_values": torch.randn(BATCH, length),
        "past_values_padding": torch.zeros(BATCH, length, dtype=torch.long),
        "freq": torch.tensor([[0], [1], [2]]),
    }


def padded_series(config: Any) -> Inputs:
    inputs = forecast(config)
    del inputs["freq"]
    return inputs


def probable(config: Any) -> Inputs:
    """Series with lags, and what is known of each moment of them: batch × steps × features."""
    past, ahead = config.context_length + max(config.lags_sequence), config.prediction_length
    features = config.num_time_features
    return {
        "past_values": torch.randn(BATCH, past),
        "past_time_features": torch.randn(BATCH, past, features),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": torch.randn(BATCH, ahead),
        "future_time_features": torch.randn(BATCH, ahead, features),
    }


def decisions(config: Any) -> Inputs:
    """Trajectories: what was seen, done and earned."""
    return {
        "states": torch.randn(BATCH, STEPS, config.state_dim),
        "actions": torch.randn(BATCH, STEPS, config.act_dim),
        "rewards": torch.randn(BATCH, STEPS, 1),
        "returns_to_go": torch.randn(BATCH, STEPS, 1),
        "timesteps": torch.arange(STEPS).repeat(BATCH, 1),
        "attention_mask": torch.ones(BATCH, STEPS, dtype=torch.long),
    }


def mel(config: Any) -> Inputs:
    """A spectrogram whose mask says where it is padding."""
    length, mask = 32, torch.zeros(BATCH, 32, dtype=torch.bool)
    mask[-1, 24:] = True
    return {"audio_mel": torch.randn(BATCH, length, config.input_feat_size), "audio_mel_mask": mask}


def latents(config: Any) -> Inputs:
    return {"latents": torch.randn(BATCH, config.hidden_size, STEPS)}


def queries(config: Any) -> Inputs:
    """Queries that look at a picture's rows."""
    return {
        "query_embeds": torch.randn(BATCH, STEPS, config.hidden_size),
        "encoder_hidden_states": torch.randn(BATCH, 5, config.encoder_hidden_size),
    }


def seen_and_read(config: Any) -> Inputs:
    """Words, and boxes of a picture with their features."""
    return {
        "input_ids": torch.randint(4, config.vocab_size, (BATCH, 7)),
        "visual_feats": torch.randn(BATCH, 5, config.visual_feat_dim),
        "visual_pos": torch.rand(BATCH, 5, config.visual_pos_dim),
    }


def prompted(config: Any) -> Inputs:
    """A picture, another one, and what is to be seen in that."""
    size = config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    shape = (BATCH, config.num_channels, height // 2, width)
    names = ("pixel_values", "prompt_pixel_values", "prompt_masks")
    return {name: torch.randn(shape) for name in names}


def matched(config: Any) -> Inputs:
    """Two pictures that show the same."""
    return {"pixel_values": torch.rand(BATCH, 2, 3, 64, 64)}


def placed_patches(config: Any) -> Inputs:
    """Patches in rows, each with its place: across and down."""
    side = 2 * config.pooling_kernel_size
    across, down = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy")
    places = torch.stack([across, down], -1).reshape(1, -1, 2).repeat(BATCH, 1, 1)
    return {
        "pixel_values": torch.rand(BATCH, side * side, 3 * config.patch_size**2),
        "pixel_position_ids": places,
    }


def embedded(config: Any) -> Inputs:
    return {"inputs_embeds": torch.randn(BATCH, STEPS, config.hidden_size)}


def drafted(config: Any) -> Inputs:
    """Words to be, and what the larger model has seen before them."""
    return {
        "noise_embeds": torch.randn(BATCH, 4, config.hidden_size),
        "context_hidden_states": torch.randn(BATCH, STEPS, len(config.target_layer_ids) * config.hidden_size),
        "attention_mask": torch.ones(BATCH, STEPS + 4, dtype=torch.long),
    }


def shared(config: Any) -> Inputs:
    """A word to be, as a larger model has it, twice, and the keys and values that model looks at."""
    text, length = config.text_config, 8
    states = (BATCH, text.num_key_value_heads, length, text.head_dim)
    held = [(kind, n) for kind in ("full_attention", "sliding_attention") for n in range(2)]
    mask = torch.ones(BATCH, length, dtype=torch.long)
    mask[-1, :2] = 0
    return {
        "inputs_embeds": torch.randn(BATCH, 1, 2 * config.backbone_hidden_size),
        "position_ids": torch.full((BATCH, 1), length - 1),
        "attention_mask": mask,
        **{f"shared_kv_states.{kind}.{n}": torch.randn(states) for kind, n in held},
    }


def spoken(config: Any) -> Inputs:
    """Words, and a spectrogram of someone who says them: batch × bins × steps."""
    return {**words(config), "input_features": torch.randn(BATCH, config.decoder_config.feature_size, 40)}


def heard_as_said(config: Any) -> Inputs:
    """Words, and the spectrogram of as long as they take to say: batch × bins × steps."""
    steps = 2 * config.downsample_factor * 7
    return {**words(config), "input_features": torch.randn(BATCH, config.audio_config.num_mel_bins, steps)}


def acting(config: Any) -> Inputs:
    """What a robot sees with two cameras, is told and is, and the noise that becomes its actions."""
    vision, told = config.vlm_config.vision_config, words(config)
    rows = (vision.image_size // vision.patch_size) ** 2
    seen = torch.ones(BATCH, 2, dtype=torch.bool)
    place = torch.full((BATCH, 2 * rows), config.vlm_config.image_token_id)
    return {
        "state": torch.randn(BATCH, config.max_state_dim),
        "noise": torch.randn(BATCH, config.chunk_size, config.max_action_dim),
        "timestep": torch.rand(BATCH),
        "input_ids": torch.cat([place, told["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(place), told["attention_mask"]], 1),
        "pixel_values": torch.randn(BATCH, 2, 3, vision.image_size, vision.image_size),
        "pixel_attention_mask": seen,
    }


def sought(config: Any) -> Inputs:
    """A picture, the task it is looked at for, and the names of two things to find in it."""
    names = torch.randint(3, 90, (2 * BATCH, 5))
    tasks = torch.randint(3, 90, (BATCH, 6))
    return {
        "pixel_values": torch.randn(BATCH, 3, 64, 64),
        "classes_input_ids": names,
        "classes_attention_mask": torch.ones_like(names),
        "tasks_input_ids": tasks,
        "tasks_attention_mask": torch.ones_like(tasks),
        "classes_structure": torch.full((BATCH,), 2),
    }


def words(config: Any) -> Inputs:
    """Words alone, where the class takes pictures only with a part that its default config leaves out, or
    with one more that it is to make."""
    mask = torch.ones(BATCH, 7, dtype=torch.long)
    mask[-1, 4:] = 0
    return {"input_ids": torch.randint(10, 90, (BATCH, 7)), "attention_mask": mask}


def embedded_picture(config: Any) -> Inputs:
    """Words, and the rows of a picture, which the class else lays in an order that it draws."""
    side = config.image_size // config.patch_size
    return {
        **words(config),
        "image_embeds": torch.randn(BATCH, side * side, config.hidden_size),
        "pixel_mask": torch.ones(BATCH, side, side, dtype=torch.long),
    }


def film(config: Any) -> Inputs:
    """Words, and a film of the largest size: one × pictures × channels × height × width. The class takes one
    example at a time."""
    side = config.max_img_size
    one = {name: tensor[:1] for name, tensor in words(config).items()}
    return {**one, "pixel_values": torch.rand(1, config.num_frames, 3, side, side)}


def stacked(config: Any) -> Inputs:
    """A spectrogram of which each step is four frames, one behind the other: batch × steps × numbers."""
    return {"input_features": torch.randn(BATCH, 32, 4 * config.num_mel_bins), "attention_mask": held(32)}


def stacked_frames(config: Any) -> Inputs:
    """The same, of as many frames as the config says."""
    numbers = config.num_stacked_frames * config.num_mel_bins
    return {"input_features": torch.randn(BATCH, 32, numbers), "input_features_mask": held(32)}


def uttered(config: Any) -> Inputs:
    """Words, among them places of sounds, and the codes of those: batch × places × codebooks."""
    ids, places = torch.randint(10, 90, (BATCH, 9)), 4
    ids[:, 2 : 2 + places] = config.audio_token_id
    codes = torch.randint(config.codebook_size - 2, (BATCH, places, config.num_codebooks))
    return {"input_ids": ids, "audio_input_ids": codes} | {
        "attention_mask": torch.ones_like(ids),
        "audio_input_ids_mask": torch.ones(BATCH, places, dtype=torch.bool),
    }


def windows(config: Any) -> Inputs:
    """A spectrogram of two whole windows, all of them held: batch × bins × steps."""
    steps = 4 * config.n_window
    return {
        "input_features": torch.randn(BATCH, config.num_mel_bins, steps),
        "input_features_mask": torch.ones(BATCH, steps, dtype=torch.long),
    }


def held(steps: int) -> Tensor:
    """Which steps hold anything: three quarters of the last example."""
    mask = torch.ones(BATCH, steps, dtype=torch.long)
    mask[-1, steps * 3 // 4 :] = 0
    return mask


def told(config: Any) -> Inputs:
    """A picture, and the ids of the task that it is looked at for."""
    tasks = torch.randint(1, 90, (BATCH, config.task_seq_len))
    return {"pixel_values": torch.rand(BATCH, 3, 64, 64), "task_inputs": tasks}


def heard(config: Any) -> Inputs:
    """One channel of samples, and the spectrogram of as many steps as a codec makes of them."""
    width = config.semantic_model_config.feature_projection_input_dim
    return {**sounding(config), "input_features": torch.randn(BATCH, 12, width)}


def sound(config: Any) -> Inputs:
    """One channel of samples."""
    return {"hidden_states": torch.randn(BATCH, 1, 3840)}


def sounding(config: Any) -> Inputs:
    return {"input_values": torch.randn(BATCH, 1, 3840)}


def coded(config: Any) -> Inputs:
    return {"hidden_states": torch.randn(BATCH, config.hidden_size, STEPS)}


def page(config: Any) -> Inputs:
    return {"pixel_values": torch.rand(BATCH, 3, 64, 64)}


def masked_picture(config: Any) -> Inputs:
    """A picture, and what decides which of its patches are left out."""
    side = config.image_size // config.patch_size
    return {"pixel_values": torch.randn(BATCH, 3, config.image_size, config.image_size)} | {
        "noise": torch.rand(BATCH, side * side)
    }


def voiced(config: Any) -> Inputs:
    """A spectrogram, and the noise that becomes the sound."""
    return {
        "input_features": torch.randn(BATCH, STEPS, config.num_mel_bins),
        "noise_sequence": torch.randn(BATCH, STEPS, config.model_in_channels),
    }


def asked_of_a_picture(config: Any) -> Inputs:
    """A question, a picture, and what the answer begins with."""
    vocabulary, side = config.text_config.vocab_size, config.vision_config.image_size
    question, answer = (torch.randint(5, vocabulary, (BATCH, length)) for length in (7, 4))
    return {
        "input_ids": question,
        "attention_mask": torch.ones_like(question),
        "pixel_values": torch.randn(BATCH, 3, side, side),
        "decoder_input_ids": answer,
    }


def described(config: Any) -> Inputs:
    """What music to make, and how it begins: the codes of one piece of music are rows, one for each book."""
    begun = (BATCH * config.decoder.num_codebooks, 5)
    words = torch.randint(5, config.text_encoder.vocab_size, (BATCH, STEPS))
    return {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "decoder_input_ids": torch.randint(config.decoder.vocab_size, begun),
    }


def tiled(config: Any) -> Inputs:
    """One picture for each example, of as many tiles as there may be, and of which shape."""
    tiles, side = config.max_num_tiles, config.image_size
    return {
        "pixel_values": torch.randn(BATCH, 1, tiles, config.num_channels, side, side),
        "aspect_ratio_ids": torch.tensor([[1], [2], [1]]),
        "aspect_ratio_mask": torch.ones(BATCH, 1, tiles, dtype=torch.long),
    }


def decided(config: Any) -> Inputs:
    """One prompt, where its two questions end, of which kind they are, and how many answers each has."""
    return {
        "input_ids": torch.randint(5, config.text_config.vocab_size, (1, 9)),
        "marks": torch.tensor([[4, 8]]),
        "num_options": torch.tensor([[2, 3]]),
        "question_type_ids": torch.tensor([[0, 1]]),
    }


def coded_picture(config: Any) -> Inputs:
    """Words, some of them masked; a picture, which of its patches are masked, and the same for its codes."""
    words = torch.randint(5, config.text_config.vocab_size, (BATCH, STEPS))
    side = config.image_config.image_size
    patches = side // config.image_config.patch_size
    return {
        "input_ids": words,
        "input_ids_masked": words,
        "attention_mask": torch.ones_like(words),
        "pixel_values": torch.randn(BATCH, 3, side, side),
        "codebook_pixel_values": torch.rand(BATCH, 3, 8 * patches, 8 * patches),
        "bool_masked_pos": torch.arange(BATCH * patches**2).reshape(BATCH, patches, patches) % 3 == 0,
    }


def masked_units(config: Any) -> Inputs:
    """A picture, and what decides which of its units are left out."""
    height, width = config.image_size
    (down, across), (high, wide) = config.patch_stride, config.masked_unit_size
    units = height // (down * high) * (width // (across * wide))
    return {"pixel_values": torch.randn(BATCH, 3, height, width), "noise": torch.rand(BATCH, units)}


def masked_film(config: Any) -> Inputs:
    """A film, and which of its tubes are masked: in each as many."""
    frames, side = config.num_frames, config.image_size
    tubes = frames // config.tubelet_size * (side // config.patch_size) ** 2
    return {
        "pixel_values": torch.randn(BATCH, frames, config.num_channels, side, side),
        "bool_masked_pos": (torch.arange(tubes) % 2 == 0).repeat(BATCH, 1),
    }


def read_aloud(config: Any) -> Inputs:
    """Words, a spectrogram of how they begin, and whose voice it is."""
    spoken = torch.randn(BATCH, 8, config.num_mel_bins)
    voice = torch.randn(BATCH, config.speaker_embedding_dim)
    return {**words(config), "decoder_input_values": spoken, "speaker_embeddings": voice}


def asked_within(config: Any) -> Inputs:
    """Words, and where the questions about them stand."""
    return {**words(config), "question_positions": torch.tensor([[1, 4], [2, 5], [1, 3]])}


GIVEN: Mapping[str, Callable[[Any], Inputs]] = {
    "HieraForPreTraining": masked_units,
    "VideoMAEForPreTraining": masked_film,
    "SpeechT5ForTextToSpeech": read_aloud,
    "SplinterForPreTraining": asked_within,
    "BlipForQuestionAnswering": asked_of_a_picture,
    "FlavaForPreTraining": coded_picture,
    "MusicgenForConditionalGeneration": described,
    "MusicgenMelodyForConditionalGeneration": described,
    "MllamaVisionModel": tiled,
    "JevForDecision": decided,
    "patchtst": series,
    "patchtsmixer": series,
    "timesfm": forecast,
    "timesfm2_5": padded_series,
    "autoformer": probable,
    "informer": probable,
    "time_series_transformer": probable,
    "decision_transformer": decisions,
    "gemma3n_audio": mel,
    "mimi_decoder": latents,
    "pocket_tts_audio_tokenizer_decoder": latents,
    "blip_2_qformer": queries,
    "lxmert": seen_and_read,
    "seggpt": prompted,
    "lightglue": matched,
    "superglue": matched,
    "efficientloftr": matched,
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), shared),
    "clvp": spoken,
    "voxtral_realtime": heard_as_said,
    "pi0": acting,
    "omdet-turbo": sought,
    "embedding_gemma2": words,
    "glm_image": words,
    "higgs_audio_v2": uttered,
    "tvp": film,
    "vilt": embedded_picture,
    "granite_speech5_encoder": stacked,
    "fun_asr_nano_encoder": stacked_frames,
    "qwen3_asr_encoder": windows,
    "oneformer": told,
    "xcodec": sounding,
    "higgs_audio_v2_tokenizer": sounding,
    "xcodec2": heard,
    "wavtokenizer": sounding,
    "wavtokenizer_encoder": sounding,
    "gemma4_vision": placed_patches,
    "nemotron3_5_transcribe_word_timestamp": embedded,
    "muse_glimmer_assistant": drafted,
    "vibevoice_acoustic_tokenizer": sounding,
    "vibevoice_acoustic_tokenizer_encoder": sound,
    "vibevoice_acoustic_tokenizer_decoder": coded,
    "pocket_tts_audio_tokenizer_encoder": sounding,
    "uvdoc": page,
    "vit_mae": masked_picture,
    "univnet": voiced,
}
