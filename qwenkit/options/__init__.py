"""Options: one flat class per verb is its flags, YAML keys, variables and JSON schema."""

from __future__ import annotations

from typing import Any

from qwenkit.options.base import Options, env_name, flag_name, opt, suggest, unknown_name
from qwenkit.options.resolve import read_section, resolve, write_resolved
from qwenkit.options.serve import ServeOptions
from qwenkit.options.train import EvalOptions, PretrainOptions, SftOptions, TokenizerOptions
from qwenkit.options.verbs import (
    DEFAULT_MODEL,
    SAMPLING,
    AnswerOptions,
    BatchOptions,
    BenchOptions,
    ChatOptions,
    DecodeOptions,
    DoctorOptions,
    FamilyOptions,
    ListOptions,
    LoadOptions,
    ModelOptions,
    PlanOptions,
    PrefillOptions,
    PullOptions,
    RandomCheckpointOptions,
    RunOptions,
    SchemaOptions,
    ShowOptions,
)

VERBS: dict[str, type[Options]] = {
    cls.verb: cls
    for cls in (
        ChatOptions,
        RunOptions,
        ServeOptions,
        PullOptions,
        ListOptions,
        ShowOptions,
        FamilyOptions,
        PlanOptions,
        DoctorOptions,
        TokenizerOptions,
        PretrainOptions,
        SftOptions,
        EvalOptions,
        DecodeOptions,
        PrefillOptions,
        BatchOptions,
        RandomCheckpointOptions,
        SchemaOptions,
    )
}
"""Verb → its options class; also the sections that one YAML file may have."""


def json_schema(verb: str | None = None) -> dict[str, Any]:
    """JSON Schema of one verb's YAML keys, or of a file with a section for every verb."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    if verb is not None:
        return {**dialect, **VERBS[verb].json_schema()}
    sections = {
        name: cls.json_schema() for name, cls in VERBS.items() if name != SchemaOptions.verb
    }
    return {**dialect, "type": "object", "properties": sections, "additionalProperties": False}


__all__ = [
    "DEFAULT_MODEL",
    "SAMPLING",
    "VERBS",
    "AnswerOptions",
    "BatchOptions",
    "BenchOptions",
    "ChatOptions",
    "DecodeOptions",
    "DoctorOptions",
    "EvalOptions",
    "FamilyOptions",
    "ListOptions",
    "LoadOptions",
    "ModelOptions",
    "Options",
    "PlanOptions",
    "PrefillOptions",
    "PretrainOptions",
    "PullOptions",
    "RandomCheckpointOptions",
    "RunOptions",
    "SchemaOptions",
    "ServeOptions",
    "SftOptions",
    "ShowOptions",
    "TokenizerOptions",
    "env_name",
    "flag_name",
    "json_schema",
    "opt",
    "read_section",
    "resolve",
    "suggest",
    "unknown_name",
    "write_resolved",
]
