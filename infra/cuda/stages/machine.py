"""The GPU, by the driver's own library: its name, and clock and power while something is measured."""

import ctypes
import glob
import importlib.util
import os
import statistics
import subprocess
import threading
import time

# What stands beside each rate that a table has.
FACTS = ["SM MHz", "W", "held back by"]
NO_FACTS = [None, None, None]

# Bits of the driver's "clocks event reasons"; idleness is no news.
REASONS = {0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "heat (software)",
           0x40: "heat (hardware)", 0x80: "power brake", 0x100: "display clock"}
DRIVER_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
SM_CLOCK = 1


def library(name):
    """One of the driver's libraries, wherever container runtimes put it; None if there is none."""
    for path in [name, *(f"{folder}/{name}" for folder in DRIVER_FOLDERS)]:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def number():
    """The first visible GPU's."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return int(first) if first.isdigit() else 0


class Nvml:
    """The driver's library for watching. Raises OSError where it does not work."""

    def __init__(self):
        self.library = library("libnvidia-ml.so.1")
        if self.library is None or self.library.nvmlInit_v2() != 0:
            raise OSError("libnvidia-ml.so.1 does not work")
        self.device = ctypes.c_void_p()
        self.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number()), ctypes.byref(self.device))

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise OSError(f"{name} gives {status}")

    def text(self, name, *arguments):
        buffer = ctypes.create_string_buffer(96)
        self.call(name, *arguments, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode(errors="replace")

    def count(self, name, *arguments, kind=ctypes.c_uint):
        value = kind()
        self.call(name, self.device, *arguments, ctypes.byref(value))
        return value.value

    def name(self):
        return self.text("nvmlDeviceGetName", self.device)

    def driver(self):
        return self.text("nvmlSystemGetDriverVersion")

    def sample(self):
        """Clock in MHz, power in W, reasons why the clock is not higher."""
        clock = self.count("nvmlDeviceGetClockInfo", ctypes.c_uint(SM_CLOCK))
        power = self.count("nvmlDeviceGetPowerUsage") / 1000
        try:
            reasons = self.count("nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong)
        except (OSError, AttributeError):
            reasons = 0
        return clock, power, reasons

    def busy(self):
        """Percent of the time, over up to a second, in which a kernel ran."""
        both = (ctypes.c_uint * 2)()
        self.call("nvmlDeviceGetUtilizationRates", self.device, both)
        return both[0]


class Smi:
    """nvidia-smi, where the library can't be used. Started for each sample: what it writes in one go may come late."""

    def __init__(self):
        self.query("clocks.sm")

    def query(self, fields):
        command = ["nvidia-smi", f"--id={number()}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        if done.returncode != 0:
            raise OSError(done.stdout + done.stderr)
        return [value.strip() for value in done.stdout.strip().split(",")]

    def name(self):
        return self.query("name")[0]

    def driver(self):
        return self.query("driver_version")[0]

    def sample(self):
        clock, power = self.query("clocks.sm,power.draw")
        return float(clock), float(power), 0

    def busy(self):
        return float(self.query("utilization.gpu")[0])


def looker():
    """Something that can look at the GPU, or None."""
    for kind in (Nvml, Smi):
        try:
            found = kind()
            found.sample()
            return found
        except Exception:  # Whatever is odd about a driver: figures stand without clocks then.
            continue
    return None


def described():
    """For the report, without torch."""
    found, known = looker(), {}
    for key in ("name", "driver"):
        try:
            known[key] = getattr(found, key)()
        except Exception:
            known[key] = None
    return known


class Watch:
    """Looks at the GPU some 20 times a second."""

    def __init__(self, device):
        self.samples, self.over = [], threading.Event()
        self.looker = looker() if device == "cuda" else None
        if self.looker:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()

    def run(self):
        while not self.over.wait(0.05):
            try:
                taken = (*self.looker.sample(), self.looker.busy())
            except Exception:
                continue
            self.samples.append((time.monotonic(), taken))

    def facts(self, start, end):
        """Cells for FACTS: medians between two times, or the sample nearest to them."""
        samples = list(self.samples)
        if not samples:
            return list(NO_FACTS)
        rows = [row for at, row in samples if start <= at <= end] or [min(samples, key=lambda one: abs(one[0] - end))[1]]
        seen = []
        for bit, name in REASONS.items():
            share = sum(bool(row[2] & bit) for row in rows) / len(rows)
            if share > 0:
                seen.append(name if share > 0.99 else f"{name} {share:.0%}")
        return [int(statistics.median(row[0] for row in rows)), int(statistics.median(row[1] for row in rows)),
                ", ".join(seen) or "nothing"]

    def busy(self, start, end):
        """Mean percent of the time in which a kernel ran, from a second after `start` on: a sample looks back that far."""
        rows = [row[3] for at, row in list(self.samples) if start + 1 <= at <= end]
        return statistics.mean(rows) if rows else None

    def close(self):
        self.over.set()


def library_path():
    """LD_LIBRARY_PATH for the worker: CUDA's libraries are taken from the Python packages that torch brought along."""
    folders = []
    spec = importlib.util.find_spec("nvidia")
    for package in (spec.submodule_search_locations or []) if spec else []:
        found = glob.glob(f"{package}/**/lib/lib*.so*", recursive=True)
        wanted = ("libcublas.", "libcublasLt.", "libcurand.", "libnvrtc.")
        folders += sorted({os.path.dirname(path) for path in found if os.path.basename(path).startswith(wanted)})
    # Where container runtimes put the driver.
    folders += [folder for folder in DRIVER_FOLDERS[:2] if os.path.isdir(folder)]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return ":".join(dict.fromkeys(folders + ([inherited] if inherited else [])))


def look_for_gpu():
    """A sentence when it is certain that there is none."""
    if library("libcuda.so.1") is None and looker() is None and not glob.glob("/dev/nvidia*"):
        return "no NVIDIA driver found (libcuda.so.1); --device cpu --shape small --quick tries this program itself"
    return None
