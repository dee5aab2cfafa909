"""B: each of the engine's own kernels alone, on the 4B model's shape: its results against plain sums in f64, the same bits
for a row alone and among others, and its rate beside that of a copy. Variants of the kernels are timed beside them.

The kernels are compiled here, as the worker's build compiles them, so that they can be changed and measured where there is
a GPU and no Rust."""

import ctypes
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess

from . import machine

# Of the 4B model.
HIDDEN, INNER, HEADS, QUERY_HEADS, KEY_HEADS, HEAD_DIM = 2560, 9728, 48, 32, 8, 128
ROWS = 32_768
EPS = 1e-6
WARP, EIGHT = 32, 8
# What rounding leaves at most is half a unit in the last place; sums in f32 may tip it over a little.
UNITS_ALLOWED = 0.51
# Rows whose f64 reference is made at once.
REFERENCE_ROWS = 4096
# Of the GPU's 50 MB, so that no launch finds what the last one left there.
CACHE_BYTES = 200e6
TURNS = 24


def run(context):
    if context.device == "cpu":
        return on_host(context)
    torch = context.torch()
    sources = kernels_folder(context)
    if sources is None:
        context.fail("kernels.cu is neither beside `check` nor in the source tree")
        return None
    # The driver's own interface needs a context, which torch makes with the first memory it takes.
    torch.zeros(1, device="cuda")
    modules = compiled(context, sources)
    if "kernels" not in modules:
        return None
    suite = Suite(context, torch, constants(sources / "kernels.cu"))
    for part in (check, together, rates):
        if context.left() < 2:
            context.note(f"{part.__name__}: left out, the time was up")
            continue
        try:
            part(context, torch, suite, modules)
        except Exception as error:
            context.fail(f"{part.__name__}: {type(error).__name__}: {error}")
    return None


def on_host(context):
    """The kernels on the processor: indices and signs, and nothing of their speed."""
    script = context.here / "host" / "run"
    if not script.exists() or not shutil.which("g++"):
        context.note("kernels on the host: not run, for want of g++ or of the source tree")
        return
    done = subprocess.run([str(script)], capture_output=True, text=True, timeout=max(context.left(), 1))
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        context.note(said)
    else:
        context.fail(f"kernels on the host: {said[-2000:]}")


def kernels_folder(context):
    for folder in (context.here, context.here.parent.parent / "worker/src/engine/cuda"):
        if (folder / "kernels.cu").exists():
            return folder
    return None


def constants(source):
    """By which the engine's kernels are launched, as they are written there."""
    return {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", source.read_text())}


# Compiling and launching, by the driver's own interface: what the worker goes through too.


def nvcc():
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home), shutil.which("nvcc")]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def compiled(context, sources):
    """The modules that could be made, by name; two compilers at once."""
    here = pathlib.Path(__file__).resolve().parent
    wanted = {"kernels": sources / "kernels.cu", "variants": here / "kernel_variants.cu"}
    flags = ["-O3", "-std=c++17", f"-I{sources}"]
    found, running, compiler = {}, {}, nvcc()
    if compiler is None:
        context.note("nvcc is not there: NVRTC is tried")
    else:
        for name, source in wanted.items():
            ptx = context.state / f"{name}.ptx"
            command = [compiler, "--ptx", "-arch=compute_90", *flags, "-o", str(ptx), str(source)]
            running[name] = ptx, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for name, source in wanted.items():
        text = None
        if name in running:
            ptx, process = running[name]
            try:
                said, _ = process.communicate(timeout=max(context.left(), 1))
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
            if process.returncode == 0:
                text = ptx.read_bytes()
            else:
                context.note(f"nvcc could not compile {source.name}: {said[-1500:]}")
        if text is None:
            try:
                text = by_nvrtc(source, sources)
            except Exception as error:
                (context.fail if name == "kernels" else context.note)(
                    f"NVRTC could not compile {source.name}: {type(error).__name__}: {str(error)[-1500:]}")
                continue
        try:
            found[name] = Module(text)
        except Exception as error:
            (context.fail if name == "kernels" else context.note)(f"the driver refuses {source.name}: {error}")
    return found


