"""OpenVINO GenAI behind `/v1/completions`: serve_openvino.py IR_FOLDER THREADS PORT. A peer for serving.py.

OpenVINO's own server is no Python package. One thread steps its continuous batching without a pause; another
for each connection writes what it gives: token ids in, an event for each step's tokens out, nothing else.
That is less work than a full server does, so it flatters the peer.
"""

import json
import queue
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

CACHE_GB = 1


@dataclass
class Asked:
    prompt: list[int]
    num_tokens: int
    told: "queue.SimpleQueue[int]" = field(
        default_factory=queue.SimpleQueue
    )  # how many tokens came; 0 ends it
    handle: Any = None  # a GenerationHandle, which is not exported


class Stepper:
    """Owns the pipeline; requests come through a queue and are added between steps."""

    def __init__(self, folder: str, threads: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        self._pipe = genai.ContinuousBatchingPipeline(
            folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()

    def run(self) -> None:
        open_requests: dict[int, Asked] = {}
        next_id = 0
        while True:
            while not open_requests or not self.asked.empty():
                request = self.asked.get()
                request.handle = self._add(next_id, request)
                open_requests[next_id] = request
                next_id += 1
            self._pipe.step()
            for key, request in list(open_requests.items()):
                request.num_tokens -= self._tell(request)
                if request.num_tokens <= 0:
                    request.told.put(0)
                    del open_requests[key]

    def _add(self, key: int, request: Asked) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = request.num_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        return self._pipe.add_request(key, ov.Tensor(np.array([request.prompt], np.int64)), config)

    def _tell(self, request: Asked) -> int:
        if not request.handle.can_read():
            return 0
        count = sum(len(output.generated_ids) for output in request.handle.read().values())
        request.told.put(count)
        return count


def make_handler(stepper: Stepper) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Asked(body["prompt"], body["max_tokens"])
            stepper.asked.put(request)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            total = 0
            while count := request.told.get():
                total += count
                self.wfile.write(b'data: {"choices":[{"index":0,"text":""}]}\n\n')
            usage = {"choices": [], "usage": {"completion_tokens": total}}
            self.wfile.write(b"data: " + json.dumps(usage, separators=(",", ":")).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, format: str, *args: Any) -> None:
            """No log: it would cost the peer time."""

    return Handler


def main() -> None:
    stepper = Stepper(sys.argv[1], int(sys.argv[2]))
    threading.Thread(target=stepper.run, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), make_handler(stepper)).serve_forever()


if __name__ == "__main__":
    main()
