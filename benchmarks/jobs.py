"""Run independent jobs, one process a core, and keep what they return: JSON beside, a table in docs/results.md."""

import hashlib
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEDPEFT_DATA", ROOT.parent / "shared" / "data")).resolve()
"""Where the real data sets lie; each benchmark says which ones it needs."""


def run_jobs(
    work: Callable[[Any], dict[str, Any]],
    jobs: Mapping[str, Any],
    *,
    workers: int,
    log: Path,
    tasks_per_process: int = 1,
) -> list[dict[str, Any]]:
    """Return each job's result, in job order; one line is printed and kept in the log as each ends.

    A job whose key is in the log already is not run again, so that an interrupted benchmark goes on where it was; the
    key names all that the result depends on but the code (``key_of``). Delete the log to run everything afresh. A log
    that is committed (``committed_log``) goes on in any clone. Where neither time nor memory is measured, a process
    may do several jobs and save its start.
    """
    results = read_log(log, jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=tasks_per_process) as pool:
        futures = {pool.submit(work, job): key for key, job in jobs.items() if key not in results}
        for done in as_completed(futures):
            key = futures[done]
            results[key] = done.result()
            keep(log, key, results[key])
            print(f"[{len(results)}/{len(jobs)}] {json.dumps(results[key])}", flush=True)
    return [results[key] for key in jobs]


def committed_log(name: str) -> Path:
    """Return docs/results/NAME.jsonl: one line a run, committed with the table that is made of it."""
    return ROOT / "docs" / "results" / f"{name}.jsonl"


def key_of(given: Mapping[str, Any], *words: Any) -> str:
    """Name a run by words that people know it by, and by a digest of all that its experiment was given.

    ``given`` is what is written down, before defaults are filled in, so that a new setting of fedpeft with a default
    renames no run. Where the data and this repository lie is left out, so that any machine finds the run again.
    """
    text = json.dumps(given, sort_keys=True, default=str)
    for place, path in (("DATA", DATA), ("ROOT", ROOT)):
        text = text.replace(f'"{path}/', f'"<{place}>/')
    return " ".join([*map(str, words), hashlib.sha256(text.encode()).hexdigest()[:12]])


def keep(log: Path, key: str, result: Mapping[str, Any]) -> None:
    """Add one line."""
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "result": result}) + "\n")


def read_log(log: Path, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return key -> result of those that ended, in the keys' order; a last line that a crash tore is no result."""
    log.parent.mkdir(parents=True, exist_ok=True)
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    whole, _, torn = text.rpartition("\n")
    if torn:
        log.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    found = {row["key"]: row["result"] for row in map(json.loads, whole.splitlines())}
    return {key: found[key] for key in keys if key in found}


def made_once(path: Path, made_of: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a JSON file tells if it was made of the same; else make it, in the file's folder, and write that."""
    given = json.loads(json.dumps(made_of))
    if path.exists():
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["made_of"] == given:
            return told
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"made_of": given, **make()}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Write docs/results/NAME.json, with what machine it was made on."""
    path = ROOT / "docs" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    path.write_text(json.dumps({"machine": machine, **results}, indent=1) + "\n", encoding="utf-8")
    return path


def write_section(name: str, text: str) -> None:
    """Put a section between its markers in docs/results.md, or add it at the end."""
    path = ROOT / "docs" / "results.md"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    before, found, rest = old.partition(begin)
    if found:
        path.write_text(before + block + rest.partition(end)[2], encoding="utf-8")
    else:
        path.write_text(f"{old.rstrip()}\n\n{block}\n", encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
