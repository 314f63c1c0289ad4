"""What a config of transformers says of the sizes of inputs: its own, and those of the configs within it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SEQUENCE = 7  # ids of an example that graphs are traced with and the proof runs on; steps of a sound
IMAGE_SIZE = 64  # where the config names none: the class takes any
FRAMES = 48  # of a spectrogram whose length the class leaves open
STACKED = (1, 2, 4)  # frames of a spectrogram that make one step
BINS = (80, 128)  # frequencies of a spectrogram, where the config states none
SAMPLES = 3840  # of a sound, where the config tells no convolutions: whole frames of 5, 10, 20 and 80 ms


def text_config(config: Any) -> Any:
    """The config of the part that reads ids: of two that do, the encoder's."""
    try:
        return config.get_text_config()
    except ValueError:  # of a class that asks to be told which
        return config.get_text_config(encoder=True)


def configs_in(config: Any) -> Iterator[Any]:
    """A config and those within it; those nearest to it go first."""
    places = [config]
    while places:
        yield from places
        places = [v for place in places for v in vars(place).values() if hasattr(v, "to_dict")]


def stated(config: Any, *fields: str) -> Any:
    """The first of the fields that the config, or else one of those within it, gives a value."""
    values = (getattr(part, field, None) for part in configs_in(config) for field in fields)
    return next((value for value in values if value is not None), None)


def picture_shape(config: Any) -> tuple[int, ...]:
    """Channels, height and width; of a film the number of pictures first."""
    return picture_shapes(config)[0]


def picture_shapes(config: Any) -> list[tuple[int, ...]]:
    """A picture or film; a larger one where the config states no size; and a pair."""
    own = stated(config, "image_size", "input_size")
    size = own or IMAGE_SIZE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    ratios = getattr(config, "scaled_images_ratios", None)
    if ratios:  # patches are cut of the picture made smaller, too: at least one of the smallest
        height = width = max(height, int(config.patch_size / min(ratios)))
    channels = stated(config, "num_channels", "in_channels", "in_chans") or 3
    frames = stated(config, "num_frames", "frames_per_clip")
    if hasattr(config, "audio_samples_per_frame"):  # frames are those of a film with sound, not of pictures
        frames = None
    film = [frames] if frames else []
    larger = [] if own else [(*film, channels, 2 * height, 2 * width)]
    return [(*film, channels, height, width), *larger, (2, channels, height, width)]


def sound_shapes(config: Any) -> list[tuple[int, ...]]:
    """As many samples as make SEQUENCE steps of the convolutions that read them; for a model that reads
    spectrograms, its steps and frequencies."""
    kernels, strides = stated(config, "conv_kernel"), stated(config, "conv_stride")
    bins = stated(config, "num_mel_bins")
    if kernels and strides:
        samples = SEQUENCE
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return [(samples,)]
    if bins is not None:
        return [(stated(config, "max_length") or FRAMES, bins)]
    return [(SAMPLES,)]


def spectrogram_shapes(config: Any) -> list[tuple[int, ...]]:
    """Frequencies and steps where the config states how many positions there are, two steps each; else
    steps and frequencies, or the other way round, or as a picture of one channel; some classes stack frames
    by a number of their own."""
    bins, positions = stated(config, "num_mel_bins"), stated(config, "max_source_positions")
    if bins is not None and positions is not None:
        return [(bins, 2 * positions)]
    width = bins or stated(config, "input_feat_per_channel", "feature_projection_input_dim")
    several = [width * frames for frames in STACKED] if width else list(BINS)
    return [shape for n in several for shape in ((FRAMES, n), (n, FRAMES), (1, FRAMES, n))]
