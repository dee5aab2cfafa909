"""Vecmill's engine, in a process of its own that is asked for one turn at a time."""

import json
import os
import subprocess

import numpy as np


def help_text(program):
    return subprocess.run([program, "bench", "--help"], capture_output=True, text=True, check=True).stdout


class Ours:
    ours = True

    def __init__(self, program, model_dir, precision, threads):
        self.name, self.precision = f"vecmill {precision}", precision
        command = [program, "bench", "--interactive", "--model", "bench", "--model-dir", str(model_dir)]
        if "--dtype" in help_text(program):
            command += ["--dtype", precision]
        elif precision != "f32":
            raise RuntimeError(f"this build does not compute in {precision}")
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        ready = self.answer()
        if ready["dtype"] != precision:
            raise RuntimeError(f"it computes in {ready['dtype']} on this machine")
        self.strategy = f"packed, {ready['path']}"

    def answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def tune(self, texts):
        self.run(texts)

    def run(self, texts):
        """Seconds and unit vectors. The clock runs in that process: from ids in memory to vectors in memory, as the
        peers' does; JSON is outside it."""
        self.process.stdin.write(json.dumps({"texts": texts, "vectors": True}) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        return answer["seconds"], np.array(answer["vectors"], dtype=np.float32)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
