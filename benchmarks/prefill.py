"""Time saved by a budget of k patches: `tokens="drop"` against stock LLaVA-1.5-7B and other token reducers.

    python benchmarks/prefill.py
    python benchmarks/prefill.py --miniature      # the whole real path, on the demo model

Full-size random weights: CLIP ViT-L/14 at 336 px, the mm_projector, two layers of a 7B LLaMA, and its head. The layers'
time, FLOPs and cache are scaled to 32 layers. Time to first token = tower + reducer + mm_projector + language model.
All parts are timed in one run, interleaved. torch counts the FLOPs of the same calls.

Reducers keep k + 1 tokens:

- soundclip: the sound in the slot and the k patches most similar to it (`AudioTokenSubstituter.drop`);
- attention: VisionZip's way. Nine tenths of the tokens are chosen by the attention that CLS pays them; all others are
  merged into the last tenth. It needs one layer's attention map, which a fused kernel doesn't return, so that layer is
  computed again.
- merging: ToMe's way, bipartite soft matching of the tower's output until k + 1 tokens are left.

FastV drops tokens inside the language model, after its second layer: its figure comes from FLOPs of our layers alone.
These are plain implementations for the comparison, not those projects' code.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from full_size import LAYERS, build_llm, build_mm_projector, build_tower
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionModel, DynamicCache

from llava_soundclip import AudioTokenSubstituter, Projector

WORDS = 40  # text tokens beside the image
TIMED = 2  # language model layers that are run
PATCHES, FASTV_LAYER = 576, 2


def build(dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Full-size random parts."""
    parts = {
        "tower": build_tower(),
        "mm_projector": build_mm_projector(),
        "llm": build_llm(TIMED),
        "head": nn.Linear(4096, 32064, bias=False),
        "projector": Projector(768, 1024),
    }
    return {name: part.to(device, dtype).eval() for name, part in parts.items()}


