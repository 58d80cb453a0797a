"""Requests made from the server's own OpenAPI document, right ones and wrong ones, against a real
server: nothing may crash, nothing may be a 5xx, every error must be in the envelope.

    python bench/fuzz_api.py --requests 10000     (make stress runs this)

Schemathesis writes the requests: in its phase "coverage" each field at and over each of its bounds,
in "fuzzing" anything. The server runs a random model of one layer, so that what is right is really
answered. No check that Schemathesis has is left out but one (`positive_data_acceptance`): the
document cannot say that a tool_choice needs tools, or that a prompt fits the context.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from goals import at_least, exactly, finish

from qwenkit.config import ModelConfig
from qwenkit.model.load import init_model, save_model

ASSETS = Path(__file__).resolve().parents[1] / "qwenkit" / "assets" / "tiny-instruct"
KEY = "sk-fuzz"
HOOKS = '''
import schemathesis

@schemathesis.check
def envelope(ctx, response, case):
    """Every error is OpenAI's envelope, and tells nothing of the inside."""
    assert response.headers.get("x-request-id"), "no x-request-id"
    if response.status_code < 400 or case.method == "HEAD":
        return
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"], error
    assert isinstance(error["message"], str) and error["message"]
    # Backwards: Hypothesis sends the words that it finds in a source, and an answer may quote them.
    for inside in ("kcabecarT", "f7x0", "yp.", "segakcap-etis"):
        assert inside[::-1] not in error["message"], error
'''


def toy_model(folder: Path) -> Path:
    """A random model of one layer with tiny-instruct's tokenizer; answers have eight tokens."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (ASSETS / name).exists():
            shutil.copy(ASSETS / name, folder)
    config = ModelConfig.from_dir(ASSETS)
    values = json.loads((ASSETS / "config.json").read_text())
    values |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    values |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    values |= {"torch_dtype": "float32", "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(values))
    config = ModelConfig.from_dir(folder)
    save_model(init_model(config, seed=1), folder)
    generation = {"eos_token_id": list(config.eos_token_ids), "max_new_tokens": 8}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def start(model: Path, *flags: str) -> tuple[subprocess.Popen[str], str]:
    """A server; its address."""
    words = [sys.executable, "-m", "qwenkit", "serve", str(model), "--port", "0", *flags]
    environment = {**os.environ, "QWENKIT_API_KEY": KEY}
    log = (model / "server.log").open("w")
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    return process, first.split(" at ")[1].strip().removesuffix("/v1")


def fetch_document(url: str) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/openapi.json", headers={"authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        document: dict[str, Any] = json.load(response)
    return document


def narrow(document: dict[str, Any]) -> None:
    """What the document cannot know: the model's name, and that the machine's time is short."""
    for schema in document["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if "model" in properties and schema.get("additionalProperties") is False:
            properties["model"] = {"type": "string", "enum": ["toy"]}


def fuzz(folder: Path, url: str, *, each: int, seed: int, phases: list[str]) -> list[str]:
    """Run Schemathesis; its reports of faults. It is one thread's work, and Python 3.11 loses count
    when two threads parse at once: so it runs as processes, each with its share of the paths.
    """
    document = fetch_document(url)
    narrow(document)
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "envelope_hooks.py").write_text(HOOKS)
    words = [str(Path(sys.executable).parent / "schemathesis"), "run", str(folder / "openapi.json")]
    words += ["--url", url, "-H", f"Authorization: Bearer {KEY}", "--seed", str(seed)]
    words += ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    words += ["--mode", "all", "-n", str(each), "--workers", "1", "--warnings", "off"]
    words += ["--continue-on-failure", "--request-timeout", "120", "--suppress-health-check", "all"]
    alone = [phase for phase in phases if phase != "stateful"]
    jobs = [
        ["--phases", ",".join(alone), "--include-path-regex", f"^({'|'.join(share)})(/|$)"]
        for share in shares(document, os.cpu_count() or 1)
    ]
    if "stateful" in phases:  # goes from one path to the other
        jobs.append(["--phases", "stateful"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        places = [folder / f"job{number}" for number in range(len(jobs))]
        found = list(pool.map(_run, places, [[*words, *job] for job in jobs]))
    return [report for report in found if report]


def shares(document: dict[str, Any], count: int) -> list[list[str]]:
    """The paths in `count` parts of about as many operations; what begins the same is together."""
    weights: Counter[str] = Counter()
    for path, methods in document["paths"].items():
        weights[re.match(r"(/v1)?/[^/]+", path)[0]] += len(methods)  # type: ignore[index]
    parts: list[tuple[int, list[str]]] = [(0, []) for _ in range(min(count, len(weights)))]
    for name, weight in weights.most_common():
        parts.sort(key=lambda part: part[0])
        parts[0] = (parts[0][0] + weight, [*parts[0][1], re.escape(name)])
    return [names for _, names in parts]


def _run(place: Path, words: list[str]) -> str:
    place.mkdir()
    hooks = {"SCHEMATHESIS_HOOKS": "envelope_hooks", "PYTHONPATH": str(place.parent)}
    ran = subprocess.run(
        words, cwd=place, env={**os.environ, **hooks}, capture_output=True, text=True
    )
    told = f"Schemathesis left with {ran.returncode}\n"
    return told + ran.stdout[-20_000:] + ran.stderr[-2000:] if ran.returncode else ""


def main() -> None:
    """Fuzz one server; exits with 1 when something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = toy_model(Path(scratch))
        process, url = start(folder, "--served-model-name", "toy")
        try:
            operations = sum(len(methods) for methods in fetch_document(url)["paths"].values())
            each = -(-options.requests // operations)
            phases = options.phases.split(",")
            reports = fuzz(folder, url, each=each, seed=options.seed, phases=phases)
            alive = process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        log = (folder / "server.log").read_text()
    print("\n".join(reports), end="")
    print(log[log.find("Traceback") - 500 :][:5000] if "Traceback" in log else "", end="")
    answers = Counter(re.findall(r" route=(\S+) status=(\d+)", log))
    for (route, status), count in sorted(answers.items()):
        print(f"{count:7}  {status}  {route}")
    fatal = sum(count for (_, status), count in answers.items() if status[0] == "5")
    at_least("fuzz: requests", answers.total(), options.requests)
    exactly("fuzz: answers of 500 and above", fatal, 0)
    exactly("fuzz: parts in which Schemathesis found a fault", len(reports), 0)
    exactly("fuzz: crashes and tracebacks", (not alive) + (code != 0) + log.count("Traceback"), 0)
    finish()


if __name__ == "__main__":
    main()
