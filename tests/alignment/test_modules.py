"""RawPad, Projector and Mix by value: against loops written from Appendix F.2 and B.1 of the paper."""

import math
from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_soundclip import Mix, Projector, RawPad
from llava_soundclip.alignment import build_alignment

LABELS = {
    "encoder": "whisperclip",
    "checkpoint": "tiny.en",
    "fusion": "average_all",
    "pooling": "valid",
    "window": "padded",
}
HERE = {"audio_dim": 3, "width": 4, "tower": "clip-l", "tower_layer": -2}
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def pad_by_cases(z: np.ndarray, width: int) -> np.ndarray:
    """F.2, case by case."""
    rows = []
    for row in z:
        if len(row) < width:
            rows.append(list(row) + [0.0] * (width - len(row)))
        elif len(row) > width:
            rows.append(list(row[0:width]))
        else:
            rows.append(list(row))
    return np.array(rows).reshape(len(z), width)


def mlp_by_loops(projector: Projector, z: np.ndarray) -> np.ndarray:
    """F.2's formula, number by number in float64."""
    weights = {name: tensor.double().numpy() for name, tensor in projector.state_dict().items()}

    def affine(x: list[float], name: str) -> list[float]:
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return [sum(w[i][j] * x[j] for j in range(len(x))) + b[i] for i in range(len(b))]

    def layer_norm(x: list[float], name: str) -> list[float]:
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / len(x)
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return [(v - mean) / math.sqrt(variance + 1e-5) * w[i] + b[i] for i, v in enumerate(x)]

    def gelu(x: list[float]) -> list[float]:
        return [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]

    rows = []
    for row in z:
        first = gelu(layer_norm(affine(list(row), "linear1"), "norm1"))
        second = gelu(layer_norm(affine(first, "linear2"), "norm2"))
        rows.append(affine(second, "linear3"))
    return np.array(rows)


def random_projector(audio_dim: int = 5, width: int = 7, hidden: int = 6, **options) -> Projector:
    torch.manual_seed(0)
    projector = Projector(audio_dim, width, hidden, **options)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.normal_()  # also the norms, which begin as the identity
    return projector


class TestRawPad:
    @given(batch=st.integers(0, 4), audio_dim=st.integers(1, 40), width=st.integers(1, 40))
    @settings(deadline=None, max_examples=50)
    def test_the_three_cases(self, batch: int, audio_dim: int, width: int) -> None:
        z = torch.randn(batch, audio_dim)
        out = RawPad(width)(z)
        assert out.shape == (batch, width)
        np.testing.assert_array_equal(out.numpy(), pad_by_cases(z.numpy(), width))

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("audio_dim", [3, 4, 6])
    def test_keeps_the_dtype(self, dtype: torch.dtype, audio_dim: int) -> None:
        assert RawPad(4)(torch.ones(2, audio_dim, dtype=dtype)).dtype == dtype

    def test_gradient_reaches_what_is_kept(self) -> None:
        z = torch.randn(2, 6, requires_grad=True)
        RawPad(4)(z).sum().backward()
        assert z.grad is not None
        assert z.grad.tolist() == [[1.0] * 4 + [0.0] * 2] * 2

    def test_has_no_weights(self) -> None:
        assert not RawPad(4).state_dict()
        assert repr(RawPad(4)) == "RawPad(width=4)"

    @pytest.mark.parametrize("width", [0, -1, True, 4.0, "4", None, 2**21])
    def test_refuses_a_width(self, width) -> None:
        with pytest.raises(ValueError, match="width must be an int from 1 to"):
            RawPad(width)

    @pytest.mark.parametrize("z", [torch.ones(4), torch.ones(1, 2, 4), torch.ones(2, 4, dtype=torch.int64)])
    def test_refuses_other_tensors(self, z: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=r"Expected vectors \(B, d_a\) of floats, got \("):
            RawPad(4)(z)


