"""The worker, as a program: asked for one batch at a time, or run to its end."""

import collections
import json
import os
import queue
import re
import struct
import subprocess
import threading
import time

LIBRARIES = "VECMILL_CHECK_LIBRARIES"
ANSWER_S = 60
LOAD_S = 120


class Refused(RuntimeError):
    """It has ended by itself: a setting that it does not have, for one."""


def environment():
    """For the worker alone: torch finds its libraries by itself."""
    path = os.environ.get(LIBRARIES)
    return {**os.environ, **({"LD_LIBRARY_PATH": path} if path else {})}


def command(context, what, model_dir, *flags):
    found = [str(context.args.program), what, "--model", "check", "--model-dir", str(model_dir)]
    return [*found, "--device", context.device, *map(str, flags)]


def products(context, name):
    """Which products it is to use. A CPU has one kind only."""
    return ["--cuda-products", name] if context.device == "cuda" else []


class Process:
    """A program whose lines are read as they come, with the end of what it said on standard error."""

    def __init__(self, context, command, stdin=None, text=True, log=None):
        # Into a file: it is there whatever happens to either of the two.
        self.errors = context.state / f"{context.stage}-{len(context.workers)}.stderr"
        env = {**environment(), **({"VECMILL_LOG": log} if log else {})}
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, text=text, env=env)
        self.command = command
        context.workers.append(self)

    def follow(self):
        """From now on, lines of standard output are to be had from `line`."""
        self.lines = queue.Queue()

        def read():
            for line in self.process.stdout:
                self.lines.put(line)
            self.lines.put(None)

        threading.Thread(target=read, daemon=True).start()

    def line(self, seconds):
        """The next one, or None when it has ended."""
        try:
            return self.lines.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            self.kill()
            raise RuntimeError(f"the worker said nothing for {seconds:.0f} s.{self.last_words()}") from None

    def end(self, seconds=10):
        """Its exit code, once its output has ended."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the worker does not end.{self.last_words()}") from None

    def said(self):
        text = self.errors.read_text(errors="replace") if self.errors.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def last_words(self, most=2000):
        text = self.said().strip()[-most:]
        return f" Its standard error ends: {text}" if text else " Its standard error is empty."

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                pass


class Worker(Process):
    """`bench --interactive`. `ready` is what it says when it is loaded."""

    name = "vecmill"

    def __init__(self, context, model_dir, *flags, log=None, answer_s=ANSWER_S, load_s=LOAD_S):
        began = time.monotonic()
        super().__init__(context, command(context, "bench", model_dir, "--interactive", *flags), subprocess.PIPE, log=log)
        self.answer_s, self.asked = answer_s, None
        self.follow()
        self.ready = self.answer(min(load_s, max(context.left(), 1)))
        self.started_s = time.monotonic() - began

    def answer(self, seconds):
        line = self.line(seconds)
        if line is None:
            raise Refused(f"the worker has ended with exit code {self.end()}.{self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the worker says: {answer['error']}")
        return answer

    def ask(self, texts, vectors):
        # Asked the same again, it is not written down again: the GPU waits meanwhile.
        if self.asked is None or self.asked[0] is not texts or self.asked[1] != vectors:
            self.asked = texts, vectors, json.dumps({"texts": texts, "vectors": vectors}) + "\n"
        try:
            self.process.stdin.write(self.asked[2])
            self.process.stdin.flush()
        except OSError:
            pass  # It has ended: the answer says how.
        return self.answer(self.answer_s)

    def vectors(self, texts):
        return self.ask(texts, True)["vectors"]

    def bits(self, texts):
        """A vector's bits for each text. Its values are written so that other values are other digits."""
        vectors = self.vectors(texts)
        if len(vectors) != len(texts):
            raise RuntimeError(f"the worker gave {len(vectors)} vectors for {len(texts)} texts")
        return [struct.pack(f"{len(vector)}d", *vector) for vector in vectors]

    def run(self, texts):
        """Seconds by the worker's own clock, from ids in memory to vectors in memory; JSON is outside it."""
        return self.ask(texts, False)["seconds"]

    def close(self):
        try:
            self.process.stdin.close()
            self.process.wait(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()


def bench(context, model_dir, *flags, log=None):
    """The objects that `bench --json` prints, each as it comes."""
    process = Process(context, command(context, "bench", model_dir, "--json", *flags), subprocess.DEVNULL, log=log)
    process.follow()
    wait = LOAD_S
    while (line := process.line(min(wait, max(context.left(), 1)))) is not None:
        wait = ANSWER_S
        try:
            found = json.loads(line)
        except ValueError:
            raise RuntimeError(f"the worker printed what is not JSON: {line[:200]!r}") from None
        yield found
    status = process.end()
    if status != 0:
        raise Refused(f"the worker has ended with exit code {status}.{process.last_words()}")


def log_summary(process, words, most=40):
    """Lines of a worker's log that have one of these words."""
    found = [line for line in process.said().splitlines() if any(word in line for word in words)]
    return list(collections.OrderedDict.fromkeys(found))[:most]