def by_nvrtc(source, sources):
    from cupy.cuda import compiler

    text = source.read_text().replace('#include "kernels.cu"', (sources / "kernels.cu").read_text())
    include = [f"-I{home}/include" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    made = compiler.compile_using_nvrtc(text, ("-std=c++17", *include), "90")
    return made[0] if isinstance(made, tuple) else made


class Module:
    """Kernels that the driver has made machine code of."""

    SHARED, LOCAL, REGISTERS = 1, 3, 4

    def __init__(self, code):
        self.driver = machine.library("libcuda.so.1")
        self.handle = ctypes.c_void_p()
        code = code if isinstance(code, bytes) else code.encode()
        self.call("cuModuleLoadData", ctypes.byref(self.handle), ctypes.c_char_p(code))
        self.functions = {}

    def call(self, name, *arguments):
        status = getattr(self.driver, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorName(status, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()}")

    def function(self, name):
        if name not in self.functions:
            function = ctypes.c_void_p()
            self.call("cuModuleGetFunction", ctypes.byref(function), self.handle, name.encode())
            self.functions[name] = function
        return self.functions[name]

    def has(self, name):
        try:
            return bool(self.function(name))
        except RuntimeError:
            return False

    def attribute(self, name, which):
        value = ctypes.c_int()
        self.call("cuFuncGetAttribute", ctypes.byref(value), which, self.function(name))
        return value.value

    def launch(self, stream, name, grid, threads, *arguments):
        """Numbers are given as ctypes, tensors as they are."""
        values = [ctypes.c_void_p(one.data_ptr()) if hasattr(one, "data_ptr") else one for one in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(one), ctypes.c_void_p) for one in values))
        self.call("cuLaunchKernel", self.function(name), grid[0], grid[1], 1, threads, 1, 1, 0,
                  ctypes.c_void_p(stream.cuda_stream), pointers, None)


# The kernels, what they are given, and what they should give.


def blocks(count, per_block):
    return (count + per_block - 1) // per_block


def warps(tasks):
    """Threads for so many tasks: warps are whole."""
    return blocks(tasks, WARP) * WARP


def silu_parts(eights, each, threads_max):
    """As kernels.rs cuts a row: how many parts, and threads for each."""
    parts = blocks(eights, threads_max * each)
    return parts, warps(blocks(eights, parts * each))


class Case:
    """A kernel with what it reads and writes.

    variants     entry points, the engine's own first
    bytes_a_row  that have to be read and written
    make         makes a set of tensors: inputs, and `output`, which is the input too where the kernel works in place
    plan         how an entry point is launched on some of a set's rows: grid, threads, arguments
    reference    of some rows: what is exact, and how large it counts where a unit in the last place is asked for
    kind         of the output: Bf16 or Fp8
    """

    def __init__(self, suite, name, variants, bytes_a_row, make, plan, reference, kind):
        self.suite, self.name, self.variants, self.bytes_a_row = suite, name, variants, bytes_a_row
        self.make, self.plan, self.reference, self.kind = make, plan, reference, kind

    def run(self, module, entry, tensors, start=0, rows=None):
        rows = len(tensors["output"]) - start if rows is None else rows
        grid, threads, arguments = self.plan(entry, tensors, start, rows)
        module.launch(self.suite.stream, entry, grid, threads, *arguments)


class Bf16:
    name, outputs = "bf16", ("output",)

    @staticmethod
    def empty(torch, *shape):
        """Not a number anywhere: what is left unwritten shows."""
        return {"output": torch.full(shape, math.nan, device="cuda", dtype=torch.bfloat16)}

    @staticmethod
    def decoded(torch, tensors, rows):
        return tensors["output"][rows].double()

    @staticmethod
    def units(torch, sizes):
        """In the last place: bf16 keeps eight bits, and nothing below its smallest normal number more finely than that."""
        _, exponents = torch.frexp(sizes.clamp(min=2.0**-126))
        return torch.exp2(exponents.double() - 8.0)


