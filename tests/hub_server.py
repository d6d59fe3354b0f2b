"""A stand-in for the Hugging Face hub: serves one local folder as one model repository.

It lets the tests run the real `huggingface_hub` download, with errors and broken connections, and no network.
Set HF_ENDPOINT to `server.url`, HF_HOME to an empty folder and HF_HUB_DISABLE_TELEMETRY to 1 before
`huggingface_hub` is imported.

    with HubServer(folder, name="ai9stars/Cheers") as server:
        server.cut_after("model.safetensors", 1000)    # break one connection, on purpose
        ...                                            # download in a subprocess
        server.requests                                # [(method, path, Range header or None), ...]
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class HubServer:
    def __init__(self, folder, name="ai9stars/Cheers"):
        self.folder, self.name = Path(folder), name
        self.commit = hashlib.sha1(name.encode()).hexdigest()  # the only commit, also called "main"
        self.requests = []
        self.cuts = {}  # file name -> byte counts still to cut at

    def cut_after(self, filename, n_bytes, times=1):
        """Close the connection when byte `n_bytes` of the file is reached, for the next `times` downloads of it."""
        self.cuts[filename] = [n_bytes] * times

    def __enter__(self):
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # port 0: any free one
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, range_header = unquote(urlsplit(self.path).path), self.headers.get("Range")
        self.hub.requests.append((self.command, path, range_header))
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        name, revision = api.group(1, 3) if api else file.group(1, 2) if file else (None, None)
        if name != self.hub.name:
            return self.reply(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in (None, "main", self.hub.commit):
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        paths = {p.relative_to(self.hub.folder).as_posix(): p for p in self.hub.folder.rglob("*") if p.is_file()}
        if file and file[3] not in paths:
            return self.reply(404, {"X-Error-Code": "EntryNotFound"})
        if file:
            return self.send_file(file[3], paths[file[3]], range_header)
        if api[2] == "tree":
            answer = [{"type": "file", "path": f, "size": p.stat().st_size, "oid": etag(p)} for f, p in sorted(paths.items())]
        else:
            answer = {"id": name, "sha": self.hub.commit, "siblings": [{"rfilename": f} for f in sorted(paths)]}
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    do_HEAD = do_GET  # same headers; `reply` leaves the body out

    def send_file(self, name, path, range_header):
        data, start = path.read_bytes(), 0
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": self.hub.commit}
        if range_header:  # "bytes=1000-": the client resumes there
            start = int(re.fullmatch(r"bytes=(\d+)-", range_header)[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = self.hub.cuts.get(name) if self.command == "GET" else None
        cut = max(cuts.pop() - start, 0) if cuts else None
        self.reply(206 if range_header else 200, headers, data[start:], cut)

    def reply(self, status, headers, body=b"", cut=None):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True  # promised more than was sent: the client sees a broken connection

    def log_message(self, *args):
        pass  # quiet


def etag(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
