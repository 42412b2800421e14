"""Bad input, thousands of it: what the command and the nodes make of it.

    python tests/campaign/campaign.py [--seed N] [--every N] [--kind KIND] [--verbose]

Each case is a command line (or a node's inputs) and the files it meets, in a folder of its own, run in a warm process
that is ended when a case takes too long. A case is refused with exit code 2 and one sentence on stderr, or it succeeds;
it leaves no file but its output, and no input is changed. Counts by kind come at the end; the exit code is 1 when
anything went wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]

LIMIT = 20.0  # seconds a case may take
START = 180.0  # seconds until a process is warm
WORKERS = 2
ERROR = re.compile(r"\w[\w.]*(Error|Exception)\b")
FAULTS = ("traceback", "hang", "half-written", "overwritten", "wrong answer")


@dataclass
class Case:
    kind: str
    name: str
    argv: list  # of the command; for a node, its name and what to give it
    files: dict[str, bytes] = field(default_factory=dict)  # by their names in the case's folder
    outputs: tuple[str, ...] = ()  # files that success may leave
    good: bool | None = None  # whether it must succeed, must be refused, or may do either
    says: str = ""  # a part of the sentence
    links: dict[str, str] = field(default_factory=dict)  # symbolic links to make
    pipes: tuple[str, ...] = ()  # named pipes to make


class Worker:
    """A warm process that runs cases one after another."""

    def __init__(self, command: list[str]):
        self.command, self.process = command, None

    def run(self, folder: Path, argv: list) -> dict | None:
        """What the case ended with, or None where it had to be ended."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        self.process.stdin.write(json.dumps({"folder": str(folder), "argv": argv}) + "\n")
        self.process.stdin.flush()
        return self._answer(LIMIT)

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True).start()
        if self._answer(START) is None:
            raise SystemExit(f"the worker {self.command} did not start")

    @staticmethod
    def _read(process, lines) -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _answer(self, seconds: float) -> dict | None:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            return None
        if not line:
            return {"code": self.process.wait(), "stderr": "", "trace": f"the process died ({self.process.returncode})"}
        return json.loads(line)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def snapshot(folder: Path) -> dict[str, str]:
    """What is in a folder: a digest of each file, by its name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file" if path.is_file() else "other"
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = kind + hashlib.sha256(content).hexdigest()
    return found


def prepare(case: Case, folder: Path) -> None:
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, target in case.links.items():
        (folder / name).symlink_to(target)
    for name in case.pipes:
        os.mkfifo(folder / name)


def judge(case: Case, before: dict[str, str], after: dict[str, str], ended: dict | None) -> tuple[str, str]:
    """How a case ended, and a word on what is wrong with it."""
    if ended is None:
        return "hang", f"over {LIMIT:g} s"
    if ended["trace"]:
        lines = ended["trace"].strip().splitlines()
        return "traceback", next((line for line in reversed(lines) if ERROR.match(line)), lines[-1])
    if changed := sorted(name for name in before if after.get(name) != before[name] and name not in case.outputs):
        return "overwritten", ", ".join(changed)
    code, said = ended["code"], [line for line in ended["stderr"].splitlines() if line.strip() and "%|" not in line]
    if case.kind == "nodes":
        said = said[-1:]  # before it may stand what the host logs
    allowed = case.outputs if code == 0 else ()
    left = sorted(after.keys() - before.keys() - set(allowed))
    if "*" in allowed:  # whatever does not look half written
        left = [name for name in left if ".part" in name]
    if left:
        return "half-written", ", ".join(left)
    if code == 0:
        if case.good is False:
            return "wrong answer", "it was taken for good"
        missing = sorted(set(case.outputs) - after.keys() - {"*"})
        if missing and not {"--help", "-h", "--version"} & set(map(str, case.argv)):
            return "wrong answer", f"exit code 0 without {', '.join(missing)}"
        return "ok", ""
    if code != 2:
        return "wrong answer", f"exit code {code}"
    if len(said) != 1 or not said[0].startswith("microcinema: "):
        return "wrong answer", f"{len(said)} lines on stderr: {' | '.join(said)[:300]}"
    if case.says not in said[0]:
        return "wrong answer", f"'{case.says}' is missing: {said[0][:300]}"
    if case.good:
        return "wrong answer", f"good input was refused: {said[0][:300]}"
    return "refused", said[0]


def run_all(cases: list[Case], command: list[str], verbose: bool = False) -> list[tuple[Case, str, str]]:
    """Each case with how it ended and a word on it."""
    workers: queue.Queue[Worker] = queue.Queue()
    for _ in range(WORKERS):
        workers.put(Worker(command))

    def run(case: Case) -> tuple[Case, str, str]:
        worker = workers.get()
        folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        try:
            prepare(case, folder)
            before, started = snapshot(folder), time.monotonic()
            ended = worker.run(folder, case.argv)
            seconds = time.monotonic() - started
            how, word = judge(case, before, snapshot(folder), ended)
        finally:
            workers.put(worker)
            shutil.rmtree(folder, ignore_errors=True)
        if verbose or how in FAULTS:
            print(f"{how}: [{case.kind}] {case.name} ({seconds:.1f} s): {word}".encode(errors="replace").decode())
            sys.stdout.flush()
        return case, how, word

    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(run, cases))
    while not workers.empty():
        workers.get().stop()
    return results


def table(results: list[tuple[Case, str, str]]) -> str:
    counts = Counter((case.kind, how) for case, how, _ in results)
    columns = ("ok", "refused", *FAULTS)
    lines = [f"{'kind':<12}{'cases':>8}" + "".join(f"{name:>14}" for name in columns)]
    kinds = [*dict.fromkeys(case.kind for case, _, _ in results)]
    for kind in [*kinds, "all"]:
        row = [sum(n for (k, h), n in counts.items() if kind in (k, "all") and h == how) for how in columns]
        lines.append(f"{kind:<12}{sum(row):>8}" + "".join(f"{n:>14}" for n in row))
    return "\n".join(lines)


def campaign(seed: int = 0, every: int = 1, kind: str | None = None, verbose: bool = False) -> list:
    """Run every n-th case of each kind; returns each with how it ended."""
    import campaign_cases
    import campaign_nodes
    from host import HOST, python_of

    results = []
    with tempfile.TemporaryDirectory(prefix="campaign-models-") as models:
        groups = campaign_cases.all_cases(seed, Path(models))
        for name, cases in groups.items():
            if kind in (None, name):
                command = [sys.executable, str(HERE / "campaign_worker.py")]
                results += run_all(cases[seed % every :: every], command, verbose)
        if kind in (None, "nodes"):
            if HOST is None:
                print("NO ComfyUI FOUND: the nodes' part of the campaign is SKIPPED. Set COMFYUI_PATH.")
            else:
                command = [str(python_of(HOST)), str(HERE / "campaign_nodes.py"), str(HOST), models]
                results += run_all(campaign_nodes.all_cases(seed)[seed % every :: every], command, verbose)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="only every n-th case of each kind")
    parser.add_argument("--kind", help="only this kind")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    options = parser.parse_args()
    started = time.monotonic()
    results = campaign(options.seed, options.every, options.kind, options.verbose)
    print(table(results))
    print(f"seed {options.seed}, {time.monotonic() - started:.0f} s, at most {LIMIT:g} s a case")
    return int(any(how in FAULTS for _, how, _ in results))


if __name__ == "__main__":
    sys.exit(main())