class Fp8:
    """e4m3, with a scale a row."""

    name, outputs = "e4m3", ("output", "scales")

    @staticmethod
    def empty(torch, rows, width):
        return {"output": torch.full((rows, width), 0xFF, device="cuda", dtype=torch.uint8),
                "scales": torch.full((rows,), math.nan, device="cuda")}

    @staticmethod
    def decoded(torch, tensors, rows):
        return tensors["output"][rows].view(torch.float8_e4m3fn).float() * tensors["scales"][rows, None].double()

    @staticmethod
    def units(torch, sizes):
        """As Bf16's: four bits, the smallest normal number 2^-6, and the scale such that the row's largest becomes 448."""
        scales = sizes.amax(-1, keepdim=True) / 448.0
        _, exponents = torch.frexp((sizes / scales).clamp(min=2.0**-6))
        return torch.exp2(exponents.double() - 4.0) * scales


class Suite:
    def __init__(self, context, torch, constants):
        self.torch, self.stream, self.constants = torch, torch.cuda.current_stream(), constants
        # Fewer where the GPU is small or shared.
        self.rows = ROWS if torch.cuda.mem_get_info()[0] > 24e9 else ROWS // 4
        self.generator = torch.Generator("cuda").manual_seed(11)
        self.cases = [self.rms_norm(Bf16), self.norm_and_turn(), self.gated_silu(), self.gather()]
        self.cases += [self.rms_norm(Fp8), self.gated_silu_fp8(), self.quantize_rows()]

    def normal(self, *shape, dtype=None, scale=1.0):
        torch = self.torch
        values = torch.empty(*shape, device="cuda", dtype=dtype or torch.bfloat16)
        return values.normal_(0.0, scale, generator=self.generator)

    def rms_norm(self, kind):
        eights = HIDDEN // EIGHT
        # Rows of a block; a warp a row in blocks of eight.
        if kind is Bf16:
            name, variants = "rms_norm", {"rms_norm": self.constants["NORM_ROWS"], "rms_norm_warp": 8}
        else:
            name, variants = "rms_norm_fp8", {"rms_norm_fp8": self.constants["NORM_FP8_ROWS"]}
        variants |= {f"{name}_rows_{rows}": rows for rows in (1, 2, 4)}

        def make():
            weight = self.normal(HIDDEN, dtype=self.torch.float32).mul_(0.2).add_(1.0)
            return {"input": self.normal(self.rows, HIDDEN, scale=3.0), "weight": weight,
                    **kind.empty(self.torch, self.rows, HIDDEN)}

        def plan(entry, t, start, rows):
            threads = 256 if entry == "rms_norm_warp" else warps(eights)
            return (blocks(rows, variants[entry]), 1), threads, [
                t["input"][start:], t["weight"], *(t[name][start:] for name in kind.outputs), ctypes.c_int(rows),
                ctypes.c_int(eights), ctypes.c_float(EPS)]

        def reference(t, start, end):
            values = t["input"][start:end].double()
            exact = values * (values.square().mean(-1, keepdim=True) + EPS).rsqrt() * t["weight"].double()
            return exact, exact.abs()

        size = 4 * HIDDEN if kind is Bf16 else 3 * HIDDEN + 4
        return Case(self, name, list(variants), size, make, plan, reference, kind)

    def norm_and_turn(self):
        torch, half, turned = self.torch, HEAD_DIM // 2, QUERY_HEADS + KEY_HEADS
        # Heads of a warp.
        variants = {"norm_and_turn": self.constants["WARP_HEADS"]}
        variants |= {f"norm_and_turn_heads_{heads}": heads for heads in (2, 4, 8)}

        def make():
            angles = torch.rand(self.rows, half, device="cuda", generator=self.generator) * 6.3
            weights = self.normal(2, HEAD_DIM, dtype=torch.float32).mul_(0.2).add_(1.0)
            values = self.normal(self.rows, HEADS, HEAD_DIM, scale=2.0)
            return {"before": values.clone(), "output": values, "weights": weights, "cos": angles.cos(), "sin": angles.sin()}

        def plan(entry, t, start, rows):
            heads = variants[entry]
            return (rows, 1), WARP * (blocks(QUERY_HEADS, heads) + blocks(KEY_HEADS, heads)), [
                t["output"][start:], ctypes.c_int(HEADS), ctypes.c_int(QUERY_HEADS), t["weights"][0],
                ctypes.c_int(KEY_HEADS), t["weights"][1], t["cos"][start:], t["sin"][start:], ctypes.c_float(EPS)]

        def reference(t, start, end):
            values = t["before"][start:end].double()
            weights = torch.cat([t["weights"][0].expand(QUERY_HEADS, -1), t["weights"][1].expand(KEY_HEADS, -1)]).double()
            normed = values[:, :turned]
            normed = normed * (normed.square().mean(-1, keepdim=True) + EPS).rsqrt() * weights
            cos, sin = (t[name][start:end, None].double() for name in ("cos", "sin"))
            left, right = normed.split(half, -1)
            exact, sizes = values.clone(), values.abs()
            exact[:, :turned] = torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
            # Where the two products cancel, f32 leaves more than the result's own last place. The rest is left alone.
            sizes[:, :turned] = torch.maximum(exact[:, :turned].abs(), 0.02 * (left.abs() + right.abs()).repeat(1, 1, 2))
            return exact, sizes

        size = 4 * turned * HEAD_DIM + 2 * 4 * half
        return Case(self, "norm_and_turn", list(variants), size, make, plan, reference, Bf16)

    def gated_silu(self):
        eights = INNER // EIGHT
        # Eights of a thread, most threads of a block, and whether parts of a row lie along the grid's x.
        variants = {"gated_silu": (self.constants["SILU_EIGHTS"], 256, True)}
        for each, most in ((1, 256), (1, 640), (2, 128), (2, 640), (4, 128), (4, 320)):
            variants[f"gated_silu_eights_{each}, {most}"] = (each, most, False)
        for each, most in ((1, 256), (2, 128), (2, 256), (4, 128)):
            variants[f"gated_silu_across_{each}, {most}"] = (each, most, True)

        def plan(entry, t, start, rows):
            each, most, across = variants[entry]
            parts, threads = silu_parts(eights, each, most)
            return ((parts, rows) if across else (rows, parts)), threads, [
                t["gate_up"][start:], t["output"][start:], ctypes.c_int(eights)]

        return Case(self, "gated_silu", list(variants), 6 * INNER, lambda: self.gates(Bf16), plan, self.silu, Bf16)

    def gates(self, kind):
        return {"gate_up": self.normal(self.rows, 2 * INNER, scale=3.0), **kind.empty(self.torch, self.rows, INNER)}

    @staticmethod
    def silu(t, start, end):
        gate, up = t["gate_up"][start:end].double().split(INNER, -1)
        exact = gate / (1.0 + (-gate).exp()) * up
        return exact, exact.abs()

    def gated_silu_fp8(self):
        # Eights of a thread.
        variants = {"gated_silu_fp8": self.constants["SILU_FP8_EIGHTS"], "gated_silu_fp8_crowded_2": 2}
        variants |= {f"gated_silu_fp8_eights_{each}": each for each in (2, 3, 4)}
        return Case(self, "gated_silu_fp8", list(variants), 5 * INNER + 4, lambda: self.gates(Fp8),
                    self.block_a_row(variants, "gate_up", INNER), self.silu, Fp8)

    def quantize_rows(self):
        # Attention's output, which is as wide as the queries.
        width = QUERY_HEADS * HEAD_DIM
        variants = {"quantize_rows": self.constants["QUANTIZE_EIGHTS"]}
        variants |= {f"quantize_rows_eights_{each}": each for each in (1, 2, 4)}

        def make():
            return {"input": self.normal(self.rows, width, scale=3.0), **Fp8.empty(self.torch, self.rows, width)}

        def reference(t, start, end):
            exact = t["input"][start:end].double()
            return exact, exact.abs()

        return Case(self, "quantize_rows", list(variants), 3 * width + 4, make,
                    self.block_a_row(variants, "input", width), reference, Fp8)

    @staticmethod
    def block_a_row(variants, source, width):
        eights = width // EIGHT

        def plan(entry, t, start, rows):
            return (rows, 1), warps(blocks(eights, variants[entry])), [
                t[source][start:], *(t[name][start:] for name in Fp8.outputs), ctypes.c_int(eights)]

        return plan

    def gather(self):
        torch, kept = self.torch, 2 * KEY_HEADS
        units, stride = kept * HEAD_DIM // EIGHT, HEADS * HEAD_DIM // EIGHT
        variants = ["gather", *(f"gather_eights_{each}" for each in (2, 4, 8))]

        def make():
            # Each of them once: what is read twice would come from the cache.
            rows = torch.randperm(self.rows, device="cuda", generator=self.generator).int()
            return {"input": self.normal(self.rows, HEADS, HEAD_DIM), "rows": rows,
                    **Bf16.empty(torch, self.rows, kept, HEAD_DIM)}

        def plan(entry, t, start, rows):
            return (blocks(rows, 8), 1), 256, [
                t["input"][:, QUERY_HEADS:], ctypes.c_size_t(stride), ctypes.c_uint(self.rows), t["rows"][start:],
                t["output"][start:], ctypes.c_int(rows), ctypes.c_int(units)]

        def reference(t, start, end):
            exact = t["input"][:, QUERY_HEADS:][t["rows"][start:end].long()].double()
            return exact, exact.abs()

        return Case(self, "gather", variants, 4 * kept * HEAD_DIM + 4, make, plan, reference, Bf16)


