"""Put freshly trained tiny models into qwenkit/assets, with cards written from logs and evaluation.

    python scripts/install_tiny.py out/tiny        # the folder that recipes/tiny.yaml writes to

Copies out/tiny/{base,finish}/model, adds the evaluation's report as eval.json, and writes
README.md and README.zh.md. The report must have been measured on the very weights (their SHA-256 is
compared).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from qwenkit.publish.card import write_card

ASSETS = Path(__file__).resolve().parents[1] / "qwenkit" / "assets"


def main(out: Path) -> None:
    stages = {"pretrain": "base", "sft": "sft", "polish": "instruct", "finish": "finish"}
    logs = {stage: out / folder / "log.jsonl" for stage, folder in stages.items()}
    base, instruct = ASSETS / "tiny", ASSETS / "tiny-instruct"
    for source, target in ((out / "base", base), (out / "finish", instruct)):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source / "model", target)
    shutil.copyfile(out / "eval" / "report.json", instruct / "eval.json")
    write_card(base, name="tiny", train_logs={"pretrain": logs["pretrain"]})
    write_card(
        instruct,
        name="tiny-instruct",
        report=instruct / "eval.json",
        train_logs=logs,
        base_model="tiny",
    )
    print(f"tiny and tiny-instruct are in {ASSETS}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/tiny"))
