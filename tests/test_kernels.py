"""Each kernel against the same in plain torch, in fp32 and bf16, at widths that do and do not fill its registers."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.models.cpu import build, kernels
from tutelage.models.logprobs import token_logprobs
from tutelage.models.packing import Trees
from tutelage.sampling import local

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """So that a race would show, and memory that was not written."""
    if not kernels.available() and not os.environ.get("CI"):
        pytest.skip("no C++ compiler")
    assert kernels.available()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # new memory holds NaN, so that what a kernel has not written shows
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def assert_alike(found: Tensor, expected: Tensor, roundings: int = 1) -> None:
    """bf16 may be off by its own rounding, or by several."""
    error = 1e-6 if found.dtype == torch.float32 else 4e-3 * roundings
    assert (found.double() - expected).norm() <= error * expected.norm() + 1e-12


def compare(ours: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Values and gradients of ours against those of an exact formula in fp64."""
    mine = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    found, expected = ours(*mine), exact(*theirs)
    assert_alike(found, expected)
    grad = torch.randn(expected.shape).to(found.dtype)
    found.backward(grad)
    expected.backward(grad.double())
    for a, b in zip(mine, theirs, strict=True):
        assert_alike(a.grad, b.grad)


@pytest.mark.parametrize("d", [3, 16, 100])
@pytest.mark.parametrize("kinds", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)])
def test_rms_norm(kinds: tuple[torch.dtype, torch.dtype], d: int) -> None:
    compare(
        lambda x, w: kernels.rms_norm(x, w, 1e-5, kinds[1]),
        lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w,
        [torch.randn(37, d).to(kinds[0]), torch.randn(d)],
    )


@pytest.mark.parametrize("d", [3, 16, 100])
@pytest.mark.parametrize("wanted", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.5)], ids=["sum", "norm", "both"])
def test_a_sum_and_its_rms_norm(wanted: tuple[float, float], d: int) -> None:
    both = torch.tensor(wanted)

    def exact(x: Tensor, more: Tensor, w: Tensor) -> Tensor:
        total = x + more
        return both[0] * total + both[1] * total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w

    def ours(x: Tensor, more: Tensor, w: Tensor) -> Tensor:
        total, y = kernels.add_rms_norm(x, more, w, 1e-5, torch.float32)
        return sum(part * z for part, z in zip(both, (total, y), strict=True) if part)

    compare(ours, exact, [torch.randn(37, d), torch.randn(37, d), torch.randn(d)])


def test_a_sum_in_mixed_precision_and_its_rms_norm() -> None:
    """As under autocast, and in a rounded model, where the norm is that of the rounded sum."""
    x, more, w = torch.randn(5, 40), torch.randn(5, 40).bfloat16(), torch.randn(40)
    given = [x.requires_grad_(), more.requires_grad_(), w]
    total, y = kernels.add_rms_norm(*given, 1e-5, torch.bfloat16)
    assert (total.dtype, y.dtype) == (torch.float32, torch.bfloat16)
    assert_close(total, x + more.float())
    (total.sum() + y.float().sum()).backward()
    assert more.grad.dtype == torch.bfloat16
    assert_close(more.grad, x.grad.bfloat16())
    total, y = kernels.add_rms_norm(x.detach().bfloat16(), more.detach(), w, 1e-5, torch.bfloat16)
    assert_close(total, x.detach().bfloat16() + more.detach(), rtol=0, atol=0)
    assert_close(y, kernels.rms_norm(total, w, 1e-5, torch.bfloat16), rtol=0, atol=0)