def module_of(modules, case, entry):
    return modules["kernels"] if entry == case.name else modules.get("variants")


def entry_point(entry):
    """A variant's name may say how it is launched, behind a comma."""
    return entry.split(",")[0]


class Launcher:
    """Lets a case launch one of its variants under the entry point's own name."""

    def __init__(self, module):
        self.module = module

    def launch(self, stream, entry, *rest):
        self.module.launch(stream, entry_point(entry), *rest)


def largest_error(torch, case, tensors, start, end):
    """In units of the output's last place at the exact value; what is no number is infinitely wrong."""
    worst = 0.0
    for first in range(start, end, REFERENCE_ROWS):
        last = min(first + REFERENCE_ROWS, end)
        exact, sizes = case.reference(tensors, first, last)
        errors = (case.kind.decoded(torch, tensors, slice(first, last)) - exact).abs_().div_(case.kind.units(torch, sizes))
        worst = max(worst, torch.nan_to_num(errors, nan=math.inf, posinf=math.inf).max().item())
    return worst


def check(context, torch, suite, modules):
    """The kernels against plain sums, for few and many rows: few leave blocks unfilled."""

    def rows():
        for case in suite.cases:
            for count in sorted({1, 129, 4097, suite.rows}):
                tensors = case.make()
                case.run(modules["kernels"], case.name, tensors, 0, count)
                torch.cuda.synchronize()
                error = largest_error(torch, case, tensors, 0, count)
                written = wrote_beyond(torch, case, tensors, count)
                if not error <= UNITS_ALLOWED:
                    context.fail(f"{case.name}, {count} rows: off by {error:.3f} units of {case.kind.name}'s last place")
                if written:
                    context.fail(f"{case.name}, {count} rows: wrote beyond its rows")
                yield [case.name, count, error, not written]
                del tensors

    context.table("Kernels against f64: largest error in units of bf16's or e4m3's last place (0.5: rounding alone)",
                  ["kernel", "rows", "error", "left the rest alone"], rows())


