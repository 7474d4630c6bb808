"""A minimal W&B server for `wandb sync`, which stores each run's history lines."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER = {"id": "us", "username": "us", "entity": "us", "email": "", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "p", "name": "pdp", "entity": {"id": "e", "name": "us"}}


class WandbServer:
    """Listens on a free port; `lines` holds the history by run and line number, `groups` the group of each run."""

    def __init__(self):
        self.lines, self.groups = {}, {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def body(self):
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

            def answer(self, values):
                text = json.dumps(values).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self):
                self.answer({})

            def do_PUT(self):
                self.body()
                self.answer({})

            def do_POST(self):
                text = self.body()
                if not self.path.endswith(("/file_stream", "/graphql")):
                    self.answer({})  # a file
                    return
                values = json.loads(text)
                if self.path.endswith("/file_stream"):
                    self.answer(outer.stream(self.path.split("/")[-2], values))
                else:
                    self.answer({"data": outer.graph(values.get("query", ""), values.get("variables") or {})})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stream(self, run, values):
        """Puts the lines where they say they belong."""
        part = (values.get("files") or {}).get("wandb-history.jsonl")
        if part:
            for number, text in enumerate(part["content"]):
                self.lines.setdefault(run, {})[part["offset"] + number] = json.loads(text)
        return {}

    def graph(self, query, values):
        """Answers a query by the words in it."""
        if "upsertBucket" in query:
            run = values["name"]
            if values.get("groupName"):
                self.groups[run] = values["groupName"]
            bucket = {"id": f"id-{run}", "name": run, "displayName": run, "config": "{}", "project": PROJECT}
            bucket |= {"description": "", "sweepName": None, "historyLineCount": len(self.lines.get(run, {}))}
            return {"upsertBucket": {"bucket": bucket, "inserted": run not in self.lines}}
        if "RunResumeStatus" in query:
            return {"model": PROJECT | {"bucket": self.bucket(values["name"])}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.address}/upload"} for name in values["files"]]
            return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
        if "createArtifact(" in query:
            sequence = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {"viewer": USER} if "viewer" in query else {}

    def bucket(self, run):
        """What a run that goes on is told of its past."""
        lines = self.lines.get(run)
        if not lines:
            return None
        tail = json.dumps([json.dumps(lines[max(lines)])])
        values = {
            "id": f"id-{run}",
            "name": run,
            "displayName": run,
            "summaryMetrics": "{}",
            "config": "{}",
            "tags": [],
        }
        counts = {"logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0}
        return values | counts | {"historyTail": tail, "eventsTail": "[]", "notes": "", "wandbConfig": '{"t": 1}'}
