"""Against the golden outputs of laion-clap on real clips, in ../shared/parity."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_soundclip.encoders.clap.encoder import CLAPEncoder, CLAPOptions
from llava_soundclip.encoders.clap.frontend import fused_input, log_mel, quantised, repeat_pad
from llava_soundclip.encoders.clap.weights import CLAPWeights, clap_shapes
from tests.encoders.fake_clap import import_laion
from tests.encoders.parity import Goldens, fill, frontend_stages

pytestmark = pytest.mark.parity

GOLDENS = Goldens("clap")
# One case of each network, and what differs from the rest, is quick enough for every run.
QUICK = ("tiny-dog", "tiny-jfk_7s", "tiny-clipped", "fusion-jfk_11s", "fusion-jfk_10s_edge")
SLOW = tuple(case for case in GOLDENS.cases if case not in QUICK)


@pytest.fixture(autouse=True)
def no_grad(shared: Path):
    with torch.no_grad():
        yield


@lru_cache(maxsize=1)
def weights(model: str) -> CLAPWeights:
    """Drawn as the goldens' were; under the names that LAION's checkpoints have."""
    sizes = GOLDENS.specification["network"]["base" if model == "base" else "tiny"]
    shapes = clap_shapes(
        sizes["embed_dim"], tuple(sizes["depths"]), tuple(sizes["heads"]), 512, fused=model == "fusion"
    )
    empty = {name: torch.empty(shape) for name, shape in shapes.items()}
    return CLAPWeights(Path("drawn"), fill(empty, skip=tuple(GOLDENS.specification["fill"]["skip"])))


@lru_cache(maxsize=1)
def encoder(model: str, backend: str) -> CLAPEncoder:
    return CLAPEncoder(weights(model), CLAPOptions(backend=backend))


def stages(name: str, backend: str) -> dict[str, Tensor]:
    """Ours, under the goldens' names."""
    case = GOLDENS.cases[name]
    (samples,) = GOLDENS.sound(name)
    tested = encoder(case["model"], backend)
    signal = quantised(torch.from_numpy(samples))
    values: dict[str, Tensor] = {}
    if tested.fused:
        mels, longer = fused_input(signal, case.get("crop_starts_in_frames"))
        assert longer == case["longer"]
        values |= frontend_stages(mels[0].T)
        for i in (1, 2, 3):
            values |= {f"{stage}_ch{i}": value for stage, value in frontend_stages(mels[i].T).items()}
    else:
        values |= frontend_stages(log_mel(repeat_pad(signal), fused=False).T)
    if len(signal) <= 480_000:
        values["waveform_first"] = repeat_pad(signal)[:2000]
        values["waveform_last"] = repeat_pad(signal)[-2000:]

    def keep(stage: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            values[stage] = (output[0] if isinstance(output, tuple) else output)[0].mean(0)

        return hook

    def keep_projection(module: Any, args: Any, output: Tensor) -> None:
        values["audio_branch"], values["projected"] = args[0][0], output[0]

    branch = tested.tower.branch
    hooks = [
        branch.patch_embed.register_forward_hook(keep("patch_embed_mean")),
        *(layer.register_forward_hook(keep(f"layer{i}_mean")) for i, layer in enumerate(branch.layers)),
        tested.tower.projection.register_forward_hook(keep_projection),
    ]
    values["embedding"] = tested._embed([samples[None]], case.get("crop_starts_in_frames"))[0]
    for hook in hooks:
        hook.remove()
    return values


@pytest.mark.parametrize("backend", ["transformers", "laion"])
@pytest.mark.parametrize("name", GOLDENS.parameters(*SLOW))
def test_every_stage(name, backend):
    if backend == "laion":
        import_laion()
    ours = stages(name, backend)
    for stage in GOLDENS.stages(name):
        if not stage.startswith("waveform") or len(GOLDENS.sound(name)[0]) <= 480_000:
            GOLDENS.check(name, stage, ours[stage])
    assert torch.allclose(F.normalize(ours["projected"], dim=-1), ours["embedding"], atol=1e-6)


@pytest.mark.parametrize("model", GOLDENS.specification.get("models", {}))
def test_the_drawn_weights_are_the_goldens(model):
    """Every learned tensor; the spectrogram's and the classifier's aren't ours."""
    state = weights(model).state
    seen = set()
    for entry in GOLDENS.specification["state_dict"][model]:
        if entry["name"] in state:
            value = state[entry["name"]]
            assert list(value.shape) == entry["shape"], entry["name"]
            assert value.flatten()[0].item() == pytest.approx(entry["first"], rel=1e-6), entry["name"]
            assert value.double().abs().sum().item() == pytest.approx(entry["abs_sum"], rel=1e-6), entry[
                "name"
            ]
            seen.add(entry["name"])
        else:
            left_out = ("extractor", "tscam_conv", "audio_branch.head")
            assert "computed" in entry["kind"] or any(part in entry["name"] for part in left_out), entry
    assert seen == state.keys()
