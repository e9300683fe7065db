"""Compiles the kernels for this machine on first use, in some seconds, and keeps the result in the user's cache.

Without a C++ compiler (`g++`, `c++`, or what CXX names), or with TUTELAGE_KERNELS=0, everything runs on torch alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tutelage.cache import cache_folder

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "attention.h", "numbers.h")]
# Not -ffast-math: NaN must stay NaN, so that a broken gradient is seen.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
NUMBERS: dict[str, Any] = {"i64": ctypes.c_int64, "float": ctypes.c_float, "double": ctypes.c_double}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None without a compiler that can make them (its complaint goes to standard error).

    A process that uses them also keeps the memory that it frees.
    """
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "")
    if os.environ.get("TUTELAGE_KERNELS") == "0" or not compiler or sys.platform == "win32":
        return None
    try:
        found = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = [*(getattr(error, "stderr", None) or "").splitlines(), str(error)]
        reason = next((line for line in said if "error" in line), said[-1])
        print(f"kernels were not compiled, so this runs slower: {reason}", file=sys.stderr)
        return None
    _keep_freed_memory()
    return found


@cache
def signatures() -> dict[str, list[str]]:
    """The types of each exported function's parameters, without const, as its definition names them: `T*`, `i64`."""
    code = "\n".join(source.read_text(encoding="utf-8") for source in SOURCES)
    defined = dict(re.findall(r"^static void (\w+)\((.*?)\) \{", code, re.MULTILINE | re.DOTALL))
    exported = re.findall(r"^EXPORT(?:_OF_TWO)?\((\w+)\)$", code, re.MULTILINE)
    return {name: re.findall(r"(?:const )?(\S+) \w+(?:,\s*|$)", defined[name]) for name in exported}


@cache
def function(name: str, suffix: str) -> Any:
    """An exported function for the dtypes that the suffix names. It takes addresses, or None, and numbers."""
    kernels, types = library(), (NUMBERS.get(kind, ctypes.c_void_p) for kind in signatures()[name])
    assert kernels is not None, "callers ask `kernels.available` first"
    return ctypes.CFUNCTYPE(None, *types)(ctypes.c_size_t.in_dll(kernels, f"{name}_{suffix}").value)


def _keep_freed_memory() -> None:
    """Let the C library keep freed memory, up to a GiB at an arena's end, but for blocks of 32 MiB and more.

    Each pass takes it again, at a page fault for every 4 KiB. Where its environment tells it how, that stays.
    """
    configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if not configured and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # glibc's
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that it takes, on 64 bits


def _compiled(compiler: list[str]) -> Path:
    """The shared library for this source, compiler and processor, made if it is not in the cache."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = (
        *(source.read_text(encoding="utf-8") for source in SOURCES),
        " ".join((*compiler, *FLAGS)),
        version,
        platform.machine(),
        _features(),
    )
    home = cache_folder("kernels")
    wanted = home / f"{hashlib.blake2b('|'.join(parts).encode(), digest_size=10).hexdigest()}.so"
    checksum = wanted.with_suffix(".sha256")
    if not _whole(wanted, checksum):
        print("compiling kernels for this processor, once: a few seconds", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            part, made = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
            # Linked without -fopenmp: the threads must be those of the OpenMP that torch has loaded, not a second set.
            openmp = () if sys.platform == "darwin" else ("-fopenmp",)
            compile_ = [*compiler, *FLAGS, *openmp, "-c", str(SOURCES[0]), "-o", str(part)]
            free = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
            for command in (compile_, [*compiler, "-shared", *free, str(part), "-o", str(made)]):
                subprocess.run(command, capture_output=True, text=True, check=True)
            (sum_made := Path(scratch) / "kernels.sha256").write_text(hashlib.sha256(made.read_bytes()).hexdigest())
            os.replace(made, wanted)
            os.replace(sum_made, checksum)
    return wanted


def _whole(library: Path, checksum: Path) -> bool:
    """Whether a kept library is what the compiler made: a process that loads half of one dies on the spot."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == checksum.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _features() -> str:
    """What the processor can do, as -march=native sees it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
