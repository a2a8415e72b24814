"""Training: against a plain loop, killed and gone on with, in two processes, and on features with a known answer."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llava_soundclip import Projector
from llava_soundclip.evaluation.retrieval import POOL
from llava_soundclip.features.splits import split_by_source
from llava_soundclip.features.store import FeatureFolder
from llava_soundclip.training import fit
from llava_soundclip.training.fit import (
    LAST,
    METRICS,
    STATE,
    DivergedError,
    FinishedRunError,
    Recipe,
    advice,
    few_held_out,
    train,
)
from llava_soundclip.training.losses import make_loss
from tests.training.making import AUDIO, LAYERS, WIDTH, write_features

SMALL = Recipe(hidden=24, batch_size=32, epochs=3, learning_rate=3e-3)
STILL = replace(SMALL, dropout=0.0)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("blocks"), layers=LAYERS, dtype="float16")


def same(a: Projector, b: Projector) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def plain_loop(folder: Path, recipe: Recipe) -> list[Projector]:
    """The recipe written out for one process: the projector after every epoch."""
    data = FeatureFolder(folder)
    training, _ = split_by_source(data.sources, recipe.validation, recipe.seed)
    torch.manual_seed(recipe.seed)
    projector = Projector(AUDIO, WIDTH, recipe.hidden, dropout=recipe.dropout)
    optimiser, loss_of = (
        torch.optim.Adam(projector.parameters(), lr=recipe.learning_rate, fused=True),
        make_loss(recipe.loss, **({"tau": recipe.temperature} if "infonce" in recipe.loss else {})),
    )
    kept = []
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
        batches = training[torch.randperm(len(training), generator=generator)].split(recipe.batch_size)
        for step, rows in enumerate(batches):
            audio, cls = data.rows(rows)
            (loss_of(projector(audio), cls)["loss"] / recipe.accumulate).backward()
            if (step + 1) % recipe.accumulate == 0 or step + 1 == len(batches):
                optimiser.step()
                optimiser.zero_grad()
        copy = Projector(AUDIO, WIDTH, recipe.hidden)
        copy.load_state_dict(projector.state_dict())
        kept.append(copy)
    return kept


@pytest.mark.parametrize("loss", ["cosine", "mse", "distribution", "infonce", "infonce+distribution"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_is_the_plain_loop(features, tmp_path, loss, accumulate):
    recipe = replace(STILL, loss=loss, accumulate=accumulate, epochs=2)
    train(features, tmp_path, recipe)
    assert same(Projector.from_pretrained(tmp_path / "last"), plain_loop(features, recipe)[-1])


def test_it_learns_and_says_so(features, tmp_path):
    rows = []
    recipe = replace(SMALL, epochs=12)
    projector = train(features, tmp_path, recipe, on_epoch=rows.append, command="llava-soundclip train x")
    assert not projector.training and same(projector, Projector.from_pretrained(tmp_path))
    written = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert written == rows and [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    best = min(rows, key=lambda row: row["validation_loss"])
    assert best["A2V_mean_rank"] < 2 and best["V2A_mean_rank"] < 2  # by chance 12.5
    data = FeatureFolder(features)
    audio, cls = data.rows(split_by_source(data.sources, recipe.validation, recipe.seed)[1])
    with torch.no_grad():
        f_a = projector(audio)
    assert best["norm"] == pytest.approx((f_a.norm(dim=1).mean() / cls.norm(dim=1).mean()).item(), rel=1e-5)
    assert best["validation_loss"] == pytest.approx(make_loss(recipe.loss)(f_a, cls)["loss"].item(), rel=1e-5)
    card = (tmp_path / "README.md").read_text()
    assert f"those of epoch {best['epoch']}, the best" in card and "llava-soundclip train x" in card
    assert f"| {best['A2V_mean_rank']:.1f} | {best['V2A_mean_rank']:.1f} |" in card
    assert (projector.encoder, projector.fusion, projector.loss) == (
        "whisperclip",
        "average_all",
        "infonce+distribution",
    )
    assert (projector.tower, projector.tower_layer) == ("clip-test", -2)
    assert not (tmp_path / STATE).exists()


def test_the_best_epoch_is_kept(features, tmp_path):
    """With an absurd rate later epochs are worse; the files are those of the best one."""
    recipe = replace(STILL, learning_rate=0.5, epochs=4)
    rows = []
    projector = train(features, tmp_path, recipe, on_epoch=rows.append)
    losses = [row["validation_loss"] for row in rows]
    best = losses.index(min(losses))
    assert same(projector, plain_loop(features, recipe)[best])
    assert same(Projector.from_pretrained(tmp_path / "last"), plain_loop(features, recipe)[-1])


@pytest.mark.parametrize("loss", ["infonce+distribution", "mse"])
def test_a_single_pair_left_over_joins_the_step_before(tmp_path, loss):
    features = write_features(tmp_path / "features", clips=36)  # 33 to train on, 3 to validate on
    asked, recipe = [], replace(STILL, batch_size=16, epochs=1, loss=loss)
    train(features, tmp_path / "out", recipe, on_step=lambda done, total: asked.append((done, total)))
    assert asked == [(1, 2), (2, 2)]


def test_no_source_is_trained_and_validated_on(features, tmp_path, monkeypatch):
    asked = []
    original = FeatureFolder.rows
    monkeypatch.setattr(
        FeatureFolder, "rows", lambda self, rows: (asked.append(rows), original(self, rows))[1]
    )
    train(features, tmp_path, replace(SMALL, epochs=1))
    data = FeatureFolder(features)
    _, validation = split_by_source(data.sources, 0.1, 0)
    *steps, last, pool = asked
    assert torch.equal(last, validation) and torch.equal(pool, validation)
    trained = {data.sources[row] for rows in steps for row in rows.tolist()}
    assert not trained & {data.sources[row] for row in validation.tolist()}
    assert sum(map(len, steps)) == len(data) - len(validation)


def test_validation_holds_no_more_rows_than_retrieval_does(features, tmp_path, monkeypatch):
    many = write_features(tmp_path / "many", clips=900)
    asked = []
    original = FeatureFolder.rows
    monkeypatch.setattr(
        FeatureFolder, "rows", lambda self, rows: (asked.append(len(rows)), original(self, rows))[1]
    )
    train(many, tmp_path / "out", replace(SMALL, epochs=1, validation=0.7))
    assert sum(asked) == 900 + POOL and sorted(asked)[-2:] == [SMALL.batch_size, POOL]


def test_a_weighted_sum_finds_the_block_that_tells(blocks, tmp_path):
    recipe = replace(SMALL, fusion="weighted_sum", epochs=15, learning_rate=1e-2)
    projector = train(blocks, tmp_path / "weighted", recipe)
    weights = projector.layer_weights.softmax(0)
    assert weights.argmax() == 1 and weights[1] > 0.5
    assert (projector.fusion, projector.layers) == ("weighted_sum", LAYERS)


def test_fusions_of_stored_blocks(blocks, tmp_path):
    ranks = {}
    for fusion, n in (("middle_only", None), ("final_only", None), ("last_n", 2), (None, None)):
        rows = []
        name = f"{fusion}{n}"
        recipe = replace(SMALL, fusion=fusion, n=n, epochs=8)
        projector = train(blocks, tmp_path / name, recipe, on_epoch=rows.append)
        ranks[name] = min(row["A2V_mean_rank"] for row in rows)
        assert projector.fusion == {None: "average_all", "last_n": "last_n:2"}.get(fusion, fusion)
    assert ranks["last_n2"] < ranks["final_onlyNone"]  # of three blocks the second tells, the last doesn't


def test_a_plateau_lowers_the_rate_and_then_ends_it(features, tmp_path):
    rows = []
    recipe = replace(STILL, learning_rate=0.3, epochs=30, patience=1, early_stopping=6)
    train(features, tmp_path, recipe, on_epoch=rows.append)
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == 0.3 and rates[-1] <= 0.03 + 1e-9
    best = min(range(len(rows)), key=lambda epoch: rows[epoch]["validation_loss"])
    assert len(rows) == min(best + 1 + 6, 30)


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llava_soundclip.training.fit import Recipe, advice, train

features, out, recipe = sys.argv[1], sys.argv[2], eval(sys.argv[3])
train(features, out, recipe, save_every=0.0, on_step=lambda done, total: print(done, flush=True))
"""


