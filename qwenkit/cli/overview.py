"""The verbs as `qwenkit --help` lists them. Imports nothing, so that the list comes at once; a test
holds the summaries against the options classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenkit.options import Options


@dataclass(frozen=True)
class Verb:
    """`words` as typed; `group` is its heading in the help."""

    words: str
    group: str
    summary: str

    @property
    def options(self) -> type[Options]:
        """Its options class."""
        from qwenkit.options import VERBS as OPTIONS

        return OPTIONS[self.words.split()[-1]]


VERBS = (
    Verb("chat", "ask", "Talk with a model in the terminal."),
    Verb("run", "ask", "Answer one prompt; prints the answer alone."),
    Verb("serve", "ask", "Serve a model over HTTP, as OpenAI's API."),
    Verb("pull", "models", "Fetch a model from a hub into its cache."),
    Verb("list", "models", "List the models on this machine."),
    Verb("show", "models", "Show a model: shape, context, template, licence, files."),
    Verb("family", "models", "List the published models, and what fits this machine."),
    Verb("plan", "models", "Tell the memory that a model takes, before anything runs."),
    Verb(
        "train tokenizer",
        "train and measure",
        "Train a tokenizer of the family's kind (byte-level BPE).",
    ),
    Verb(
        "train pretrain",
        "train and measure",
        "Train a model on plain text, a fresh one or a checkpoint.",
    ),
    Verb("train sft", "train and measure", "Fine-tune a model on conversations."),
    Verb("eval", "train and measure", "Measure a model on held-out questions, write the report."),
    Verb("bench decode", "train and measure", "Measure the decoding of one sequence."),
    Verb("bench prefill", "train and measure", "Measure the reading of a prompt."),
    Verb("bench batch", "train and measure", "Measure the decoding of many sequences at once."),
    Verb(
        "dev random-checkpoint",
        "this installation",
        "Write a model of a published shape with random weights.",
    ),
    Verb(
        "doctor", "this installation", "Check machine and installation, and name what is missing."
    ),
    Verb(
        "config-schema", "this installation", "Print the JSON schema of the options in YAML files."
    ),
)


def overview(only: str | None = None) -> str:
    """The text of `qwenkit --help`, `only`: verbs that start so."""
    verbs = [verb for verb in VERBS if only is None or verb.words.startswith(f"{only} ")]
    width = 19  # a longer verb has a line of its own
    rest = {None: "VERB [MODEL]", "train": "train VERB [CONFIG.yaml]", "dev": "dev VERB"}
    lines = [f"usage: qwenkit {rest.get(only, f'{only} VERB [MODEL]')} [options]"]
    if only is None:
        lines += [
            "",
            "The Qwen2.5 open models, from the checkpoint file to the answer. Without a model",
            "name, the small one that comes with qwenkit is used; it needs no network.",
        ]
    lines += [] if only is None else [""]
    group = ""
    for verb in verbs:
        if only is None and verb.group != group:
            group = verb.group
            lines += ["", f"{group}:"]
        long = len(verb.words) > width - 2
        lines += [f"  {verb.words}"] if long else []
        lines.append(f"  {'' if long else verb.words:<{width}}{verb.summary}")
    lines += [
        "",
        "Each verb has `--help`. Every option can also be set in a YAML file (--config)",
        "or in the environment (--top-k is QWENKIT_TOP_K). Answers go to standard",
        "output, everything else to standard error. Exit codes: 0 done, 1 failed,",
        "2 wrong option, 70 a bug in qwenkit, 130 interrupted.",
    ]
    if only is None:
        lines += ["", 'Start with:  qwenkit run -p "What can you do?"']
    return "\n".join(lines)