def wrote_beyond(torch, case, tensors, count):
    if "before" in tensors:
        return not torch.equal(tensors["output"][count:], tensors["before"][count:])
    before = case.kind.empty(torch, 1, *tensors["output"].shape[1:])
    alike = (bits(torch, tensors[name][count:]) == bits(torch, before[name]) for name in case.kind.outputs)
    return not all(bool(one.all()) for one in alike)


def bits(torch, tensor):
    """Bytes, row by row."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:])).view(torch.uint8)


def together(context, torch, suite, modules):
    """Each row's bits, among all and in batches of other sizes that begin elsewhere."""

    def rows():
        for case in suite.cases:
            all_rows = case.make()
            apart = {name: tensor.clone() for name, tensor in all_rows.items()}
            case.run(modules["kernels"], case.name, all_rows)
            # One by one, then more and more: 1, 1, 1, 2, 3, 5, 129, 4097, and the rest.
            start = 0
            for count in [1, 1, 1, 2, 3, 5, 129, 4097, suite.rows]:
                count = min(count, suite.rows - start)
                if count > 0:
                    case.run(modules["kernels"], case.name, apart, start, count)
                start += count
            torch.cuda.synchronize()
            same = True
            for name in case.kind.outputs:
                among, alone = bits(torch, all_rows[name]), bits(torch, apart[name])
                if not torch.equal(among, alone):
                    same = False
                    row = (among != alone).any(1).nonzero()[0].item()
                    context.fail(f"{case.name}: row {row} has other bits in another batch ({name})")
            yield [case.name, suite.rows, same]
            del all_rows, apart, among, alone

    context.table("The same bits alone, in small batches and in a large one", ["kernel", "rows", "same"], rows())