def script(features: Path, out: Path, recipe: Recipe, *launcher: str) -> list[str]:
    """The command of a training in a process of its own."""
    path = out.parent / "script.py"
    path.write_text(SCRIPT)
    return [sys.executable, *launcher, str(path), str(features), str(out), repr(recipe)]


@pytest.mark.parametrize("killed_after", [1, 9, 16])
def test_killed_and_gone_on_with_is_never_killed(features, tmp_path, killed_after):
    """Epochs have seven steps. Dropout is on, so the random numbers go on, too."""
    recipe = replace(SMALL, accumulate=2)
    whole = train(features, tmp_path / "whole", recipe)
    command = script(features, tmp_path / "killed", recipe)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= killed_after:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "killed" / METRICS).exists()
    rest = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert int(rest[0]) <= killed_after + 3  # it went on, and didn't begin anew
    assert killed_after < 2 or int(rest[0]) > 1
    assert same(Projector.from_pretrained(tmp_path / "killed"), whole)
    for name in ("last/model.safetensors", "model.safetensors", METRICS):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_are_one(features, tmp_path):
    """The same batches, each shared by two processes; the last ones of an epoch are uneven."""
    recipe = replace(STILL, epochs=2)
    whole = train(features, tmp_path / "one", recipe)
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no")
    command = script(features, tmp_path / "two", recipe, *launcher)
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    both = Projector.from_pretrained(tmp_path / "two")
    for (name, one), two in zip(whole.state_dict().items(), both.state_dict().values(), strict=True):
        assert torch.allclose(one, two, atol=1e-4), name
    metrics = [json.loads((tmp_path / run / METRICS).read_text().splitlines()[0]) for run in ("one", "two")]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3)


