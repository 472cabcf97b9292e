"""Puts suggested settings into a copy of a Serve config file, with its comments, and checks the copy."""

from __future__ import annotations

import copy
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.placement import check_placement
from configs.serve_file import ConfigFileError, deployment_of, load_serve_config
from models.errors import ConfigError
from models.runtime.atomic_file import replace_file
from warmtalk.cli.profile.suggest import Suggestion


def patched(text: str, suggestions: Sequence[Suggestion]) -> str:
    """The text of a config file with the suggested values; everything else stays, comments too."""
    loaded = yaml.safe_load(text)
    wanted = copy.deepcopy(_without_aliases(loaded))
    for suggestion in suggestions:
        _put(deployment_of(wanted, suggestion.stage), suggestion)
    parser = _parser()
    document = parser.load(text)
    before = _dumped(parser, document)
    for suggestion in suggestions:
        section = deployment_of(document, suggestion.stage)
        _unshare(document, section, suggestion.key.partition(".")[0])
        _put(section, suggestion)
    _restore_merged(parser, document, wanted)
    after = _dumped(parser, document)
    for candidate in (_onto(text, before, after), after):
        if yaml.safe_load(candidate) == wanted:
            return candidate
    raise ConfigError("The suggestions cannot be put into this file.", "Put the printed fragment into it by hand.")


def difference(text: str, new: str, name: str, new_name: str) -> str:
    """A unified diff of the two files."""
    lines = difflib.unified_diff(text.splitlines(True), new.splitlines(True), name, new_name, n=1)
    return "".join(lines)


def write_patched(source: Path, suggestions: Sequence[Suggestion], output: Path, gpus: int | None = None) -> str:
    """Write the patched copy of a config file, and return the diff. Raises ConfigError: Serve refuses the copy."""
    text = source.read_text(encoding="utf-8")
    new = patched(text, suggestions)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.stem}.part.yaml")
    try:
        part.write_text(new, encoding="utf-8")
        check_file(part, gpus)
    finally:
        part.unlink(missing_ok=True)
    replace_file(output, new.encode(), sync=False)
    return difference(text, new, str(source), str(output))


def check_file(path: Path, gpus: int | None = None) -> None:
    """Raises ConfigError where our schema, Serve's schema or the placement on GPUs refuse a config file."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        config = load_serve_config(str(path))
        ServeDeploySchema.model_validate(config)
    except ConfigFileError as error:
        raise ConfigError(str(error), "Apply fewer suggestions.") from error
    except ValidationError as error:
        raise ConfigError(f"Ray Serve refuses the new file: {error.errors()[0]['msg']}.", "Report it.") from error
    if problems := check_placement(config, gpus):
        raise ConfigError(problems[0], "Use more GPUs, or plan for fewer sessions.")


def _parser() -> Any:
    from ruamel.yaml import YAML

    parser = YAML()
    parser.preserve_quotes, parser.width = True, 4096
    return parser


def _dumped(parser: Any, document: Any) -> str:
    out = io.StringIO()
    parser.dump(document, out)
    return re.sub(r"(?m)^( *\w+:) +\{", r"\1 {", out.getvalue())  # ruamel aligns a map that takes an alias' place


def _put(section: Any, suggestion: Suggestion) -> None:
    """Set the key, `user_config.batch_size`, in a stage's section."""
    *folders, name = suggestion.key.split(".")
    for folder in folders:
        if section.get(folder) is None:
            section[folder] = {}
        section = section[folder]
    section[name] = suggestion.value


def _unshare(document: Any, section: Any, folder: str) -> None:
    """Copy a map that several stages share by an alias: the stage with the anchor keeps it, the others get copies."""
    from ruamel.yaml.comments import CommentedMap

    shared = section.get(folder)
    if not isinstance(shared, CommentedMap):
        return
    users = [entry for entry in document["applications"][0]["deployments"] if entry.get(folder) is shared]
    changed = users[1:] if users[0] is section else [section]
    for entry in changed:
        entry[folder] = CommentedMap(shared.items())
        entry[folder].fa.set_flow_style()


def _restore_merged(parser: Any, document: Any, wanted: dict[str, Any]) -> None:
    """Give maps that merge a changed one (`<<: *name`) the values that they had."""
    changed = yaml.safe_load(_dumped(parser, document))
    for entry in wanted["applications"][0]["deployments"]:
        section, now = deployment_of(document, entry["name"]), deployment_of(changed, entry["name"])
        for folder, values in entry.items():
            for name, value in values.items() if isinstance(values, dict) else ():
                if (now.get(folder) or {}).get(name) != value:
                    section[folder][name] = value


def _without_aliases(value: Any) -> Any:
    """The same data, in which no two places share an object."""
    if isinstance(value, dict):
        return {key: _without_aliases(entry) for key, entry in value.items()}
    return [_without_aliases(entry) for entry in value] if isinstance(value, list) else value


def _onto(text: str, before: str, after: str) -> str:
    """The changes from `before` to `after`, made in `text`, of which `before` is a rewritten form."""
    lines, old, new = (part.splitlines(True) for part in (text, before, after))
    place = {}  # line of `before` → line of `text`
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, old, lines, autojunk=False).get_opcodes():
        for k in range(i, i_end):
            place[k] = j + (k - i) if tag == "equal" else min(j + (k - i), j_end)
        place[i_end] = j_end
    made, at = [], 0
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            made += [*lines[at : place.get(i, i)], *new[j:j_end]]
            at = place.get(i_end, len(lines))
    return "".join([*made, *lines[at:]])
