"""Sounds that come as arrays: what is taken, what is refused, and how they are resampled."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from llava_soundclip.media import check_waveform, resample
from tests.media.making import chirp

FLOATS = [np.float16, np.float32, np.float64, np.dtype(">f4")]
shapes = st.one_of(st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 64), st.integers(1, 300)))


@settings(deadline=None)
@given(st.data(), shapes, st.sampled_from(FLOATS))
def test_any_float_array_becomes_channels_by_samples(data, shape, dtype):
    sound = data.draw(npst.arrays(dtype, shape, elements={"min_value": -1, "max_value": 1}))
    result = check_waveform(sound)
    assert result.dtype == np.float32 and result.flags.c_contiguous and result.flags.writeable
    assert np.array_equal(result, sound.reshape(-1, shape[-1]).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_tensors_with_or_without_gradient(dtype):
    sound = torch.linspace(-1, 1, 20, dtype=dtype).reshape(2, 10).requires_grad_()
    assert np.array_equal(check_waveform(sound), sound.detach().float().numpy())


def test_strided_and_read_only_arrays():
    sound = np.linspace(-1, 1, 20, dtype=np.float32)
    sound.flags.writeable = False
    assert np.array_equal(check_waveform(sound[::-2]), sound[None, ::-2])
    torch.from_numpy(check_waveform(sound))  # warns about read-only memory


@pytest.mark.parametrize("dtype, divisor", [(np.int16, "32768"), (np.int32, "2147483648"), (np.uint8, "256")])
def test_integers_are_refused_with_the_way_out(dtype, divisor):
    with pytest.raises(TypeError, match=f"divide by {divisor}"):
        check_waveform(np.zeros(10, dtype))
    if dtype is not np.uint8:
        with pytest.raises(TypeError, match=f"divide by {divisor}"):
            check_waveform(torch.zeros(10, dtype=getattr(torch, np.dtype(dtype).name)))


@pytest.mark.parametrize("sound", [[0.0, 0.1], "sound.wav", np.zeros(4, bool), np.zeros(4, complex), None])
def test_what_is_no_array_of_floats_is_refused(sound):
    with pytest.raises(TypeError, match="sound 3 .*float"):
        check_waveform(sound, name="sound 3")


@pytest.mark.parametrize(
    "sound, words",
    [
        (np.zeros(0), "empty"),
        (np.zeros((2, 0)), "empty"),
        (np.array(0.5), "shape"),
        (np.zeros((1, 2, 3)), "shape"),
        (np.array([0, np.nan]), "NaN"),
        (np.array([0, -np.inf]), "NaN or infinity"),
        (np.array([1e300]), "far outside"),
        (np.array([-32768.0, 5.0]), "32768"),
        (np.zeros((65, 2)), "transpose"),
    ],
)
def test_unusable_sounds_are_refused_with_their_name(sound, words):
    with pytest.raises(ValueError, match=f"sound 3 .*{words}"):
        check_waveform(sound, name="sound 3")


def test_a_little_overshoot_is_sound():
    assert check_waveform(np.array([-1.2, 7.9])).tolist() == [[np.float32(-1.2), np.float32(7.9)]]


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 500), st.integers(100, 768_000), st.integers(100, 768_000))
def test_resampling_keeps_channels_and_length(channels, samples, from_rate, to_rate):
    result = resample(np.zeros((channels, samples), np.float32), from_rate, to_rate)
    assert result.shape[0] == channels and result.dtype == np.float32 and result.flags.c_contiguous
    assert abs(result.shape[1] - max(1, samples * to_rate / from_rate)) <= 1


@pytest.mark.parametrize("from_rate, to_rate", [(44_100, 16_000), (16_000, 48_000), (22_050, 44_100)])
def test_resampling_is_right_by_another_library_and_by_the_formula(from_rate, to_rate):
    sound = chirp(2, from_rate, 2).astype(np.float32)
    result = resample(sound, from_rate, to_rate)
    divisor = math.gcd(from_rate, to_rate)
    other = scipy.signal.resample_poly(sound, to_rate // divisor, from_rate // divisor, axis=1)
    inside = slice(to_rate // 10, -to_rate // 10)  # filters ring at the edges
    assert np.abs(result - other)[:, inside].max() < 2e-3
    assert np.abs(result - chirp(2, to_rate, 2))[:, inside].max() < 1e-4


def test_channels_are_resampled_by_themselves():
    sound = chirp(0.5, 44_100, 3).astype(np.float32)
    one_by_one = [resample(channel[None], 44_100, 16_000)[0] for channel in sound]
    assert np.array_equal(resample(sound, 44_100, 16_000), np.stack(one_by_one))


def test_the_same_rate_changes_nothing():
    sound = chirp(0.1, 16_000).astype(np.float32)
    assert resample(sound, 16_000, 16_000) is sound


def test_a_sound_too_short_for_one_sample_is_its_mean():
    assert resample(np.array([[0.5, 0.25]], np.float32), 48_000, 100).tolist() == [[0.375]]


@pytest.mark.parametrize("rate", [0, -16_000, math.nan, math.inf, 1_000_000, True])
def test_absurd_rates_are_refused(rate):
    for rates in ((rate, 16_000), (16_000, rate)):
        with pytest.raises(ValueError, match="sampling rate"):
            resample(np.zeros((1, 10), np.float32), *rates)


def test_media_imports_neither_torch_nor_the_decoder():
    code = "import sys, llava_soundclip.media; print({'torch', 'av', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