def test_gradients_of_a_sum_and_its_norm_are_each_ones_own() -> None:
    """Where one of the three has none, where both summands are one tensor, and a second time."""
    values, grads = [torch.randn(7, 20), torch.randn(7, 20), torch.randn(20)], torch.randn(2, 7, 20)

    def gradients(*needed: bool) -> list[Tensor | None]:
        given = [value.clone().requires_grad_(need) for value, need in zip(values, needed, strict=True)]
        torch.autograd.backward(kernels.add_rms_norm(*given, 1e-5, torch.float32), tuple(grads))
        return [x.grad for x in given]

    every = gradients(True, True, True)
    for frozen in range(3):
        some = gradients(*(i != frozen for i in range(3)))
        assert some.pop(frozen) is None
        assert_close(some, [g for i, g in enumerate(every) if i != frozen], rtol=0, atol=0)
    x = values[0].clone().requires_grad_()
    outputs = kernels.add_rms_norm(x, x, values[2], 1e-5, torch.float32)
    found = [torch.autograd.grad(outputs, x, tuple(grads), retain_graph=True)[0] for _ in range(2)]
    exact = x.detach().double().requires_grad_()
    total = 2 * exact
    norm = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * values[2]
    torch.autograd.backward((total, norm), tuple(grads.double()))
    for each in found:
        assert_alike(each, exact.grad)


def test_rms_norm_of_a_rounded_model() -> None:
    x, w = torch.randn(5, 40).bfloat16(), torch.randn(40).bfloat16()
    expected = torch.nn.functional.rms_norm(x.double(), (40,), w.double(), 1e-5)
    assert_alike(kernels.rms_norm(x, w, 1e-5, torch.bfloat16), expected)


@DTYPES
@pytest.mark.parametrize("n", [1, 16, 999])
def test_swiglu(n: int, dtype: torch.dtype) -> None:
    compare(kernels.swiglu, lambda g, u: g * g.sigmoid() * u, [(4 * torch.randn(n)).to(dtype) for _ in range(2)])


