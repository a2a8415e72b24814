"""A LLaVA by its name: loaded or refused, patched with what was given."""

from types import SimpleNamespace

import pytest
import torch

from llava_soundclip import loading
from llava_soundclip.demo.parts import SMOLLM2, WHISPER, is_packaged
from llava_soundclip.evaluation.captions import BERTScore, CLIPScore
from llava_soundclip.features import VisionTower
from tests.conftest import build_tiny_llava


def test_a_folder_of_a_llava_is_loaded(tmp_path, tiny_llava, monkeypatch):
    import transformers

    tiny_llava.save_pretrained(tmp_path)
    monkeypatch.setattr(
        transformers.AutoProcessor, "from_pretrained", lambda name, **_: f"processor of {name}"
    )
    model, processor = loading.load_llava(str(tmp_path), device="cpu", dtype="bfloat16")
    assert type(model) is type(tiny_llava) and str(model.dtype) == "torch.bfloat16"
    assert processor == f"processor of {tmp_path}"


def test_another_family_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    with pytest.raises(TypeError, match="is a CLIPModel; supported are .*LlavaForConditionalGeneration"):
        loading.load_llava(str(tmp_path))


def test_the_original_packages_models_are_not_loaded_from_here(tmp_path):
    config = '{"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}'
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        TypeError, match="is a LlavaLlamaForCausalLM; supported are LlavaForConditionalGen"
    ) as error:
        loading.load_llava(str(tmp_path))
    assert "supported are" in str(error.value) and str(error.value).count("LlavaLlama") == 1


def test_the_miniature_goes_where_it_is_told(monkeypatch):

    def load_demo(**options):
        return SimpleNamespace(model=torch.nn.Linear(2, 2), options=options)

    monkeypatch.setattr(loading, "load_demo", load_demo)
    soundclip = loading.load_soundclip("demo", device="cpu", dtype="float16", k=3)
    assert soundclip.model.weight.dtype == torch.float16 and soundclip.options == {"k": 3}
    assert loading.load_soundclip("demo", device=None, dtype="auto").model.weight.dtype == torch.float32


def test_another_model_is_patched_with_its_processor(monkeypatch):
    monkeypatch.setattr(
        loading, "load_llava", lambda name, device, **options: (f"{name} on {device}", "its processor")
    )
    monkeypatch.setattr(loading, "patch", lambda model, **options: (model, options))
    assert loading.load_soundclip("some/llava", device="cpu", dtype="auto", k=3) == (
        "some/llava on cpu",
        {"processor": "its processor", "k": 3},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "ears"}, "unknown encoder 'ears'"),
        ({"alignment": "middle"}, "alignment must be 'raw', 'projected' or a number"),
        ({"alignment": 1.5}, "alignment must be"),
        ({"k": -1}, "k must be 0 or more"),
        ({"dtype": "fp16"}, "dtype='fp16' is unknown"),
        ({"device": "cuda:1"}, "torch finds no CUDA device here"),
    ],
)
@pytest.mark.parametrize("model", ["demo", "some/llava"])
def test_a_wrong_option_is_an_error_before_the_model_is_loaded(monkeypatch, model, options, message):

    def load(*arguments, **options):
        pytest.fail("it was loaded")

    monkeypatch.setattr(loading, "load_demo", load)
    monkeypatch.setattr(loading, "load_llava", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        loading.load_soundclip(model, **options)


LOADERS = {
    "a LLaVA": lambda folder: loading.load_llava(folder),
    "a tower": lambda folder: VisionTower.load(folder),
    "BERTScore": lambda folder: BERTScore(folder),
    "CLIPScore": lambda folder: CLIPScore(folder),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_the_code_of_a_model_folder_is_never_run(tmp_path, monkeypatch, load):
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", null]}}'
    )
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import PretrainedConfig\n"
        "class Own(PretrainedConfig): model_type = 'own'\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the user agrees, if asked
    with pytest.raises(ValueError):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_what_is_heard_with_is_known_without_loading(tiny_encoder, monkeypatch):
    from llava_soundclip.patching import patch

    soundclip = patch(build_tiny_llava(image_size=130), encoder=tiny_encoder)
    told = loading.heard_with("some/llava")
    assert told == {
        "encoder": "whisperclip",
        "alignment": soundclip.alignment,
        "k": soundclip.k,
        "tokens": soundclip.tokens,
    }
    monkeypatch.setattr(loading, "patch", lambda model, **options: SimpleNamespace(**options))
    if is_packaged(WHISPER) and is_packaged(SMOLLM2):
        for encoder in ("whisperclip", "clap"):
            made = loading.load_demo(encoder=encoder)
            told = loading.heard_with("demo", encoder=encoder)
            assert told["k"] == made.k and told["alignment"] == getattr(made, "alignment", "raw")
    given = {"encoder": "clap", "alignment": 0.5, "k": 3, "tokens": "drop"}
    assert loading.heard_with("demo", **given) == given
