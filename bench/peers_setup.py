"""What `bench/peers.py` measures qwenkit against, built once into build/peers and kept there.

    python bench/peers_setup.py [--size 0.5B]

- llama.cpp from the source package llama-cpp-python, for this machine's instruction set, and its
  own GGUF files of the random checkpoint: BF16, Q4_0, Q8_0, Q4_K_M.
- OpenVINO GenAI with optimum-intel, in a virtual environment of its own that borrows PyTorch from
  the one that runs this script; the checkpoint in int4, groups of 128, ratio 1.
- transformers is a development dependency and needs nothing here.

A peer that cannot be built is named with the reason, and the others are measured all the same.
`QWENKIT_PEERS` names another folder than build/peers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from common import ROOT, checkpoint, machine, run, say

PEERS = Path(os.environ.get("QWENKIT_PEERS", ROOT / "build" / "peers")).resolve()
LLAMA_PACKAGE = "llama_cpp_python-0.3.36"
SOURCE = PEERS / LLAMA_PACKAGE / "vendor" / "llama.cpp"
BINARIES = PEERS / "llama.cpp" / "bin"
TOOLS = ("llama-quantize", "llama-bench", "llama-batched-bench", "llama-server")
TYPES = ("Q4_0", "Q8_0", "Q4_K_M")
PYTHON = PEERS / "venv" / "bin" / "python"
OPENVINO = ["openvino-genai>=2026", "nncf>=3.3", "transformers<5.6", "huggingface-hub<1.22"]
OPTIMUM = ["optimum-intel>=2.2", "optimum>=2.3"]
"""Installed without what they ask for: torchvision, and with it a second PyTorch."""
CMAKE = [
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
]  # fmt: skip


class Absent(Exception):
    """A peer that is not there, and why."""


def gguf(size: str, kind: str) -> Path:
    """Where llama.cpp's file of that type is."""
    return PEERS / f"{size}-{kind}.gguf"


def openvino_model(size: str) -> Path:
    return PEERS / f"{size}-openvino-int4"


def _try(what: str, *command: str | Path, **more: str) -> None:
    """Run a step of a build. Errors: Absent with the end of its output."""
    say(f"{what} …")
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **more},
    )
    if done.returncode:
        raise Absent(f"{what} failed: {' '.join(done.stdout.split()[-60:])}")


def build_llama() -> None:
    """llama.cpp's tools, for the instruction sets of this machine. Errors: Absent."""
    built_for = PEERS / "llama.cpp" / "built_for"
    here = " ".join([machine()["family"], *machine()["instruction_sets"]])
    if built_for.exists() and built_for.read_text() == here:
        return
    PEERS.mkdir(parents=True, exist_ok=True)
    if not SOURCE.exists():
        version = LLAMA_PACKAGE.rpartition("-")[2]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        _try("fetching llama.cpp", *pip, "-d", PEERS, f"llama-cpp-python=={version}")
        with tarfile.open(PEERS / f"{LLAMA_PACKAGE}.tar.gz") as archive:
            archive.extractall(PEERS, filter="data")
    _try("configuring llama.cpp", "cmake", "-S", SOURCE, "-B", PEERS / "llama.cpp", *CMAKE)
    jobs = str(os.cpu_count())
    build = ["cmake", "--build", str(PEERS / "llama.cpp"), "-j", jobs, "--target", *TOOLS]
    _try("building llama.cpp (many minutes)", *build)
    built_for.write_text(here)


def convert(size: str) -> None:
    """The checkpoint as llama.cpp's own tools convert and quantise it. Errors: Absent."""
    wide = gguf(size, "BF16")
    if not wide.exists():
        make_environment()
        script = SOURCE / "convert_hf_to_gguf.py"
        half = wide.with_suffix(".part")
        words: list[str | Path] = [
            PYTHON,
            script,
            checkpoint(size),
            "--outtype",
            "bf16",
            "--outfile",
            half,
        ]
        _try("converting to GGUF", *words, PYTHONPATH=str(SOURCE / "gguf-py"))
        half.rename(wide)
    for kind in TYPES:
        path = gguf(size, kind)
        if not path.exists():
            half = path.with_suffix(".part")
            _try(f"quantising to {kind}", BINARIES / "llama-quantize", wide, half, kind)
            half.rename(path)


def make_environment() -> None:
    """The virtual environment of OpenVINO and of llama.cpp's converter. Errors: Absent."""
    done = PEERS / "venv" / "complete"
    if done.exists():
        return
    _try("making the peers' environment", sys.executable, "-m", "venv", PEERS / "venv")
    site = next((PEERS / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "zz_borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip: list[str | Path] = [PYTHON, "-m", "pip", "install", "--quiet"]
    _try("installing OpenVINO GenAI", *pip, *OPENVINO, "sentencepiece")
    _try("installing optimum-intel", *pip, "--no-deps", *OPTIMUM)
    done.touch()


def export_openvino(size: str) -> None:
    """The checkpoint in OpenVINO's int4. Errors: Absent."""
    path = openvino_model(size)
    if (path / "openvino_model.bin").exists():
        return
    make_environment()
    words = ["export", "openvino", "-m", str(checkpoint(size)), "--weight-format", "int4"]
    words += ["--task", "text-generation-with-past", "--group-size", "128", "--ratio", "1.0"]
    _try("exporting to OpenVINO", PYTHON.with_name("optimum-cli"), *words, path)


def setup(size: str) -> dict[str, str]:
    """Make what is missing; the peers that are absent, with the reason."""
    checkpoint(size)
    absent: dict[str, str] = {}
    for name, steps in (
        ("llama.cpp", (build_llama, lambda: convert(size))),
        ("OpenVINO", (make_environment, lambda: export_openvino(size))),
    ):
        try:
            for step in steps:
                step()
        except (Absent, OSError) as error:
            absent[name] = str(error)
    try:
        run([sys.executable, "-c", "import transformers"])
    except SystemExit:
        absent["transformers"] = "the package is not installed: pip install -e '.[dev]'"
    return absent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="0.5B")
    for name, reason in setup(parser.parse_args().size).items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