class TestProjector:
    def test_is_the_formula(self) -> None:
        projector = random_projector().double().eval()
        z = torch.randn(4, 5, dtype=torch.float64)
        np.testing.assert_allclose(
            projector(z).detach().numpy(), mlp_by_loops(projector, z.numpy()), rtol=1e-10, atol=1e-10
        )

    def test_is_the_formula_in_float32_at_the_papers_size(self) -> None:
        projector = random_projector(16, 1024, 24).eval()
        z = torch.randn(2, 16)
        np.testing.assert_allclose(
            projector(z).detach().numpy(), mlp_by_loops(projector, z.double().numpy()), rtol=1e-4, atol=1e-4
        )

    @given(
        batch=st.integers(0, 5),
        audio_dim=st.integers(1, 20),
        width=st.integers(1, 20),
        hidden=st.integers(1, 20),
    )
    @settings(deadline=None, max_examples=30)
    def test_shapes(self, batch: int, audio_dim: int, width: int, hidden: int) -> None:
        projector = Projector(audio_dim, width, hidden).double().eval()  # small spreads magnify rounding
        z = torch.randn(batch, audio_dim, dtype=torch.float64)
        out = projector(z)
        assert out.shape == (batch, width)
        singles = [projector(row[None]) for row in z]
        torch.testing.assert_close(out, torch.cat([*singles, torch.empty(0, width, dtype=torch.float64)]))

    @pytest.mark.parametrize("weights", FLOATS)
    @pytest.mark.parametrize("given", FLOATS)
    def test_computes_in_the_weights_dtype(self, weights: torch.dtype, given: torch.dtype) -> None:
        projector = random_projector().eval()
        z = torch.randn(3, 5)
        expected = projector(z)
        out = projector.to(weights)(z.to(given))
        assert out.dtype == weights
        tolerance = 0.3 if torch.bfloat16 in (weights, given) else 0.05
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize(("audio_dim", "parameters"), [(512, 2_628_608), (768, 2_890_752)])
    def test_parameters_of_the_papers_matrices(self, audio_dim: int, parameters: int) -> None:
        with torch.device("meta"):
            projector = Projector(audio_dim)
        shapes = {name: tuple(tensor.shape) for name, tensor in projector.named_parameters()}
        assert shapes["linear1.weight"] == (1024, audio_dim)
        assert shapes["linear2.weight"] == shapes["linear3.weight"] == (1024, 1024)
        assert sum(math.prod(shape) for shape in shapes.values()) == parameters

    def test_dropout_only_in_training(self) -> None:
        projector = random_projector(hidden=200, dropout=0.5)
        z = torch.randn(3, 5)
        assert not torch.equal(projector.train()(z), projector(z))
        assert torch.equal(projector.eval()(z), projector(z))
        assert torch.equal(random_projector(dropout=0).train()(z), random_projector(dropout=0).eval()(z))

    def test_dropout_after_each_activation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
            seen.append((x, p, training))
            return x

        monkeypatch.setattr("llava_soundclip.alignment.projector.F.dropout", dropout)
        projector = random_projector(dropout=0.25)
        z = torch.randn(3, 5)
        projector(z)
        first = torch.nn.functional.gelu(projector.norm1(projector.linear1(z)))
        second = torch.nn.functional.gelu(projector.norm2(projector.linear2(first)))
        assert [(p, training) for _, p, training in seen] == [(0.25, True)] * 2
        torch.testing.assert_close([x for x, _, _ in seen], [first, second])

    def test_dropout_drops_its_share(self) -> None:
        # With W3 all ones and the rest constant, each output counts the second activations that are left.
        projector = Projector(1, 1, 2_000, dropout=0.1).train()
        with torch.no_grad():
            for parameter in projector.parameters():
                parameter.zero_()
            projector.norm2.bias.fill_(1)
            projector.linear3.weight.fill_(1 / 2_000)
        torch.manual_seed(0)
        kept = projector(torch.zeros(1, 1)).item() / torch.nn.functional.gelu(torch.tensor(1.0)).item() * 0.9
        assert kept == pytest.approx(0.9, abs=0.03)

    def test_gradients(self) -> None:
        projector = random_projector(3, 4, 5).double().eval()
        z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(projector, (z,))
        projector(z).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in projector.parameters())

    def test_state_dict_names(self) -> None:
        blocks = ["linear1", "norm1", "linear2", "norm2", "linear3"]
        expected = [f"{block}.{part}" for block in blocks for part in ("weight", "bias")]
        assert sorted(Projector(3, 4, 5).state_dict()) == sorted(expected)
        with_layers = Projector(3, 4, 5, fusion="weighted_sum", layers=6)
        assert sorted(with_layers.state_dict()) == sorted([*expected, "layer_weights"])
        assert with_layers.layer_weights.shape == (6,)
        assert with_layers.layer_weights.requires_grad
        assert with_layers.layer_weights.softmax(0).tolist() == pytest.approx([1 / 6] * 6)

    def test_config_holds_every_argument(self) -> None:
        arguments = tuple(signature(Projector.__init__).parameters)[1:]
        assert arguments == Projector.ARGUMENTS
        assert tuple(Projector(3, 4, 5).config) == (*arguments, "library_version")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"audio_dim": 0}, "audio_dim must be an int from 1"),
            ({"audio_dim": True}, "audio_dim must be an int"),
            ({"width": -1}, "width must be an int"),
            ({"hidden": 1.5}, "hidden must be an int"),
            ({"hidden": 2**40}, "hidden must be an int from 1 to 1048576, got 1099511627776"),
            ({"dropout": 1}, r"dropout must be a number in \[0, 1\), got 1"),
            ({"dropout": -0.1}, "dropout must be"),
            ({"dropout": math.nan}, "dropout must be"),
            ({"dropout": True}, "dropout must be"),
            ({"dropout": "0.1"}, "dropout must be"),
            ({"encoder": 3}, "encoder must be a string or None, got 3"),
            ({"tower": b"clip"}, "tower must be a string or None"),
            ({"encoder_options": "int16"}, "encoder_options must be strings by name or None, got 'int16'"),
            ({"encoder_options": {"amplitude": 1}}, "encoder_options must be strings by name"),
            ({"tower_layer": "last"}, "tower_layer must be an int, several ints or None, got 'last'"),
            ({"tower_layer": [1, True]}, "tower_layer must be"),
            ({"layers": 4}, "layers goes with fusion='weighted_sum'.*layers=4 and fusion=None"),
            ({"layers": 4, "fusion": "average_all"}, "layers goes with"),
            ({"fusion": "weighted_sum"}, "layers goes with.*Give the number of the encoder's blocks"),
            ({"layers": 0, "fusion": "weighted_sum"}, "layers must be an int"),
        ],
    )
    def test_refuses_arguments(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Projector(**{"audio_dim": 3, "width": 4, "hidden": 5, **options})

    @pytest.mark.parametrize("field", [*LABELS, "tower", "loss"])
    def test_every_label_is_a_string(self, field: str) -> None:
        for value in (3, b"x", True, ["x"]):
            with pytest.raises(ValueError, match=f"^{field} must be a string or None, got "):
                Projector(3, 4, 5, **{field: value})
        options = {field: "weighted_sum", "layers": 2} if field == "fusion" else {field: "x"}
        assert Projector(3, 4, 5, **options).config[field] == options[field]
        assert Projector(3, 4, 5).config[field] is None

    def test_refuses_other_vectors(self) -> None:
        projector = Projector(3, 4, 5)
        with pytest.raises(ValueError, match="takes vectors of width 3, got 5"):
            projector(torch.ones(1, 5))
        with pytest.raises(ValueError, match=r"Expected vectors \(B, d_a\) of floats, got \(3,\)"):
            projector(torch.ones(3))
        with pytest.raises(ValueError, match=r"got \(1, 3\) of torch.int64"):
            projector(torch.ones(1, 3, dtype=torch.int64))


class TestCheck:
    def test_fits(self) -> None:
        projector = Projector(3, 4, 5, **LABELS, tower="clip-l", tower_layer=-2, loss="infonce")
        projector.check(LABELS, **HERE)

    def test_what_one_side_does_not_know_is_not_compared(self) -> None:
        Projector(3, 4, 5).check(LABELS, **HERE)
        Projector(3, 4, 5, **LABELS, tower="clip-l", tower_layer=-2).check({}, audio_dim=3, width=4)
        Projector(3, 4, 5).check({"shoe_size": "44"}, audio_dim=3, width=4)

    @pytest.mark.parametrize("field", LABELS)
    def test_names_a_label_that_differs(self, field: str) -> None:
        projector = Projector(3, 4, 5, **LABELS)
        trained = LABELS[field]
        with pytest.raises(
            ValueError, match=f"{field} is '{trained}' in the projector and 'other' here"
        ) as error:
            projector.check({**LABELS, field: "other"}, **HERE)
        assert str(error.value).count(" here") == 1
        assert "Patch with what it was trained on, or take a projector" in str(error.value)

    def test_an_encoders_own_options_are_compared(self) -> None:
        signature = {"encoder": "audioclip", "checkpoint": "audioclip-1", "amplitude": "int16"}
        projector = Projector(3, 4, 5, **Projector.labels(signature))
        assert projector.encoder == "audioclip" and projector.encoder_options == {"amplitude": "int16"}
        projector.check(signature, **HERE)
        with pytest.raises(ValueError, match="amplitude is 'int16' in the projector and 'unit' here"):
            projector.check({**signature, "amplitude": "unit"}, **HERE)
        assert Projector.labels(LABELS) == LABELS

    def test_names_all_that_differs(self) -> None:
        projector = Projector(3, 4, 5, **LABELS, tower="clip-b", tower_layer=(-2, -5))
        with pytest.raises(ValueError) as error:
            projector.check({"encoder": "clap"}, audio_dim=30, width=40, tower="clip-l", tower_layer=-2)
        for part in (
            "audio_dim is 3 in the projector and 30 here",
            "width is 4 in the projector and 40 here",
            "encoder is 'whisperclip' in the projector and 'clap' here",
            "tower is 'clip-b' in the projector and 'clip-l' here",
            "tower_layer is [-2, -5] in the projector and -2 here",
        ):
            assert part in str(error.value)
        projector = Projector(3, 4, 5, tower_layer=[-2, -5])
        projector.check({}, audio_dim=3, width=4, tower_layer=(-2, -5))

    def test_quantised_weights_are_refused(self) -> None:
        projector = Projector(3, 4, 5)
        projector.check({}, audio_dim=3, width=4)
        projector.linear2.weight = torch.nn.Parameter(torch.ones(5, 5, dtype=torch.int8), requires_grad=False)
        with pytest.raises(ValueError, match="projector's linear2.weight is torch.int8: it was quantised"):
            projector.check({}, audio_dim=3, width=4)


class Never(torch.nn.Module):
    """Must not be computed."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed")


class TestMix:
    def test_is_b1(self) -> None:
        projector = random_projector().eval()
        z = torch.randn(3, 5)
        for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
            raw, aligned = RawPad(7)(z), projector(z)
            expected = [
                [alpha * r + (1 - alpha) * a for r, a in zip(*rows, strict=True)]
                for rows in zip(raw.tolist(), aligned.tolist(), strict=True)
            ]
            out = Mix(alpha, RawPad(7), projector)(z)
            torch.testing.assert_close(out, torch.tensor(expected))

    def test_ends_are_exact(self) -> None:
        projector = random_projector().eval()
        z = torch.randn(3, 5)
        assert torch.equal(Mix(1, RawPad(7), projector)(z), RawPad(7)(z))
        assert torch.equal(Mix(0, RawPad(7), projector)(z), projector(z))
        with torch.no_grad():
            projector.linear3.bias.fill_(math.inf)
        assert torch.equal(Mix(1, RawPad(7), projector)(z), RawPad(7)(z))

    def test_ends_compute_one_side(self) -> None:
        z = torch.randn(3, 5)
        assert torch.equal(Mix(1, RawPad(7), Never())(z), RawPad(7)(z))
        assert torch.equal(Mix(0, Never(), RawPad(7))(z), RawPad(7)(z))

    def test_gradient_reaches_both(self) -> None:
        projector = random_projector(3, 4, 5).double().eval()
        z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(Mix(0.3, RawPad(4), projector), (z,))

    @pytest.mark.parametrize("alpha", [np.float64(0.5), np.float32(0.5), 0, 1])
    def test_takes_any_number(self, alpha) -> None:
        assert Mix(alpha, RawPad(7), RawPad(7)).alpha == float(alpha)

    @pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf, True, False, "0.5", None, 1j])
    def test_refuses_others(self, alpha) -> None:
        with pytest.raises(ValueError, match=r"alpha must be a number in \[0, 1\] \(1 is raw\), got"):
            Mix(alpha, RawPad(7), RawPad(7))


class TestBuildAlignment:
    def build(self, alignment, projector: Projector | None = None) -> torch.nn.Module:
        return build_alignment(alignment, audio_dim=5, width=7, projector=projector)

    @pytest.mark.parametrize("alignment", ["raw", 1, 1.0, np.float64(1)])
    def test_raw_needs_no_projector(self, alignment) -> None:
        z = torch.randn(2, 5)
        for projector in (None, random_projector()):
            module = self.build(alignment, projector)
            assert isinstance(module, RawPad)
            assert torch.equal(module(z), RawPad(7)(z))

    @pytest.mark.parametrize("alignment", ["projected", 0, 0.0])
    def test_projected(self, alignment) -> None:
        projector = random_projector()
        assert self.build(alignment, projector) is projector

    def test_mix(self) -> None:
        projector = random_projector().eval()
        z = torch.randn(2, 5)
        torch.testing.assert_close(self.build(0.25, projector)(z), 0.25 * RawPad(7)(z) + 0.75 * projector(z))

    @pytest.mark.parametrize("alignment", ["projected", 0, 0.5])
    def test_asks_for_the_projector(self, alignment) -> None:
        with pytest.raises(
            ValueError, match=f"alignment={alignment!r} needs a trained projector: pass projector="
        ):
            self.build(alignment)

    @pytest.mark.parametrize("alignment", ["Raw", "mix", "", True, False, 1.5, math.nan, None, [0.5]])
    def test_refuses_others(self, alignment) -> None:
        with pytest.raises(ValueError, match=r"alignment must be 'raw', 'projected' or a number in \[0, 1\]"):
            self.build(alignment, random_projector())

    @pytest.mark.parametrize(("audio_dim", "width"), [(6, 7), (5, 8)])
    def test_refuses_another_width(self, audio_dim: int, width: int) -> None:
        with pytest.raises(
            ValueError, match=f"width 5 to 7, the encoder gives {audio_dim} and the tower has {width}"
        ):
            build_alignment("projected", audio_dim=audio_dim, width=width, projector=random_projector())
