"""What the library draws and synthesises itself."""

import av
import numpy as np
import pytest

from llava_soundclip.demo.kinds import (
    CLIP_RATE,
    CLIP_SIZE,
    DRAWN_KINDS,
    compose,
    draw,
    make_clip,
    make_scene,
    synthesise,
)

RATE = 16_000


def spectrum(wave):
    """Power at each frequency in Hz."""
    return np.fft.rfftfreq(len(wave), 1 / RATE), np.abs(np.fft.rfft(wave)) ** 2


def test_kinds_are_the_four_that_the_demo_names():
    assert set(DRAWN_KINDS) == {"alarm clock", "bell", "whistle", "rain"}


@pytest.mark.parametrize("kind", DRAWN_KINDS)
def test_a_drawing_is_cut_out_and_never_the_same_twice(kind):
    first, again = (np.asarray(draw(kind, 64, np.random.default_rng(1))) for _ in range(2))
    other = np.asarray(draw(kind, 64, np.random.default_rng(2)))
    assert first.shape == (64, 64, 4)
    assert 0.1 < (first[..., 3] > 127).mean() < 0.9
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", DRAWN_KINDS)
@pytest.mark.parametrize("seconds", [0.01, 0.5, 3])
def test_a_sound_has_its_length_and_stays_in_range(kind, seconds):
    wave = synthesise(kind, seconds, RATE, np.random.default_rng(3))
    assert wave.shape == (round(seconds * RATE),) and wave.dtype == np.float32
    assert np.isfinite(wave).all() and np.abs(wave).max() <= 0.9 + 1e-6


@pytest.mark.parametrize("kind", DRAWN_KINDS)
def test_a_sound_is_never_the_same_twice(kind):
    first, again = (synthesise(kind, 1, RATE, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, synthesise(kind, 1, RATE, np.random.default_rng(2)))


@pytest.mark.parametrize("seed", range(5))
def test_sounds_are_what_they_are_called(seed):
    whistle, bell, rain, alarm = (
        synthesise(kind, 3, RATE, np.random.default_rng(seed))
        for kind in ("whistle", "bell", "rain", "alarm clock")
    )
    frequency, power = spectrum(whistle)
    assert 2000 < frequency[power.argmax()] < 3600
    frequency, power = spectrum(bell)
    assert power[frequency < 1500].sum() > 0.5 * power.sum()
    frequency, power = spectrum(rain)
    centre = (frequency * power).sum() / power.sum()
    spread = ((frequency - centre) ** 2 * power).sum() ** 0.5 / power.sum() ** 0.5
    assert spread > 500  # a hiss, not a tone
    frames = np.abs(alarm[: len(alarm) // 160 * 160]).reshape(-1, 160).max(1)
    assert (frames < 0.01).mean() > 0.1 and (frames > 0.5).mean() > 0.1  # beeps and gaps


def test_an_unknown_kind_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'dragon'.*alarm clock, bell, whistle, rain"):
        draw("dragon", 32, np.random.default_rng())
    with pytest.raises(ValueError, match="'dragon'"):
        synthesise("dragon", 1, RATE, np.random.default_rng())


def test_compose_says_where_each_thing_is():
    rng = np.random.default_rng(5)
    cutouts = [draw("bell", 64, rng), draw("whistle", 64, rng)]
    scene, cover = compose(cutouts, 96, rng)
    assert scene.size == (96, 96) and scene.mode == "RGB"
    assert cover.shape == (2, 96, 96) and cover.dtype == np.float32
    assert (cover.sum(0) <= 1 + 1e-6).all()  # what is in front hides what is behind
    assert (cover.mean((1, 2)) > 0.05).all()


def test_compose_keeps_a_lone_thing_inside():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, cover = compose([draw("bell", 64, rng)], 96, rng)
        assert cover[0, [0, -1]].mean() < 0.2 and cover[0].mean() > 0.12


def test_a_scene_takes_one_kind_or_several():
    one = make_scene("bell", 80, np.random.default_rng(1))
    assert np.array_equal(one, make_scene(["bell"], 80, np.random.default_rng(1)))
    assert make_scene(["bell", "rain"], 80, np.random.default_rng(1)).size == (80, 80)


def test_a_clip_holds_the_picture_and_the_sound(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", picture="bell", sound="whistle", seconds=2, seed=7)
    with av.open(str(path)) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    with av.open(str(path)) as film:
        wave = np.concatenate([frame.to_ndarray().mean(0) for frame in film.decode(audio=0)])
    rng = np.random.default_rng(7)
    scene = np.asarray(make_scene("bell", CLIP_SIZE, rng), np.float32)
    sound = synthesise("whistle", 2, CLIP_RATE, rng)
    assert len(pictures) == 16 and pictures[0].shape == (CLIP_SIZE, CLIP_SIZE, 3)
    assert np.abs(pictures[8] - scene).mean() < 8
    assert abs(len(wave) - 2 * CLIP_RATE) < 0.1 * CLIP_RATE
    ours, theirs = (np.abs(np.fft.rfft(w, 2 * CLIP_RATE)) for w in (sound, wave))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9


def test_another_seed_is_another_clip(tmp_path):
    clips = [
        make_clip(tmp_path / f"{i}.mp4", picture="rain", sound="rain", seconds=0.5, seed=i) for i in (0, 1)
    ]
    assert clips[0].read_bytes() != clips[1].read_bytes()