def attention_reducer(tower: CLIPVisionModel, hidden: Sequence[Tensor], count: int) -> Tensor:
    """Keep `count` tokens of (B, N+1, D): nine tenths by CLS's attention, the rest merged into the last tenth."""
    tokens, before = hidden[-2], hidden[-3]
    layer = getattr(tower, "vision_model", tower).encoder.layers[-2]
    states, heads = layer.layer_norm1(before), layer.self_attn.num_heads
    query = layer.self_attn.q_proj(states).unflatten(-1, (heads, -1)).transpose(1, 2)
    key = layer.self_attn.k_proj(states).unflatten(-1, (heads, -1)).transpose(1, 2)
    weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
    merged = count // 10
    score = weights[:, :, 0, 1:].sum(1)
    order = score.argsort(1, descending=True) + 1
    index = order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    ranked = tokens.gather(1, index)
    kept, rest = ranked[:, : count - merged], ranked[:, count - merged :]
    if not merged or not rest.shape[1]:
        return kept
    targets = rest[:, :: max(1, rest.shape[1] // merged)][:, :merged]
    cosine = functional.normalize(rest, dim=-1) @ functional.normalize(targets, dim=-1).transpose(1, 2)
    member = functional.one_hot(cosine.argmax(-1), targets.shape[1]).to(tokens.dtype)
    mean = member.transpose(1, 2) @ rest / member.sum(1).clamp_min(1).unsqueeze(-1)
    return torch.cat([kept, mean], dim=1)


def merging_reducer(tokens: Tensor, count: int) -> Tensor:
    """Merge the most similar of two alternating halves of (B, N+1, D), repeatedly, until `count` are left."""
    while tokens.shape[1] > count:
        one, other = tokens[:, ::2], tokens[:, 1::2]
        merged = min(one.shape[1], tokens.shape[1] - count)
        cosine = functional.normalize(one, dim=-1) @ functional.normalize(other, dim=-1).transpose(1, 2)
        best, partner = cosine.max(-1)
        order = best.argsort(1, descending=True).unsqueeze(-1)
        gone, left = order[:, :merged], order[:, merged:]
        width = (-1, -1, tokens.shape[-1])
        target = partner.unsqueeze(-1).gather(1, gone).expand(*width)
        other = other.scatter_reduce(1, target, one.gather(1, gone.expand(*width)), "mean")
        tokens = torch.cat([one.gather(1, left.expand(*width)), other], dim=1)
    return tokens


def seconds(call: Callable[[], object], device: str) -> float:
    """Seconds of a call; the device is idle before and after it."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if device != "cpu":
        torch.cuda.synchronize()


def flops(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def run(parts: dict[str, nn.Module], batch: int, budgets: Sequence[int], rounds: int, device: str) -> None:
    """Time one batch size and print its table."""
    dtype = next(parts["llm"].parameters()).dtype
    images = torch.randn(batch, 3, 336, 336, device=device, dtype=dtype)
    sound = torch.randn(batch, 768, device=device, dtype=dtype)
    hidden = parts["tower"](images, output_hidden_states=True).hidden_states
    tokens = hidden[-2]
    lengths = sorted({PATCHES, *(k + 1 for k in budgets)})
    visual = {n: torch.randn(batch, n, 1024, device=device, dtype=dtype) for n in lengths}
    prompt = {n: torch.randn(batch, n + WORDS, 4096, device=device, dtype=dtype) for n in lengths}
    last = torch.randn(batch, 4096, device=device, dtype=dtype)

    calls: dict[str, Callable[[], object]] = {
        "tower": lambda: parts["tower"](images, output_hidden_states=True),
        "head": lambda: parts["head"](last),
    }
    for n in lengths:
        calls[f"mm_projector {n}"] = lambda n=n: parts["mm_projector"](visual[n])
        calls[f"llm {n}"] = lambda n=n: parts["llm"](inputs_embeds=prompt[n], use_cache=True)
    for k in budgets:
        keep = AudioTokenSubstituter(k)

        def drop(keep: AudioTokenSubstituter = keep) -> Tensor:
            f_a = parts["projector"](sound)
            return keep.drop(tokens, f_a, keep.select(tokens, f_a))

        calls[f"soundclip {k}"] = drop
        if k < PATCHES:
            calls[f"attention {k}"] = lambda k=k: attention_reducer(parts["tower"], hidden, k + 1)
            calls[f"merging {k}"] = lambda k=k: merging_reducer(tokens, k + 1)
    zero = AudioTokenSubstituter(150)
    calls["soundclip zero 150"] = lambda: zero(tokens, parts["projector"](sound))

    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first round warms up and isn't counted
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    counted = {name: flops(call) for name, call in calls.items()}

    def total(figures: dict[str, float], n: int, reducer: str | None) -> float:
        llm = LAYERS / TIMED * figures[f"llm {n}"]
        return (
            figures["tower"]
            + (figures[reducer] if reducer else 0)
            + figures[f"mm_projector {n}"]
            + llm
            + figures["head"]
        )

    cache = parts["llm"](inputs_embeds=prompt[PATCHES], use_cache=True).past_key_values
    row = cache_bytes(cache) / (PATCHES + WORDS) * LAYERS / TIMED
    stock_time, stock_flops = (total(figures, PATCHES, None) for figures in (median, counted))
    print(f"\nbatch {batch}: tower {median['tower']:.2f} s of {stock_time:.2f} s to the first token, stock")
    print(
        f"{'':24}{'tokens':>7}{'seconds':>9}{'KV MiB':>8}{'speed-up':>10}{'by FLOPs':>10}{'reached':>9}{'LLM alone':>11}{'by FLOPs':>10}"
    )
    print(f"{'stock':24}{PATCHES:7}{stock_time:9.2f}{row * (PATCHES + WORDS) / 2**20:8.0f}")
    for k in budgets:
        for reducer in ("soundclip", "attention", "merging"):
            if (name := f"{reducer} {k}") not in calls:
                continue
            spent, worked = total(median, k + 1, name), total(counted, k + 1, name)
            alone = median[f"llm {PATCHES}"] / median[f"llm {k + 1}"]
            alone_flops = counted[f"llm {PATCHES}"] / counted[f"llm {k + 1}"]
            print(
                f"{name:24}{k + 1:7}{spent:9.2f}{row * (k + 1 + WORDS) / 2**20:8.0f}{stock_time / spent:10.2f}"
                f"{stock_flops / worked:10.2f}{stock_time / spent / (stock_flops / worked):9.0%}"
                f"{alone:11.2f}{alone_flops:10.2f}"
            )
        if k < PATCHES:
            inside = counted[f"llm {PATCHES}"] * FASTV_LAYER + counted[f"llm {k + 1}"] * (
                LAYERS - FASTV_LAYER
            )
            fastv = stock_flops + inside / TIMED - LAYERS / TIMED * counted[f"llm {PATCHES}"]
            print(f"{f'FastV {k}, FLOPs only':24}{k + 1:7}{'':9}{'':8}{'':10}{stock_flops / fastv:10.2f}")
    print(
        "reducers, ms: "
        + ", ".join(
            f"{name} {1e3 * value:.1f}"
            for name, value in median.items()
            if name.split()[0] in ("soundclip", "attention", "merging")
        )
    )
    print(
        f"the hook, zero, k = 150: {100 * median['soundclip zero 150'] / stock_time:.3f} % of the stock prefill"
    )


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of a cache's keys and values."""
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


def run_miniature(rounds: int) -> None:
    """Time the whole path, `generate` for one token, on the miniature."""
    import numpy as np

    from llava_soundclip import load_demo
    from llava_soundclip.demo.kinds import make_scene, synthesise
    from llava_soundclip.prompts import chat_prompt

    soundclip = load_demo()
    model, processor = soundclip.model, soundclip.processor
    rng = np.random.default_rng(0)
    for batch in (1, 4, 8):
        pictures = [make_scene("bell", 96, rng) for _ in range(batch)]
        text = [chat_prompt(processor, soundclip.prompt)] * batch
        inputs = processor(images=pictures, text=text, return_tensors="pt")
        waves = [synthesise("bell", 1, 16_000, rng) for _ in range(batch)]
        settings = [("stock", 36)] + [(tokens, k) for tokens in ("zero", "drop") for k in (0, 9, 18, 36)]
        times: dict[tuple[str, int], list[float]] = {setting: [] for setting in settings}
        lengths: dict[tuple[str, int], int] = {}

        def generate(inputs: dict = inputs) -> object:
            return model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, do_sample=False)

        for _ in range(rounds + 1):
            for tokens, k in settings:
                if tokens == "stock":
                    start = time.perf_counter()
                    output = generate()
                else:
                    soundclip.tokens, soundclip.k = tokens, k
                    with soundclip.audio(waves, sampling_rate=16_000):  # encoded before the clock starts
                        start = time.perf_counter()
                        output = generate()
                times[tokens, k].append(time.perf_counter() - start)
                lengths[tokens, k] = output.past_key_values.layers[0].keys.shape[2]
        stock = statistics.median(times["stock", 36][1:])
        print(
            f"\nthe miniature, batch {batch}: stock {1e3 * stock:.0f} ms, {lengths['stock', 36]} tokens in its cache"
        )
        for (tokens, k), values in times.items():
            ratio = stock / statistics.median(values[1:])
            print(f"{tokens} {k:3}: {ratio:.2f} times as fast, {lengths[tokens, k]} tokens in the cache")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--budgets", type=int, nargs="+", default=[15, 64, 150, 576])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="bfloat16 on a GPU, float32 on a CPU by default")
    parser.add_argument("--miniature", action="store_true", help="the demo model instead")
    options = parser.parse_args()
    if options.miniature:
        run_miniature(options.rounds)
        return
    dtype = getattr(torch, options.dtype or ("float32" if options.device == "cpu" else "bfloat16"))
    parts = build(dtype, options.device)
    print(f"{options.device}, {dtype}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    for batch in options.batches:
        run(parts, batch, options.budgets, options.rounds, options.device)


if __name__ == "__main__":
    main()
