"""Three gateways on one core each in turn, asked by one generator on another core; see infra/bench/signer."""

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

import peers

arguments = argparse.ArgumentParser(description="answers a second of Vecmill's verifier, FastAPI and Nginx with Lua, interleaved")
arguments.add_argument("--program", required=True, help="bench-signer")
arguments.add_argument("--scratch", required=True, help="folder with venv/ and nginx/")
arguments.add_argument("--turns", type=int, default=int(os.environ.get("BENCH_TURNS", 3)), help="turns of each (BENCH_TURNS)")
arguments.add_argument("--seconds", type=int, default=int(os.environ.get("BENCH_SECONDS", 5)), help="of a turn (BENCH_SECONDS)")
arguments.add_argument("--connections", type=int, default=int(os.environ.get("BENCH_CONNECTIONS", 32)))
asked = arguments.parse_args()
HERTZ = os.sysconf("SC_CLK_TCK")
# The server has the first core to itself, the generator the last one.
cores = sorted(os.sched_getaffinity(0))
server_core, load_core = {cores[0]}, {cores[-1]}
if server_core == load_core:
    sys.exit("needs two cores: one for the server, one for the generator")


def path(name):
    return os.path.join(asked.scratch, name)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cpu_s(process):
    """Of a process and its children, as long as they live."""
    pids = [str(process.pid)] + subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    ticks = 0
    for pid in pids:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / HERTZ


def start(name, port):
    if name == "vecmill":
        command, more = [asked.program, "serve", asked.scratch, f"127.0.0.1:{port}"], {}
    elif name == "fastapi":
        command, more = peers.fastapi(asked.scratch, port)
    else:
        command, more = peers.nginx(asked.scratch, port, "bench")
    process = subprocess.Popen(command, env=os.environ | more, preexec_fn=lambda: os.sched_setaffinity(0, server_core))
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit(f"{name} does not start")
            time.sleep(0.1)


def status(port, authorization):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Authorization": authorization})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def forged(credential):
    """The same with its last characters changed."""
    return credential[:-4] + ("AAAA" if credential[-4:] != "AAAA" else "BBBB")


def turn(name):
    # Tokens live five minutes; so does each turn's.
    subprocess.run([asked.program, "prepare", asked.scratch], check=True)
    credential = path("keys" if name == "fastapi" else "token")
    port = free_port()
    process = start(name, port)
    try:
        shown = open(credential).read().strip()
        answers = status(port, f"Bearer {shown}"), status(port, f"Bearer {forged(shown)}"), status(port, "")
        if answers[0] != 200 or any(answer not in (401, 403) for answer in answers[1:]):
            sys.exit(f"{name} does not check: {answers}")

        def load(seconds):
            command = [asked.program, "load", f"127.0.0.1:{port}", credential, str(seconds), str(asked.connections)]
            begun, before = time.monotonic(), cpu_s(process)
            generator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, load_core))
            output = generator.stdout.read()
            _, code, used = os.wait4(generator.pid, 0)
            took = time.monotonic() - begun
            if code:
                sys.exit(f"the generator failed against {name}")
            return float(output), (cpu_s(process) - before) / took, (used.ru_utime + used.ru_stime) / took

        load(1)
        return load(asked.seconds)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


with open(path("keys"), "w") as keys:
    keys.write("vm_" + os.urandom(32).hex() + "\n")
names = ["vecmill", "fastapi", "nginx"]
rates = {name: [] for name in names}
print("answers/s on one core (of the server; CPU of server and generator, in cores)")
for number in range(asked.turns):
    for name in names:
        rate, server_cpu, load_cpu = turn(name)
        rates[name].append(rate)
        note = "  the generator may be the limit: a lower bound" if load_cpu > 0.9 and server_cpu < 0.9 else ""
        print(f"turn {number + 1}  {name:8} {rate:9.0f}   server {server_cpu:.2f}  generator {load_cpu:.2f}{note}", flush=True)
medians = {name: statistics.median(values) for name, values in rates.items()}
for name in names[1:]:
    ratios = [ours / theirs for ours, theirs in zip(rates["vecmill"], rates[name])]
    print(f"vecmill / {name}: {statistics.median(ratios):.2f} (turns {min(ratios):.2f} to {max(ratios):.2f})")