def turned(x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """By rotary positions, as transformers writes it."""
    if angles is None:
        return x
    a, b = x.chunk(2, -1)
    return x * angles[0].to(x)[:, None] + torch.cat([-b, a], -1) * angles[1].to(x)[:, None]


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, angles: tuple[Tensor, Tensor] | None, cuts: list[list[int]], scale: float
) -> Tensor:
    """By a mask of what each token sees."""
    sees = torch.zeros(len(q), len(q), dtype=torch.bool)
    for tree in cuts:
        for start, end in pairwise(tree):
            sees[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
            if start > tree[0]:
                sees[start:end, tree[0] : tree[1]] = True
    groups = q.shape[1] // k.shape[1]
    k, v = turned(k, angles).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", turned(q, angles), k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), v)


def some_angles(n: int, d: int) -> tuple[Tensor, Tensor]:
    theta = torch.randn(n, d // 2).repeat(1, 2)
    return theta.cos(), theta.sin()


@DTYPES
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize(
    ("d", "heads", "kv_heads", "cuts"),
    [
        (32, 4, 4, [[0, 40], [40, 41], [41, 130]]),
        (8, 4, 2, [[0, 5], [5, 12, 20, 27, 27, 60], [60, 60, 63, 90]]),  # a branch, and a beginning, without a token
        (20, 6, 2, [[0, 150, 200, 230], [230, 260]]),
        (33, 2, 2, [[0, 53], [53, 70, 74]]),  # a width that cannot be turned
        (64, 2, 1, [[0, 61]]),
    ],
)
def test_attention(d: int, heads: int, kv_heads: int, cuts: list[list[int]], rotary: bool, dtype: torch.dtype) -> None:
    n = cuts[-1][-1]
    angles = some_angles(n, d) if rotary and d % 2 == 0 else None
    compare(
        lambda q, k, v: kernels.attention(q, k, v, angles, Trees.of(cuts), 0.3),
        lambda q, k, v: plain_attention(q, k, v, angles, cuts, 0.3),
        [torch.randn(n, h, d).to(dtype) for h in (heads, kv_heads, kv_heads)],
    )


@DTYPES
@pytest.mark.parametrize("cuts", [[[0, 150, 200, 230], [230, 260]], [[0, 5], [5, 12, 20, 27, 27, 60]]])
def test_what_stood_in_memory_before_does_not_matter(cuts: list[list[int]], dtype: torch.dtype) -> None:
    torch.set_num_threads(1)  # so that the same memory is worked in
    nothing = [torch.full((512, 4, 32), torch.nan, dtype=dtype).requires_grad_() for _ in range(3)]
    out = kernels.attention(*nothing, None, Trees.of([[0, 512]]), 1.0)
    out.backward(torch.full_like(out, torch.nan))
    test_attention(20, 4, 2, cuts, True, dtype)


def test_what_is_in_no_tree_is_nothing() -> None:
    given = [torch.randn(24, 2, 8, requires_grad=True) for _ in range(3)]
    out = kernels.attention(*given, None, Trees.of([[0, 5], [9, 20]]), 1.0)
    out.sum().backward()
    for x in (out, *(y.grad for y in given)):
        assert (x[5:9] == 0).all()
        assert (x[20:] == 0).all()
        assert not x.isnan().any()


def test_without_gradients_the_results_are_the_same() -> None:
    x, w = torch.randn(12, 2, 16, requires_grad=True), torch.randn(16)
    for make in (
        lambda: kernels.rms_norm(x, w, 1e-5, torch.float32),
        lambda: kernels.add_rms_norm(x, x, w, 1e-5, torch.float32)[1],
        lambda: kernels.swiglu(x, x),
        lambda: kernels.attention(x, x, x, None, Trees.of([[0, 12]]), 1.0),
    ):
        expected = make()
        for off in (torch.no_grad, torch.inference_mode):
            with off():
                found = make()
            assert not found.requires_grad
            assert_close(found, expected.detach(), rtol=0, atol=0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="registers of other widths are of x86-64")
def test_registers_of_another_width(tmp_path: Path) -> None:
    """Of four numbers; here they have eight or sixteen."""
    compiler = os.environ.get("CXX") or "g++"
    given = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CXX": f"{compiler} -mno-avx"}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", __file__, "-k"]
    done = subprocess.run(
        [*run, "attention or rms_norm or swiglu or cache"], capture_output=True, text=True, env=given, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"[1-9]\d+ passed|^\.{20,}", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    """Blocks of the C library itself, as torch's may happen to be kept; and whoever sets it has their way."""
    code = """
import ctypes, resource
from tutelage.models.cpu import kernels
assert kernels.available()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def turns(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        held = [libc.malloc(2**24) for _ in range(10)]
        for block in held:
            libc.memset(block, 1, 2**24)
        for block in reversed(held):
            libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
turns(2)
print(turns(5))
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    faults = [
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=given).stdout)
        for given in (plain, {**plain, "MALLOC_TRIM_THRESHOLD_": "131072"})
    ]
    assert faults[0] < 1000 < faults[1]


def test_a_broken_gradient_stays_broken() -> None:
    q, k, v = (torch.randn(9, 2, 8, requires_grad=True) for _ in range(3))
    out = kernels.attention(q, k, v, None, Trees.of([[0, 4], [4, 9]]), 1.0)
    grad = torch.zeros_like(out)
    grad[5, 1, 3] = torch.nan
    out.backward(grad)
    assert q.grad[5, 1].isnan().all()
    assert not q.grad[:4].isnan().any()
    x = torch.full((3, 16), torch.nan)
    assert kernels.swiglu(x, x).isnan().all()
    assert kernels.rms_norm(x, torch.ones(16), 1e-5, torch.float32).isnan().all()
    assert kernels.logprobs(x, None, torch.zeros(3, dtype=torch.long), 1.0, True)[0].isnan().all()


@DTYPES
@pytest.mark.parametrize(("d", "heads", "kv_heads"), [(32, 4, 4), (20, 6, 2), (8, 2, 1)])
def test_a_cache_is_attention(d: int, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    """Prompts of several lengths, one of them shared by two rows, then a token at a time, in places out of order."""
    lengths, places, new = [5, 20, 1, 16], {0: [3], 1: [0, 4], 2: [1], 3: [5]}, 18
    keys, values = (torch.randn(len(lengths), 40, kv_heads, d).to(dtype) for _ in range(2))
    angles, scale = some_angles(40, d), 0.4
    cache = kernels.Cache.empty(6, kv_heads, 40, d, dtype)
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)
    for row, n in enumerate(lengths):
        slots, turn = torch.arange(n), (angles[0][:n].contiguous(), angles[1][:n].contiguous())
        where = torch.full((n,), places[row][0])
        cache.remember(keys[row, :n].contiguous(), values[row, :n].contiguous(), turn, slots, where, slots)
    of = torch.tensor([row for row in places for _ in places[row]])
    place = torch.tensor([p for each in places.values() for p in each])
    beginning = (torch.tensor([places[int(row)][0] for row in of]), torch.tensor(lengths)[of])
    for step in range(new):
        at = torch.tensor(lengths)[of] + step
        turn = (angles[0][at], angles[1][at])
        cache.remember(keys[of, at], values[of, at], turn, torch.arange(len(of)), place, at)
        query = torch.randn(len(of), heads, d).to(dtype)
        found = cache.recall(query, turn, beginning, place, at + 1, scale)
        for i, (row, n) in enumerate(zip(of.tolist(), (at + 1).tolist(), strict=True)):
            q = torch.zeros(n, heads, d, dtype=torch.float64)
            q[-1] = query[i]
            sofar = (angles[0][:n], angles[1][:n])
            exact = plain_attention(q, keys[row, :n].double(), values[row, :n].double(), sofar, [[0, n]], scale)
            assert_alike(found[i], exact[-1], roundings=3)  # keys are rounded once more when they have been turned


@DTYPES
@pytest.mark.parametrize("biased", [False, True])
def test_log_probabilities(biased: bool, dtype: torch.dtype) -> None:
    """As without kernels; a bias of -inf rules a token out of probability and entropy."""
    hidden, weight, targets = torch.randn(50, 24), torch.randn(301, 24), torch.randint(0, 300, (50,))
    bias = torch.randn(301) if biased else None
    if bias is not None:
        bias[300] = -torch.inf
    found = []
    for there in (True, False):
        given = [x.clone().requires_grad_() for x in (hidden, weight, *([bias] if biased else []))]
        with mock.patch.object(kernels, "available", return_value=there):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logprobs, entropy = token_logprobs(
                    *given[:2], targets, bias=given[2] if biased else None, temperature=0.7, chunk_tokens=16
                )
            (logprobs * torch.linspace(-1, 1, 50)).sum().backward()
        found.append([logprobs.detach(), entropy, *(x.grad for x in given)])
    rounding = 2e-6 if dtype == torch.float32 else 0.01
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= rounding * b.norm()


@DTYPES
def test_draws_are_those_without_kernels(dtype: torch.dtype) -> None:
    """The same tokens but where either calls it close; and greedily, the likeliest."""
    n, v = 4000, 301
    logits = (3 * torch.randn(n, v)).to(dtype)
    whole = {"index": 0, "top_k": 0, "budget": 1, "position": 1, "place": 0}
    columns = {name: torch.full((n,), value) for name, value in whole.items()}
    temperature = torch.tensor([0.0, 0.5, 1.0, 1.7]).repeat(n // 4)
    rows = local._Rows(
        seeds=torch.randint(0, 2**62, (n,)),
        step=torch.arange(n),
        temperature=temperature,
        top_p=torch.ones(n),
        **columns,
    )
    found = local.choose(logits, rows)
    with mock.patch.object(kernels, "available", return_value=False):
        expected = local.choose(logits, rows)
    close = found[2] | expected[2]
    assert close.float().mean() < (0.01 if dtype == torch.float32 else 0.05)
    assert torch.equal(found[0][~close], expected[0][~close])
    assert_close(found[1][~close], expected[1][~close], rtol=0, atol=1e-4)
    assert (found[0].bincount(minlength=v) > 0).all()
    greedy = (temperature == 0) & ~close
    assert torch.equal(found[0][greedy], logits.float().argmax(1)[greedy])


def test_the_kernels_are_made_once_and_kept(tmp_path: Path) -> None:
    """In the user's cache, private; a second process loads them; without a compiler it is said how it will be."""
    code = "from tutelage.models.cpu import kernels; print(kernels.available())"

    def told(**environment: str) -> tuple[str, str]:
        given = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=given)
        return done.stdout.strip(), done.stderr.strip()

    assert told() == ("True", "compiling kernels for this processor, once: a few seconds")
    (made,) = (tmp_path / "tutelage" / "kernels").glob("*.so")
    assert (tmp_path / "tutelage").stat().st_mode & 0o077 == 0
    before = made.stat().st_mtime_ns
    assert told() == ("True", "")
    assert made.stat().st_mtime_ns == before
    whole = made.read_bytes()
    made.write_bytes(whole[: len(whole) // 2])  # to load half a library ends the process by SIGBUS
    assert told() == ("True", "compiling kernels for this processor, once: a few seconds")
    assert made.read_bytes() == whole
    assert {p.suffix for p in made.parent.iterdir()} == {".so", ".sha256"}
    assert told(TUTELAGE_KERNELS="0") == ("False", "")
    available, complaint = told(CXX="false")
    assert available == "False"
    assert complaint.splitlines()[-1].startswith("kernels were not compiled, so this runs slower")


def test_what_does_not_fit_is_refused() -> None:
    """Memory that is not its own is never read: shapes, dtypes and layouts are looked at before."""
    x = torch.randn(6, 16)
    assert_alike(
        kernels.rms_norm(x.T, torch.ones(6), 1e-5, torch.float32), torch.rms_norm(x.T, (6,), eps=1e-5).double()
    )
    gate, up = torch.randn(5, 32).chunk(2, -1)
    assert_alike(kernels.swiglu(gate, up), (torch.nn.functional.silu(gate) * up).double())
    for call in (
        lambda: kernels.swiglu(x, x.bfloat16()),
        lambda: kernels.swiglu(x, x[:1]),
        lambda: kernels.add_rms_norm(x, x[:1], torch.ones(16), 1e-5, torch.float32),
        lambda: kernels.rms_norm(x, torch.ones(8), 1e-5, torch.float32),
    ):
        with pytest.raises(AssertionError):
            call()
    logits, bias = torch.randn(3, 8), torch.randn(8)
    for targets in (torch.tensor([1, 2, 7], dtype=torch.int32), torch.tensor([1, 0, 2, 0, 7, 0])[::2]):
        found = kernels.logprobs(logits, bias[None].expand(2, 8)[0], targets, 1.0, False)[0]
        assert_alike(found, (logits + bias).double().log_softmax(1)[torch.arange(3), targets.long()])
    for wrong in (-100, 8):
        with pytest.raises(IndexError, match=f"{wrong}"):
            kernels.logprobs(logits, None, torch.tensor([0, 1, wrong]), 1.0, False)
    with pytest.raises(AssertionError):
        kernels.logprobs(logits, bias[:7], torch.tensor([0, 1, 2]), 1.0, False)


def test_nan_in_any_form_stays_one() -> None:
    odd = torch.tensor([0x7FC00001, 0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int64).to(torch.int32).view(torch.float32)
    x = odd.repeat(8).view(2, 16)
    assert kernels.swiglu(x, x).isnan().all()
    assert kernels.rms_norm(x, torch.ones(16), 1e-5, torch.bfloat16).isnan().all()
    logits = torch.zeros(4, 16)
    logits[:, 5] = odd  # not the target
    assert kernels.logprobs(logits, None, torch.zeros(4, dtype=torch.long), 1.0, True)[0].isnan().all()


def test_every_function_that_is_exported_is_called() -> None:
    called = set(re.findall(r'_call\(\s*"(\w+)"', Path(kernels.__file__).read_text()))
    assert set(build.signatures()) == called


@pytest.mark.parametrize("wrong", [(3,), (3, None, 4), (None, torch.ones(4)), (torch.ones(4), torch.ones(4))])
def test_a_call_unlike_the_definition_in_c_is_refused(wrong: tuple[object, ...]) -> None:
    """An argument too few, or a number where a tensor goes, or the reverse: swiglu takes gate, up, count and output."""
    with pytest.raises((ValueError, ctypes.ArgumentError)):
        kernels._call("swiglu", (torch.float32,), torch.ones(4), torch.ones(4), *wrong)
