"""`qwenkit config-schema`: the JSON schema of the options, for editors and other programs."""

from __future__ import annotations

from qwenkit.cli.output import print_json
from qwenkit.errors import OptionError
from qwenkit.options import VERBS, SchemaOptions, json_schema, suggest


def schema(options: SchemaOptions) -> int:
    """Print the schema of one verb, or of a file with a section for each."""
    name = options.name.removeprefix("train ") if options.name else None
    if name is not None and name not in VERBS:
        near = suggest(name, VERBS)
        hint = f"Did you mean {near}?" if near else f"There are {', '.join(VERBS)}."
        raise OptionError(f"{name!r} is not a verb.", hint)
    print_json(json_schema(name))
    return 0
