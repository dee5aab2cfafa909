"""The peers' programs: FastAPI from a virtual environment, Debian's Nginx with Lua from an unpacked folder."""

import os

here = os.path.dirname(os.path.abspath(__file__))


def nginx(scratch, port, issuer, backend=None):
    """Command and environment of an Nginx that checks access tokens; with `backend`, it passes requests on to it."""
    root = os.path.join(scratch, "nginx")
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"

    def path(name):
        return os.path.join(scratch, name)

    upstream = f"upstream backend {{ server {backend}; keepalive 64; }}" if backend else ""
    passed_on = """
    location = /v1/embeddings {
      access_by_lua_block { if not require("jwt").check(ngx.var.http_authorization) then ngx.exit(401) end }
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; client_body_buffer_size 1m;
    }""" if backend else ""
    # A folder of its own: one process, no log, connections that stay open.
    with open(path("nginx.conf"), "w") as conf:
        conf.write(f"""
load_module {root}/usr/lib/nginx/modules/ndk_http_module.so;
load_module {root}/usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; master_process off; worker_processes 1; pid {path("nginx.pid")}; error_log {path("nginx.log")} warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 300s; default_type text/plain;
  client_body_temp_path {path("tmp")}; proxy_temp_path {path("tmp")}; fastcgi_temp_path {path("tmp")};
  uwsgi_temp_path {path("tmp")}; scgi_temp_path {path("tmp")};
  lua_package_path "{here}/?.lua;{root}/usr/share/lua/5.1/?.lua;{root}/usr/share/lua/5.1/?/init.lua;;";
  lua_package_cpath "{libraries}/lua/5.1/?.so;;";
  init_by_lua_block {{ require("jwt").set_up("{open(path("public.hex")).read()}", "{open(path("kid")).read()}", "{issuer}") }}
  {upstream}
  server {{
    listen 127.0.0.1:{port};
    location = / {{ content_by_lua_block {{
      local good = require("jwt").check(ngx.var.http_authorization)
      ngx.status = good and 200 or 401
      ngx.header.content_length = 3
      ngx.print(good and "ok\\n" or "no\\n")
    }} }}{passed_on}
  }}
}}
""")
    os.makedirs(path("tmp"), exist_ok=True)
    command = [f"{root}/usr/sbin/nginx", "-p", scratch, "-e", path("nginx.log"), "-c", path("nginx.conf")]
    return command, {"LD_LIBRARY_PATH": f"{libraries}:{root}/lib/x86_64-linux-gnu"}


def fastapi(scratch, port, backend=None):
    """Command and environment of a FastAPI that checks API keys; with `backend`, it passes requests on to it."""
    program = "proxy:app" if backend else "gateway:app"
    command = [os.path.join(scratch, "venv/bin/python"), "-m", "uvicorn", program, "--app-dir", here, "--port", str(port), "--workers", "1"]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    more = {"BENCH_KEYS": os.path.join(scratch, "keys")}
    return command, more | ({"BENCH_BACKEND": f"http://{backend}"} if backend else {})


if __name__ == "__main__":
    import sys

    # peers.py NAME SCRATCH PORT ISSUER BACKEND: becomes that peer.
    name, scratch, port, issuer, backend = sys.argv[1:]
    command, more = nginx(scratch, port, issuer, backend) if name == "nginx" else fastapi(scratch, port, backend)
    os.execvpe(command[0], command, os.environ | more)