def test_another_run_is_not_gone_on_with(features, blocks, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(features, tmp_path, SMALL, save_every=0.0, on_step=stop)
    with pytest.raises(ValueError, match="holds another run: learning_rate was 0.003 and is 0.1"):
        train(features, tmp_path, replace(SMALL, learning_rate=0.1))
    with pytest.raises(ValueError, match="holds another run: features was"):
        train(blocks, tmp_path, SMALL)
    projector = train(features, tmp_path, SMALL)
    with pytest.raises(ValueError, match="holds a finished run"):
        train(features, tmp_path, SMALL)
    assert same(projector, Projector.from_pretrained(tmp_path))


def test_a_finished_run_says_so_and_another_recipe_is_refused(features, blocks, tmp_path):
    train(features, tmp_path, SMALL)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(FinishedRunError, match="holds a finished run of this recipe: there is nothing to do"):
        train(features, tmp_path, SMALL)
    for call in (
        lambda: train(features, tmp_path, replace(SMALL, seed=7)),
        lambda: train(blocks, tmp_path, SMALL),
    ):
        with pytest.raises(
            ValueError, match="holds a finished run: (seed was 0 and is 7|features was)"
        ) as caught:
            call()
        assert not isinstance(caught.value, FinishedRunError)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(ValueError, match="holds a finished run: give another folder"):
        train(features, tmp_path, SMALL)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_an_interruption_saves_the_state_of_the_last_update(features, tmp_path):
    # A shell's background jobs ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press(done: int, total: int) -> None:
        if done == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(features, tmp_path / "a", SMALL, save_every=1e9, on_step=press)
    signal.signal(signal.SIGINT, before)
    state = torch.load(tmp_path / "a" / STATE, weights_only=True)
    assert state["step"] == 5
    assert same(train(features, tmp_path / "a", SMALL), train(features, tmp_path / "b", SMALL))


@pytest.mark.parametrize("damage", ["cut", "code", "foreign", "keys"])
def test_a_state_that_is_damaged_is_a_sentence(features, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train(features, tmp_path, SMALL, save_every=0.0, on_step=interrupt)
    path = tmp_path / STATE
    state = torch.load(path, weights_only=True)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "code":
        torch.save({**state, "rows": print}, path)
    elif damage == "foreign":
        torch.save({"a": torch.ones(2)}, path)
    else:
        torch.save({**state, "projector": {}}, path)
    with pytest.raises(ValueError, match=STATE) as caught:
        train(features, tmp_path, SMALL)
    assert "weights_only" not in str(caught.value)


def test_two_runs_do_not_train_in_one_folder(features, tmp_path):
    def again(done: int, total: int) -> None:
        with pytest.raises(BlockingIOError, match="another run is working in"):
            train(features, tmp_path, SMALL)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(features, tmp_path, SMALL, on_step=again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' is unknown; known: cosine, mse"),
        ({"precision": "fp8"}, "precision='fp8' is unknown"),
        ({"fusion": "first"}, "fusion='first' is unknown"),
        ({"fusion": "last_n"}, "needs n"),
        ({"n": 2}, 'for fusion="last_n" only'),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"batch_size": -1}, "batch_size must be 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0"),
        ({"batch_size": 1}, "a batch of one pair has no other pair"),
        ({"batch_size": 1, "loss": "infonce"}, "loss='infonce' needs batches of 2 or more"),
        ({"batch_size": 1, "loss": "distribution"}, "loss='distribution' needs batches of 2 or more"),
        ({"temperature": 0.0}, "temperature must be a number above 0, not 0.0"),
        ({"temperature": 0.5, "loss": "mse"}, "loss='mse' has no temperature"),
    ],
)
def test_absurd_recipes(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


@pytest.mark.parametrize("loss", ["infonce", "infonce+distribution"])
def test_the_temperature_is_that_of_the_loss(features, tmp_path, loss):
    recipe = replace(STILL, loss=loss, epochs=1, temperature=0.5)
    assert same(train(features, tmp_path / "out", recipe), plain_loop(features, recipe)[-1])
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["recipe"]["temperature"] == 0.5


def test_a_state_without_a_temperature_had_the_default(features, tmp_path):
    """Written before a recipe had one."""
    with pytest.raises(KeyboardInterrupt):
        train(features, tmp_path, SMALL, save_every=0.0, on_step=interrupt)
    state = torch.load(tmp_path / STATE, weights_only=True)
    del state["identity"]["temperature"]
    torch.save(state, tmp_path / STATE)
    with pytest.raises(ValueError, match="holds another run: temperature was 0.07 and is 0.5"):
        train(features, tmp_path, replace(SMALL, temperature=0.5))
    train(features, tmp_path, SMALL)


def diverging(monkeypatch, step: int, value: float = float("nan")) -> list[int]:
    """Multiply the loss of a step, counted from 1 over all epochs, by a value; returns the counted steps."""
    original, counted = fit.make_loss, []

    def make(name, *, gather=True, **options):
        loss_of = original(name, gather=gather, **options)

        def broken(f_a, c):
            counted.append(len(counted) + 1)
            found = loss_of(f_a, c)
            return {**found, "loss": found["loss"] * (value if len(counted) == step else 1)}

        return broken if gather else loss_of  # validation doesn't gather

    monkeypatch.setattr(fit, "make_loss", make)
    return counted


def finite(projector: Projector) -> bool:
    return all(tensor.isfinite().all() for tensor in projector.state_dict().values())


def read_strictly(folder: Path) -> list[dict]:
    """The metrics by a reader that knows no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (folder / METRICS).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_diverges_stops_at_once_and_resumes_from_before(features, tmp_path, monkeypatch, value):
    """Epochs have seven steps: step 17 is the third of epoch 3."""
    whole = train(features, tmp_path / "whole", SMALL)
    with monkeypatch.context() as patched:
        counted = diverging(patched, 17, value)
        with pytest.raises(DivergedError) as error:
            train(features, tmp_path / "out", SMALL)
    assert counted[-1] == 17
    told = str(error.value)
    assert f"the loss is {value} at step 17 (epoch 3)" in told and "a learning rate below 0.003" in told
    assert "keeps the last saved state, and the weights of epoch" in told and "in another folder" in told
    rows = read_strictly(tmp_path / "out")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert finite(Projector.from_pretrained(tmp_path / "out"))
    assert finite(Projector.from_pretrained(tmp_path / "out" / LAST))
    with pytest.raises(ValueError, match=r"learning_rate was .* Give another folder, or remove it"):
        train(features, tmp_path / "out", replace(SMALL, learning_rate=1e-4))
    assert same(train(features, tmp_path / "out", SMALL), whole)  # from the end of epoch 2
    assert read_strictly(tmp_path / "out") == read_strictly(tmp_path / "whole")


def test_a_first_step_that_diverges_is_not_the_learning_rates_fault(features, tmp_path, monkeypatch):
    diverging(monkeypatch, 1)
    recipe = replace(SMALL, temperature=1e-4)
    with pytest.raises(
        DivergedError, match="at step 1 .epoch 1.*Try a temperature above 0.0001, in the same folder"
    ):
        train(features, tmp_path, recipe)
    with pytest.raises(DivergedError, match="Try features of smaller numbers"):
        diverging(monkeypatch, 1)
        train(features, tmp_path, SMALL)
    assert not list(tmp_path.iterdir())  # nothing to resume, so that another recipe may begin here


def test_half_precision_that_overflows_is_told_of_the_others(features, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    diverging(monkeypatch, 1)
    AcceleratorState._reset_state()  # a process has one precision
    try:
        with pytest.raises(DivergedError, match="Try precision bf16 or no, in the same folder"):
            train(features, tmp_path, replace(SMALL, precision="fp16"))
    finally:
        AcceleratorState._reset_state()


@pytest.mark.parametrize("loss", ["cosine", "mse", "infonce", "infonce+distribution"])
def test_a_rate_that_breaks_the_weights_diverges(features, tmp_path, loss):
    recipe = replace(STILL, loss=loss, learning_rate=1e38, epochs=4)
    with pytest.raises(DivergedError, match=r"diverged: .* at step \d+ .*a learning rate below 1e\+38"):
        train(features, tmp_path, recipe)
    assert not list(tmp_path.iterdir())


def test_a_broken_state_is_never_saved(features, tmp_path, monkeypatch):
    """A gradient overflows at step 9: the weights are broken before any loss shows it."""
    original = torch.optim.Adam.step

    def step(self, *arguments, **options):
        result = original(self, *arguments, **options)
        if counted[-1] == 9:
            self.param_groups[0]["params"][0].data[0] = float("nan")
        return result

    counted = diverging(monkeypatch, 0)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(DivergedError, match="sum of a weight tensor is nan at step 9"):
        train(features, tmp_path, SMALL, save_every=0.0)
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(tensor.isfinite().all() for tensor in state["projector"].values())


def test_validation_that_diverges_writes_no_figures(features, tmp_path, monkeypatch):
    monkeypatch.setattr(Projector, "eval", lambda self: self.apply(lambda part: part.train(False)))
    original = fit.validate

    def broken(projector, *arguments):
        with torch.no_grad():
            next(projector.parameters()).mul_(1e38)
            list(projector.parameters())[-1].mul_(1e38)
        return original(projector, *arguments)

    monkeypatch.setattr(fit, "validate", broken)
    rows = []
    with pytest.raises(DivergedError, match=r"at step 7 \(epoch 1\)"):
        train(features, tmp_path, replace(SMALL, loss="cosine"), on_epoch=rows.append)
    assert not rows and not list(tmp_path.iterdir())


@pytest.mark.parametrize("clips", [4, 7, 15, 19])
@pytest.mark.parametrize("loss", ["cosine", "infonce", "infonce+distribution"])
def test_few_clips_are_enough_for_the_default_share(tmp_path, clips, loss):
    """One clip per video: a tenth of them is one, which would be found first among one."""
    features, told, rows = write_features(tmp_path / "features", clips, per_film=1), [], []
    train(
        features,
        tmp_path / "out",
        Recipe(loss=loss, hidden=8, epochs=2),
        on_note=told.append,
        on_epoch=rows.append,
    )
    assert told[-1] == few_held_out(2) and "only 2 clips are held out" in told[-1]
    assert "by chance the mean rank is 1.5" in told[-1] and [row["items"] for row in rows] == [2, 2]


@pytest.mark.parametrize(("clips", "per_film"), [(2, 1), (3, 1), (4, 3)])
def test_too_few_clips_are_refused_before_any_work(tmp_path, clips, per_film):
    features = write_features(tmp_path / "features", clips, per_film=per_film)
    with pytest.raises(
        ValueError, match=f"{clips} clips of .* videos can't be split: 2 clips are needed to train"
    ):
        train(features, tmp_path / "out", SMALL, on_step=lambda done, total: pytest.fail("it trains"))
    assert not (tmp_path / "out").exists()


def test_the_card_names_chance(tmp_path):
    features = write_features(tmp_path / "features", 12, per_film=1)
    train(features, tmp_path / "out", replace(SMALL, epochs=1))
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "mean rank (chance: 1.5)" in card and "R@1 (chance: 0.50)" in card and "R@10 (chance: 1.00)" in card
    )


def test_a_run_names_its_split_from_the_first_epoch_on(features, tmp_path):
    """Else an evaluation of an unfinished run would count the clips that it was trained on."""
    from llava_soundclip.evaluation.vectors import measured_rows

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise Stopped

    with pytest.raises(Stopped):
        train(features, tmp_path, SMALL, on_step=stop)
    folder = FeatureFolder(features)
    rows, chosen = measured_rows(folder, tmp_path)
    assert rows == "validation"
    assert torch.equal(chosen, split_by_source(folder.sources, SMALL.validation, SMALL.seed)[1])


def interrupt(done: int, total: int) -> None:
    if done == 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("clips", "options", "note"),
    [
        (
            35,
            {},
            (
                "35 training clips give 10 updates in 10 epochs, too few to learn much: "
                "try learning rate 0.001 and 500 epochs"
            ),
        ),
        (600, {"learning_rate": 0.01}, "try learning rate 0.01 and 167 epochs"),
        (600, {"accumulate": 2}, "give 20 updates in 10 epochs"),
        (35, {"epochs": 199}, "give 199 updates"),
        (35, {"epochs": 200}, None),
        (256 * 20, {}, None),
    ],
)
def test_too_few_clips_are_said_with_what_to_try(clips, options, note):
    found = advice(clips, Recipe(**options))
    assert found is None if note is None else note in found


def test_a_short_run_says_so_before_it_starts(features, tmp_path):
    told = []
    train(
        features,
        tmp_path,
        replace(SMALL, epochs=1),
        on_note=told.append,
        on_step=lambda done, total: told.append(done),
    )
    assert told[0] == advice(216, replace(SMALL, epochs=1)) and told[1] == 1


def test_recipes_that_do_not_fit(features, blocks, tmp_path):
    with pytest.raises(ValueError, match="fusion='final_only' needs the blocks of whisperclip"):
        train(features, tmp_path, replace(SMALL, fusion="final_only"))
    with pytest.raises(ValueError, match="n=4 is above the 3 blocks"):
        train(blocks, tmp_path, replace(SMALL, fusion="last_n", n=4))
    with pytest.raises(FileNotFoundError, match="isn't a features folder"):
        train(tmp_path / "nothing", tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="1 source"):
        train(write_features(tmp_path / "small", clips=3), tmp_path / "out", SMALL)


def test_states_are_saved_by_the_clock(features, tmp_path):
    """With a long wait only at the ends of epochs."""
    saved = []

    def look(done: int, total: int) -> None:
        path = tmp_path / STATE
        saved.append(path.stat().st_mtime_ns if path.exists() else None)

    train(features, tmp_path, replace(SMALL, epochs=2), save_every=1e9, on_step=look)
    assert saved[:7] == [None] * 7 and len(set(saved[7:])) == 1 and saved[7] is not None
