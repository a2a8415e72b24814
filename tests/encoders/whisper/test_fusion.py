"""The fusion's text form, which projectors and signatures store."""

import pytest

from llava_soundclip.encoders.whisper.fusion import Fusion


@pytest.mark.parametrize(
    ("text", "fusion"),
    [
        ("average_all", Fusion()),
        ("weighted_sum", Fusion("weighted_sum")),
        ("last_n:4", Fusion("last_n", 4)),
        ("last_n:12", Fusion("last_n", 12)),
    ],
)
def test_text_is_read_as_it_is_written(text, fusion):
    assert Fusion.parse(text) == fusion
    assert str(fusion) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last_n", "needs n"),
        ("last_n:0", "needs n"),
        ("last_n:", "fusion 'last_n:' is unknown"),
        ("last_n:four", "fusion 'last_n:four' is unknown"),
        ("final_only:2", 'n=2 is for fusion="last_n" only'),
        ("sum", "fusion='sum' is unknown; known: average_all"),
        ("", "fusion '' is unknown"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Fusion.parse(text)