def timed(torch, call, sets, turns):
    """Seconds of a launch, the median; each with the next set."""
    for number in range(3):
        call(sets[number % len(sets)])
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(turns)]
    # The queue is filled before the first is measured: launching takes longer than a small kernel.
    torch.cuda._sleep(2_000_000)
    for number, (before, after) in enumerate(events):
        tensors = sets[number % len(sets)]
        before.record()
        call(tensors)
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in events) / 1e3


def copy_rate(torch):
    size = 2**29
    sets = [tuple(torch.empty(size, dtype=torch.uint8, device="cuda").random_() for _ in range(2)) for _ in range(2)]
    return 2 * size / timed(torch, lambda pair: pair[0].copy_(pair[1]), sets, TURNS) / 1e9


def rates(context, torch, suite, modules):
    copied = copy_rate(torch)
    turns = 20 if context.quick else TURNS
    best = {}

    def rows():
        yield ["copy of 512 MiB", None, None, None, copied, 1.0, None, None]
        for case in suite.cases:
            one = case.make()
            bytes_all = case.bytes_a_row * suite.rows
            sets = [one] + [case.make() for _ in range(max(1, math.ceil(CACHE_BYTES / bytes_all)))]
            for entry in case.variants:
                module = module_of(modules, case, entry)
                if module is None or not module.has(entry_point(entry)):
                    continue
                if context.left() < 1.5:
                    context.note(f"{case.name}: some variants not timed, the time was up")
                    break
                launcher = Launcher(module)
                # As little as a layer may have to do: what a launch costs.
                few = timed(torch, lambda t: case.run(launcher, entry, t, 0, 1), sets, turns)
                seconds = timed(torch, lambda t: case.run(launcher, entry, t), sets, turns)
                error = None
                if "before" not in one and entry != case.name:
                    error = largest_error(torch, case, one, suite.rows - 2048, suite.rows)
                    if not error <= UNITS_ALLOWED:
                        context.note(f"variant {entry}: off by {error:.3f} units: its time means nothing")
                rate = bytes_all / seconds / 1e9
                best.setdefault(case.name, []).append((rate, entry))
                yield [entry, suite.rows, seconds * 1e3, few * 1e6, rate, rate / copied,
                       module.attribute(entry_point(entry), Module.REGISTERS),
                       module.attribute(entry_point(entry), Module.LOCAL)]
            del one, sets
            torch.cuda.empty_cache()

    context.table("Kernels and variants: the engine's own first",
                  ["kernel", "rows", "ms", "one row, us", "GB/s", "of the copy's", "registers", "local bytes"], rows())
    for name, found in best.items():
        context.figure(name, found[0][0], "GB/s")
        rate, entry = max(found)
        if rate > 1.03 * found[0][0]:
            context.note(f"{name}: {entry} is faster by {rate / found[0][0] - 1:.1%}")
