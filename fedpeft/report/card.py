"""The model card that travels with an adapter: what it is, how it was made, how to load it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from fedpeft.config import Experiment
from fedpeft.report.text import as_bytes, as_number, as_seconds, flatten

__all__ = ["Base", "model_card"]

_AUTO_CLASSES = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "causal_lm": "AutoModelForCausalLM",
    "image_classification": "AutoModelForImageClassification",
}


@final
@dataclass(frozen=True, kw_only=True)
class Base:
    """The frozen model that an adapter belongs to."""

    reference: str
    """A hub id or a path."""
    revision: str | None
    """The pinned hub revision; None when the model is not from a hub."""
    kind: str
    label_names: tuple[str, ...]


def model_card(
    experiment: Experiment,
    summary: Mapping[str, Any],
    *,
    base: Base,
    in_peft_format: bool,
    commands: Sequence[str] = (),
) -> str:
    """Return README.md of an adapter's folder; commands are the fedpeft calls that use it."""
    sections = [
        _front_matter(base, in_peft_format=in_peft_format),
        f"# {experiment.name}\n\n{_opening(experiment, summary, base)}",
        f"## Results\n\n{_results(summary)}",
        f"## How to load it\n\n{_loading(base, in_peft_format=in_peft_format, commands=commands)}",
        f"## Experiment\n\nConfiguration hash `{summary['config_hash']}`.\n\n{_settings(experiment)}",
        *([f"## Privacy\n\n{_table(('what', 'holds'), summary['privacy'].items())}"] if "privacy" in summary else []),
        f"## Versions\n\n{_table(('package', 'version'), summary['versions'].items())}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(base: Base, *, in_peft_format: bool) -> str:
    """Return the YAML head; a JSON string is a YAML string, so any name is quoted right."""
    lines = ["library_name: peft"] if in_peft_format else []
    lines += [f"base_model: {json.dumps(base.reference)}"] if base.revision is not None else []
    return "\n".join(["---", *lines, "tags:", "- federated-learning", "- fedpeft", "---"])


def _opening(experiment: Experiment, summary: Mapping[str, Any], base: Base) -> str:
    revision = f" at revision `{base.revision}`" if base.revision else ""
    return (
        f"An adapter (`{experiment.adapter.name}`) for `{base.reference}`{revision}, trained with fedpeft for the task "
        f"`{experiment.task.name}` over {summary['num_rounds']} federated rounds with the strategy "
        f"{_strategy(experiment)}. The clients' examples never left them; changes of the adapter did."
    )


def _strategy(experiment: Experiment) -> str:
    """Return the strategy's name, and its options as they were: one name may stand for several variants."""
    given = experiment.strategy.table()
    options = ", ".join(
        f"{key} = {json.dumps(value)}" for key, value in given.items() if key != "name" and value is not None
    )
    return f"`{experiment.strategy.name}`" + f" (`{options}`)" * bool(options)


def _results(summary: Mapping[str, Any]) -> str:
    stages = [stage for stage in ("first", "last", "best") if summary[stage] is not None]
    rows = [
        (f"{stage} (round {summary[stage]['round']})", name, as_number(value))
        for stage in stages
        for name, value in summary[stage]["metrics"].items()
    ]
    cost = (
        f"Up {as_bytes(summary['bytes_up'])}, down {as_bytes(summary['bytes_down'])}, "
        f"{as_seconds(summary['seconds'])}, {summary['num_failures']} failed replies."
    )
    return f"{_table(('evaluation', 'metric', 'value'), rows)}\n\n{cost}" if rows else f"Never evaluated. {cost}"


def _loading(base: Base, *, in_peft_format: bool, commands: Sequence[str]) -> str:
    blocks = [f"With transformers and peft:\n\n```python\n{_python(base)}\n```"] if in_peft_format else []
    blocks += ["With fedpeft:\n\n```\n" + "\n".join(commands) + "\n```"] if commands else []
    return "\n\n".join(blocks) or "peft has no such method: fedpeft loads it from the run directory."


def _python(base: Base) -> str:
    auto = _AUTO_CLASSES[base.kind]
    options = [repr(base.reference)]
    options += [f"revision={base.revision!r}"] if base.revision else []
    options += [f"num_labels={len(base.label_names)}"] if base.label_names else []
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f"base = {auto}.from_pretrained({', '.join(options)})",
            'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()',
            *([f"labels = {list(base.label_names)!r}"] if base.label_names else []),
        ]
    )


def _settings(experiment: Experiment) -> str:
    rows = [(key, value) for key, value in flatten(experiment.table()) if not key.startswith("output.")]
    return _table(("key", "value"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
