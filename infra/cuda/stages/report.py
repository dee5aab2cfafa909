"""What a stage says, and how it becomes the report.

A stage runs in a process of its own. What it finds it prints at once, and appends as lines of JSON to a file; `check` reads
these lines, so that a stage which is killed still shows what it had measured until then."""

import json
import math
import os
import sys
import time

TABLE, ROW, FIGURE, FAIL, NOTE, MACHINE = "table", "row", "figure", "fail", "note", "machine"


def say(text):
    """Progress, for whoever watches: not part of the report."""
    print(f"  {text}", file=sys.stderr, flush=True)


def cell(value):
    """As it stands in a table: numbers with three or four digits that count."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        size = abs(value)
        if size >= 100:
            return f"{value:,.0f}"
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "/").replace("\n", " ")


def line(values):
    return f"| {' | '.join(map(cell, values))} |"


def head(title, columns):
    return [f"**{title}**", "", line(columns), "|" + "---|" * len(columns)]


def one_line(text):
    return " / ".join(part.strip() for part in str(text).splitlines() if part.strip())


def said(kind, record):
    """The line of the report that a figure, a note or a failure is."""
    if kind == FIGURE:
        return f"- {record['name']}: {cell(record['value'])} {record['unit']}".rstrip()
    return f"- {one_line(record['text'])}" if kind == NOTE else f"- **Failed**: {one_line(record['text'])}"


def plain(value):
    """For JSON, which has no numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if hasattr(value, "item"):
        return plain(value.item())
    return value


class Context:
    """What a stage's `run(context)` is given.

    args      the command line's
    device    "cuda" or "cpu"
    quick     fewer cases
    deadline  by time.monotonic(): a stage begins nothing new after it, and is killed soon after
    out       folder for files that are part of the report, or None
    here      folder of `check`
    state     folder for files that are not
    """

    def __init__(self, stage, args, here, state, out, deadline):
        self.stage, self.args, self.here, self.state, self.out, self.deadline = stage, args, here, state, out, deadline
        self.device, self.quick = args.device, args.quick
        self.failures = 0
        self.records = open(state / f"{stage}.jsonl", "a", buffering=1)
        self.open_table, self.later = False, []
        self.workers, self.watching, self.gpu = [], None, None

    # What is found.

    def record(self, kind, **values):
        self.records.write(json.dumps({"kind": kind, **values}, default=plain) + "\n")

    def table(self, title, columns, rows):
        """Prints and records a table, each row as soon as `rows`, which may be a generator, gives it."""
        title = f"{title} ({self.gpu})" if self.gpu else title
        self.record(TABLE, title=title, columns=list(columns))
        print("", *head(title, columns), sep="\n", flush=True)
        self.open_table = True
        try:
            for row in rows:
                row = [plain(value) for value in row]
                self.record(ROW, values=row)
                print(line(row), flush=True)
        finally:
            self.open_table = False
            print("", *self.later, sep="\n", flush=True)
            self.later.clear()

    def figure(self, name, value, unit=""):
        """One of the few numbers that the summary repeats."""
        value = plain(value)
        self.record(FIGURE, name=name, value=value, unit=unit)
        self.print(said(FIGURE, {"name": name, "value": value, "unit": unit}))

    def fail(self, text):
        """The stage has failed. It goes on: whether it does is its own affair."""
        self.failures += 1
        self.record(FAIL, text=str(text))
        self.print(said(FAIL, {"text": text}))

    def note(self, text):
        self.record(NOTE, text=str(text))
        self.print(said(NOTE, {"text": text}))

    def print(self, text):
        # A line between a table's rows would end the table.
        if self.open_table:
            self.later.append(text)
        else:
            print(text, flush=True)

    def say(self, text):
        say(f"{self.stage}: {text}")

    # Time.

    def left(self):
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    # What is measured.

    def torch(self):
        """torch, once it is sure that it sees the GPU that this is about."""
        import torch

        torch.manual_seed(1)
        torch.set_float32_matmul_precision("highest")
        if self.device == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("torch finds no GPU: it is built without CUDA, or the driver does not fit it")
            properties = torch.cuda.get_device_properties(0)
            if not any(name in properties.name for name in ("H100", "H200")):
                raise RuntimeError(f"torch sees {properties.name}: this is for an H100 or an H200")
            self.gpu = self.gpu or properties.name
            self.record(MACHINE, gpu=properties.name, memory_bytes=properties.total_memory, torch=torch.__version__,
                        multiprocessors=properties.multi_processor_count, cuda=torch.version.cuda)
        else:
            self.record(MACHINE, torch=torch.__version__)
        return torch

    def model_dir(self, layers=None, shape=None):
        """A folder with weights of so many layers, made when it is not there yet; without a number, the full model."""
        from . import model

        return model.folder(self, layers, shape)

    @property
    def full_layers(self):
        from . import model

        return model.layers_of(self.args)

    @property
    def few_layers(self):
        """Enough to see what a layer costs and whether it is right."""
        return min(4, self.full_layers)

    def worker(self, model_dir, *flags, **settings):
        """A worker that takes batches; it ends with the stage at the latest. See worker.Worker."""
        from . import worker

        return worker.Worker(self, model_dir, *flags, **settings)

    @property
    def watch(self):
        """The GPU's clock and power, from the first use on."""
        from . import machine

        if self.watching is None:
            self.watching = machine.Watch(self.device)
        return self.watching

    def close(self):
        for worker in self.workers:
            worker.kill()
        if self.watching:
            self.watching.close()
        self.records.close()


# The report, put together from what the stages have recorded.


def read(path):
    """A stage's records: the last line may be cut off."""
    if not path.exists():
        return []
    records = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            records.append(json.loads(text))
        except ValueError:
            continue
    return records


def gathered(records):
    """A stage's tables, figures, notes and failures."""
    found = {"tables": [], "figures": [], "notes": [], "failures": []}
    for record in records:
        kind = record.get("kind")
        if kind == TABLE:
            found["tables"].append({"title": record["title"], "columns": record["columns"], "rows": []})
        elif kind == ROW and found["tables"]:
            found["tables"][-1]["rows"].append(record["values"])
        elif kind == FIGURE:
            found["figures"].append({key: record[key] for key in ("name", "value", "unit")})
        elif kind in (NOTE, FAIL):
            found["notes" if kind == NOTE else "failures"].append(record["text"])
    return found


def markdown(records):
    """A stage's records as they were printed; what was said between a table's rows stands behind it."""
    lines, later, in_table = [], [], False
    for record in records:
        kind = record.get("kind")
        if kind == TABLE:
            lines += [*later, "", *head(record["title"], record["columns"])]
            later, in_table = [], True
        elif kind == ROW:
            lines.append(line(record["values"]))
        elif kind in (FIGURE, NOTE, FAIL):
            later.append(said(kind, record))
    # Behind the last table, which is the usual place for them.
    return lines + ([""] if in_table and later else []) + later


def write(path, text):
    """As a whole or not at all: this may be killed at any moment."""
    made = path.with_name(f"{path.name}.new")
    made.write_text(text)
    os.replace(made, path)
