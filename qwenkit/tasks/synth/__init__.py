"""The generators that the tiny models learn from, by name. Each works in English and in Chinese."""

from __future__ import annotations

from qwenkit.tasks.base import Task
from qwenkit.tasks.synth.arithmetic import Arithmetic
from qwenkit.tasks.synth.identity import Identity
from qwenkit.tasks.synth.json_objects import JsonObject
from qwenkit.tasks.synth.python_code import PythonComplete, PythonFill
from qwenkit.tasks.synth.tools import ToolAnswer, ToolCall
from qwenkit.tasks.synth.translation import Translation
from qwenkit.tasks.synth.word_problems import WordProblems

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Identity(),
        Arithmetic(),
        WordProblems(),
        Translation(),
        ToolCall(),
        ToolAnswer(),
        JsonObject(),
        PythonComplete(),
        PythonFill(),
    )
}
"""All skills, in the order of reports."""
